"""Lowerings of `quantize`, `quantize_pair` and `requantize`: MXFP4 in groups of 32 with scales rounded down has templates
of its own; every other quantizer goes through those of `any_blocks.py`."""

from __future__ import annotations

from typing import Any

import torch

from ..numerics import philox
from ..operand_formats import OPERAND_FORMATS
from ..quantizer import Quantizer
from ..quantizer import quantizer as quantizer_named
from ..schemas import Quantize, QuantizePair, Requantize
from . import templates
from .any_blocks import Source, quantize_blocks
from .device import has_fp4
from .inductor import realize_inputs
from .operands import Flat, groups_of_32, nothing, realize_fusably, seeds_of, vector
from .scales import remember_blocked
from .templates import GROUP_TILES, select

_QUEST = {"absmax": False, "quest": True}
_STOCHASTIC = {"nearest": False, "stochastic": True}
"""What those templates call scales and roundings."""


def _fields(spec: Quantizer, prefix: str = "") -> dict[str, Any]:
    fields = {
        "QUEST": _QUEST[spec.scale],
        "SHRINK": spec.shrink,
        "ROTATION": spec.rotation,
        "RANDOM_SIGNS": spec.random_signs,
        "STOCHASTIC": _STOCHASTIC[spec.rounding],
    }
    return {prefix + name: value for name, value in fields.items()}


_SQUARE_TILES = [
    dict(TILE_ROWS=64, TILE_COLUMNS=64, num_warps=4, num_stages=1),
    dict(TILE_ROWS=128, TILE_COLUMNS=64, num_warps=8, num_stages=1),
    dict(TILE_ROWS=64, TILE_COLUMNS=128, num_warps=8, num_stages=1),
]


def _is_plain_mxfp4(spec: Quantizer) -> bool:
    """Whether it is MXFP4 as the templates `quantize`, `quantize_pair` and `requantize` know it."""
    chosen = spec.scale in _QUEST and spec.scale_rounding == "down" and spec.rounding in _STOCHASTIC
    return spec.format == "mxfp4" and spec.group_rows == 1 and chosen and spec.rotation in (0, 32)


def quantize(call: Quantize):
    spec, transpose, mask, stream = quantizer_named(call.quantizer), call.transpose, call.mask, call.stream
    device, x = call.x.get_device(), realize_fusably(call.x)
    rows, columns = reversed(x.get_size()) if transpose else x.get_size()
    seeds = seeds_of(call.seed, call.sign_seed) if spec.seeded else []
    if not _is_plain_mxfp4(spec):
        source = Source(inputs=[x], device=device, transposed=transpose)
        return quantize_blocks(source, rows, columns, spec, mask, stream, seeds)
    flat = Flat()
    groups = groups_of_32(columns)
    for width in (16, 1, 4) if mask else (16, 1):
        flat.add(rows, groups * width)
    blocked = flat.add_blocked(rows, groups, device)
    constants = dict(
        _fields(spec), STREAM=stream, MASKED=mask, BLOCKED=blocked, NATIVE=has_fp4(device), SEEDED=bool(seeds)
    )
    if not transpose:
        constants["VEC"] = vector(x.get_dtype())
    template, tiles = (templates.quantize_transposed, _SQUARE_TILES) if transpose else (templates.quantize, GROUP_TILES)
    buffer = select(template, [x, *seeds], flat.layout(device), x.get_size(), tiles, **constants)
    codes, scales, *more = flat.views(buffer)
    if blocked:
        remember_blocked(scales, more.pop())
    bits = more[0] if mask else nothing(rows, torch.uint8, device)
    return codes, scales, nothing(None, torch.float32, device), bits


def quantize_pair(call: QuantizePair):
    dy, seed = call.dy, call.seed
    row, column = quantizer_named(call.row_quantizer), quantizer_named(call.column_quantizer)
    if not (_is_plain_mxfp4(row) and _is_plain_mxfp4(column)):
        for_dgrad = quantize(Quantize(dy, call.row_quantizer, False, False, philox.DGRAD_DY, seed, seed))
        for_wgrad = quantize(Quantize(dy, call.column_quantizer, True, False, philox.WGRAD_DY, seed, call.sign_seed))
        return *for_dgrad[:3], *for_wgrad[:3]
    device = dy.get_device()
    rows, columns = dy.get_size()
    dy = realize_fusably(dy)
    flat = Flat()
    for length, groups in ((rows, groups_of_32(columns)), (columns, groups_of_32(rows))):
        flat.add(length, groups * 16)
        flat.add(length, groups)
    row_blocked = flat.add_blocked(rows, groups_of_32(columns), device)
    column_blocked = flat.add_blocked(columns, groups_of_32(rows), device)
    buffer = select(
        templates.quantize_pair,
        [dy, *realize_inputs(seed, call.sign_seed)],
        flat.layout(device),
        [rows, columns],
        _SQUARE_TILES,
        **_fields(row, "ROW_"),
        **_fields(column, "COLUMN_"),
        VEC=vector(dy.get_dtype()),
        NATIVE=has_fp4(device),
        ROW_BLOCKED=row_blocked,
        COLUMN_BLOCKED=column_blocked,
    )
    row_codes, row_scales, column_codes, column_scales, *more = flat.views(buffer)
    if column_blocked:
        remember_blocked(column_scales, more.pop())
    if row_blocked:
        remember_blocked(row_scales, more.pop())
    empty = [nothing(None, torch.float32, device) for _ in range(2)]
    return row_codes, row_scales, empty[0], column_codes, column_scales, empty[1]


def requantize(call: Requantize):
    spec, before = quantizer_named(call.quantizer), quantizer_named(call.source)
    device = call.codes.get_device()
    codes, scales = realize_inputs(call.codes, call.scales)
    rows, columns = codes.get_size()[0], codes.get_size()[1] * OPERAND_FORMATS[before.format].packed
    seeds = seeds_of(call.seed, call.sign_seed) if spec.seeded else []
    if not (_is_plain_mxfp4(spec) and before.format == "mxfp4"):
        inputs = [codes, scales, *([realize_inputs(call.tensor_scale)] if before.two_level else [])]
        given = Source(inputs=inputs, device=device, transposed=True, quantizer=before)
        return quantize_blocks(given, columns, rows, spec, False, call.stream, seeds)[:3]
    flat = Flat()
    flat.add(columns, groups_of_32(rows) * 16)
    flat.add(columns, groups_of_32(rows))
    blocked = flat.add_blocked(columns, groups_of_32(rows), device)
    buffer = select(
        templates.requantize,
        [codes, scales, *seeds],
        flat.layout(device),
        [rows, columns],
        _SQUARE_TILES,
        **_fields(spec),
        STREAM=call.stream,
        SOURCE_SHRINK=before.shrink,
        SEEDED=bool(seeds),
        BLOCKED=blocked,
        NATIVE=has_fp4(device),
    )
    new_codes, new_scales, *more = flat.views(buffer)
    if blocked:
        remember_blocked(new_scales, *more)
    return new_codes, new_scales, nothing(None, torch.float32, device)
