"""A weight of which there are codes alone, without any process group: what a graph makes of it, and who may not read it."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from captured import compiled, sites
from torch import nn

import quartet_compile as qc
from quartet_compile.gathers.fsdp import Codes
from quartet_compile.gathers.weight import GatheredWeight


class Twice(nn.Module):
    """A weight that two products read, and two linears on one X."""

    def __init__(self, dtype=torch.bfloat16):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = nn.Linear(96, 100, bias=False), nn.Linear(96, 100)
        self.to(dtype)

    def forward(self, x):
        return self.first(x) * self.second(x) + self.first(2 * x)


def gathered(model, recipe="quartet"):
    """A copy of the model whose weights are codes, as FSDP2's gather leaves them: of more rows than there are."""
    model, given = copy.deepcopy(model), qc.recipe(recipe)
    parcel = Codes(given.fprop.b.name, given.trust_mask)
    for module in (model.first, model.second):
        weight = module.weight.detach()
        sent = parcel.sent(nn.functional.pad(weight, (0, 0, 0, 4)), None)
        module.weight = nn.Parameter(parcel.received(sent, weight.shape, weight.dtype))
    return model


def gradients(model, x, **options):
    function, backend = compiled(model, **options)
    torch.manual_seed(0)
    y = function(x)
    y.float().square().sum().backward()
    return [y.detach(), x.grad, *(parameter.grad for parameter in model.parameters())], backend


@pytest.mark.parametrize("recipe", ["quartet", "quartet-rtn", "unrotated"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_bits_of_a_whole_weight(recipe, dtype):
    recipe = qc.unrotated("quartet") if recipe == "unrotated" else recipe
    model, x = Twice(dtype), torch.randn(2, 24, 96, dtype=dtype)
    plain, _ = gradients(model, x.clone().requires_grad_(), recipe=recipe)
    ours, backend = gradients(gathered(model, recipe), x.clone().requires_grad_(), recipe=recipe)
    assert all(map(torch.equal, plain, ours)) and len(plain) == 5
    assert [(site.name, site.rewritten) for site in sites(backend)] == [
        ("first", True),
        ("second", True),
        ("first", True),
    ]


def test_without_gradients():
    model, x = Twice(), torch.randn(48, 96, dtype=torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(compiled(model)[0](x), compiled(gathered(model))[0](x))


def test_the_graph_quantizes_no_weight():
    model = gathered(Twice())
    function, backend = compiled(model)
    function(torch.randn(48, 96, dtype=torch.bfloat16, requires_grad=True)).sum().backward()
    (graph,) = backend.graphs
    assert len([site for site in graph.sites if site.rewritten]) == 3


READERS = {
    "in high precision": (lambda w: w.float().square().sum(), contextlib.nullcontext(), "reads it"),
    "in part": (lambda w: torch.randn(48, 96, dtype=w.dtype) @ w[:64].T, contextlib.nullcontext(), "slice_1 reads it"),
    "turned": (lambda w: torch.randn(48, 100, dtype=w.dtype) @ w, contextlib.nullcontext(), "in part, transposed"),
    "cast": (
        lambda w: nn.functional.linear(torch.randn(48, 96), w),
        torch.autocast("cpu", torch.float16),
        "cast before the quantizer",
    ),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_graph_that_wants_the_weight_itself_is_an_error(reader):
    read, context, why = READERS[reader]

    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = gathered(Twice()).first.weight

        def forward(self, x):
            return read(self.weight) + x.sum()

    with pytest.raises(qc.WireError, match=f"'weight' as codes.*{why}"), context:
        compiled(Reader())[0](torch.randn(4, requires_grad=True))


@pytest.mark.parametrize("recipe", ["quartet2", "bf16", "mxfp8"])
def test_another_recipe_is_an_error(recipe):
    with pytest.raises(qc.WireError, match=rf"'first.weight' as codes.*{recipe}.*exclude=\['first'\]"):
        compiled(gathered(Twice()), recipe=recipe)[0](torch.randn(48, 96, dtype=torch.bfloat16))


def test_few_rows_and_exclude_are_errors():
    model = gathered(Twice())
    with pytest.raises(qc.WireError, match="M is 8 in training"):
        compiled(model)[0](torch.randn(8, 96, dtype=torch.bfloat16, requires_grad=True))
    with pytest.raises(qc.WireError, match="excluded by 'second'"):
        compiled(model, exclude=["second"])[0](torch.randn(48, 96, dtype=torch.bfloat16))


def test_eager_code_may_ask_for_anything_but_values():
    weight = gathered(Twice()).first.weight
    assert weight.shape == (100, 96) and weight.t().shape == (96, 100) and weight.t().stride() == (1, 96)
    assert "mxfp4-quest" in repr(weight) and not torch.zeros_like(weight).any()
    assert isinstance(weight.detach(), GatheredWeight) and isinstance(weight.view(100, 96), GatheredWeight)
    for read in (lambda: weight + 1, lambda: weight.view(-1), lambda: nn.functional.linear(torch.randn(2, 96), weight)):
        with pytest.raises(qc.WireError, match="Compile the module that reads it"):
            read()
