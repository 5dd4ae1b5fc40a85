"""Lowering of `scaled_grouped_mm`: the products of all groups in one kernel."""

from __future__ import annotations

from ..numerics.grouped import product_shape
from ..operand_formats import OPERAND_FORMATS
from ..schemas import ScaledGroupedMM, epilogue_of, operands_of
from . import templates
from .device import architecture_of, unit_of
from .inductor import ir, realize_inputs
from .operands import fields_of
from .templates import select
from .unrotate import ended, in_template

_GROUPED_TILES = {  # 8 warps spill on Blackwell, and so would more elements of 8 bits
    ("blackwell", 4): [dict(BLOCK_M=128, BLOCK_N=64, BLOCK_K=128, num_warps=4, num_stages=2)],
    ("blackwell-rtx", 4): [dict(BLOCK_M=128, BLOCK_N=64, BLOCK_K=128, num_warps=8, num_stages=2)],
    ("blackwell", 8): [dict(BLOCK_M=128, BLOCK_N=64, BLOCK_K=64, num_warps=4, num_stages=2)],
    ("blackwell-rtx", 8): [dict(BLOCK_M=128, BLOCK_N=64, BLOCK_K=64, num_warps=8, num_stages=2)],
}
"""By architecture and the bits of an element."""

_GROUPED_TILES_BF16 = {
    4: [dict(BLOCK_M=64, BLOCK_N=64, BLOCK_K=64, num_warps=4, num_stages=2)],
    8: [dict(BLOCK_M=64, BLOCK_N=64, BLOCK_K=32, num_warps=4, num_stages=2)],
}


def scaled_grouped_mm(call: ScaledGroupedMM):
    """The products of all groups in one kernel: on the format's tensor cores, or of operands that it decodes to bf16."""
    device = call.a.get_device()
    left, right = operands_of(call)
    a, a_scales, b, b_scales, ends = realize_inputs(left.codes, left.scales, right.codes, right.scales, call.ends)
    rows, columns = product_shape(a.get_size()[0], b.get_size()[0], call.matrices, call.gemm)
    epilogue = epilogue_of(call)
    inside = in_template(epilogue, columns)
    stacked = call.gemm == "wgrad"
    facts, native = OPERAND_FORMATS[left.format], unit_of(device, left.format, right.format, grouped=True) == "native"
    tiles = _GROUPED_TILES[architecture_of(device), facts.bits] if native else _GROUPED_TILES_BF16[facts.bits]
    tensor_scales = realize_inputs(left.tensor_scale, right.tensor_scale) if facts.two_level else []
    product = select(
        templates.grouped_stacked if stacked else templates.grouped_rows,
        [a, a_scales, b, b_scales, ends, *tensor_scales, *inside.mask],
        ir.FixedLayout(device, call.dtype, [rows, inside.columns]),
        [a.get_size()[0], columns, call.matrices],
        [dict(t, STAGES=t["num_stages"]) for t in tiles],
        **fields_of(left.format),
        ALPHA=call.alpha,
        STACKED=stacked,
        SIDE_BY_SIDE=call.gemm == "dgrad",
        MATRICES=call.matrices,
        WIDTH=2 ** call.matrices.bit_length(),
        NATIVE=native,
        **inside.constants(),
    )
    return product if inside.is_there else ended(product, epilogue)
