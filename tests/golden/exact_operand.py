"""The independent model, third part: a whole operand, laid out as `reference.Blocks`, and its values."""

import math
from dataclasses import dataclass, field
from fractions import Fraction

import exact_scales as scales
import numpy as np
from exact_model import E4M3, GRID, F, e2m1, nearest, noise, rotate

E8M0_NAN, E4M3_NAN = 255, 0x7F


@dataclass
class Group:
    """One group; `values` are rotated and times 2^lift, `scaled` are what is rounded."""

    row: int
    index: int
    values: list
    lift: int
    broken: bool
    scale: int = 0
    scaled: list = field(default_factory=list)
    codes: list = field(default_factory=list)
    keep: list = field(default_factory=list)


def quantize(matrix, q, sign=None, seed=None, stream=0):
    """(codes, scales, tensor scale, mask) of `matrix: float32[rows, columns]` by the quantizer `q`, whose fields are
    read and nothing else."""
    with np.errstate(all="ignore"):
        return _quantize(np.asarray(matrix, F), q, sign, seed, stream)


def _quantize(matrix, q, sign, seed, stream):
    rows, columns = matrix.shape
    size = max(q.group, q.rotation)
    full = -(-columns // size) * size
    matrix = np.concatenate([matrix, np.zeros((rows, full - columns), F)], axis=1)
    blocks = [_block(matrix, r, start, size, q, sign) for r in range(rows) for start in range(0, full, size)]
    groups = [group for block in blocks for group in block]
    if q.elements == "float32":
        return _exact(groups, rows, full)
    units = _units(groups, q.group_rows)
    for unit in units:
        if any(g.broken for g in unit):
            for g in unit:
                g.broken, g.values = True, [F(0)] * q.group
    two_level = q.scale_format == "e4m3"
    of_tensor = scales.tensor_scale([g.values for g in groups], q) if two_level else None
    for unit in units:
        _choose_scale(unit, q, of_tensor)
    for g in groups:
        _round(g, q, of_tensor, seed, stream)
    if q.rounding == "eden":
        for block in blocks:
            _correct(block, two_level, seed, stream)
    for g in groups:
        if g.broken:
            g.scale, g.codes, g.keep = E4M3_NAN if two_level else E8M0_NAN, [0] * q.group, [0] * q.group
    return _arrays(groups, q, of_tensor, rows, full)


def _block(matrix, r, start, size, q, sign) -> list:
    """The groups of columns that are rotated together, or one group."""
    x = list(matrix[r, start : start + size])
    broken = not all(math.isfinite(v) for v in x)
    lift = 0
    if q.scale == "absmax" and q.scale_format == "e8m0" and q.elements != "float32":
        first = r - r % q.group_rows
        together = matrix[first : first + q.group_rows, start : start + size].flatten()
        lift = 64 if all(abs(v) < F(2.0**-63) for v in together) else 0
    x = [F(0) if abs(v) < F(2.0**-126) else v * F(2.0**lift) for v in x]
    if q.elements != "float32":
        x = [F(0) if abs(v) < F(2.0**-99 if q.rotation == 128 else 2.0**-100) else v for v in x]
    if broken:
        x = [F(math.nan)] * size
    elif q.rotation:
        if sign is not None:
            x = [v * s if v else F(0) for v, s in zip(x, sign * (size // q.rotation), strict=True)]
        x = [v for i in range(0, size, q.rotation) for v in rotate(x[i : i + q.rotation])]
    parts = [x[i : i + q.group] for i in range(0, size, q.group)]
    first = start // q.group
    return [Group(r, first + i, p, lift, not all(map(math.isfinite, p))) for i, p in enumerate(parts)]


def _units(groups: list, group_rows: int) -> list:
    """Lists of the groups that share a scale."""
    units = {}
    for g in groups:
        units.setdefault((g.row // group_rows, g.index), []).append(g)
    return list(units.values())


def _choose_scale(unit, q, of_tensor) -> None:
    rows = [g.values for g in unit]
    byte = scales.power(rows, q, unit[0].lift) if of_tensor is None else scales.group_scale(rows, q, of_tensor)
    for g in unit:
        if byte is None:
            g.broken, g.values = True, [F(0)] * q.group
        g.scale = byte or 0


def _round(g: Group, q, of_tensor, seed, stream) -> None:
    if of_tensor is None:
        g.scaled = [scales.over_power(v * F(q.shrink), g.scale, g.lift) for v in g.values]
        g.keep = [int(abs(v) < 6 or q.elements == "e4m3") for v in g.scaled]
    else:
        unit = scales.e4m3_value(g.scale) * of_tensor
        g.scaled = [v / unit for v in g.values]
        g.keep = [1] * q.group
    columns = range(q.group * g.index, q.group * (g.index + 1))
    if q.elements == "e4m3":
        g.codes = [nearest(abs(Fraction(float(v))), E4M3) + 128 * bool(np.signbit(v)) for v in g.scaled]
    elif q.rounding == "stochastic":
        g.codes = [e2m1(v, noise(seed, stream, g.row, c)) for v, c in zip(g.scaled, columns, strict=True)]
    else:
        g.codes = [e2m1(v) for v in g.scaled]


def _correct(block: list, two_level: bool, seed, stream) -> None:
    """EDEN: new scales from what the whole block lost."""
    factor = scales.eden([v for g in block for v in g.scaled], [c for g in block for c in g.codes])
    for g in block:
        bits = noise(seed, stream, g.row, g.index)
        if two_level:
            g.scale = scales.stochastic_e4m3(scales.e4m3_value(g.scale) * factor, bits)
        elif any(g.values):
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
