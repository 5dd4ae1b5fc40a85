"""Grouped products: where rows go, each GEMM against a loop over its groups, and the whole layer against one layer an
expert."""

from __future__ import annotations

import pytest
import torch
from accumulation import assert_same_product
from captured import compiled
from models import relative
from module_swap import swap_linears
from torch import nn

import quartet_compile as qc
from quartet_compile.errors import QuartetError
from quartet_compile.kernels import cpu
from quartet_compile.kernels.numerics import grouped, reference
from quartet_compile.kernels.numerics.reference import Blocks
from quartet_compile.kernels.quantizer import quantizer

ENDS = [[10, 43, 43, 96], [0, 32, 64, 90], [96, 96, 96, 96], [0, 0, 0, 0], [31, 62, 93, 96], [0, 0, 0, 96]]


@pytest.mark.parametrize("block", [32, 128])
@pytest.mark.parametrize("ends", ENDS, ids=str)
def test_groups_start_at_blocks_and_every_row_comes_back(ends, block):
    x = torch.arange(1.0, 97.0)[:, None]
    index, back, new_ends = grouped.separate_groups(torch.tensor(ends, dtype=torch.int32), x, block)
    moved = torch.cat([x, torch.zeros(1, 1)])[index]
    assert len(moved) == grouped.separate_rows(96, 4, block) and len(moved) % block == 0
    assert (new_ends % block == 0).all() and new_ends.dtype == torch.int32
    start = new_start = 0
    for end, new_end in zip(ends, new_ends.tolist(), strict=True):
        rows = moved[new_start:new_end]
        assert torch.equal(rows[: end - start], x[start:end]) and not rows[end - start :].any()
        assert 0 <= len(rows) - (end - start) < block
        start, new_start = end, new_end
    assert not moved[new_start:].any() and not moved[-1].any()
    assert torch.equal(moved[back][:start], x[:start]) and not moved[back][start:].any()


def test_groups_that_fill_every_row_of_the_bound():
    """31 * E + T rows are needed when each group is one row longer than its blocks."""
    ends = torch.arange(1, 6) * 33
    _, back, new_ends = grouped.separate_groups(ends, torch.empty(165, 1), 32)
    assert new_ends[-1] == 320 and back.max() < grouped.separate_rows(165, 5, 32)


def test_matrices_are_groups():
    x = torch.randn(3, 41, 5)
    found = grouped.separate_matrices(x, 128)
    expected = grouped.separate_groups(torch.tensor([41, 82, 123]), x.reshape(123, 5), 128)
    assert all(map(torch.equal, found, expected))


def quantized(x: torch.Tensor, name: str = "mxfp4-quest") -> Blocks:
    return reference.quantize(x, quantizer(name))


@pytest.mark.parametrize("backend", [reference, cpu], ids=["reference", "cpu"])
@pytest.mark.parametrize("name", ["mxfp4-quest", "exact-fixed"])
@pytest.mark.parametrize("ends", [[32, 96, 96], [0, 0, 128], [64, 64, 64]], ids=str)
def test_each_gemm_is_a_loop_over_groups(backend, name, ends):
    torch.manual_seed(0)
    tokens, n, k, experts = 128, 64, 100, 3
    x, w, dy = torch.randn(tokens, k), torch.randn(experts, n, k), torch.randn(tokens, n)
    starts = [0, *ends[:-1]]
    last = ends[-1]

    def product(a, b, gemm):
        return grouped.scaled_grouped_mm(
            quantized(a, name),
            quantized(b, name),
            torch.tensor(ends),
            experts,
            gemm,
            2.0,
            torch.float32,
            backend.scaled_mm,
        )

    def assert_is_one_of(found, a, b):
        operands = quantized(a, name), quantized(b, name)
        values = [reference.decode(operand, quantizer(name)) for operand in operands]
        assert_same_product(found, reference.scaled_mm(*operands, 2.0, torch.float32), 2.0 * values[0], values[1])

    slices = [slice(start, end) for start, end in zip(starts, ends, strict=True)]
    y = product(x, w.flatten(0, 1), "fprop")
    dx = product(dy, w.permute(2, 0, 1).flatten(1), "dgrad")
    dw = product(dy.t(), x.t(), "wgrad").unflatten(0, (experts, n))
    for expert, rows in enumerate(slices):
        if rows.stop > rows.start:
            assert_is_one_of(y[rows], x[rows], w[expert])
            assert_is_one_of(dx[rows], dy[rows], w[expert].t())
            assert_is_one_of(dw[expert], dy[rows].t(), x[rows].t())
        else:
            assert not dw[expert].any()
    assert not y[last:].any() and not dx[last:].any()


def test_a_nan_stays_in_its_group():
    x, w = torch.randn(96, 64), torch.randn(3 * 64, 64)
    x[40, 3] = torch.nan
    ends = torch.tensor([32, 64, 96])
    y = grouped.scaled_grouped_mm(quantized(x), quantized(w), ends, 3, "fprop", 1.0, torch.float32, cpu.scaled_mm)
    assert y[40].isnan().all() and y[:40].isfinite().all() and y[41:].isfinite().all()


class Bank(nn.Module):
    """Expert matrices, used by a batched product."""

    def __init__(self, experts: int, k: int, n: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(experts, k, n) / k**0.5)

    def forward(self, x):
        return torch.bmm(x, self.w)


@pytest.mark.parametrize("shape", [(64, 64, 96), (41, 100, 35)], ids=str)
def test_experts_equal_a_linear_layer_each(shape):
    """Forward bit for bit in codes (rounding is deterministic); backward in expectation: both average to one gradient."""
    rows, k, n = shape
    torch.manual_seed(2)
    model, x, dy = Bank(3, k, n), torch.randn(3, rows, k, requires_grad=True), torch.randn(3, rows, n)
    layers = nn.ModuleList(nn.Linear(k, n, bias=False) for _ in range(3))
    for layer, w in zip(layers, model.w.detach(), strict=True):
        layer.weight.data = w.t().contiguous()
    seeds = swap_linears(layers, qc.recipe("quartet"))
    function, _ = compiled(model)

    def each(x):
        return torch.stack([layer(rows) for layer, rows in zip(layers, x, strict=True)])

    for found, expected, a, b in zip(function(x), each(x), x, model.w.transpose(1, 2), strict=True):
        assert_same_product(found, expected, a, b)
    ours, theirs = [], []
    for seed in range(48):
        seeds.reset()
        torch.manual_seed(seed)
        dx, dw = torch.autograd.grad(function(x), (x, model.w), dy)
        ours.append(torch.cat([dx.flatten(), dw.flatten()]))
        dx, *dw = torch.autograd.grad(each(x), (x, *(layer.weight for layer in layers)), dy)
        theirs.append(torch.cat([dx.flatten(), torch.stack(dw).transpose(1, 2).flatten()]))
    noise = relative(theirs[0], theirs[1])
    assert noise > 0.1
    assert relative(torch.stack(ours).mean(0), torch.stack(theirs).mean(0)) < 1.1 * noise / 48**0.5


def test_a_product_that_is_not_in_the_table_is_refused():
    a, ends = quantized(torch.randn(32, 64)), torch.tensor([32])
    with pytest.raises(QuartetError, match="grouped product 'transposed'; expected fprop, dgrad or wgrad"):
        grouped.scaled_grouped_mm(a, a, ends, 1, "transposed", 1.0, torch.float32, cpu.scaled_mm)
