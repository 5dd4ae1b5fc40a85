"""Operands of products of MXFP4, and what they stand for."""

import torch

from quartet_compile.kernels.numerics import reference
from quartet_compile.kernels.numerics.reference import Blocks
from quartet_compile.kernels.quantizer import E2M1_VALUES


def blocks(codes: torch.Tensor, scales: torch.Tensor) -> Blocks:
    """From one code an element, `[rows, K]`, and one scale byte a group."""
    packed = reference.pack_nibbles(codes.long())
    return Blocks(packed, scales.to(torch.uint8), torch.empty(0), None, "mxfp4")


def random_blocks(rows: int, k: int, low: int = 120, high: int = 135) -> Blocks:
    groups = (k + 31) // 32
    codes = torch.randint(0, 16, (rows, 32 * groups))
    codes[:, k:] = 0
    return blocks(codes, torch.randint(low, high, (rows, groups)))


def decode(x: Blocks) -> torch.Tensor:
    """float64[rows, K] of MXFP4"""
    scales = torch.where(x.scales == 255, torch.nan, 2.0 ** (x.scales.double() - 127))
    return elements(x) * scales.repeat_interleave(32, dim=1)


def elements(x: Blocks) -> torch.Tensor:
    """float64[rows, K], without scales"""
    table = torch.tensor((*E2M1_VALUES, *(-v for v in E2M1_VALUES)), dtype=torch.float64)
    return table[reference.unpack_nibbles(x.codes).long()]
