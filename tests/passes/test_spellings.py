"""Every way to write a matmul with a parameter: rewritten, and then right, or kept with its reason. The recipe `exact`
shows that it is right: output and every gradient equal the untouched model's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from captured import compiled, sites
from rounding import assert_same_step
from spellings import ALL, ENDS, KEPT, Experts, Spelled
from torch import nn
from torch.nn.utils import parametrizations

from quartet_compile.capture.capture import Capture
from quartet_compile.config.options import configure

FP4 = {
    "one of a stack": ["matmul with a weight computed from 1 parameter"] * 2,
    "chunks": ["matmul with a weight computed from 1 parameter"] * 2,
    "sliced": ["matmul with a weight computed from 1 parameter"],
    "scaled": ["matmul with a weight computed from 1 parameter"],
    "concatenated": ["matmul with a weight computed from 2 parameters"],
    "kron": ["matmul with a weight computed from 2 parameters"],
    "used twice": ["matmul with a parameter"] * 2,
    "einsum, a matrix a head": ["matmul with 2 matrices of a parameter"],
    "bmm": ["matmul with 2 matrices of a parameter"],
    "bmm, odd sizes": ["matmul with 2 matrices of a parameter"],
    "bmm, w on the left": ["matmul with 2 matrices of a parameter"],
    "bmm, stored transposed": ["matmul with 2 matrices of a parameter"],
    "bmm, expanded": ["matmul with 2 matrices of a parameter"],
    "baddbmm": ["matmul with 2 matrices of a parameter"],
    "batched matmul": ["matmul with 4 matrices of a parameter"],
    **{name: ["convolution with a parameter"] for name in ALL if name.startswith(("1x1", "1-D", "patches", "dilated"))},
    "transposed convolution": ["transposed convolution with a parameter"],
}
MIXED = {"sum of low rank": ["product of two parameters", "matmul with a weight computed from 3 parameters"]}


@pytest.mark.parametrize("needs_dx", [False, True], ids=["", "dx"])
@pytest.mark.parametrize("name", ALL)
def test_spelling(name, needs_dx):
    spell, shapes = ALL[name]
    torch.manual_seed(1)
    model, x = Spelled(spell, **shapes), torch.randn(2, 48, 64, requires_grad=needs_dx)
    check(model, x, FP4.get(name) or KEPT.get(name) or MIXED.get(name) or ["matmul with a parameter"], name not in KEPT)


def check(model, x, reasons, rewritten):
    function, backend = compiled(model, recipe="exact")
    assert_same_step(model, x, function)
    found = sites(backend)
    assert len(found) == len(reasons), [s.reason for s in found]
    for site, reason in zip(found, reasons, strict=True):
        assert site.reason.startswith(reason), site.reason
    assert any(site.rewritten for site in found) == rewritten


@pytest.mark.parametrize(
    "norm", [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal]
)
def test_parametrized_weight(norm):
    torch.manual_seed(1)
    model = norm(nn.Linear(64, 64)).eval()  # spectral_norm changes its vectors at each call in training
    check(model, torch.randn(48, 64, requires_grad=True), PARAMETRIZED[norm], True)


PARAMETRIZED = {
    parametrizations.weight_norm: ["matmul with a weight computed from 2 parameters"],
    parametrizations.spectral_norm: ["matmul with a weight computed from 1 parameter"],
    parametrizations.orthogonal: ["product of two parameters", "matmul with a weight computed from 1 parameter"],
}


@pytest.mark.parametrize("needs_dx", [False, True], ids=["", "dx"])
@pytest.mark.parametrize("ends", ENDS)
def test_transformers_experts(ends, needs_dx):
    """What transformers' experts call where `torch._grouped_mm` can't be compiled; rows of no group are zero."""
    pytest.importorskip("transformers.integrations.moe")
    torch.manual_seed(1)
    model, x = (
        Experts(torch.ops.transformers.grouped_mm_fallback, ENDS[ends]),
        torch.randn(96, 64, requires_grad=needs_dx),
    )
    check(model, x, ["matmul with 4 matrices of a parameter"] * 2, True)


@pytest.mark.parametrize("needs_dx", [False, True], ids=["", "dx"])
def test_grouped_mm(needs_dx):
    """`torch._grouped_mm` is bfloat16 only; rows of no group are undefined there, so every row has a group."""
    torch.manual_seed(1)
    model = Experts(torch._grouped_mm, ENDS["odd"], torch.bfloat16)
    x = torch.randn(96, 64, dtype=torch.bfloat16, requires_grad=needs_dx)
    function, backend = compiled(model, recipe="exact")
    assert_same_step(model, x, function)
    assert [site.rewritten for site in sites(backend)] == [True, True]


DYNAMIC = {
    "linear": ["matmul with a parameter"],
    "einsum": ["matmul with a parameter"],
    "einsum, heads out": ["matmul with a parameter"],
    "einsum, a matrix a head": ["matmul with 2 matrices of a parameter"],
    "bmm, dynamic rows": ["matmul with 2 matrices of a parameter"],
    "bmm on the left, dynamic rows": ["matmul with 2 matrices of a parameter"],
    "1-D convolution": ["a convolution of dynamic spatial size; mark it static with torch._dynamo.mark_static"],
    "1x1 convolution, dynamic batch": ["convolution with a parameter"],
}
OF_ANY_LENGTH = {
    **{name: ALL[name] for name in DYNAMIC if name in ALL},
    "einsum, heads out": ALL["einsum, heads out"],
    "einsum, a matrix a head": (
        lambda s, x: torch.einsum("bshd,hde->bshe", x.unflatten(2, (2, 32)), s.w),
        {"w": (2, 32, 64)},
    ),
    "bmm, dynamic rows": (lambda s, x: torch.bmm(x, s.w), {"w": (2, 64, 35)}),
    "bmm on the left, dynamic rows": (lambda s, x: torch.bmm(s.w, x.transpose(1, 2)), {"w": (2, 35, 64)}),
    "1x1 convolution, dynamic batch": (
        lambda s, x: F.conv2d(x.transpose(0, 1).reshape(-1, 32, 2, 2), s.w, s.b),
        {"w": (40, 32, 1, 1), "b": (40,)},
    ),
}


@pytest.mark.parametrize("name", DYNAMIC)
def test_dynamic_length(name):
    """One graph for all lengths, right for each."""
    spell, shapes = OF_ANY_LENGTH[name]
    torch.manual_seed(1)
    model = Spelled(spell, **shapes)
    backend = Capture(configure({"recipe": "exact"}), text=False)
    torch._dynamo.reset()
    function = torch.compile(model, backend=backend, dynamic=True)
    for length in (48, 33, 100, 17):
        x = torch.randn(2, length, 64)
        torch._dynamo.mark_static(x, 0)
        torch._dynamo.mark_static(x, 2)
        assert_same_step(model, x, function)
    assert len(backend.graphs) == 1
    for site, reason in zip(sites(backend), DYNAMIC[name], strict=True):
        assert site.reason.startswith(reason), site.reason
