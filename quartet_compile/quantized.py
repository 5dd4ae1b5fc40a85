"""`quantize`: any registered quantizer on any tensor, to look at codes, scales, masks and errors outside of a model.

The numbers are those of the compiled passes: the same definition (docs/numerics.md), the same random bits for a seed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch

from .errors import QuantizerError
from .kernels import cpu
from .kernels.numerics import philox, reference
from .kernels.quantizer import E4M3_NAN, E8M0_NAN, Quantizer
from .kernels.quantizer import quantizer as registered_quantizer

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_STREAM = philox.FPROP_X


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class QuantizedTensor:
    """A tensor as low-precision blocks along its last dimension: `R` rows (all leading dimensions) of `C` values.

    `P` is `C` padded with zeros to a multiple of the quantizer's block, the larger of group and rotation.

    codes:  uint8[R, P / 2], two E2M1 codes a byte, the even column in the low nibble; float8_e4m3fn[R, P] for `mxfp8`;
            float32[R, P] for the `exact` quantizers.
    scales: uint8[R, P / 32], E8M0: byte `b` is 2^(b - 127), 255 is NaN. For `nvfp4-*` float8_e4m3fn[R, P / 16], relative
            to the tensor's. Every row of a square block has its scale. uint8[R, 0] for the `exact` quantizers.
    tensor_scale: float32[1] for `nvfp4-*`, from the largest finite group; float32[0] for the others.
    mask:   uint8[R, P / 8], bit `column % 8` is 1 where the value did not clip; None if the quantizer never clips.
    shape:  of the tensor that was quantized.
    signs:  float32[rotation] of the random rotation, or None.
    seed:   of signs and noise, given or drawn; None if none was needed.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    tensor_scale: torch.Tensor
    mask: torch.Tensor | None
    shape: torch.Size
    quantizer: Quantizer
    signs: torch.Tensor | None = None
    seed: int | None = None

    def dequantize(self) -> torch.Tensor:
        """The quantized values in the rotated space, as a GEMM sees them: float32[..., P], NaN where the scale is NaN.

        The shape is that of the input, except that the last dimension is `P`, the padded `C`: a rotation spreads the
        last values of a row over the whole of their group, so cutting at `C` would lose some of them. `restore` cuts.
        """
        blocks = reference.Blocks(self.codes, self.scales, self.tensor_scale, None, self.quantizer.format)
        values = reference.decode(blocks, self.quantizer)
        return values.reshape(*self.shape[:-1], values.shape[1])

    def restore(self) -> torch.Tensor:
        """The approximation of the input: `dequantize()` rotated back and cut to `C`; float32 of the input's shape."""
        values = self.dequantize()
        size = self.quantizer.rotation
        if size:
            groups = reference.hadamard(values.reshape(*values.shape[:-1], values.shape[-1] // size, size))
            values = (groups if self.signs is None else groups * self.signs).reshape(values.shape)
        return values[..., : self.shape[-1]]

    @property
    def nan_scales(self) -> int:
        """How many of the scales are NaN."""
        nan = E4M3_NAN if self.quantizer.two_level else E8M0_NAN
        return int((self.scales.view(torch.uint8) == nan).sum())

    def __repr__(self) -> str:
        parts = [self.quantizer.name, f"shape={tuple(self.shape)}"]
        for name in ("codes", "scales", "mask"):
            value = getattr(self, name)
            if value is not None:
                parts.append(f"{name}={str(value.dtype).removeprefix('torch.')}{list(value.shape)}")
        if self.tensor_scale.numel():
            parts.append(f"tensor_scale={self.tensor_scale.item():.4g}")
        if self.seed is not None:
            parts.append(f"seed={self.seed}")
        if self.mask is not None and self.mask.numel():
            clipped = 1 - reference.unpack_bits(self.mask)[:, : self.shape[-1]].float().mean().item()
            parts.append(f"clipped={clipped:.2%}")
        if self.nan_scales:
            parts.append(f"nan_groups={self.nan_scales}")
        return f"QuantizedTensor({', '.join(parts)})"


def quantize(
    x: torch.Tensor,
    quantizer: str | Quantizer,
    signs: torch.Tensor | Sequence[float] | None = None,
    seed: int | None = None,
) -> QuantizedTensor:
    """Quantize `x: [..., C]` in groups along the last dimension; leading dimensions are rows. Detached from autograd.

    x: float32, bfloat16 or float16, any strides; `C` is padded with zeros to the quantizer's block. Square blocks take as
        many rows as columns, of all leading dimensions together.
    quantizer: a registered name (`mxfp4-quest`, `nvfp4-rtn`, ...), a name with fields changed (`nvfp4-rtn,rotation=64`)
        or a `Quantizer`.
    signs: the signs (+-1) of a random rotation, as many as its size; None draws them from the seed.
    seed: a 64-bit integer that fixes signs and noise (as GEMM 0, operand 0; docs/numerics.md). None draws one from
        torch's default generator, if the quantizer needs any; `.seed` of the result says which.

    A block with a NaN or an infinity becomes NaN as a whole. Raises `QuantizerError` for a dtype, rank, quantizer, seed
    or signs that make no sense.
    """
    chosen = _check_quantizer(quantizer)
    rows = _as_rows(x)
    rotation_signs = _check_signs(signs, chosen, rows.device)
    needs_seed = chosen.noisy or (chosen.random_signs and rotation_signs is None)
    seed = _check_seed(seed)
    if seed is None and needs_seed:
        seed = int(torch.randint(0, 2**63 - 1, (), dtype=torch.int64, device="cpu"))
    key = torch.tensor(_wrap(seed), dtype=torch.int64, device=rows.device) if needs_seed and seed is not None else None
    if key is not None and chosen.random_signs and rotation_signs is None:
        rotation_signs = philox.signs(key, _STREAM, chosen.rotation)
    run = _kernel(rows.device)
    blocks = run(rows, chosen, mask=chosen.clips, stream=_STREAM, seed=key, signs=rotation_signs)
    return QuantizedTensor(
        codes=blocks.codes,
        scales=blocks.scales,
        tensor_scale=blocks.tensor_scale,
        mask=blocks.mask if chosen.clips else None,
        shape=x.shape,
        quantizer=chosen,
        signs=rotation_signs,
        seed=seed,
    )


def _kernel(device: torch.device) -> Callable[..., reference.Blocks]:
    """The implementation of `reference.quantize` for a device; all of them give the same bits."""
    return cpu.quantize if device.type == "cpu" else reference.quantize


def _check_quantizer(quantizer: object) -> Quantizer:
    if isinstance(quantizer, Quantizer):
        return quantizer
    if isinstance(quantizer, str):
        return registered_quantizer(quantizer)
    raise QuantizerError(
        f"quantize() got a quantizer of type {type(quantizer).__name__}; expected a registered name or a Quantizer. "
        "For example: quantize(x, 'mxfp4-quest')."
    )


def _as_rows(x: object) -> torch.Tensor:
    """`x` as a detached matrix, or an error."""
    if not isinstance(x, torch.Tensor):
        raise QuantizerError(
            f"quantize() got x of type {type(x).__name__}; expected a torch.Tensor. Convert it: torch.as_tensor(x)."
        )
    expected = ", ".join(str(dtype) for dtype in _DTYPES)
    if x.dtype not in _DTYPES:
        remedy = "Quantize x.real and x.imag apart." if x.dtype.is_complex else "Convert it first: x.float()."
        raise QuantizerError(f"quantize() got x of dtype {x.dtype}; expected one of {expected}. {remedy}")
    if x.layout != torch.strided:
        raise QuantizerError(f"quantize() got x with layout {x.layout}; expected a dense one: x.to_dense().")
    if x.dim() == 0:
        raise QuantizerError(
            "quantize() got a 0-dimensional x; expected [..., C], quantized in groups along C. Call x.reshape(1) first."
        )
    return x.detach().reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _check_signs(signs: object, quantizer: Quantizer, device: torch.device) -> torch.Tensor | None:
    if signs is None:
        return None
    if not quantizer.random_signs:
        raise QuantizerError(
            f"quantize() got signs for the quantizer {quantizer.name!r}, which has no random rotation; expected None. "
            "Drop signs, or pass a Quantizer with random_signs=True."
        )
    size = quantizer.rotation
    remedy = f"For example: signs = 1 - 2 * torch.randint(2, ({size},)), or leave signs out and give a seed."
    try:
        values = torch.as_tensor(signs).detach().to(device=device, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise QuantizerError(f"quantize() got signs of type {type(signs).__name__}, not numbers. {remedy}") from error
    if values.shape != (size,):
        raise QuantizerError(f"quantize() got signs of shape {tuple(values.shape)}; expected ({size},). {remedy}")
    wrong = values[values.abs() != 1]
    if wrong.numel():
        raise QuantizerError(f"quantize() got a sign {wrong[0].item():g}; expected every sign +1 or -1. {remedy}")
    return values


def _check_seed(seed: object) -> int | None:
    if seed is None:
        return None
    if isinstance(seed, int) and not isinstance(seed, bool) and -(2**63) <= seed < 2**64:
        return seed
    raise QuantizerError(
        f"quantize() got the seed {seed!r}; expected None or an int of 64 bits. For a tensor pass seed.item()."
    )


def _wrap(seed: int) -> int:
    """The int64 with the same 64 bits."""
    return (seed + 2**63) % 2**64 - 2**63
