"""`weight_cache=True` gives the bits that there are without it, whatever changes a weight, and quantizes each once."""

from __future__ import annotations

import contextlib
import copy
import gc

import pytest
import torch
from cached_weights import Twins, counted, step
from models import Block, Net
from ranks import run_ranks
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import quartet_compile as qc
from quartet_compile.process import process

X = torch.randn(2, 16, 64, generator=torch.Generator().manual_seed(1))
WEIGHTS = 3
"""Of `Net(blocks=1)`."""


@pytest.fixture(autouse=True)
def _apart(monkeypatch):
    """Everything that is given from the cache is made again and compared, too; and what one test compiled is gone."""
    monkeypatch.setattr(process, "limits", {})
    monkeypatch.setattr(process, "configs", set())
    yield
    torch._dynamo.reset()


def twins(**options):
    torch.manual_seed(0)
    return Twins(Net(blocks=1, dropout=0.1), **options)


@torch.no_grad()
def by_data(model, optimizer, function):
    for parameter in model.parameters():
        parameter.data.mul_(1.5)


@torch.no_grad()
def one_element_behind_torchs_back(model, optimizer, function):
    for parameter in model.parameters():
        parameter.data.numpy().flat[-1] += 0.5


def new_data(model, optimizer, function):
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.5


def load(model, optimizer, function, assign):
    state = {name: 1.5 * value for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=assign)


def loaded(model, optimizer, function):
    load(model, optimizer, function, False)


def assigned(model, optimizer, function):
    load(model, optimizer, function, True)


def fused(model, optimizer, function):
    torch.optim.AdamW(model.parameters(), lr=0.1, fused=True).step()


def averaged(model, optimizer, function):
    """EMA weights are swapped in for an evaluation, as training does it."""
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    by_data(model, optimizer, function)
    average.update_parameters(model)
    with torch.no_grad():
        for parameter, other in zip(model.parameters(), average.module.parameters(), strict=True):
            parameter.copy_(other)


CHANGES = [by_data, one_element_behind_torchs_back, new_data, loaded, assigned, step, fused, averaged]


