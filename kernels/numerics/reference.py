"""The numerics, once: every op in plain PyTorch. All other backends agree with this page bit for bit on codes, scales,
masks and random bits, and within accumulation error on GEMMs.

Operands are matrices `[rows, columns]` with the contraction along the columns. `columns` is padded with zeros to the
quantizer's block, the larger of group and rotation; the zeros are exact on both sides of a product. Methods: arXiv
2505.14669, sections 4.2 and 4.3 (MXFP4), arXiv 2601.22813 (NVFP4), OCP MX v1.0 (MXFP8). The scales of groups are chosen
in `scales_e8m0.py` (E8M0) and `scales_e4m3.py` (E4M3).

Blocks
    codes:  uint8[rows, padded / 2], E2M1, the even column in the low nibble; float8_e4m3fn[rows, padded] for E4M3
            elements; for exact formats float32[rows, padded].
    scales: uint8[rows, padded / 32], E8M0; for NVFP4 float8_e4m3fn[rows, padded / 16]; for exact formats uint8[rows, 0].
            Every row of a square block has its scale.
    tensor_scale: float32[0]; for NVFP4 float32[1], its second level.
    mask:   uint8[rows, padded / 8], bit `column % 8` set where the gradient passes; uint8[rows, 0] if not asked for.

Rules
    * Arithmetic is float32, IEEE, with no contraction to FMA.
    * E8M0 scales are 2^-63 (byte 64) or more. What is far below it rounds to 0, so subnormal values, and a processor that
      flushes them to 0, change nothing but the signs of codes of magnitude 0.
    * With E4M3 scales, inputs below 2^-100 (below 2^-99 with a rotation of 128) count as +0, so no rotated value is
      subnormal, and flush-to-zero mode changes no bit. Exact formats keep every normal input; subnormal ones count as 0.
    * A block with a NaN or an infinity, or a group whose sums overflow, has NaN scales (E8M0 255, E4M3 0x7F), codes
      0 and mask 0. Other groups don't notice: the tensor scale is that of the finite ones.
    * A code of magnitude 0 keeps the sign of the value that was rounded; but under absmax with E8M0 scales, the codes of a
      group that rotates to zeros are 0. (With E4M3 scales zeros enter the rotation as +0, after the signs.)
    * An operand that is quantized again from MXFP4 codes is rotated exactly: see `requantize`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..operand_formats import OPERAND_FORMATS
from ..quantizer import E8M0_NAN, Quantizer, padded
from . import philox, scales_e4m3, scales_e8m0
from .codes import (
    decode_e2m1,
    decode_e8m0,
    encode_e2m1,
    pack_bits,
    pack_nibbles,
    power_of_two,
    unpack_bits,
    unpack_nibbles,
)
from .scales_e8m0 import Sums
from .supports import REFERENCE

__all__ = [
    "Blocks",
    "decode",
    "decode_e2m1",
    "decode_e8m0",
    "encode_e2m1",
    "hadamard",
    "hadamard_sums",
    "is_aligned",
    "pack_bits",
    "pack_nibbles",
    "power_of_two",
    "quantize",
    "quantize_pair",
    "requantize",
    "scaled_mm",
    "transposed",
    "unpack_bits",
    "unpack_nibbles",
    "unrotate",
]

_SMALLEST_NORMAL = 2.0**-126
_BIAS = 127
"""Of an E8M0 byte over the exponent of its scale."""


class Blocks(NamedTuple):
    """A quantized operand; see the module docstring for layouts. `format` is a name of `OPERAND_FORMATS`."""

    codes: torch.Tensor
    scales: torch.Tensor
    tensor_scale: torch.Tensor
    mask: torch.Tensor | None
    format: str

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """All that has values: `(codes, scales, tensor_scale, mask)`."""
        return self[:4]


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
    REFERENCE.require(quantizer)
    signs = _signs(quantizer, signs, sign_seed, stream)
    x = (x.t() if transpose else x).float()
    rows, columns = x.shape
    full = padded(columns, quantizer.block)
    blocks = torch.nn.functional.pad(x, (0, full - columns)).reshape(rows, full // quantizer.block, quantizer.block)
    finite = blocks.isfinite().all(-1, keepdim=True)

    if quantizer.exact:
        values = _rotate(_zero_below(_SMALLEST_NORMAL, blocks), quantizer, signs)
        values = torch.where(finite, values, torch.nan).reshape(rows, full)
        ones = torch.full((rows, full // 8 if mask else 0), 255, dtype=torch.uint8, device=x.device)
        return Blocks(values, _no_scales(values), _no_tensor_scale(values), ones, quantizer.format)

    shape = (rows, full // quantizer.group, quantizer.group)
    finite = finite.repeat_interleave(quantizer.block // quantizer.group, dim=1)
    match quantizer.scale_format:
        case "e8m0":
            sums = _butterflies(blocks, quantizer, signs).reshape(shape)
            zeros = torch.zeros_like(finite, dtype=torch.int32)
            return _blocks_of(Sums(sums, _root(quantizer), zeros, finite), quantizer, seed, stream, mask)
        case "e4m3":
            groups = _rotate(_zero_below(_zero_limit(quantizer), blocks), quantizer, signs).reshape(shape)
            codes, scales, tensor_scale, keep = scales_e4m3.quantize_groups(groups, finite, quantizer, seed, stream)
            return _packed(codes, scales, tensor_scale, keep.expand(shape), quantizer, mask)
        case other:
            raise REFERENCE.refusal("scale_format", other)


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
    """Quantize the transpose of an already quantized operand: `[rows, padded]` to `[padded, rows]`, rows now padded.

    If `is_aligned`, the 32 values of a group are integers in units of the largest of their scales over 2^16, below 2^24 in
    sum: values whose scale is below 2^-15 of the largest count as 0, and zeros that are rotated as +0. So the rotation has
    the same bits in float32 in any order of its sums, and in half precision with float32 sums.
    """
    REFERENCE.require(source_quantizer)
    REFERENCE.require(quantizer)
    if not is_aligned(source_quantizer, quantizer):
        values = decode(source, source_quantizer)
        return quantize(values, quantizer, transpose=True, stream=stream, seed=seed, signs=signs, sign_seed=sign_seed)
    values, exponent = _aligned(source)
    sums = _butterflies(values, quantizer, _signs(quantizer, signs, sign_seed, stream), zero=0.0)
    root = _root(quantizer) / source_quantizer.shrink
    finite = exponent < E8M0_NAN - _BIAS
    return _blocks_of(Sums(sums, root, exponent, finite), quantizer, seed, stream, mask=False)


def is_aligned(source: Quantizer, quantizer: Quantizer) -> bool:
    """Whether `requantize` takes codes in units of the largest scale of a group: from MXFP4 to MXFP4 in groups of 32, of
    which one is a block, with absmax rounded down, but not by EDEN."""
    return (
        (source.format, quantizer.format) == ("mxfp4", "mxfp4")
        and (quantizer.scale, quantizer.scale_rounding, quantizer.group_rows) == ("absmax", "down", 1)
        and quantizer.rotation in (0, 32)
        and quantizer.rounding != "eden"
    )


def transposed(source: Blocks, quantizer: Quantizer) -> Blocks:
    """The transpose of an operand in square blocks, codes as they are: `[rows, padded]` to `[padded, rows]`, rows padded.

    Rows that are padded have codes 0 and the scale of their block.
    """
    REFERENCE.require(quantizer)
    group, packed = quantizer.group, OPERAND_FORMATS[source.format].packed > 1
    codes = unpack_nibbles(source.codes) if packed else source.codes.view(torch.uint8)
    codes = torch.nn.functional.pad(codes, (0, 0, 0, padded(codes.shape[0], group) - codes.shape[0])).t().contiguous()
    scales = source.scales.view(torch.uint8)[::group].t().repeat_interleave(group, dim=0).contiguous()
    return Blocks(
        pack_nibbles(codes) if packed else codes.view(source.codes.dtype),
        scales.view(source.scales.dtype),
        source.tensor_scale.clone(),
        None,
        source.format,
    )


def scaled_mm(a: Blocks, b: Blocks, alpha: float, dtype: torch.dtype) -> torch.Tensor:
    """`alpha * a @ b^T` for `a: [M, K]` and `b: [N, K]`, accumulated in float32, as `dtype[M, N]`.

    A group whose scale is NaN makes every output that it reaches NaN. `alpha` carries the `gain` of both quantizers.
    """
    REFERENCE.require_product(a.format, b.format)
    with torch.autocast(a.codes.device.type, enabled=False):
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
    REFERENCE.require(quantizer)
    return _decode(blocks, quantizer.shrink)


def hadamard(groups: torch.Tensor) -> torch.Tensor:
    """`groups @ H` along the last dimension: `hadamard_sums`, then one multiply by 1/sqrt(size)."""
    size = groups.shape[-1]
    return hadamard_sums(groups) * torch.tensor(size**-0.5, dtype=torch.float32, device=groups.device)


def hadamard_sums(groups: torch.Tensor) -> torch.Tensor:
    """`groups @ H * sqrt(size)` along the last dimension: butterflies at strides 1, 2, 4, ..."""
    size = groups.shape[-1]
    stride = 1
    while stride < size:
        pairs = groups.reshape(*groups.shape[:-1], size // (2 * stride), 2, stride)
        low, high = pairs.unbind(-2)
        groups = torch.stack((low + high, low - high), dim=-2).reshape(groups.shape)
        stride *= 2
    return groups


def _zero_limit(quantizer: Quantizer) -> float:
    """Smaller inputs count as 0: a multiple of its ulp, 2^-23 of it, over sqrt(rotation) is still a normal number."""
    return 2.0**-99 if quantizer.rotation > 64 else 2.0**-100


def _zero_below(limit: float, x: torch.Tensor) -> torch.Tensor:
    return torch.where(x.abs() < limit, 0.0, x)


def _signs(
    quantizer: Quantizer, signs: torch.Tensor | None, sign_seed: torch.Tensor | None, stream: int
) -> torch.Tensor | None:
    if quantizer.random_signs and signs is None:
        return philox.signs(sign_seed, stream, quantizer.rotation)
    return signs if quantizer.random_signs else None


def _rotate(blocks: torch.Tensor, quantizer: Quantizer, signs: torch.Tensor | None) -> torch.Tensor:
    if not quantizer.rotation:
        return blocks
    parts = blocks.reshape(*blocks.shape[:-1], blocks.shape[-1] // quantizer.rotation, quantizer.rotation)
    return hadamard(parts if signs is None else parts * signs + 0.0).reshape(blocks.shape)  # -0 + 0 = +0


def _butterflies(
    blocks: torch.Tensor, quantizer: Quantizer, signs: torch.Tensor | None, zero: float = -0.0
) -> torch.Tensor:
    """`_rotate` without its last multiply, and with `zero` added before: +0 leaves no -0, -0 changes nothing."""
    if not quantizer.rotation:
        return blocks
    parts = blocks.reshape(*blocks.shape[:-1], blocks.shape[-1] // quantizer.rotation, quantizer.rotation)
    return hadamard_sums((parts if signs is None else parts * signs) + zero).reshape(blocks.shape)


def _root(quantizer: Quantizer) -> float:
    """The factor of the rotation, a float64."""
    return quantizer.rotation**-0.5 if quantizer.rotation else 1.0


def _aligned(source: Blocks) -> tuple[torch.Tensor, torch.Tensor]:
    """The transpose of MXFP4 blocks as float32[padded, groups, 32], and the exponents int32[padded, groups, 1] of what
    each group is in units of: the largest scale of its 32 values."""
    rows, of_row = source.scales.shape
    full = padded(rows, 32)
    codes = torch.nn.functional.pad(unpack_nibbles(source.codes), (0, 0, 0, full - rows))
    scales = torch.nn.functional.pad(source.scales.int(), (0, 0, 0, full - rows)).reshape(full // 32, 32, of_row, 1)
    largest = scales.amax(1, keepdim=True)
    below = scales - largest
    power = torch.where(below < -15, 0.0, power_of_two(below.clamp(min=-15)))
    values = decode_e2m1(codes).reshape(full // 32, 32, of_row, 32) * power
    exponent = (largest - _BIAS).expand(full // 32, 1, of_row, 32)
    return values.permute(2, 3, 0, 1).flatten(0, 1), exponent.permute(2, 3, 0, 1).flatten(0, 1)


def _blocks_of(values: Sums, quantizer: Quantizer, seed: torch.Tensor | None, stream: int, mask: bool) -> Blocks:
    codes, scales, keep = scales_e8m0.quantize_groups(values, quantizer, seed, stream)
    return _packed(codes, scales, _no_tensor_scale(values.sums), keep, quantizer, mask)


def _packed(
    codes: torch.Tensor,
    scales: torch.Tensor,
    tensor_scale: torch.Tensor,
    keep: torch.Tensor,
    quantizer: Quantizer,
    mask: bool,
) -> Blocks:
    """Blocks of codes [rows, groups, group], scales [rows, groups, 1] and of what did not clip."""
    codes, keep = codes.flatten(1), keep.flatten(1)
    bits = pack_bits(keep) if mask else _no_scales(keep)
    packed = OPERAND_FORMATS[quantizer.format].packed > 1
    codes = pack_nibbles(codes) if packed else codes
    return Blocks(codes, scales.squeeze(-1), tensor_scale, bits, quantizer.format)


def _decode(blocks: Blocks, shrink: float = 1.0) -> torch.Tensor:
    """The values over `shrink`. The scale 2^-127, subnormal, is applied in two steps, which flush-to-zero spares."""
    match blocks.format:
        case "float32":
            return blocks.codes
        case "mxfp4" | "nvfp4":
            values = decode_e2m1(unpack_nibbles(blocks.codes))
        case "mxfp8":
            values = blocks.codes.float()
        case other:
            raise REFERENCE.refusal("operand format", other)
    rows, full = values.shape
    if not blocks.scales.numel():
        return values
    groups = values.reshape(rows, blocks.scales.shape[1], full // blocks.scales.shape[1]) / shrink
    scales = blocks.scales[..., None]
    if OPERAND_FORMATS[blocks.format].two_level:
        return (groups * (scales.float() * blocks.tensor_scale)).reshape(rows, full)
    values = groups * decode_e8m0(scales.clamp(min=1))
    return torch.where(scales == 0, values * 0.5, values).reshape(rows, full)


def _no_scales(values: torch.Tensor) -> torch.Tensor:
    return torch.empty((values.shape[0], 0), dtype=torch.uint8, device=values.device)


def _no_tensor_scale(values: torch.Tensor) -> torch.Tensor:
    return torch.empty(0, dtype=torch.float32, device=values.device)
