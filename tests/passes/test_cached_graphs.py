"""Which results the graphs let the weight cache keep, and what the report says of the others."""

from __future__ import annotations

import pytest
import torch
from captured import compiled
from expecttest import assert_expected_inline
from hand_built import Joint, aten, gathered_linear, rewritten, two_linears
from models import Attention, Block, Net
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import quartet_compile as qc
from quartet_compile.kernels.schemas import arguments_of, op_of
from quartet_compile.passes import PIPELINE
from quartet_compile.passes.graph import Values
from quartet_compile.passes.pipeline import run
from quartet_compile.passes.show import show
from quartet_compile.passes.weight_cache import memory_of

X = torch.randn(2, 16, 64)
ON = {"weight_cache": True}


def cached_of(model, *inputs, **options):
    """What the report says of a model's graphs, by matmul and operand."""
    report = qc.explain(model, *inputs, **{**ON, **options})
    return {(item.matmul, item.operand): item.reason for item in report.cached}


def test_the_graph_of_square_blocks():
    work = two_linears(recipe="nvfp4", **ON)
    run(PIPELINE, work)
    lines = show(work.graph, {**work.inputs.names}).splitlines(keepends=True)
    assert_expected_inline(
        "".join(line for line in lines if "cached" in line),
        """\
fwd  first.q = quantize[nvfp4-rtn-2d, cached](first)
fwd  second.q = quantize[nvfp4-rtn-2d, cached](second)
bwd  second.qt = transposed[cached](second.q)
bwd  first.qt = transposed[cached](first.q)
""",
    )


def test_nothing_is_kept_unless_asked_for():
    work = two_linears(recipe="nvfp4")
    run(PIPELINE, work)
    assert "cached" not in show(work.graph, {}) and work.cached == ()


def test_a_cast_weight_is_read_as_it_is():
    """Under autocast: the memory of the parameter is what outlives a step."""
    with torch.autocast("cpu", torch.bfloat16):
        work = rewritten(Block(), X, **ON)
    for node in work.graph.nodes:
        if op_of(node) == "quantize" and (call := arguments_of(node)).cached_as is not None:
            assert call.x.op == "placeholder" and call.x.meta["val"].dtype == torch.float32
            assert call.cached_as == torch.bfloat16
    assert [item.reason for item in work.cached if item.operand == "W"] == ["", ""]


