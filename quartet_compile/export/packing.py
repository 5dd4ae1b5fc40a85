"""One weight as FP4 blocks, and how far they are from it."""

from __future__ import annotations

import dataclasses

import torch

from ..errors import ExportError
from ..kernels.quantizer import E4M3_NAN, E8M0_NAN, Quantizer
from ..quantized import QuantizedTensor, quantize
from .plan import COLUMNS, UNKNOWN, Assignment

_LOWER = (torch.bfloat16, torch.float16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packed:
    """A weight `[..., N, K]` in FP4. error, rotated_error: as in `ExportedTensor`."""

    assignment: Assignment
    blocks: QuantizedTensor
    error: float
    rotated_error: float | None = None

    @property
    def shape(self) -> torch.Size:
        """`[..., N, K]`, whatever the parameter's."""
        return self.blocks.shape

    def codes(self) -> torch.Tensor:
        """uint8[..., N, K / 2], low nibble first."""
        return self.blocks.codes.reshape(*self.shape[:-1], -1)

    def scales(self) -> torch.Tensor:
        """[..., N, K / group]."""
        return self.blocks.scales.reshape(*self.shape[:-1], -1)

    def restored(self) -> torch.Tensor:
        """What the forward pass computes with, rotated back, in the parameter's own layout: float32."""
        values = self.blocks.restore()
        return values.transpose(-1, -2).contiguous() if self.assignment.outputs == COLUMNS else values


def pack(assignment: Assignment, weight: torch.Tensor, *, unrotated: bool = False) -> Packed:
    """Quantize a weight as its forward pass does; unrotated: with the same quantizer without its rotation.

    Raises `ExportError` for groups with a NaN or an infinity, and where the layout isn't known.
    """
    quantizer = assignment.quantizer
    assert quantizer is not None
    if assignment.outputs == UNKNOWN:
        raise ExportError(
            f"The weight {assignment.name!r} of shape {tuple(weight.shape)} doesn't tell which dimension "
            "is contracted; expected "
            f"an nn.Linear, or matrices [N, K] or [K, N] with N != K. Keep it with exclude=[{assignment.name!r}]."
        )
    weight = weight.detach()
    if assignment.compute in _LOWER:
        weight = weight.to(assignment.compute)
    if assignment.outputs == COLUMNS:
        weight = weight.transpose(-1, -2)
    if quantizer.square and weight.shape[-2] % quantizer.group_rows and weight.dim() > 2:
        raise ExportError(
            f"The weights {assignment.name!r} have {weight.shape[-2]} rows each, and {quantizer.name!r} "
            "has square blocks of "
            f"{quantizer.group_rows}, which would reach from one matrix into the next. Keep it with "
            f"exclude=[{assignment.name!r}]."
        )
    weight = weight.contiguous()
    blocks = _blocks(assignment.name, weight, quantizer)
    error = relative_error(blocks, weight)
    if not (unrotated and quantizer.rotation):
        return Packed(assignment=assignment, blocks=blocks, error=error)
    plain = _blocks(assignment.name, weight, without_rotation(quantizer))
    return Packed(assignment=assignment, blocks=plain, error=relative_error(plain, weight), rotated_error=error)


def without_rotation(quantizer: Quantizer) -> Quantizer:
    """The quantizer without its rotation."""
    return dataclasses.replace(quantizer, rotation=0, random_signs=False)


def relative_error(blocks: QuantizedTensor, weight: torch.Tensor) -> float:
    """Squared error of the restored values over the sum of squares of the weight; 0 for a weight of zeros."""
    total = weight.float().square().sum()
    return float((blocks.restore() - weight.float()).square().sum() / total) if total else 0.0


def _blocks(name: str, weight: torch.Tensor, quantizer: Quantizer) -> QuantizedTensor:
    blocks = quantize(weight, quantizer)
    nan = E4M3_NAN if quantizer.two_level else E8M0_NAN
    broken = int((blocks.scales.view(torch.uint8) == nan).sum())
    if broken or not bool(blocks.tensor_scale.isfinite().all()):
        raise ExportError(
            f"The weight {name!r} has {broken} groups with a NaN or an infinity; expected finite values, "
            "since other code reads "
            "the scale byte of NaN as a number. Export an earlier checkpoint."
        )
    return blocks
