"""Modules compiled in place: their copies, pickles, hooks, and forwards that others have replaced."""

from __future__ import annotations

import copy
import inspect
import io

import pytest
import torch
from models import Block, Net, gradients
from rounding import assert_rounding, step
from torch import nn

import quartet_compile as qc

X = torch.randn(2, 16, 64)
EXCLUDED = ["layers.1.down"]


def regions(model, **options):
    return qc.quartet(model, regions=["layers.*"], exclude=EXCLUDED, **options)


def whole(model):
    return qc.quartet(model, exclude=EXCLUDED)


def in_place(model):
    model.compile(backend="quartet", options={"exclude": EXCLUDED})
    return model


def by_name(model):
    return torch.compile(model, backend="quartet", options={"exclude": EXCLUDED})


def pickled(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def trained(model):
    """Gradients, which are noisy exactly where a matmul is in FP4."""
    return list(gradients(model, X)[1].values())


CASES = [
    *((way, copy.deepcopy) for way in (regions, whole, in_place, by_name)),
    *((way, pickled) for way in (regions, whole, by_name)),
]


@pytest.mark.parametrize("compiled, copied", CASES, ids=lambda function: function.__name__)
@pytest.mark.parametrize("called", [False, True], ids=["before the first call", "after a call"])
def test_a_copy_computes_what_the_original_does(graphs, compiled, copied, called):
    model = compiled(Net(blocks=3))
    if called:
        trained(model)
    made = copied(model)
    theirs, ours = trained(made), trained(model)
    assert all(map(torch.equal, theirs, ours))
    sites = {site.name: site.rewritten for graph in graphs for site in graph.sites}
    assert sites["layers.1.down"] is False and sites["layers.1.up"] is True
    plain = getattr(made, "_orig_mod", made)
    assert {id(p) for p in made.parameters()}.isdisjoint(id(p) for p in model.parameters())
    assert list(plain.state_dict()) == list(Net(blocks=3).state_dict())


def test_a_copy_uses_its_own_weights(graphs):
    model = regions(Net())
    made = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert not model(X).any() and made(X).any()


def test_a_switch_of_recipe_reaches_a_copy_only_by_itself(graphs):
    model = regions(Net())
    made = copy.deepcopy(model)
    before = trained(model)
    qc.set_recipe(made, "bf16")
    assert not all(map(torch.equal, trained(made), before)) and all(map(torch.equal, trained(model), before))


def test_a_pickle_of_a_module_compiled_in_place_does_not_need_us(graphs):
    model = in_place(Net())
    file = io.BytesIO()
    torch.save(model, file)
    assert b"quartet_compile" not in file.getvalue()


def test_hooks_run_around_a_region_and_its_forward_looks_like_itself(graphs):
    calls = []
    model = Net()
    model.layers[0].register_forward_hook(lambda *_: calls.append("after"))
    model.layers[0].register_forward_pre_hook(lambda *_: calls.append("before"))
    regions(model)
    trained(model)
    assert calls == ["before", "after"]
    assert inspect.signature(model.layers[0].forward) == inspect.signature(Block().forward)


def test_a_forward_that_somebody_replaced_stays(graphs):
    model = Net()
    original = model.layers[0].forward
    model.layers[0].forward = lambda x: original(x) * 2
    untouched = Net()
    untouched.load_state_dict(model.state_dict())
    first = untouched.layers[0].forward
    untouched.layers[0].forward = lambda x: first(x) * 2
    regions(model, recipe="exact")
    assert_rounding(step(model, X), lambda: step(untouched, X))
    assert graphs
    assert {site.name: site.rewritten for graph in graphs for site in graph.sites}["layers.0.up"]


def test_lazy_and_container_parts(graphs):
    model = nn.ModuleDict({"body": nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))})
    qc.quartet(model, regions=["body"])
    model["body"](X).sum().backward()
    assert [site.name for graph in graphs for site in graph.sites] == ["body.0", "body.1"]
