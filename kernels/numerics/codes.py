"""Codes of elements and scales, and their values, in plain PyTorch: E2M1, E4M3 and E8M0, and how they are packed."""

from __future__ import annotations

import torch

from ..quantizer import E2M1_MAX, E2M1_VALUES, E4M3_MAX, E4M3_NAN, E8M0_NAN
from . import philox


def encode_e2m1(scaled: torch.Tensor, bits: torch.Tensor | None = None, noise_bits: int = 8) -> torch.Tensor:
    """The 4-bit codes (int64) of float32 values, saturated at 6: nearest with ties to even, or stochastic with `bits`.

    Stochastic: a value `f` of the way from one grid point to the next goes up iff `f + (bits + 1/2) / 2^n >= 1`, with
    `n = noise_bits`: over all 2^n values of `bits`, the share of the ups is `f`, to the nearest 2^-n.
    """
    magnitude = scaled.abs().clamp(max=E2M1_MAX).nan_to_num(0.0)
    exponent = (magnitude >= 2).long() + (magnitude >= 4).long()
    steps = magnitude * power_of_two(1 - exponent)
    if bits is None:
        count = steps.round().long()
    else:
        unit = noise_bits + 1
        count = ((steps * 2.0**unit).long() + 2 * bits + 1) >> unit
    code = (count + 2 * exponent).clamp(max=7)
    return code | (torch.signbit(scaled).long() << 3)


def decode_e2m1(codes: torch.Tensor) -> torch.Tensor:
    """float32 values of 4-bit codes."""
    table = torch.tensor((*E2M1_VALUES, *(-v for v in E2M1_VALUES)), dtype=torch.float32, device=codes.device)
    return table[codes.long()]


def encode_e4m3(x: torch.Tensor) -> torch.Tensor:
    """float8_e4m3fn of float32 values: nearest with ties to even, saturated at 448; NaN stays NaN."""
    return x.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


def stochastic_e4m3(x: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """float8_e4m3fn of float32 `x >= 0`, saturated at 448; up iff `bits + floor(fraction * 2^16) >= 2^16`."""
    raw = x.clamp(max=E4M3_MAX).view(torch.int32).long()
    normal = (raw >> 4) - (120 << 19)  # code and 16 bits of the fraction: E4M3's exponents are biased by 7, not 127
    small = (x * 2.0**25).clamp(max=2.0**31).long()  # below 2^-6 in steps of 2^-9
    fixed = torch.where(x < 2.0**-6, small, normal)
    return ((fixed + bits) >> philox.SCALE_BITS).clamp(max=E4M3_NAN - 1).to(torch.uint8).view(torch.float8_e4m3fn)


def decode_e8m0(scales: torch.Tensor) -> torch.Tensor:
    """float32 powers of two of E8M0 bytes, built from bits (2^-127 is subnormal); byte 255 is NaN."""
    byte = scales.int()
    bits = torch.where(byte == 0, 1 << 22, byte << 23)
    return torch.where(byte == E8M0_NAN, torch.nan, bits.view(torch.float32))


def power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """float32 2^exponent for exponents in [-126, 127]."""
    return ((exponent.int() + 127) << 23).view(torch.float32)


def exponent_field(x: torch.Tensor) -> torch.Tensor:
    """Bits 23 to 30 of float32 values."""
    return (x.view(torch.int32) >> 23) & 0xFF


def mantissa_field(x: torch.Tensor) -> torch.Tensor:
    """Bits 0 to 22 of float32 values."""
    return x.view(torch.int32) & 0x7FFFFF


def pack_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """uint8[..., n / 2] of codes [..., n], the even column in the low nibble."""
    return (codes[..., 0::2] | (codes[..., 1::2] << 4)).to(torch.uint8)


def unpack_nibbles(packed: torch.Tensor) -> torch.Tensor:
    """The inverse of `pack_nibbles`."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)


def pack_bits(keep: torch.Tensor) -> torch.Tensor:
    """uint8[..., n / 8] of booleans [..., n]; column `c` is bit `c % 8`."""
    weights = 1 << torch.arange(8, dtype=torch.int64, device=keep.device)
    return (keep.reshape(*keep.shape[:-1], keep.shape[-1] // 8, 8) * weights).sum(-1).to(torch.uint8)


def unpack_bits(packed: torch.Tensor) -> torch.Tensor:
    """The inverse of `pack_bits`."""
    return ((packed[..., None] >> torch.arange(8, dtype=torch.int64, device=packed.device)) & 1).bool().flatten(-2)


def pairwise_sum(values: torch.Tensor) -> torch.Tensor:
    """Sum over the last dimension, a power of two, by halves: `v[:h] + v[h:]`, and again; the dimension stays, as 1."""
    while values.shape[-1] > 1:
        half = values.shape[-1] // 2
        values = values[..., :half] + values[..., half:]
    return values
