"""Tests of products by AMX, which test_cpu_amx.py runs in a process with emulated tile instructions (emulated_amx.py)."""

import pytest
import torch
from emulated_amx import tile_products
from products import blocks, decode, random_blocks

from quartet_compile.kernels.cpu.gemm import scaled_mm
from quartet_compile.kernels.numerics.reference import Blocks
from quartet_compile.kernels.quantizer import E2M1_VALUES

SIX = E2M1_VALUES.index(6.0)


def counted(a: Blocks, b: Blocks) -> tuple[torch.Tensor, int, int]:
    """The product, and how many pairs of tiles of int8 and of bf16 made it."""
    before = tile_products()
    out = scaled_mm(a, b, 1.0, torch.float32)
    int8, bf16 = (after - first for after, first in zip(tile_products(), before, strict=True))
    return out, int8, bf16


def panels(m: int, n: int, groups: int, steps: int) -> int:
    """Instructions of a product: four for each step of each 32x32 of the output."""
    return 4 * -(-m // 32) * -(-n // 32) * -(-groups // steps)


def test_similar_scales_are_integers_and_rounded_once():
    """The sum of 4100 products is exact until it is rounded to float32."""
    a, b = random_blocks(70, 4100, 120, 124), random_blocks(40, 4100, 90, 94)
    a.scales[5] += 40  # of a row for itself
    out, int8, bf16 = counted(a, b)
    assert torch.equal(out, (decode(a) @ decode(b).t()).float())
    assert (int8, bf16) == (panels(70, 40, 129, 2), 0)


def test_the_largest_integers():
    """6 under the largest scale of a row that spans three binades is 96, and a whole row of them is the largest sum."""
    a, b = (blocks(torch.full((33, 1024), SIX), torch.full((33, 32), 120)) for _ in range(2))
    a.scales[:, 0] = b.scales[:, 31] = 117
    b.codes[1::2] |= 0x88
    out, int8, bf16 = counted(a, b)
    assert torch.equal(out, (decode(a) @ decode(b).t()).float())
    assert bf16 == 0 and int8 == panels(33, 33, 32, 2)


def test_one_wide_row_takes_its_panel_to_bf16():
    a, b = random_blocks(96, 160, 120, 124), random_blocks(64, 160, 120, 124)
    a.scales[40, 0], a.scales[40, 4] = 120, 124
    out, int8, bf16 = counted(a, b)
    assert torch.equal(out, (decode(a) @ decode(b).t()).float())  # few enough terms for float32
    assert (int8, bf16) == (panels(64, 64, 5, 2), panels(32, 64, 5, 1))
    out, int8, bf16 = counted(b, a)
    assert torch.equal(out, (decode(b) @ decode(a).t()).float())
    assert (int8, bf16) == (panels(64, 64, 5, 2), panels(64, 32, 5, 1))


@pytest.mark.parametrize("byte", [0, 1, 116, 200, 254])
def test_groups_of_zeros_and_nan_do_not_count(byte):
    """A group of zeros has scale 0 as the quantizers leave it; one under another scale is a scale like any other."""
    a, b = random_blocks(40, 128, 120, 124), random_blocks(40, 128, 120, 124)
    a.codes[3, 16:32], a.scales[3, 1] = 0, byte
    a.scales[7, 2] = 255
    out, int8, bf16 = counted(a, b)
    expected = (decode(a) @ decode(b).t()).float()
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)
    assert out[7].isnan().all() and not out[:7].isnan().any()
    assert (bf16 == 0) == (byte == 0) and int8 > 0


def test_scale_0_that_is_no_zero():
    """2^-127 in earnest, far below the rest of its row."""
    a, b = random_blocks(32, 64, 1, 4), random_blocks(32, 64, 126, 130)
    a.scales[0, 0] = 0
    out, _, bf16 = counted(a, b)
    assert bf16 == panels(32, 32, 2, 1)
    assert torch.equal(out, (decode(a) @ decode(b).t()).float())


def test_rows_too_long_for_int32():
    """From 2^31 / 96^2 on, a sum of the largest products would not fit."""
    a = blocks(torch.full((1, 233024), SIX), torch.full((1, 7282), 127))
    out, int8, bf16 = counted(a, a)
    assert (int8, bf16) == (0, panels(1, 1, 7282, 1))
    assert abs(out.item() - 36 * 233024) <= 233024 * 2.0**-24 * 36 * 233024
