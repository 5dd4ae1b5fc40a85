"""`explain` and `graph_diff` of a model that is compiled: with its options, whatever way it was compiled."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from models import Block, Net, gradients
from torch import nn
from ways_in import (
    HOW,
    blocks_by_name,
    by_name,
    by_quartet,
    function,
    in_place,
    regions,
    wrapped_by_the_user,
)

import quartet_compile as qc
from quartet_compile import _compat

X = torch.randn(2, 16, 64, generator=torch.Generator().manual_seed(1))
OPTIONS = {"recipe": "quartet-rtn", "exclude": ["*.up"]}
APART = [blocks_by_name, wrapped_by_the_user]
"""What is compiled here is a part, with names of its own."""

WHOLE = [how for how in HOW if how not in APART]


def named(how):
    return how.__name__


@pytest.fixture(autouse=True)
def _no_warnings():
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="quartet")
        yield


@pytest.mark.parametrize("how", WHOLE, ids=named)
def test_explain_says_what_runs(graphs, how):
    model = Net()
    compiled = how(model, **OPTIONS)
    report = qc.explain(compiled, X)
    assert report.recipe == "quartet-rtn"
    gradients(model, X, function=compiled)
    ran = [(site.shape, site.runs_in) for graph in graphs for site in graph.sites if site.rewritten]
    assert [(site.shape, site.runs_in) for site in report.sites if site.rewritten] == ran
    assert {site.recipe for site in report.sites} == {"quartet-rtn", ""}
    assert len(ran) == (2 if how is regions else 3)


@pytest.mark.parametrize("how", WHOLE, ids=named)
def test_the_same_options_may_be_given_and_others_are_refused(how):
    compiled = how(Net(), **OPTIONS)
    assert qc.graph_diff(compiled, X, **OPTIONS) == qc.graph_diff(compiled, X, recipe="quartet-rtn")
    for other in ({"recipe": "quartet"}, {"exclude": []}, {"strict": True}):
        with pytest.raises(qc.OptionError, match=r"The options given are .* compiled with .*recipe='quartet-rtn'"):
            qc.explain(compiled, X, **other)


def test_a_wrong_option_is_named_before_it_is_compared():
    with pytest.raises(qc.OptionError, match="Unknown option 'excldue'"):
        qc.explain(by_name(Net(), **OPTIONS), X, excldue=[])


@pytest.mark.parametrize("how", [regions, blocks_by_name], ids=named)
def test_what_is_in_no_compiled_part_is_not_in_fp4(how):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.layers = nn.Linear(64, 64), nn.ModuleList([Block(), Block()])

        def forward(self, x):
            x = self.first(x)
            for layer in self.layers:
                x = layer(x)
            return x

    report = qc.explain(how(Model()), X)
    kept = [(site.name, site.reason) for site in report.sites if not site.rewritten]
    assert kept == [("first", "in no part of the model that is compiled")]
    assert len(report.sites) == 5


@pytest.mark.parametrize("how", APART, ids=named)
def test_patterns_over_the_names_of_a_part_are_refused_for_the_whole(how):
    with pytest.raises(qc.OptionError, match=r"is compiled by itself with .*Give the part that is compiled"):
        qc.explain(how(Net(), **OPTIONS), X)
    assert qc.explain(how(Net(), recipe="quartet-rtn"), X).recipe == "quartet-rtn"


def test_an_uncompiled_function_around_a_compiled_model():
    compiled = by_quartet(Net(), **OPTIONS)
    assert qc.explain(lambda x: compiled(x), X).recipe == "quartet-rtn"


def test_the_recipe_in_force_is_that_of_the_last_switch():
    compiled = by_name(Net(), **OPTIONS)
    qc.set_recipe(compiled, "quartet2")
    report = qc.explain(compiled, X)
    assert report.recipe == "quartet2"
    assert [site.reason for site in report.sites if site.name.endswith("up")] == ["excluded by '*.up'"] * 2


def test_a_mode_is_an_option():
    compiled = torch.compile(Net(), backend="quartet", mode="max-autotune-no-cudagraphs")
    assert qc.explain(compiled, X, mode="max-autotune-no-cudagraphs").sites
    with pytest.raises(qc.OptionError, match="mode='max-autotune-no-cudagraphs'"):
        qc.explain(compiled, X, mode="default")


def test_parts_with_options_of_their_own_are_refused_by_name():
    model = Net()
    model.layers[0].compile(backend="quartet")
    model.layers[1].compile(backend="quartet", options={"recipe": "quartet-rtn"})
    with pytest.raises(qc.OptionError, match=r"'layers.0' with the defaults, 'layers.1' with recipe='quartet-rtn'"):
        qc.explain(model, X)
    assert qc.explain(model.layers[1], X).recipe == "quartet-rtn"


@pytest.mark.parametrize("how", [in_place, regions], ids=named)
def test_a_copy_is_compiled_alike(how):
    assert qc.explain(copy.deepcopy(how(Net(), **OPTIONS)), X).recipe == "quartet-rtn"


def each_forward(model, **options):
    for layer in model.layers:
        layer.forward = torch.compile(layer.forward, backend="quartet", options=options)
    return model


def each_wrapped(model, **options):
    model.layers = nn.ModuleList(torch.compile(layer, backend="quartet", options=options) for layer in model.layers)
    return model


def parts_of_blocks(model, **options):
    return qc.quartet(model, regions=["layers.*.up", "layers.*.down"], **options)


BETWEEN_BREAKS = [regions, blocks_by_name, each_forward, each_wrapped, parts_of_blocks]


@pytest.mark.parametrize("how", BETWEEN_BREAKS, ids=named)
def test_compiled_parts_behind_graph_breaks_are_captured_with_the_rest(how, monkeypatch):
    """Compiled by themselves they would run kernels on the memory that fake tensors don't have."""
    monkeypatch.setattr(_compat, "compile_fx", lambda *_: pytest.fail("Inductor was asked"))
    model = how(Net(blocks=3, break_graph=True), recipe="quartet-rtn")
    calls = [dict(vars(module)) for module in model.modules()]
    report = qc.explain(model, X)
    assert sorted(site.name for site in report.sites if site.rewritten) == sorted(
        f"layers.{block}.{part}" for block in range(3) for part in ("up", "down")
    )
    for module, before in zip(model.modules(), calls, strict=True):
        assert [*map(id, vars(module).values())] == [*map(id, before.values())]


def test_a_compiled_class_behind_a_graph_break_is_refused():
    kind = torch.compile(type("Compiled", (Block,), {}), backend="quartet")
    model = Net(break_graph=True)
    model.layers = nn.ModuleList([kind(), kind()])
    with pytest.raises(qc.CaptureError, match="compiled by itself.*behind a graph break"):
        qc.explain(model, X)
    model.layers[0](X).sum().backward()  # and by itself it is compiled as before
    assert model.layers[0].up.weight.grad is not None


def test_a_model_that_another_backend_compiles_is_explained_as_one_that_is_not_compiled():
    assert qc.explain(torch.compile(Net(), backend="eager"), X, recipe="bf16").recipe == "bf16"
    assert qc.explain(function(Net(), **OPTIONS), X).recipe == "quartet-rtn"
