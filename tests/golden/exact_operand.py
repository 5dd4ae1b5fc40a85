"""The independent model, third part: a whole operand, laid out as `reference.Blocks`, and its values."""

import math
from dataclasses import dataclass, field
from fractions import Fraction

import exact_scales as scales
import numpy as np
from exact_model import E4M3, GRID, F, butterflies, e2m1, nearest, noise, rotate, scale_noise

E8M0_NAN, E4M3_NAN = 255, 0x7F


@dataclass
class Group:
    """One group; `values` are rotated, with E8M0 scales without the factor of the rotation; `scaled` are what is rounded.
    `unit`: the values are times 2^unit, which they lack."""

    row: int
    index: int
    values: list
    broken: bool
    unit: int = 0
    scale: int = 0
    scaled: list = field(default_factory=list)
    codes: list = field(default_factory=list)
    keep: list = field(default_factory=list)


def quantize(matrix, q, sign=None, seed=None, stream=0):
    """(codes, scales, tensor scale, mask) of `matrix: float32[rows, columns]` by the quantizer `q`, whose fields are
    read and nothing else."""
    with np.errstate(all="ignore"):
        return _quantize(np.asarray(matrix, F), q, sign, seed, stream)


def requantize(codes, group_scales, source, q, sign=None, seed=None, stream=0):
    """The same of the transpose of MXFP4 arrays, in units of the largest scale of 32 rows: a value with a scale of less
    than 2^-15 of it is 0, and zeros that are rotated are +0. `q` has absmax scales rounded down, in blocks of 32."""
    table = [F(float(v)) for v in GRID] + [F(-float(v)) for v in GRID]
    rows, of_row = group_scales.shape
    groups = []
    with np.errstate(all="ignore"):
        for column in range(32 * of_row):
            for start in range(0, rows, 32):
                inside = range(start, min(start + 32, rows))
                scale = [int(group_scales[r, column // 32]) for r in inside]
                code = [int(codes[r, column // 2]) >> 4 * (column % 2) & 15 for r in inside]
                top = max(scale)
                unit = [F(2.0 ** (s - top) if s >= top - 15 else 0) for s in scale]
                x = [table[c] * u for c, u in zip(code, unit, strict=True)]
                x += [F(0)] * (32 - len(x))
                if q.rotation:
                    x = x if sign is None else [v * s for v, s in zip(x, sign, strict=True)]
                    x = butterflies([v or F(0) for v in x])
                groups.append(Group(column, start // 32, x, top == 255, top - 127))
        root = _root(q) / source.shrink
        return _finish([[g] for g in groups], q, F(root), F(root * q.shrink), seed, stream)


def _root(q) -> float:
    return 1 / math.sqrt(q.rotation or 1)


def _quantize(matrix, q, sign, seed, stream):
    rows, columns = matrix.shape
    size = max(q.group, q.rotation)
    full = -(-columns // size) * size
    matrix = np.concatenate([matrix, np.zeros((rows, full - columns), F)], axis=1)
    blocks = [_block(matrix, r, start, size, q, sign) for r in range(rows) for start in range(0, full, size)]
    if q.elements == "float32":
        return _exact([group for block in blocks for group in block], rows, full)
    return _finish(blocks, q, F(_root(q)), F(_root(q) * q.shrink), seed, stream)


def _finish(blocks, q, root, shrunk_root, seed, stream):
    """The arrays of blocks of groups, row after row: values times `root` have the scales, times `shrunk_root` the codes."""
    groups = [group for block in blocks for group in block]
    rows = groups[-1].row + 1 if groups else 0
    full = len(groups) * q.group // max(rows, 1)
    units = _units(groups, q.group_rows)
    for unit in units:
        if any(g.broken for g in unit):
            for g in unit:
                g.broken, g.values = True, [F(0)] * q.group
    two_level = q.scale_format == "e4m3"
    of_tensor = scales.tensor_scale([g.values for g in groups], q) if two_level else None
    for unit in units:
        _choose_scale(unit, q, of_tensor, root)
    for g in groups:
        _round(g, q, of_tensor, root if q.scale == "quest" else shrunk_root, seed, stream)
    if q.rounding == "eden":
        for block in blocks:
            _correct(block, two_level, seed, stream)
    for g in groups:
        if g.broken:
            g.scale, g.codes, g.keep = E4M3_NAN if two_level else E8M0_NAN, [0] * q.group, [0] * q.group
    if q.scale == "absmax" and not two_level:
        for unit in units:
            if not any(v for g in unit for v in g.values):
                for g in unit:
                    g.codes = [0] * q.group
    return _arrays(groups, q, of_tensor, rows, full)


def _block(matrix, r, start, size, q, sign) -> list:
    """The groups of columns that are rotated together, or one group."""
    x = list(matrix[r, start : start + size])
    broken = not all(math.isfinite(v) for v in x)
    power = q.scale_format == "e8m0" and q.elements != "float32"
    if not power:
        least = 2.0**-126 if q.elements == "float32" else 2.0**-99 if q.rotation == 128 else 2.0**-100
        x = [F(0) if abs(v) < F(least) else v for v in x]
    if broken:
        x = [F(math.nan)] * size
    elif q.rotation:
        if sign is not None:
            x = [v * s if v or power else F(0) for v, s in zip(x, sign * (size // q.rotation), strict=True)]
        x = [v for i in range(0, size, q.rotation) for v in (butterflies if power else rotate)(x[i : i + q.rotation])]
    parts = [x[i : i + q.group] for i in range(0, size, q.group)]
    first = start // q.group
    return [Group(r, first + i, p, not all(map(math.isfinite, p))) for i, p in enumerate(parts)]


def _units(groups: list, group_rows: int) -> list:
    """Lists of the groups that share a scale."""
    units = {}
    for g in groups:
        units.setdefault((g.row // group_rows, g.index), []).append(g)
    return list(units.values())


def _choose_scale(unit, q, of_tensor, root) -> None:
    rows = [g.values for g in unit]
    byte = scales.power(rows, q, root, unit[0].unit) if of_tensor is None else scales.group_scale(rows, q, of_tensor)
    for g in unit:
        if byte is None:
            g.broken, g.values = True, [F(0)] * q.group
        g.scale = byte or 0


def _round(g: Group, q, of_tensor, factor, seed, stream) -> None:
    if of_tensor is None:
        g.scaled = [scales.over_power(v * factor, g.scale - g.unit) for v in g.values]
        g.keep = [int(abs(v) < 6 or q.elements == "e4m3") for v in g.scaled]
    else:
        unit = scales.e4m3_value(g.scale) * of_tensor
        g.scaled = [v / unit for v in g.values]
        g.keep = [1] * q.group
    columns = range(q.group * g.index, q.group * (g.index + 1))
    if q.elements == "e4m3":
        g.codes = [nearest(abs(Fraction(float(v))), E4M3) + 128 * bool(np.signbit(v)) for v in g.scaled]
    elif q.rounding == "stochastic":
        bits = [noise(seed, stream, g.row, c, q.noise_bits) for c in columns]
        g.codes = [e2m1(v, b, q.noise_bits) for v, b in zip(g.scaled, bits, strict=True)]
    else:
        g.codes = [e2m1(v) for v in g.scaled]


def _correct(block: list, two_level: bool, seed, stream) -> None:
    """EDEN: new scales from what the whole block lost."""
    factor = scales.eden([v for g in block for v in g.scaled], [c for g in block for c in g.codes])
    for g in block:
        bits = scale_noise(seed, stream, g.row, g.index)
        if two_level:
            g.scale = scales.stochastic_e4m3(scales.e4m3_value(g.scale) * factor, bits)
        else:
            g.scale = scales.stochastic_power(g.scale, factor, bits)


def _exact(groups, rows, full):
    """A block with a NaN is NaN; the rest is rotated, and may overflow."""
    values = np.array([v for g in groups for v in g.values], F).reshape(rows, full)
    return values, np.zeros((rows, 0), np.uint8), np.zeros(0, F), np.full((rows, full // 8), 255, np.uint8)


def _arrays(groups, q, of_tensor, rows, full):
    codes = [c for g in groups for c in g.codes]
    width = full if q.elements == "e4m3" else full // 2
    if q.elements == "e2m1":
        codes = [codes[i] + 16 * codes[i + 1] for i in range(0, len(codes), 2)]
    keep = [k for g in groups for k in g.keep]
    masks = [sum(keep[i + j] << j for j in range(8)) for i in range(0, len(keep), 8)]
    return (
        np.array(codes, np.uint8).reshape(rows, width),
        np.array([g.scale for g in groups], np.uint8).reshape(rows, full // q.group),
        np.array([] if of_tensor is None else [of_tensor], F),
        np.array(masks, np.uint8).reshape(rows, full // 8),
    )


def decode(codes, group_scales, tensor_scale, q):
    """float64[rows, columns] of the arrays of `quantize`: exact for E8M0 scales and shrink 1, else its rounding."""
    if q.elements == "float32":
        return codes.astype(np.float64)
    if q.elements == "e4m3":
        table = np.array([float(v) for v in E4M3] + [np.nan])
        values = np.concatenate([table, -table])[codes]
    else:
        table = np.array([float(v) for v in GRID])
        table = np.concatenate([table, -table])
        values = np.stack([table[codes & 15], table[codes >> 4]], axis=-1).reshape(codes.shape[0], -1)
    if q.scale_format == "e4m3":
        units = np.array([float(v) for v in E4M3] + [np.nan])[group_scales] * np.float64(tensor_scale)
    else:
        units = np.where(group_scales == E8M0_NAN, np.nan, 2.0 ** (group_scales.astype(np.float64) - 127))
    return values / q.shrink * np.repeat(units, q.group, axis=1)
