"""Groups with a power of two as their scale (E8M0: MXFP4 and MXFP8), in plain PyTorch; see `reference.py` for the rules."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..quantizer import E2M1_MAX, E8M0_NAN, QUEST_GAUSSIAN_CLIP, Quantizer
from . import philox
from .codes import decode_e2m1, encode_e2m1, encode_e4m3, exponent_field, mantissa_field, pairwise_sum, power_of_two
from .square_blocks import over_square
from .supports import REFERENCE

SMALLEST_BYTE = 64
"""The least scale is 2^-63: the values of smaller groups round to few codes, or to 0."""

_ROOT_OF_TWO = 0x3504F3  # the mantissa of sqrt(2), rounded down: from it on, the next power of two is the nearest
_BINADES = {"e2m1": 2, "e4m3": 8}  # exponent of the largest element
_EVEN_MANTISSA = {"e2m1": 0x600000, "e4m3": 0x780000}  # 1.75 and 1.9375: from them on, the elements' mantissa carries
_LARGEST_MANTISSA = {"e2m1": 0x400000, "e4m3": 0x600000}  # 6 = 1.5 * 2^2, 448 = 1.75 * 2^8


class Sums(NamedTuple):
    """Groups before their last multiplication: the values that are quantized are `sums * root * 2^exponent`.

    sums: float32[rows, groups, group], of butterflies without the factor of the rotation.
    root: `1 / sqrt(rotation)`, or 1; over the shrink of the source if an operand is quantized again.
    exponent: int32[rows, groups, 1].
    finite: bool[rows, groups, 1], whether the inputs of the group's block are.
    """

    sums: torch.Tensor
    root: float
    exponent: torch.Tensor
    finite: torch.Tensor


def quantize_groups(
    values: Sums, quantizer: Quantizer, seed: torch.Tensor | None, stream: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes [rows, groups, group] (int64, or float8 for E4M3 elements), E8M0 bytes uint8[rows, groups, 1], and which
    elements did not clip."""
    finite = ~over_square(~values.finite, quantizer)
    sums, root = values.sums, values.root
    match quantizer.scale:
        case "absmax":
            largest = over_square(sums.abs().amax(-1, keepdim=True), quantizer)
            byte = _byte(_times(largest, root), values.exponent, quantizer)
            zero = largest == 0
        case "quest":
            sums, root = _times(sums, root), 1.0
            byte = _byte(_quest_scale(sums), values.exponent, quantizer)
            zero = torch.zeros_like(finite)
        case other:
            raise REFERENCE.refusal("scale", other)
    if quantizer.scale_rounding == "error":
        byte = byte + _one_above_is_better(_scaled(values, sums, root, byte), byte)
    valid = finite & (byte < E8M0_NAN)
    sums = torch.where(valid, sums, 0.0)  # what overflowed has no part in its block's EDEN
    scaled = _scaled(values, sums, root * quantizer.shrink, byte)
    keep = torch.where(valid, scaled.abs() < E2M1_MAX, False)
    match quantizer.elements:
        case "e2m1":
            codes = encode_e2m1(scaled, element_noise(scaled, quantizer, seed, stream), quantizer.noise_bits)
            codes = torch.where(valid & ~zero, codes, 0)
        case "e4m3":
            codes, keep = encode_e4m3(torch.where(valid & ~zero, scaled, 0.0)), valid.expand_as(keep)
        case other:
            raise REFERENCE.refusal("elements", other)
    if quantizer.rounding == "eden":
        byte = _corrected(byte, scaled, codes, quantizer, seed, stream)
    return codes, torch.where(valid, byte, E8M0_NAN).to(torch.uint8), keep


def element_noise(
    scaled: torch.Tensor, quantizer: Quantizer, seed: torch.Tensor | None, stream: int
) -> torch.Tensor | None:
    """The random bits that round the elements `scaled: [rows, groups, group]`; None for rounding to nearest."""
    match quantizer.rounding:
        case "nearest" | "eden":
            return None
        case "stochastic":
            rows, groups, group = scaled.shape
            return philox.noise(seed, stream, rows, groups * group, quantizer.noise_bits).reshape(scaled.shape)
        case other:
            raise REFERENCE.refusal("rounding", other)


def scale_noise(scaled: torch.Tensor, seed: torch.Tensor, stream: int) -> torch.Tensor:
    """int64[rows, groups, 1]: the random bits that round the scales of groups `scaled: [rows, groups, group]`."""
    rows, groups, _ = scaled.shape
    return philox.scale_noise(seed, stream, rows, groups)[..., None]


