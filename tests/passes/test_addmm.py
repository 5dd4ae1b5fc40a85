"""`addmm` and `baddbmm`: `beta * bias + alpha * product` with every factor, bias and dtype, as torch has it."""

from __future__ import annotations

import math

import pytest
import torch
from captured import compiled, sites
from models import relative
from rounding import assert_rounding
from torch import nn

SHAPES = {"addmm": ((48, 64), (64, 96)), "baddbmm": ((2, 48, 64), (2, 64, 96))}
FACTORS = [
    {"beta": 0},
    {"beta": 0.0, "alpha": 0.5},
    {"beta": -1, "alpha": -2},
    {"beta": 0.25},
    {"alpha": 3},
    {"alpha": True, "beta": True},
    {"beta": False},
]


class Affine(nn.Module):
    def __init__(self, op: str, bias: tuple, dtype: torch.dtype = torch.float32, **factors) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.op, self.factors = getattr(torch, op), factors
        self.w = nn.Parameter((torch.randn(SHAPES[op][1]) / 8).to(dtype))
        self.b = nn.Parameter(torch.randn(bias).to(dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.op(self.b, x, self.w, **self.factors)


def run(model: Affine, function, x: torch.Tensor) -> list[torch.Tensor]:
    """The output and the gradients of x, the weight and the bias."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    y = function(x)
    (y.float() * torch.cos(torch.arange(y.numel())).view_as(y)).sum().backward()
    return [y.detach(), x.grad, model.w.grad, model.b.grad]


def check(model: Affine, x: torch.Tensor) -> None:
    function, backend = compiled(model, recipe="exact")
    ours = dict(enumerate(run(model, function, x)))
    assert [site.rewritten for site in sites(backend)] == [True]
    assert_rounding(ours, lambda: dict(enumerate(run(model, model, x))))
    for name, theirs in enumerate(run(model, model, x)):
        assert ours[name].dtype == theirs.dtype and ours[name].shape == theirs.shape and theirs.isfinite().all()


def both(model: Affine, x: torch.Tensor, rewritten: bool = True) -> tuple[list, list]:
    function, backend = compiled(model, recipe="exact")
    ours = run(model, function, x)
    assert [site.rewritten for site in sites(backend)] == [rewritten]
    return ours, run(model, model, x)


def inputs(op: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(SHAPES[op][0], generator=torch.Generator().manual_seed(3)).to(dtype)


@pytest.mark.parametrize("factors", FACTORS, ids=str)
@pytest.mark.parametrize("op", SHAPES)
def test_factors_are_torchs(op, factors):
    check(Affine(op, (96,), **factors), inputs(op))


@pytest.mark.parametrize("bias", [(96,), (1, 96), (48, 1), (1, 1), (), (1,), (48, 96)], ids=str)
def test_a_bias_of_any_shape(bias):
    check(Affine("addmm", bias, beta=0.5, alpha=2), inputs("addmm"))


@pytest.mark.parametrize("op", SHAPES)
def test_a_bias_times_zero_is_not_read(op):
    """Uninitialized memory may hold NaN and infinities."""
    model = Affine(op, (96,), beta=0, alpha=0.5)
    model.b.data[::3], model.b.data[1::3], model.b.data[2::3] = math.nan, math.inf, -math.inf
    check(model, inputs(op))


@pytest.mark.parametrize("op", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_whole_is_rounded_once(op, dtype):
    """The factors multiply what is not rounded yet: up to ties of the accumulation, the bits are torch's."""
    ours, torchs = both(Affine(op, (96,), dtype, beta=1.7, alpha=0.3), inputs(op, dtype))
    assert (ours[0] != torchs[0]).float().mean() < 0.01  # a product rounded first differs in a quarter of them
    for mine, his in zip(ours, torchs, strict=True):
        assert mine.dtype == dtype and relative(mine, his) < 16 * torch.finfo(dtype).eps


def test_a_small_alpha_keeps_float16_from_overflowing():
    x = 300 * torch.ones_like(inputs("addmm", torch.float16))
    model = Affine("addmm", (96,), torch.float16, beta=0, alpha=2**-10)
    model.w.data.fill_(30)
    ours, torchs = both(model, x)
    assert torchs[0].isfinite().all() and torch.equal(ours[0], torchs[0])


@pytest.mark.parametrize("op", SHAPES)
def test_an_alpha_of_zero_is_left_to_torch(op):
    """BLAS doesn't read the operands then, so infinities in them don't count."""
    x = inputs(op)
    x[0] = math.inf
    ours, torchs = both(Affine(op, (96,), alpha=0, beta=2), x, rewritten=False)
    torch.testing.assert_close(ours, torchs, rtol=0, atol=0, equal_nan=True)


def test_complex_factors_without_imaginary_part():
    """torch takes them, though it has no gradient of them in a compiled graph."""
    model, x = Affine("addmm", (96,), alpha=2 + 0j, beta=0j), inputs("addmm")
    function, backend = compiled(model, recipe="exact")
    with torch.no_grad():
        assert_rounding({"y": function(x)}, lambda: {"y": model(x)})
    assert [site.rewritten for site in sites(backend)] == [True]


def test_a_dynamic_alpha():
    model = Affine("addmm", (96,))
    torch._dynamo.reset()
    _, backend = compiled(model, recipe="exact")
    function = torch.compile(
        lambda x: torch.addmm(model.b, x, model.w, alpha=x.shape[0]), backend=backend, dynamic=True
    )
    for rows in (32, 40):
        model.factors = {"alpha": rows}
        x = inputs("addmm")[:rows]
        ours = dict(enumerate(run(model, function, x)))
        assert_rounding(ours, lambda x=x: dict(enumerate(run(model, model, x))))
    assert [site.rewritten for site in sites(backend)] == [True]


def test_a_dynamic_beta_is_kept():
    model = Affine("addmm", (96,))
    _, backend = compiled(model, recipe="exact")
    function = torch.compile(lambda x: torch.addmm(model.b, x, model.w, beta=x.shape[0]), backend=backend, dynamic=True)
    function(inputs("addmm"))
    (site,) = sites(backend)
    assert not site.rewritten and "beta is dynamic" in site.reason


def test_addbmm_has_a_line_in_the_report():
    w = nn.Parameter(torch.randn(2, 64, 96) / 8)
    function, backend = compiled(lambda x: torch.addbmm(x.new_zeros(96), x, w), recipe="exact")
    function(inputs("baddbmm"))
    (site,) = sites(backend)
    assert not site.rewritten and site.reason.startswith("addbmm; only")
