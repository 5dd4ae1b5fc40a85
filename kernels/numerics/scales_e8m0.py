"""Groups with a power of two as their scale (E8M0: MXFP4 and MXFP8), in plain PyTorch; see `reference.py` for the rules."""

from __future__ import annotations

import torch

from ..quantizer import E2M1_MAX, E8M0_NAN, QUEST_GAUSSIAN_CLIP, Quantizer
from . import philox
from .codes import decode_e2m1, encode_e2m1, encode_e4m3, exponent_field, mantissa_field, pairwise_sum, power_of_two
from .square_blocks import over_square
from .supports import REFERENCE

_ROOT_OF_TWO = 0x3504F3  # the mantissa of sqrt(2), rounded down: from it on, the next power of two is the nearest
_BINADES = {"e2m1": 2, "e4m3": 8}  # exponent of the largest element
_LARGEST_MANTISSA = {"e2m1": 0x400000, "e4m3": 0x600000}  # 6 = 1.5 * 2^2, 448 = 1.75 * 2^8


def quantize_groups(
    rotated: torch.Tensor,
    finite: torch.Tensor,
    lift: torch.Tensor,
    quantizer: Quantizer,
    seed: torch.Tensor | None,
    stream: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes [rows, groups, group] (int64, or float8 for E4M3 elements), E8M0 bytes uint8[rows, groups, 1], and which
    elements did not clip.

    rotated: float32[rows, groups, group], multiplied by 2^lift; finite, lift: [rows, groups, 1].
    """
    nonzero = over_square((rotated != 0).any(-1, keepdim=True), quantizer)
    finite = ~over_square(~finite, quantizer)
    exponent = torch.where(nonzero, _exponent(rotated, lift, quantizer), 0)
    if quantizer.scale_rounding == "error":
        exponent = torch.where(nonzero, exponent + _one_above_is_better(rotated, exponent, lift), 0)
    valid = finite & (exponent < E8M0_NAN)
    rotated = torch.where(valid, rotated, 0.0)  # what overflowed has no part in its block's EDEN
    scaled = _scaled(rotated, torch.where(valid, exponent, 0), lift) * quantizer.shrink
    keep = torch.where(valid, scaled.abs() < E2M1_MAX, False)
    match quantizer.elements:
        case "e2m1":
            codes = torch.where(valid, encode_e2m1(scaled, element_noise(scaled, quantizer, seed, stream)), 0)
        case "e4m3":
            codes, keep = encode_e4m3(torch.where(valid, scaled, 0.0)), valid.expand_as(keep)
        case other:
            raise REFERENCE.refusal("elements", other)
    if quantizer.rounding == "eden":
        exponent = _corrected(exponent, scaled, codes, nonzero, quantizer, seed, stream)
    return codes, torch.where(valid, exponent, E8M0_NAN).to(torch.uint8), keep


def element_noise(
    scaled: torch.Tensor, quantizer: Quantizer, seed: torch.Tensor | None, stream: int
) -> torch.Tensor | None:
    """The random bits that round the elements `scaled: [rows, groups, group]`; None for rounding to nearest."""
    match quantizer.rounding:
        case "nearest" | "eden":
            return None
        case "stochastic":
            rows, groups, group = scaled.shape
            return philox.noise(seed, stream, rows, groups * group).reshape(scaled.shape)
        case other:
            raise REFERENCE.refusal("rounding", other)


def _scaled(rotated: torch.Tensor, byte: torch.Tensor, lift: torch.Tensor) -> torch.Tensor:
    """`rotated` over the scale, exactly: in two steps, since 2^shift may be beyond float32."""
    shift = 127 - byte - lift
    half = shift >> 1
    return rotated * power_of_two(half) * power_of_two(shift - half)


def _exponent(rotated: torch.Tensor, lift: torch.Tensor, quantizer: Quantizer) -> torch.Tensor:
    """The E8M0 byte of each group, at least 0; 255 where the statistics are not finite."""
    match quantizer.scale:
        case "absmax":
            statistic = over_square(rotated.abs().amax(-1, keepdim=True), quantizer)
            below, full = _BINADES[quantizer.elements], _LARGEST_MANTISSA[quantizer.elements]
        case "quest":
            statistic, below, full = _quest_scale(rotated), 0, 0
        case other:
            raise REFERENCE.refusal("scale", other)
    field = exponent_field(statistic)
    mantissa = mantissa_field(statistic)
    match quantizer.scale_rounding:
        case "down" | "error":
            up = torch.zeros_like(mantissa, dtype=torch.bool)
        case "nearest":
            up = mantissa >= _ROOT_OF_TWO
        case "up":
            up = mantissa > full
        case other:
            raise REFERENCE.refusal("scale_rounding", other)
    exponent = (field + up.int() - below - lift).clamp(min=0, max=E8M0_NAN)
    return torch.where(field == E8M0_NAN, field, exponent)


def _quest_scale(rotated: torch.Tensor) -> torch.Tensor:
    """QuEST's `c * std + 1e-8`, `c` = clipping point / 6; means by pairwise halves."""
    size = rotated.shape[-1]
    mean = pairwise_sum(rotated) * (1.0 / size)
    variance = pairwise_sum(rotated * rotated) * (1.0 / size) - mean * mean
    deviation = torch.where(variance < 0, 0.0, variance).sqrt()
    return deviation * (QUEST_GAUSSIAN_CLIP / E2M1_MAX) + 1e-8


def _one_above_is_better(rotated: torch.Tensor, byte: torch.Tensor, lift: torch.Tensor) -> torch.Tensor:
    """1 where twice the scale has the smaller squared error, else 0; in units of the scale, which is a power of two."""
    scaled = _scaled(rotated, byte.clamp(max=E8M0_NAN - 1), lift)
    error = pairwise_sum((decode_e2m1(encode_e2m1(scaled)) - scaled).square())
    above = pairwise_sum((2 * decode_e2m1(encode_e2m1(scaled * 0.5)) - scaled).square())
    return ((above < error) & (byte < E8M0_NAN)).int()


def _corrected(
    byte: torch.Tensor,
    scaled: torch.Tensor,
    codes: torch.Tensor,
    nonzero: torch.Tensor,
    quantizer: Quantizer,
    seed: torch.Tensor,
    stream: int,
) -> torch.Tensor:
    """EDEN: the scale times `S = <y, y> / <y, q>` of its block, stochastically rounded to a power of two, up iff
    `bits + floor(fraction * 2^16) >= 2^16` with the bits of element (row, group)."""
    factor = eden_factor(scaled, codes, quantizer)
    rows, groups, _ = scaled.shape
    bits = philox.noise(seed, stream, rows, groups)[..., None]
    up = ((mantissa_field(factor) >> 7) + bits) >> philox.NOISE_BITS
    corrected = (byte + exponent_field(factor) - 127 + up.int()).clamp(min=0, max=E8M0_NAN - 1)
    return torch.where(nonzero & (byte < E8M0_NAN), corrected, byte)


def eden_factor(scaled: torch.Tensor, codes: torch.Tensor, quantizer: Quantizer) -> torch.Tensor:
    """float32[rows, groups, 1]: `<y, y> / <y, q>` over the block of the rotation that a group lies in, 1 where `<y, q>`
    is 0; sums by pairwise halves (arXiv 2601.22813)."""
    rows, groups, group = scaled.shape
    y = scaled.reshape(rows, groups * group // quantizer.block, quantizer.block)
    q = decode_e2m1(codes).reshape(y.shape)
    above, below = pairwise_sum(y * y), pairwise_sum(y * q)
    factor = torch.where(below == 0, 1.0, above / torch.where(below == 0, 1.0, below))
    return factor.repeat_interleave(quantizer.block // group, dim=1)
