"""Lowerings of `quantize`, `quantize_pair` and `requantize`: MXFP4 in groups of 32 with scales rounded down has templates
of its own; every other quantizer goes through those of `any_blocks.py`."""

from __future__ import annotations

from typing import Any

import torch

from ..numerics import philox
from ..numerics.reference import is_aligned
from ..operand_formats import OPERAND_FORMATS
from ..quantizer import Quantizer
from ..quantizer import quantizer as quantizer_named
from ..schemas import Quantize, QuantizePair, Requantize
from . import templates
from .any_blocks import Source, quantize_blocks
from .device import adds_in_pairs, converts_to_fp4, through_tensor_memory
from .flat import Flat
from .inductor import V, realize_inputs
from .operands import groups_of_32, nothing, realize_fusably, seeds_of, vector
from .scales import swizzled_with
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
        "NOISE_BITS": spec.noise_bits,
    }
    return {prefix + name: value for name, value in fields.items()}


def _instructions(device: torch.device) -> dict[str, bool]:
    """Which instructions the device has: those that convert to E2M1, and those for two float32."""
    return {"NATIVE": converts_to_fp4(device), "PACKED": adds_in_pairs(device)}


_SQUARE_TILES = [
    dict(TILE_ROWS=64, TILE_COLUMNS=64, num_warps=4, num_stages=1),
    dict(TILE_ROWS=128, TILE_COLUMNS=64, num_warps=8, num_stages=1),
    dict(TILE_ROWS=64, TILE_COLUMNS=128, num_warps=8, num_stages=1),
]


_PAIR_TILES = [dict(TILE_ROWS=philox.NOISE_SQUARE, TILE_COLUMNS=philox.NOISE_SQUARE, num_warps=4, num_stages=1)]
"""A square in which both directions of dY share their noise."""

_MATRIX_TILES = [dict(TILE_ROWS=32, TILE_COLUMNS=128, num_warps=4, num_stages=1)]
"""Of a rotation by a product: its 128 rows are groups, one a thread."""

LEAST_PROGRAMS = 512
"""Programs that a GPU needs to be busy: 3 or 4 for each multiprocessor of a B200."""


def _strips(tiles: list[dict[str, int]], rows: Any, columns: Any) -> list[dict[str, Any]]:
    """The tiles with how many of them, one below the other, are one program's: as many as leave enough programs, up to 16.
    What is the same for all of them (signs, keys, addresses) is computed once."""
    sizes, made = V.graph.sizevars, []
    for tile in tiles:
        area = tile["TILE_ROWS"] * tile["TILE_COLUMNS"]
        count = next(
            (n for n in (16, 8, 4) if sizes.statically_known_geq(rows * columns, LEAST_PROGRAMS * area * n)), 1
        )
        known = sizes.statically_known_multiple_of
        even = known(rows, tile["TILE_ROWS"] * count) and known(columns, tile["TILE_COLUMNS"])
        made.append(dict(tile, TILES=count, EVEN=even))
    return made


def _is_plain_mxfp4(spec: Quantizer) -> bool:
    """Whether it is MXFP4 as the templates `quantize` and `quantize_pair` know it."""
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
    names = ("COLUMNS", "PER_COLUMN") if transpose else ("ROWS", "PER_ROW")
    flat = Flat(**dict(zip(names, (rows, groups_of_32(columns)), strict=True)))
    flat.add("CODES", *names, 16)
    flat.add("SCALES", *names)
    if mask:
        flat.add("MASK", *names, 4)
    swizzled = flat.add_swizzled("SWIZZLED", *names, device)
    constants = dict(
        _fields(spec), STREAM=stream, MASKED=mask, SWIZZLED=swizzled, SEEDED=bool(seeds), **_instructions(device)
    )
    if not transpose:
        constants["VEC"] = vector(x.get_dtype())
    template, tiles = (templates.quantize_transposed, _SQUARE_TILES) if transpose else (templates.quantize, GROUP_TILES)
    buffer = select(template, [x, *seeds], flat.layout(device), x.get_size(), tiles, **constants, **flat.starts())
    made = flat.views(buffer)
    if swizzled:
        swizzled_with(made["SCALES"], made["SWIZZLED"])
    bits = made["MASK"] if mask else nothing(rows, torch.uint8, device)
    return made["CODES"], made["SCALES"], nothing(None, torch.float32, device), bits


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
    flat = Flat(ROWS=rows, PER_ROW=groups_of_32(columns), COLUMNS=columns, PER_COLUMN=groups_of_32(rows))
    sides = {"ROW": ("ROWS", "PER_ROW"), "COLUMN": ("COLUMNS", "PER_COLUMN")}
    for side, names in sides.items():
        flat.add(f"{side}_CODES", *names, 16)
        flat.add(f"{side}_SCALES", *names)
    swizzled = {side: flat.add_swizzled(f"{side}_SWIZZLED", *names, device) for side, names in sides.items()}
    buffer = select(
        templates.quantize_pair,
        [dy, *realize_inputs(seed, call.sign_seed)],
        flat.layout(device),
        [rows, columns],
        _strips(_PAIR_TILES, rows, columns),
        **_fields(row, "ROW_"),
        **_fields(column, "COLUMN_"),
        VEC=vector(dy.get_dtype()),
        **_instructions(device),
        ROW_STREAM=philox.DGRAD_DY,
        COLUMN_STREAM=philox.WGRAD_DY,
        ROW_SWIZZLED=swizzled["ROW"],
        COLUMN_SWIZZLED=swizzled["COLUMN"],
        **flat.starts(),
    )
    made, results = flat.views(buffer), []
    for side in sides:
        codes, scales = made[f"{side}_CODES"], made[f"{side}_SCALES"]
        if swizzled[side]:
            swizzled_with(scales, made[f"{side}_SWIZZLED"])
        results += [codes, scales, nothing(None, torch.float32, device)]
    return tuple(results)


def requantize(call: Requantize):
    spec, before = quantizer_named(call.quantizer), quantizer_named(call.source)
    device = call.codes.get_device()
    codes, scales = realize_inputs(call.codes, call.scales)
    rows, columns = codes.get_size()[0], codes.get_size()[1] * OPERAND_FORMATS[before.format].packed
    seeds = seeds_of(call.seed, call.sign_seed) if spec.seeded else []
    if not is_aligned(before, spec):
        inputs = [codes, scales, *([realize_inputs(call.tensor_scale)] if before.two_level else [])]
        given = Source(inputs=inputs, device=device, transposed=True, quantizer=before)
        return quantize_blocks(given, columns, rows, spec, False, call.stream, seeds)[:3]
    names = ("COLUMNS", "PER_COLUMN")
    flat = Flat(COLUMNS=columns, PER_COLUMN=groups_of_32(rows))
    flat.add("CODES", *names, 16)
    flat.add("SCALES", *names)
    swizzled = flat.add_swizzled("SWIZZLED", *names, device)
    matrix = spec.rotation == 32 and through_tensor_memory(device)
    buffer = select(
        templates.requantize,
        [codes, scales, *seeds],
        flat.layout(device),
        [rows, columns],
        _strips(_MATRIX_TILES if matrix else _SQUARE_TILES, rows, columns),
        **_fields(spec),
        MATRIX=matrix,
        STREAM=call.stream,
        SOURCE_SHRINK=before.shrink,
        SEEDED=bool(seeds),
        SWIZZLED=swizzled,
        **_instructions(device),
        **flat.starts(),
    )
    made = flat.views(buffer)
    if swizzled:
        swizzled_with(made["SCALES"], made["SWIZZLED"])
    return made["CODES"], made["SCALES"], nothing(None, torch.float32, device)