RANDOM = "mxfp4-sr draws random numbers"
RECIPES = {
    "quartet": {"W": "", "W^T": RANDOM},
    "quartet2": {"W": "", "W^T": "nvfp4-eden draws random numbers"},
    "quartet-rtn": {"W": "", "W^T": "mxfp4-rtn draws random numbers"},
    "tetrajet2": {"W": "", "W^T": "nvfp4-sr,rotation=32,random_signs=True draws random numbers"},
    "mxfp4-bwd": {"W^T": "mxfp4-sr,rotation=64 draws random numbers"},
    "nvfp4": {"W": "", "W^T": ""},
    "nvfp4-4over6": {"W": "", "W^T": ""},
    "jetfire-fp4": {"W": "", "W^T": ""},
    "mxfp8": {"W": "", "W^T": ""},
    "exact": {"W": "exact-fixed rounds nothing"},
    "bf16": {},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_kept_of_each_recipe(recipe):
    found = cached_of(nn.Sequential(nn.Linear(64, 96), nn.Linear(96, 64)), X, recipe=recipe)
    assert {operand: reason for (name, operand), reason in found.items() if name == "1"} == RECIPES[recipe]


class Computed(nn.Module):
    """Weights that are computed of parameters, laid out anew, and shared."""

    def __init__(self):
        super().__init__()
        self.normed = weight_norm(nn.Linear(64, 64, bias=False))
        self.parts = nn.ParameterList(torch.randn(32, 64) for _ in range(2))
        self.shared = nn.Linear(64, 64, bias=False)

    def forward(self, x):
        x = self.normed(x)
        x = nn.functional.linear(x, torch.cat([*self.parts]))
        return self.shared(self.shared(x))


def test_what_has_no_memory_of_its_own_is_made_each_time():
    found = cached_of(Computed(), X)
    assert {name: reason for (name, operand), reason in found.items() if operand == "W"} == {
        "normed": "it is computed in the graph",
        "parts.0 + parts.1": "it is computed in the graph",
        "shared": "",
    }


class Experts(nn.Module):
    def __init__(self, turned):
        super().__init__()
        self.w, self.turned = nn.Parameter(torch.randn(4, 64, 64)), turned

    def forward(self, x):
        return torch.bmm(x, self.w.transpose(1, 2) if self.turned else self.w)


def test_the_weights_of_a_batch():
    """One below the other, if each is [N, K]; else they would have to be laid out anew."""
    x = torch.randn(4, 16, 64)
    (kept,) = {reason for (_, operand), reason in cached_of(Experts(True), x).items() if operand == "W"}
    (anew,) = {reason for (_, operand), reason in cached_of(Experts(False), x).items() if operand == "W"}
    assert kept == "" and anew == "it is laid out anew in the graph"


def test_the_weights_of_a_function():
    def function(x, w):
        return x @ w.t()

    report = qc.explain(function, X[0], torch.randn(64, 64, requires_grad=True), **ON)
    assert [item.reason for item in report.cached if item.operand == "W"] == [""]


def test_checkpoints_are_counted_once():
    """Both recomputations of a block quantize its weights: what they keep is one."""
    plain, checkpointed = (qc.explain(Net(checkpointing=way), X, **ON).cached for way in (False, True))
    w = [[item for item in found if item.operand == "W"] for found in (plain, checkpointed)]
    assert w[0] == w[1] and len(w[0]) == 5


@pytest.mark.parametrize("part", [(48, 64), (48, 70)])
def test_the_part_of_a_rank_is_what_is_kept(part):
    """Where codes are gathered; where the weight is, it is made in the graph."""
    reasons = []
    for wire in ("quantized", "high"):
        work = gathered_linear(lambda joint, w: w, part, wire=wire, **ON)
        run(PIPELINE, work)
        reasons += [item.reason for item in work.cached if item.operand == "W"]
    assert reasons == ["", "it is computed in the graph"]


def test_where_the_values_lie():
    """Through views and one cast; a copy has no memory that outlives a call."""
    joint, values = Joint(), Values()
    w = joint.parameter("first", 4, 32, 64)
    cast = joint.call(torch.ops.prims.convert_element_type.default, w, torch.bfloat16)
    flat = joint.call(aten.view.default, cast, [128, 64])
    assert memory_of(flat, values).root is w and memory_of(flat, values).cast is cast
    assert memory_of(joint.call(aten.clone.default, w), values) == "it is laid out anew in the graph"
    again = joint.call(torch.ops.prims.convert_element_type.default, flat, torch.float32)
    assert memory_of(again, values) == "it is cast more than once"
    assert memory_of(joint.call(aten.neg.default, w), values) == "it is computed in the graph"
    turned = joint.call(aten.permute.default, w, [0, 2, 1])
    assert memory_of(joint.call(aten.reshape.default, turned, [256, 32]), values) == "it is laid out anew in the graph"


def test_the_report_says_what_is_kept():
    report = str(qc.explain(nn.Sequential(Attention(), Block()), X, **ON))
    assert "The weight cache keeps 6 of 9 operands made of weights: 18,816 bytes.\n" in report
    assert "\n   made each time: W^T of 1.down and 2 more: mxfp4-sr draws random numbers\n" in report


def test_a_weight_elsewhere_is_an_error():
    """As on a GPU, here on the meta device: the cache is built for the CPU alone."""
    model, x = nn.Linear(64, 64, device="meta"), torch.randn(16, 64, device="meta")
    function, backend = compiled(model, **ON)
    text = "'weight_cache' is True, and the weight 'weight' is on meta; expected weights on the CPU, .* Leave it out"
    with pytest.raises(qc.OptionError, match=text):
        function(x)
    assert not backend.graphs
    with pytest.raises(qc.OptionError, match=text):
        qc.explain(model, x, **ON)


def test_not_a_switch():
    with pytest.raises(qc.OptionError, match="Option 'weight_cache' is 'yes'; expected True or False"):
        torch.compile(nn.Linear(64, 64), backend="quartet", options={"weight_cache": "yes"})(X)
