"""SiLU by the sigmoid of its gradient: where it is done, what it changes of a value, and what stays as it is."""

from __future__ import annotations

import types

import pytest
import torch
import torch.nn.functional as F
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from quartet_compile import _compat
from quartet_compile.cross.gpu_graph import to_gpu
from quartet_compile.passes import silu
from quartet_compile.passes.graph import Builder

aten = torch.ops.aten
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


def rewritten(function, dtype=BF16, device="cuda"):
    """The graph of a function of one matrix after the pass. The device needn't be there."""
    with _compat.FakeTensorMode():
        made = make_fx(function, decomposition_table=_compat.decompositions())(torch.empty(8, 64, dtype=dtype))
    if device == "cuda":
        to_gpu(made)
    silu.apply(types.SimpleNamespace(graph=made.graph, build=Builder(made.graph)))
    made.graph.eliminate_dead_code()
    made.recompile()
    return made


def exponentials(made: fx.GraphModule) -> tuple[int, int]:
    """How many exp and how many sigmoid a graph has."""
    return tuple(len(made.graph.find_nodes(op="call_function", target=op.default)) for op in (aten.exp, aten.sigmoid))


def silu_and_gradient(x):
    return F.silu(x), aten.silu_backward(torch.ones_like(x), x)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_silu_and_its_gradient_have_sigmoids_alone(dtype):
    assert exponentials(rewritten(silu_and_gradient, dtype)) == (0, 2)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_every_value_is_silus_to_one_rounding(dtype):
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    given, expected = rewritten(lambda x: F.silu(x), dtype)(x), F.silu(x)
    assert torch.equal(given.isnan(), expected.isnan())
    kept = ~expected.isnan() & (expected.abs() >= torch.finfo(dtype).tiny)
    given, expected = given[kept], expected[kept]
    apart = (given.view(torch.int16).int() - expected.view(torch.int16).int()).abs()
    assert apart.max() <= 1 and (apart > 0).float().mean() < 0.001
    assert torch.equal(given.isinf(), expected.isinf())


def test_the_gradient_of_older_torch_is_spelt_out():
    def spelt(x):
        wide = x.float()
        return F.silu(x), (1 / (1 + (-wide).exp()) * wide).to(BF16)

    assert exponentials(rewritten(spelt)) == (0, 2)


def between_casts(formula):
    """A function of 16-bit values that a formula of one float32 tensor computes."""
    return lambda x: formula(x.float()).to(x.dtype)


LEFT = {
    "float32 in": (lambda x: F.silu(x), F32, "cuda"),
    "float32 out": (lambda x: F.silu(x.float()), BF16, "cuda"),
    "float32 out too": (lambda x: ((y := F.silu(x.float())), y.to(BF16)), BF16, "cuda"),
    "on a CPU": (lambda x: F.silu(x), BF16, "cpu"),
    "another sign": (between_casts(lambda x: x / (1 + x.exp())), BF16, "cuda"),
    "another argument": (between_casts(lambda x: x / (1 + (x * 2).exp())), BF16, "cuda"),
    "another constant": (between_casts(lambda x: x / (2 + (-x).exp())), BF16, "cuda"),
    "another scale": (between_casts(lambda x: x / torch.add(1, (-x).exp(), alpha=2)), BF16, "cuda"),
    "another numerator": (between_casts(lambda x: (x + 1) / (1 + (-x).exp())), BF16, "cuda"),
    "another value above": (lambda x: (x.float() / (1 + (-(x * 2).float()).exp())).to(BF16), BF16, "cuda"),
    "from float64": (lambda x: F.silu(x.double().float()).to(BF16), BF16, "cuda"),
    "two exponentials": (between_casts(lambda x: x / ((-x).exp() + x.exp())), BF16, "cuda"),
    "a number above": (between_casts(lambda x: 1 / (1 + (-x).exp())), BF16, "cuda"),
    "rounded on the way": (between_casts(lambda x: x / (1 + (-x).exp().to(BF16).float())), BF16, "cuda"),
}


@pytest.mark.parametrize("case", LEFT)
def test_nothing_else_is_taken_for_silu(case):
    made = rewritten(*LEFT[case])
    assert exponentials(made)[0] > 0 and exponentials(made)[1] == 0


def test_a_silu_spelt_out_is_one_too():
    def spelt(x):
        wide = x.float()
        return (wide / ((-wide).exp() + 1)).to(BF16)

    assert exponentials(rewritten(spelt)) == (0, 1)
