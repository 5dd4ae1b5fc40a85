"""The numerics, once: every op in plain PyTorch. All other backends agree with this page bit for bit on codes, scales,
masks and random bits, and within accumulation error on GEMMs.

Operands are matrices `[rows, columns]` with the contraction along the columns. `columns` is padded with zeros to the
group; the zeros are exact on both sides of a product. Method: arXiv 2505.14669, sections 4.2 and 4.3.

Blocks
    codes:  uint8[rows, padded / 2], E2M1, the even column in the low nibble; for exact formats float32[rows, padded].
    scales: uint8[rows, padded / 32], E8M0; for NVFP4 float8_e4m3fn[rows, padded / 16]; for exact formats uint8[rows, 0].
    tensor_scale: float32[0]; for NVFP4 float32[1], its second level.
    mask:   uint8[rows, padded / 8], bit `column % 8` set where the gradient passes; uint8[rows, 0] if not asked for.

Rules
    * Arithmetic is float32, IEEE, with no contraction to FMA. Subnormal inputs count as 0. Inputs below 2^-100 count
      as 0 too, except under absmax in groups whose largest is below 2^-63: those are lifted by 2^64 first. So no
      rotated value is subnormal, and flush-to-zero mode changes no bit of codes, scales or mask. Exact formats keep
      every normal input.
    * A group with a NaN or an infinity, or whose statistics overflow, has scale byte 255 (NaN), codes 0 and mask 0.
    * Zeros enter the rotation as +0, after the signs, so none leaves it as -0. A group that rotates to zeros has scale
      byte 0, codes 0 and mask 1. Elsewhere a code of magnitude 0 keeps the sign of the value that was rounded.
    * A decoded value below 2^-126 (scale bytes 0 and 1) is exact, or 0 in flush-to-zero mode.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..formats import E2M1_MAX, E2M1_VALUES, E8M0_NAN, QUEST_GAUSSIAN_CLIP, Quantizer, padded
from . import philox

_LIFT_BELOW = 2.0**-63
_ZERO_BELOW = 2.0**-100  # a multiple of its ulp, 2^-123, over sqrt(32) is still a normal number
_SMALLEST_NORMAL = 2.0**-126


class Blocks(NamedTuple):
    """A quantized operand; see the module docstring for layouts."""

    codes: torch.Tensor
    scales: torch.Tensor
    tensor_scale: torch.Tensor
    mask: torch.Tensor | None


def quantize(
    x: torch.Tensor,
    quantizer: Quantizer,
    *,
    transpose: bool = False,
    mask: bool = False,
    stream: int = 0,
    seed: torch.Tensor | None = None,
    signs: torch.Tensor | None = None,
    sign_seed: torch.Tensor | None = None,
) -> Blocks:
    """Quantize `x: float[rows, columns]`, or its transpose.

    stream, seed: which random bits (see `philox`); `seed` is an int64 scalar tensor, needed if rounding is stochastic.
    signs: float32[rotation] of +-1 for a rotation with random signs; None draws them from `sign_seed`, an int64 scalar.
    """
    if quantizer.random_signs and signs is None:
        signs = philox.signs(sign_seed, stream, quantizer.rotation)
    x = (x.t() if transpose else x).float()
    x = torch.where(x.abs() < _SMALLEST_NORMAL, 0.0, x)
    rows, columns = x.shape
    full = padded(columns, quantizer.group)
    groups = torch.nn.functional.pad(x, (0, full - columns)).reshape(rows, full // quantizer.group, quantizer.group)
    finite = groups.isfinite().all(-1, keepdim=True)

    if quantizer.exact:
        values = torch.where(finite, _rotate(groups, quantizer, signs), torch.nan).reshape(rows, full)
        ones = torch.full((rows, full // 8 if mask else 0), 255, dtype=torch.uint8, device=x.device)
        return Blocks(values, _no_scales(values), _no_tensor_scale(values), ones)

    if quantizer.scale == "quest":
        lift = torch.zeros_like(finite, dtype=torch.int32)
    else:
        lift = (groups.abs().amax(-1, keepdim=True) < _LIFT_BELOW).int() * 64
    groups = groups * power_of_two(lift)
    rotated = _rotate(torch.where(groups.abs() < _ZERO_BELOW, 0.0, groups), quantizer, signs)
    nonzero = (rotated != 0).any(-1, keepdim=True)
    exponent = _quest_exponent(rotated) if quantizer.scale == "quest" else _absmax_exponent(rotated, lift)
    exponent = torch.where(nonzero, exponent, 0)
    valid = finite & (exponent < E8M0_NAN)
    byte = torch.where(valid, exponent, 0)

    shift = 127 - byte - lift
    half = shift >> 1
    scaled = rotated * quantizer.shrink * power_of_two(half) * power_of_two(shift - half)
    bits = philox.noise(seed, stream, rows, full).reshape(groups.shape) if quantizer.stochastic else None
    codes = encode_e2m1(scaled, bits)
    codes = torch.where(valid, codes, 0).reshape(rows, full)
    keep = torch.where(valid, scaled.abs() < E2M1_MAX, False).reshape(rows, full)
    scales = torch.where(valid, exponent, E8M0_NAN).reshape(rows, full // quantizer.group).to(torch.uint8)
    return Blocks(
        pack_nibbles(codes), scales, _no_tensor_scale(scales), pack_bits(keep) if mask else keep[:, :0].to(torch.uint8)
    )


def quantize_pair(
    dy: torch.Tensor, row: Quantizer, column: Quantizer, *, seed: torch.Tensor, sign_seed: torch.Tensor
) -> tuple[Blocks, Blocks]:
    """`dy: float[M, N]` for dgrad, with signs from `seed`, and its transpose for wgrad, with signs from `sign_seed`."""
    return (
        quantize(dy, row, stream=philox.DGRAD_DY, seed=seed, sign_seed=seed),
        quantize(dy, column, transpose=True, stream=philox.WGRAD_DY, seed=seed, sign_seed=sign_seed),
    )


def requantize(
    source: Blocks,
    source_quantizer: Quantizer,
    quantizer: Quantizer,
    *,
    stream: int,
    seed: torch.Tensor | None,
    signs: torch.Tensor | None = None,
    sign_seed: torch.Tensor | None = None,
) -> Blocks:
    """Quantize the transpose of an already quantized operand: `[rows, padded]` to `[padded, rows]`, rows now padded."""
    values = decode(source, source_quantizer)
    return quantize(values, quantizer, transpose=True, stream=stream, seed=seed, signs=signs, sign_seed=sign_seed)


def scaled_mm(a: Blocks, b: Blocks, alpha: float, dtype: torch.dtype) -> torch.Tensor:
    """`alpha * a @ b^T` for `a: [M, K]` and `b: [N, K]`, accumulated in float32, as `dtype[M, N]`.

    A group whose scale is NaN makes every output that it reaches NaN. `alpha` carries the `gain` of both quantizers.
    """
    return (alpha * (_decode(a) @ _decode(b).t())).to(dtype)


def unrotate(x: torch.Tensor, mask: torch.Tensor | None, rotation: int, columns: int) -> torch.Tensor:
    """`(x where mask, else 0) @ H^T` by blocks of `rotation`, as `x.dtype[rows, columns]`.

    x: float[rows, padded]; mask: uint8[rows, padded / 8], or None for all of x. It selects and doesn't multiply: a masked
    NaN becomes 0.
    """
    values = x.float() if mask is None else torch.where(unpack_bits(mask), x.float(), 0.0)
    if rotation:
        values = hadamard(values.reshape(x.shape[0], x.shape[1] // rotation, rotation)).reshape(x.shape)
    return torch.empty((x.shape[0], columns), dtype=x.dtype, device=x.device).copy_(values[:, :columns])


def decode(blocks: Blocks, quantizer: Quantizer) -> torch.Tensor:
    """The values that the blocks stand for, in the rotated space, the shrink undone: float32[rows, padded]."""
    return _decode(blocks, quantizer.shrink)


def hadamard(groups: torch.Tensor) -> torch.Tensor:
    """`groups @ H` along the last dimension: butterflies at strides 1, 2, 4, ..., then one multiply by 1/sqrt(size)."""
    size = groups.shape[-1]
    stride = 1
    while stride < size:
        pairs = groups.reshape(*groups.shape[:-1], size // (2 * stride), 2, stride)
        low, high = pairs.unbind(-2)
        groups = torch.stack((low + high, low - high), dim=-2).reshape(groups.shape)
        stride *= 2
    return groups * torch.tensor(size**-0.5, dtype=torch.float32)


def encode_e2m1(scaled: torch.Tensor, bits: torch.Tensor | None = None) -> torch.Tensor:
    """The 4-bit codes (int64) of float32 values, saturated at 6: nearest with ties to even, or stochastic with `bits`.

    Stochastic: a value `f` of the way from one grid point to the next goes up iff `bits + floor(f * 2^16) >= 2^16`, so
    the expectation over all 2^16 values of `bits` is exact to 2^-16 of a step.
    """
    magnitude = scaled.abs().clamp(max=E2M1_MAX).nan_to_num(0.0)
    exponent = (magnitude >= 2).long() + (magnitude >= 4).long()
    steps = magnitude * power_of_two(1 - exponent)
    if bits is None:
        count = steps.round().long()
    else:
        count = ((steps * 2.0**philox.NOISE_BITS).long() + bits) >> philox.NOISE_BITS
    code = (count + 2 * exponent).clamp(max=7)
    return code | (torch.signbit(scaled).long() << 3)


def decode_e2m1(codes: torch.Tensor) -> torch.Tensor:
    """float32 values of 4-bit codes."""
    table = torch.tensor((*E2M1_VALUES, *(-v for v in E2M1_VALUES)), dtype=torch.float32, device=codes.device)
    return table[codes.long()]


def decode_e8m0(scales: torch.Tensor) -> torch.Tensor:
    """float32 powers of two of E8M0 bytes, built from bits (2^-127 is subnormal); byte 255 is NaN."""
    byte = scales.int()
    bits = torch.where(byte == 0, 1 << 22, byte << 23)
    return torch.where(byte == E8M0_NAN, torch.nan, bits.view(torch.float32))


def power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """float32 2^exponent for exponents in [-126, 127]."""
    return ((exponent.int() + 127) << 23).view(torch.float32)


def pack_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """uint8[..., n / 2] of codes [..., n], the even column in the low nibble."""
    return (codes[..., 0::2] | (codes[..., 1::2] << 4)).to(torch.uint8)


def unpack_nibbles(packed: torch.Tensor) -> torch.Tensor:
    """The inverse of `pack_nibbles`."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)


