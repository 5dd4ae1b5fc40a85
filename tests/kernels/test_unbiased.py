"""The averaging test: the mean of B backward passes of one linear layer, with fresh signs and noise, against the exact
gradient of the same forward. Unbiased: the squared error falls as 1/B. Biased: it stops.

Four times as many passes are one more effective bit, `-log2(error) / 2` (arXiv 2601.22813).
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from captured import compiled
from torch import nn

import quartet_compile as qc
from quartet_compile.kernels.numerics import codes, reference, scales_e4m3

DRAWS = 256
UNBIASED = ["quartet", "quartet2", "tetrajet2", "mxfp4-bwd"]


def operand(x: torch.Tensor, recipe: qc.Recipe, role: str) -> torch.Tensor:
    """What X or W stands for in a backward GEMM, before it is rounded again."""
    source = recipe.w_from if role == "w" else recipe.x_from
    if source == "original":
        return x
    quantizer = recipe.fprop.b if role == "w" else recipe.fprop.a
    return reference.decode(reference.quantize(x, quantizer), quantizer)


def exact_gradients(recipe: qc.Recipe, x: torch.Tensor, w: torch.Tensor, dy: torch.Tensor) -> list[torch.Tensor]:
    """dX and dW with nothing rounded in backward."""
    gradients = [dy @ operand(w, recipe, "w"), dy.t() @ operand(x, recipe, "x")]
    if not recipe.fprop:
        return gradients
    masks = [None, None]
    if recipe.trust_mask:
        masks = [reference.quantize(t, recipe.fprop.a, mask=True).mask for t in (x, w)]
    rotations = [0 if s == "original" else recipe.fprop.a.rotation for s in (recipe.w_from, recipe.x_from)]
    columns = x.shape[1]
    return [reference.unrotate(g, m, r, columns) for g, m, r in zip(gradients, masks, rotations, strict=True)]


def errors(draws: torch.Tensor, exact: torch.Tensor) -> dict[int, float]:
    """Relative squared error of the mean of B draws, by B; over all disjoint means of B."""
    found = {}
    for size in (1, 4, 16, 64, 256):
        means = draws.reshape(len(draws) // size, size, *exact.shape).mean(1)
        found[size] = ((means - exact).square().sum((1, 2)) / exact.square().sum()).mean().item()
    return found


def averaged(recipe: qc.Recipe) -> list[dict[int, float]]:
    """The errors of dX and dW."""
    torch.manual_seed(1)
    model, x = nn.Linear(128, 96, bias=False), torch.randn(128, 128, requires_grad=True)
    dy = torch.randn(128, 96)
    function, _ = compiled(model, recipe=recipe, include=["*"])
    exact = exact_gradients(recipe, x.detach(), model.weight.detach(), dy)
    draws = []
    for seed in range(DRAWS):
        torch.manual_seed(seed)
        draws.append(torch.autograd.grad(function(x), (x, model.weight), dy))
    return [errors(torch.stack(samples), e) for samples, e in zip(zip(*draws, strict=True), exact, strict=True)]


@pytest.mark.parametrize("name", UNBIASED)
def test_four_times_as_many_passes_are_one_more_bit(name):
    for of in averaged(qc.recipe(name)):
        bits = [-math.log2(of[size]) / 2 for size in (1, 4, 16, 64, 256)]
        gained = [after - before for before, after in itertools.pairwise(bits)]
        assert all(gain == pytest.approx(1, abs=0.08) for gain in gained[:-1]), (name, of)
        assert gained[-1] == pytest.approx(1, abs=0.2), (name, of)  # one mean of 256 only


@pytest.mark.parametrize("name", ["nvfp4", "nvfp4-4over6"])
def test_x_rounded_to_nearest_limits_wgrad_only(name):
    """dX is unbiased; in dW, X^T is to nearest after a random rotation, whose bias shows beyond B = 16."""
    dx, dw = averaged(qc.recipe(name))
    assert dx[1] / dx[256] == pytest.approx(256, rel=0.3)
    assert dw[1] / dw[16] == pytest.approx(16, rel=0.1) and 64 < dw[1] / dw[256] < 256


def test_nearest_rounding_stops():
    """The test above can fail: `quartet-rtn` gains less than 5 bits from 256 passes where it should gain 8 / 2."""
    for of in averaged(qc.recipe("quartet-rtn")):
        assert of[1] / of[256] < 80


def test_what_validation_refuses_is_biased():
    """Four-over-six that looks at stochastically rounded values, which no `Quantizer` can state: its average stops at
    9 times the error that 1/B would leave."""
    generator = torch.Generator().manual_seed(2)
    a, b = (torch.randn(64, 256, generator=generator) for _ in range(2))
    exact = a @ b.t()

    def products(rounded):
        return torch.stack([rounded(a, generator) @ rounded(b, generator).t() for _ in range(DRAWS)])

    biased, honest = errors(products(stochastic_four_over_six), exact), errors(products(stochastic), exact)
    assert honest[1] / honest[256] == pytest.approx(256, rel=0.2)
    assert biased[1] / biased[256] < 50
    with pytest.raises(qc.QuantizerError, match="four-over-six"):
        qc.quantizer("nvfp4-sr,scale=four-over-six,largest_scale=256.0")


def stochastic(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """`nvfp4-sr` of x."""
    seed = torch.randint(2**62, (), generator=generator)
    quantizer = qc.quantizer("nvfp4-sr")
    return reference.decode(reference.quantize(x, quantizer, seed=seed), quantizer)


def stochastic_four_over_six(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Of two stochastic roundings, that with the smaller error a group."""
    groups = x.reshape(len(x), -1, 16)
    largest = groups.abs().amax(-1, keepdim=True)
    top = torch.tensor(6.0)
    tensor_scale = largest.amax() / torch.tensor(256.0) / top
    outcomes, losses = [], []
    for factor in (1.0, 1.5):
        unit = scales_e4m3._group_scale(largest / top / tensor_scale * factor).float() * tensor_scale
        bits = torch.randint(2**16, groups.shape, generator=generator)
        outcomes.append(codes.decode_e2m1(codes.encode_e2m1(groups / unit, bits)) * unit)
        losses.append((outcomes[-1] - groups).square().sum(-1, keepdim=True))
    return torch.where(losses[1] < losses[0], outcomes[1], outcomes[0]).reshape(x.shape)