def _times(x: torch.Tensor, factor: float) -> torch.Tensor:
    """`x` times the float32 that is nearest to `factor`."""
    return x * torch.tensor(factor, dtype=torch.float32, device=x.device)


def _scaled(values: Sums, sums: torch.Tensor, factor: float, byte: torch.Tensor) -> torch.Tensor:
    """`sums * factor` over the scale, rounded once: a kernel may multiply by float32(factor * 2^-e), e the exponent."""
    shift = 127 + values.exponent - byte
    return _times(sums, factor) * power_of_two(shift.clamp(min=-126))


def _byte(magnitude: torch.Tensor, exponent: torch.Tensor, quantizer: Quantizer) -> torch.Tensor:
    """The E8M0 byte of each group, at least `SMALLEST_BYTE`; 255 where the magnitude is not finite."""
    below, full = 0, 0
    if quantizer.scale == "absmax":
        below, full = _BINADES[quantizer.elements], _LARGEST_MANTISSA[quantizer.elements]
    field = exponent_field(magnitude)
    mantissa = mantissa_field(magnitude)
    match quantizer.scale_rounding:
        case "down" | "error":
            up = torch.zeros_like(mantissa, dtype=torch.bool)
        case "nearest":
            up = mantissa >= _ROOT_OF_TWO
        case "up":
            up = mantissa > full
        case "even":
            up = mantissa >= _EVEN_MANTISSA[quantizer.elements]
        case other:
            raise REFERENCE.refusal("scale_rounding", other)
    byte = (field + up.int() - below + exponent).clamp(min=SMALLEST_BYTE, max=E8M0_NAN)
    return torch.where(field == E8M0_NAN, field, byte)


def _quest_scale(rotated: torch.Tensor) -> torch.Tensor:
    """QuEST's `c * std + 1e-8`, `c` = clipping point / 6; means by pairwise halves."""
    size = rotated.shape[-1]
    mean = pairwise_sum(rotated) * (1.0 / size)
    variance = pairwise_sum(rotated * rotated) * (1.0 / size) - mean * mean
    deviation = torch.where(variance < 0, 0.0, variance).sqrt()
    return deviation * (QUEST_GAUSSIAN_CLIP / E2M1_MAX) + 1e-8


def _one_above_is_better(scaled: torch.Tensor, byte: torch.Tensor) -> torch.Tensor:
    """1 where twice the scale has the smaller squared error, else 0; in units of the scale, which is a power of two."""
    error = pairwise_sum((decode_e2m1(encode_e2m1(scaled)) - scaled).square())
    above = pairwise_sum((2 * decode_e2m1(encode_e2m1(scaled * 0.5)) - scaled).square())
    return ((above < error) & (byte < E8M0_NAN)).int()


def _corrected(
    byte: torch.Tensor, scaled: torch.Tensor, codes: torch.Tensor, quantizer: Quantizer, seed: torch.Tensor, stream: int
) -> torch.Tensor:
    """EDEN: the scale times `S = <y, y> / <y, q>` of its block, stochastically rounded to a power of two, up iff
    `bits + floor(fraction * 2^16) >= 2^16`."""
    factor = eden_factor(scaled, codes, quantizer)
    up = ((mantissa_field(factor) >> 7) + scale_noise(scaled, seed, stream)) >> philox.SCALE_BITS
    return (byte + exponent_field(factor) - 127 + up.int()).clamp(min=SMALLEST_BYTE, max=E8M0_NAN - 1)


def eden_factor(scaled: torch.Tensor, codes: torch.Tensor, quantizer: Quantizer) -> torch.Tensor:
    """float32[rows, groups, 1]: `<y, y> / <y, q>` over the block of the rotation that a group lies in, 1 where `<y, q>`
    is 0; sums by pairwise halves (arXiv 2601.22813)."""
    rows, groups, group = scaled.shape
    y = scaled.reshape(rows, groups * group // quantizer.block, quantizer.block)
    q = decode_e2m1(codes).reshape(y.shape)
    above, below = pairwise_sum(y * y), pairwise_sum(y * q)
    factor = torch.where(below == 0, 1.0, above / torch.where(below == 0, 1.0, below))
    return factor.repeat_interleave(quantizer.block // group, dim=1)
