"""The independent model, second part: the scales of groups. `rows` are the rotated groups that share one scale, lists of
float32: one group, or the rows of a square block."""

import math
from fractions import Fraction

from exact_model import E4M3, GRID, F, add, e2m1, e2m1_value, floor_log2, nearest, quest_scale, stochastic

ROOT_OF_TWO = Fraction(float(F(math.sqrt(2))))


def over_power(value, byte: int):
    """float32 of `value` over the scale: exact, unless it is too small to matter."""
    return F(math.ldexp(float(value), 127 - byte))


def power(rows: list, q, root, unit: int):
    """The E8M0 byte of the scale of values `rows * root * 2^unit`; None if the statistics overflow."""
    if q.scale == "quest":
        statistic = quest_scale([v * root for v in rows[0]])
    else:
        statistic = max(abs(v) for row in rows for v in row) * root
    if not math.isfinite(statistic):
        return None
    if not statistic:
        return 64
    largest = Fraction(1) if q.scale == "quest" else GRID[-1] if q.elements == "e2m1" else E4M3[-1]
    exponent, binade = floor_log2(statistic), floor_log2(largest)
    position = Fraction(float(statistic)) / Fraction(2) ** exponent  # from 1 to 2
    ulp = Fraction(1, 2 if q.elements == "e2m1" else 8)  # of an element's mantissa
    above = {
        "nearest": position >= ROOT_OF_TWO,
        "up": position > largest / 2**binade,
        "even": position >= 2 - ulp / 2,
    }.get(q.scale_rounding, False)
    byte = max(exponent + above - binade + unit + 127, 64)
    if q.scale_rounding == "error":
        scaled = [over_power(v * root, byte) for v in rows[0]]
        byte += bool(_error(scaled, F(2)) < _error(scaled, F(1)))
    return byte


def _error(values: list, unit):
    """The squared error with the scale `unit`."""
    deviations = [e2m1_value(e2m1(v / unit)) * unit - v for v in values]
    return add([d * d for d in deviations])


def eden(scaled: list, codes: list):
    """`<y, y> / <y, q>` over the values of a block."""
    above = add([y * y for y in scaled])
    below = add([y * e2m1_value(code) for y, code in zip(scaled, codes, strict=True)])
    return above / below if below else F(1)


def stochastic_power(byte: int, factor, bits: int) -> int:
    """The byte of 2^(byte - 127) * factor, rounded to a power of two by 16 bits."""
    exponent = floor_log2(factor)
    fraction = Fraction(float(factor)) / Fraction(2) ** exponent - 1
    return min(max(byte + exponent + (bits + math.floor(fraction * 65536) >= 65536), 64), 254)


def tensor_scale(groups: list, q):
    """Of NVFP4: float32, from all finite groups."""
    largest = max((abs(v) for group in groups for v in group), default=F(0))
    return largest / F(q.largest_scale) / F(6 / q.headroom) if largest else F(1)


def group_scale(rows: list, q, of_tensor):
    """The E4M3 code of the scale relative to the tensor's."""
    wanted = max(abs(v) for row in rows for v in row) / F(6 / q.headroom) / of_tensor
    if q.scale != "four-over-six":
        return _e4m3(wanted)
    six, four = _e4m3(wanted), _e4m3(wanted * F(1.5))
    errors, shift = [], -floor_log2(of_tensor)
    for code in (six, four):
        unit = e4m3_value(code) * F(math.ldexp(of_tensor, shift))
        of_rows = [_error([F(math.ldexp(v, shift)) for v in row], unit) for row in rows]
        errors.append(add(of_rows + [F(0)] * (q.group_rows - len(rows))))
    return four if errors[1] < errors[0] else six


def _e4m3(value):
    """To nearest, 1 for 0."""
    return nearest(Fraction(float(value)), E4M3) or E4M3.index(1)


def e4m3_value(code: int):
    """float32 of a code."""
    return F(float(E4M3[code]))


def stochastic_e4m3(value, bits: int) -> int:
    """The code of a float32 that is not negative."""
    return stochastic(Fraction(float(value)), bits, 16, E4M3)
