"""A product of MXFP4 operands on FP8 tensor cores (compute capability 8.9 and 9.0): E4M3 values with a scale a row."""

from __future__ import annotations

from typing import Any

import torch

from ..schemas import Operand
from . import templates
from .derived import derived_of
from .device import architecture_of
from .flat import Flat
from .inductor import ir, realize_inputs
from .templates import over_k, select

_FP8_TILES = {  # 256 columns would spill: the sums of 128 products need registers beside those of all
    "ada": [dict(BLOCK_M=128, BLOCK_N=128, BLOCK_K=128, num_warps=8, num_stages=3)],
    "hopper": [dict(BLOCK_M=128, BLOCK_N=128, BLOCK_K=128, num_warps=8, num_stages=4)],
}


def fp8_mm(left: Operand, right: Operand, alpha: float, dtype: torch.dtype):
    """The product on FP8 tensor cores: MXFP4 operands are nearly always exact in E4M3 with a scale a row."""
    device = left.codes.get_device()
    architecture = architecture_of(device)
    a, a_scales, b, b_scales = realize_inputs(left.codes, left.scales, right.codes, right.scales)
    m, n, k = a.get_size()[0], b.get_size()[0], a.get_size()[1] * 2
    return select(
        templates.scaled_mm_fp8,
        [a, a_scales, b, b_scales, *_in_fp8(left), *_in_fp8(right)],
        ir.FixedLayout(device, dtype, [m, n]),
        [m, n],
        over_k(_FP8_TILES[architecture], k),
        ALPHA=alpha,
        GROUP_M=8,
        DESCRIPTORS=architecture == "hopper",
    )


def _in_fp8(operand: Operand) -> list[Any]:
    """E4M3 values uint8[rows, n], the row's scale and whether it isn't exact, uint8[rows, 1] each; one buffer for all
    products that read them."""
    known = derived_of(operand.codes)
    if known.fp8 is None:
        codes, scales = realize_inputs(operand.codes, operand.scales)
        known.fp8 = _decode(codes, scales)
    return known.fp8


def _decode(codes: Any, scales: Any) -> list[Any]:
    rows, columns = codes.get_size()[0], codes.get_size()[1] * 2
    flat = Flat(ROWS=rows, COLUMNS=columns)
    flat.add("VALUES", "ROWS", "COLUMNS")
    flat.add("LARGEST", "ROWS")
    flat.add("BEYOND", "ROWS")
    tile = dict(BLOCK_ROWS=4, BLOCK_COLUMNS=1024, BLOCK_SCALES=128, num_warps=4, num_stages=2)
    layout = flat.layout(codes.get_device())
    buffer = select(templates.decode_fp8, [codes, scales], layout, [rows, columns], [tile], **flat.starts())
    return realize_inputs(*flat.views(buffer).values())