def pack_bits(keep: torch.Tensor) -> torch.Tensor:
    """uint8[..., n / 8] of booleans [..., n]; column `c` is bit `c % 8`."""
    weights = 1 << torch.arange(8, device=keep.device)
    return (keep.reshape(*keep.shape[:-1], keep.shape[-1] // 8, 8) * weights).sum(-1).to(torch.uint8)


def unpack_bits(packed: torch.Tensor) -> torch.Tensor:
    """The inverse of `pack_bits`."""
    return ((packed[..., None] >> torch.arange(8, device=packed.device)) & 1).bool().flatten(-2)


def _rotate(groups: torch.Tensor, quantizer: Quantizer, signs: torch.Tensor | None) -> torch.Tensor:
    if not quantizer.rotation:
        return groups
    return hadamard(groups * signs + 0.0 if quantizer.random_signs else groups)  # -0 + 0 = +0


def _mean(values: torch.Tensor) -> torch.Tensor:
    """Mean over the last dimension by pairwise halves."""
    size = values.shape[-1]
    while values.shape[-1] > 1:
        half = values.shape[-1] // 2
        values = values[..., :half] + values[..., half:]
    return values * (1.0 / size)


def _quest_exponent(rotated: torch.Tensor) -> torch.Tensor:
    """Exponent field of `c * std + 1e-8`, `c` = clipping point / 6: QuEST's scale rounded down to a power of two."""
    mean = _mean(rotated)
    variance = _mean(rotated * rotated) - mean * mean
    deviation = torch.where(variance < 0, 0.0, variance).sqrt()
    return _exponent_field(deviation * (QUEST_GAUSSIAN_CLIP / E2M1_MAX) + 1e-8)


def _absmax_exponent(rotated: torch.Tensor, lift: torch.Tensor) -> torch.Tensor:
    """E8M0 byte of 2^(floor(log2 absmax) - 2) for groups multiplied by 2^lift, at least 0; 255 where not finite."""
    field = _exponent_field(rotated.abs().amax(-1, keepdim=True))
    return torch.where(field == E8M0_NAN, field, (field - 2 - lift).clamp(min=0))


def _exponent_field(x: torch.Tensor) -> torch.Tensor:
    """Bits 23 to 30 of positive float32 values."""
    return (x.view(torch.int32) >> 23) & 0xFF


def _decode(blocks: Blocks, shrink: float = 1.0) -> torch.Tensor:
    """The values over `shrink`. The scale 2^-127, subnormal, is applied in two steps, which flush-to-zero spares."""
    if blocks.codes.dtype == torch.float32:
        return blocks.codes
    values = decode_e2m1(unpack_nibbles(blocks.codes))
    rows, full = values.shape
    if not blocks.scales.numel():
        return values
    groups = values.reshape(rows, blocks.scales.shape[1], full // blocks.scales.shape[1]) / shrink
    scales = blocks.scales[..., None]
    if scales.dtype == torch.float8_e4m3fn:
        return (groups * scales.float()).reshape(rows, full) * blocks.tensor_scale
    return (groups * decode_e8m0(scales.clamp(min=1)) * torch.where(scales == 0, 0.5, 1.0)).reshape(rows, full)


def _no_scales(values: torch.Tensor) -> torch.Tensor:
    return torch.empty((values.shape[0], 0), dtype=torch.uint8, device=values.device)


def _no_tensor_scale(values: torch.Tensor) -> torch.Tensor:
    return torch.empty(0, dtype=torch.float32, device=values.device)
