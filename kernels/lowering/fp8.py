"""A product of MXFP4 operands on FP8 tensor cores (compute capability 8.9 and 9.0): E4M3 values with a scale a row."""

from __future__ import annotations

from typing import Any

import torch

from ..library import IN_ROWS
from ..schemas import Epilogue, Operand
from . import templates
from .derived import derived_of
from .device import architecture_of
from .flat import Flat
from .inductor import V, ir, realize_inputs
from .library import Product, library_call
from .operands import in_words
from .templates import least_wasted, over_k, select
from .unrotate import ended, in_template

_FP8_TILES = {  # 256 columns would spill: the sums of 128 products need registers beside those of all
    "ada": [dict(BLOCK_M=128, BLOCK_N=128, BLOCK_K=128, num_warps=8, num_stages=3)],
    "hopper": [
        dict(BLOCK_M=128, BLOCK_N=128, BLOCK_K=256, num_warps=8, num_stages=3),
        dict(BLOCK_M=128, BLOCK_N=128, BLOCK_K=128, num_warps=8, num_stages=4),
    ],
}
"""The longer the step, the fewer the instructions: 119 of Hopper's loop for each 128 of K by steps of 256, 150 by steps of
128. Sums of 256 products, kept in 14 bits, would take 87; the tensor cores bound both."""

_ROTATED_IN = {torch.bfloat16: "tl.bfloat16", torch.float16: "tl.float16"}
"""What the template rounds a product to before it rotates it back, on tensor cores: the dtype of the result."""


def fp8_mm(left: Operand, right: Operand, alpha: float, dtype: torch.dtype, epilogue: Epilogue | None):
    """The product on FP8 tensor cores: MXFP4 operands are nearly always exact in E4M3 with a scale a row. Its epilogue is
    the end of the template, or of float32 results a kernel of its own."""
    device = left.codes.get_device()
    architecture = architecture_of(device)
    a, a_scales, b, b_scales = realize_inputs(left.codes, left.scales, right.codes, right.scales)
    m, n, k = a.get_size()[0], b.get_size()[0], a.get_size()[1] * 2
    inside = in_template(epilogue if dtype in _ROTATED_IN else None, n)
    library = library_call(Product(a, b, IN_ROWS, alpha, dtype, inside.is_there), architecture)
    if library is not None and library.alone:
        inside = in_template(None, n)
    product = select(
        templates.scaled_mm_fp8,
        [a, a_scales, b, b_scales, *_in_fp8(left), *_in_fp8(right), *map(in_words, inside.mask)],
        ir.FixedLayout(device, dtype, [m, inside.columns]),
        [m, n],
        over_k(least_wasted(_FP8_TILES[architecture], k), k),
        library=library,
        ALPHA=alpha,
        GROUP_M=8,
        DESCRIPTORS=architecture == "hopper",
        ROTATED_IN=_ROTATED_IN.get(dtype),
        **inside.constants(),
    )
    return product if inside.is_there else ended(product, epilogue)


def _in_fp8(operand: Operand) -> list[Any]:
    """E4M3 values int32[rows, n / 4], the row's scale, the bits of a float32, and whether it isn't exact, int32[rows, 1]
    each; one buffer for all products that read them."""
    known = derived_of(operand.codes)
    if known.fp8 is None:
        codes, scales = realize_inputs(operand.codes, operand.scales)
        known.fp8 = _decode(codes, scales)
    return known.fp8


def _decode(codes: Any, scales: Any) -> list[Any]:
    rows, columns = codes.get_size()[0], codes.get_size()[1] * 2
    words = V.graph.sizevars.simplify(ir.FloorDiv(columns, 4))
    flat = Flat(torch.int32, ROWS=rows, WORDS=words)
    flat.add("VALUES", "ROWS", "WORDS")
    flat.add("SCALES", "ROWS")
    flat.add("BEYOND", "ROWS")
    tile = dict(BLOCK_ROWS=4, BLOCK_COLUMNS=1024, BLOCK_SCALES=128, num_warps=4, num_stages=2)
    layout = flat.layout(codes.get_device())
    buffer = select(templates.decode_fp8, [in_words(codes), scales], layout, [rows, columns], [tile], **flat.starts())
    return realize_inputs(*flat.views(buffer).values())
