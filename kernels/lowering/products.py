"""Lowering of `scaled_mm`: on FP4 tensor cores where there are some, else FP8 ones (`fp8.py`), else of decoded operands
(`decoded.py`)."""

from __future__ import annotations

from typing import Any

import torch

from ..operand_formats import OPERAND_FORMATS
from ..schemas import ScaledMM, epilogue_of, operands_of
from . import templates
from .decoded import decoded_mm
from .device import adds_in_pairs, architecture_of, through_tensor_memory, unit_of
from .fp8 import fp8_mm
from .inductor import V, ir, realize_inputs
from .library import Product, library_call
from .operands import fields_of, in_words
from .scales import swizzled_scales
from .templates import least_wasted, over_k, select
from .unrotate import ended, in_template

_TILES = {  # 128 columns have registers for themselves, not for a long epilogue as well
    4: [
        dict(BLOCK_M=128, BLOCK_N=64, BLOCK_K=256, num_warps=8, num_stages=2),
        dict(BLOCK_M=128, BLOCK_N=128, BLOCK_K=128, num_warps=8, num_stages=3),
    ],
    8: [
        dict(BLOCK_M=128, BLOCK_N=64, BLOCK_K=128, num_warps=8, num_stages=2),
        dict(BLOCK_M=128, BLOCK_N=128, BLOCK_K=64, num_warps=8, num_stages=3),
    ],
}
"""By the bits of an element, for operands through registers: compute capability 12, and what descriptors can't describe."""

_TMA_TILES = {
    4: [
        dict(BLOCK_M=128, BLOCK_N=128, BLOCK_K=512, PARTS=4, num_warps=4, num_stages=3, WARP_SPECIALIZE=False),
        dict(BLOCK_M=128, BLOCK_N=128, BLOCK_K=256, PARTS=4, num_warps=8, num_stages=3, WARP_SPECIALIZE=False),
        dict(BLOCK_M=128, BLOCK_N=256, BLOCK_K=256, PARTS=8, num_warps=4, num_stages=3, WARP_SPECIALIZE=False),
        dict(BLOCK_M=128, BLOCK_N=128, BLOCK_K=256, PARTS=4, num_warps=4, num_stages=3, WARP_SPECIALIZE=True),
    ],
    8: [
        dict(BLOCK_M=128, BLOCK_N=128, BLOCK_K=256, PARTS=4, num_warps=4, num_stages=3, WARP_SPECIALIZE=False),
        dict(BLOCK_M=128, BLOCK_N=128, BLOCK_K=128, PARTS=4, num_warps=8, num_stages=3, WARP_SPECIALIZE=False),
        dict(BLOCK_M=128, BLOCK_N=256, BLOCK_K=128, PARTS=8, num_warps=4, num_stages=3, WARP_SPECIALIZE=False),
    ],
}
"""For compute capability 10: accumulator, operands and scales fit the 512 columns of tensor memory. Not 64 rows: the product
would become one of bf16; nor 256 columns warp-specialised: the compiler would give an empty kernel. All warps issue the loop
over K, and four can read what tensor memory holds: four warps and long steps issue the fewest instructions. With 256 columns
they are fewer still, but a long epilogue spills. A thread has 32 outputs at a time, of eight warps 16, in PARTS parts of the
columns."""


def scaled_mm(call: ScaledMM):
    device = call.a.get_device()
    left, right = operands_of(call)
    epilogue = epilogue_of(call)
    unit = unit_of(device, left.format, right.format)
    if unit == "fp8":
        return fp8_mm(left, right, call.alpha, call.dtype, epilogue)
    if unit == "bf16":
        return ended(decoded_mm(left, right, call.alpha, call.dtype), epilogue)
    facts = OPERAND_FORMATS[left.format]
    a, a_scales, b, b_scales = realize_inputs(left.codes, left.scales, right.codes, right.scales)
    m, n, k = a.get_size()[0], b.get_size()[0], a.get_size()[1] * facts.packed
    inside = in_template(epilogue, n)
    library = library_call(Product(a, b, left.format, call.alpha, call.dtype, inside.is_there), architecture_of(device))
    alone = library is not None and library.alone
    if alone:
        inside = in_template(None, n)
    tensor_scales = realize_inputs(left.tensor_scale, right.tensor_scale) if facts.two_level else []
    constants = dict(fields_of(left.format), **inside.constants(), ALPHA=call.alpha, GROUP_M=8)
    template, tiles = templates.scaled_mm, _TILES[facts.bits]
    # Triton 3.6 can't compile a persistent NVFP4 product of one step.
    one_step = facts.two_level and not alone and V.graph.sizevars.statically_known_leq(k, 256)
    masks = list(inside.mask)
    if through_tensor_memory(device) and _describable(a) and _describable(b) and not one_step:
        template, tiles = templates.scaled_mm_tma, least_wasted(_TMA_TILES[facts.bits], k)
        a_scales, b_scales = swizzled_scales(left.scales), swizzled_scales(right.scales)
        processors = torch.cuda.get_device_properties(device).multi_processor_count
        constants |= dict(PROGRAMS=processors, FLATTEN=False, PACKED=adds_in_pairs(device))
        masks = [in_words(mask) for mask in masks]
    product = select(
        template,
        [a, a_scales, b, b_scales, *tensor_scales, *masks],
        ir.FixedLayout(device, call.dtype, [m, inside.columns]),
        [m, n],
        over_k(tiles, k),
        library=library,
        **constants,
    )
    return product if inside.is_there else ended(product, epilogue)


def _describable(codes: Any) -> bool:
    """Whether a tensor descriptor can describe the codes: contiguous rows, all on 16 bytes."""
    known = V.graph.sizevars.statically_known_multiple_of
    stride, offset = codes.get_stride(), codes.get_layout().offset
    return stride[1] == 1 and known(stride[0], 16) and known(offset, 16)