@pytest.mark.parametrize("recipe", ["quartet", "nvfp4"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_weight_is_quantized_anew(change, recipe, graphs):
    """And one that didn't change is not: each microbatch but the first after a change finds all of them."""
    pair = twins(recipe=recipe)
    assert pair.run(X) == [WEIGHTS, WEIGHTS]
    assert pair.run(X, seed=1) == [0, WEIGHTS]
    pair.both(change)
    assert pair.run(X) == [WEIGHTS, WEIGHTS]
    assert pair.run(X, seed=1) == [0, WEIGHTS]


SLOW = [("quartet2", False), ("nvfp4", True), ("mxfp8", False), ("mxfp8", True)]


@pytest.mark.parametrize(
    "recipe, autocast",
    [("nvfp4", False), ("quartet", True), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
)
def test_accumulated_training_through_inductor(recipe, autocast, monkeypatch):
    """Two steps of three microbatches; Inductor reuses the memory of operands."""
    monkeypatch.setenv("QUARTET_DEBUG", "weights")
    torch._dynamo.reset()
    pair, counts = twins(recipe=recipe), []
    for number in range(6):
        with torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext():
            counts.append(pair.run(X + number, seed=number)[1])
        if number == 2:
            pair.both(step)
    assert all(count == counts[0] for count in counts)


def test_each_weight_is_quantized_once_a_step_through_inductor():
    torch._dynamo.reset()
    pair, counts = twins(), []
    for number in range(4):
        counts.append(pair.run(X + number, seed=number))
        if number == 1:
            pair.both(step)
    assert counts == [[WEIGHTS, WEIGHTS], [0, WEIGHTS], [WEIGHTS, WEIGHTS], [0, WEIGHTS]]


def test_frozen_weights_are_quantized_once(graphs):
    """As beside LoRA: at no step but the first."""
    pair = twins()
    pair.both(lambda model, *_: model.layers.requires_grad_(False))
    counts = []
    for number in range(3):
        counts.append(pair.run(X, seed=number))
        pair.both(step)
    assert counts == [[3, 3], [1, 3], [1, 3]]  # the one that trains is another each time


def test_evaluation_and_generation(graphs):
    """Without gradients there is no mask, so its codes are made once more; then they are there for any number of rows."""
    pair = twins()
    pair.both(lambda model, *_: model.eval())
    with torch.no_grad():
        assert pair.run(X) == [WEIGHTS, WEIGHTS]
        assert [pair.run(X[:1, :rows]) for rows in (1, 2)] == 2 * [[0, WEIGHTS]]


def test_training_and_evaluation_share_a_weight(graphs):
    """Neither takes away what the other has kept."""
    pair = twins()
    assert pair.run(X) == [WEIGHTS, WEIGHTS]
    with torch.no_grad():
        assert pair.run(X) == [WEIGHTS, WEIGHTS]
    assert pair.run(X) == [0, WEIGHTS]
    with torch.no_grad():
        assert pair.run(X) == [0, WEIGHTS]


def test_set_recipe(graphs):
    """There and back: the codes of a recipe are those of its quantizers, and the weights didn't change."""
    pair = twins()
    assert pair.run(X) == [WEIGHTS, WEIGHTS]
    for recipe, count in (("nvfp4", WEIGHTS), ("bf16", 0), ("quartet", 0)):
        for function in pair.functions:
            qc.set_recipe(function, recipe)
        assert pair.run(X)[0] == count


def test_recomputation(graphs):
    """A checkpointed block quantizes its weights twice a microbatch without the cache."""
    torch.manual_seed(0)
    pair = Twins(Net(blocks=1, checkpointing=True))
    counts = [pair.run(X, seed=number) for number in range(2)]
    assert counts == [[3, 5], [0, 5]]


def test_blocks_that_share_a_graph(graphs):
    """Compiled one by one, they run the same code, each with its weights."""
    torch.manual_seed(0)
    model = nn.Sequential(*(Block() for _ in range(3)))

    def compile(model, **how):
        for block in model:
            block.compile(**how)
        return model

    pair = Twins(model, compile=compile)
    assert [pair.run(X, seed=number) for number in range(3)] == [[6, 6], [0, 6], [0, 6]]


def test_models_of_one_class(graphs):
    """As a teacher and a student: what one keeps the other doesn't disturb, nor get."""
    first, second = twins(), twins()
    second.both(by_data)
    for number in range(2):
        expected = [WEIGHTS * (number == 0), WEIGHTS]
        assert first.run(X, seed=number) == expected and second.run(X, seed=number) == expected


@pytest.mark.parametrize("by_inductor", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_fsdp2(by_inductor):
    """Blocks that are gathered for each microbatch, on two processes."""
    for rank in run_ranks("cached_weights:fsdp", 2, by_inductor):
        assert rank["counts"] == [[4, 0, 4, 0], [4, 4, 4, 4]]
        assert rank["digests"][0] == rank["digests"][1]


def test_it_is_freed_with_the_model(graphs):
    pair = twins()
    pair.run(X)
    assert len(process.weights) == WEIGHTS
    pair.models.clear()
    pair.optimizers.clear()
    pair.functions.clear()
    gc.collect()
    assert len(process.weights) == 0


def test_it_is_freed_with_the_graph():
    """`torch._dynamo.reset()` leaves nothing of it, though the model lives on; what is compiled then works as before."""
    torch._dynamo.reset()
    pair = twins()
    pair.run(X)
    assert len(process.weights) == WEIGHTS
    torch._dynamo.reset()
    gc.collect()
    assert len(process.weights) == 0
    assert pair.run(X) == [WEIGHTS, WEIGHTS]


def test_a_packed_weight_keeps_its_transpose(graphs):
    """Of square blocks; its codes are there anyway."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    model[1].requires_grad_(False)
    qc.pack(model, recipe="nvfp4", include=["1"])
    report = qc.explain(copy.deepcopy(model), X, recipe="nvfp4", weight_cache=True)
    assert [(item.matmul, item.operand, item.reason) for item in report.cached] == [("0", "W", ""), ("1", "W^T", "")]
    pair = Twins(model, recipe="nvfp4")
    for number in range(3):
        pair.run(X, seed=number)


def test_without_the_option_nothing_is_kept(graphs):
    model = Net(blocks=1)
    function = torch.compile(model, backend="quartet")
    with counted() as shapes:
        for _ in range(2):
            function(X).sum().backward()
    assert len(shapes) == 2 * WEIGHTS and len(process.weights) == 0
