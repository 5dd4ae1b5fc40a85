"""One weight as FP4 blocks, and how far they are from it."""

from __future__ import annotations

import dataclasses

import torch

from ..errors import ExportError
from ..held import Held
from ..kernels.quantizer import Quantizer
from ..quantized import QuantizedTensor, quantize
from ..report.report import COLUMNS
from .plan import UNKNOWN, Assignment

_LOWER = (torch.bfloat16, torch.float16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packed:
    """A weight `[..., N, K]` in FP4."""

    assignment: Assignment
    blocks: QuantizedTensor

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


def pack(assignment: Assignment, weight: torch.Tensor | Held, *, unrotated: bool = False) -> Packed:
    """Quantize a weight as its forward pass does; unrotated: with the same quantizer without its rotation. Of a packed
    weight, its codes as they are.

    Raises `ExportError` for groups with a NaN or an infinity, for another shape than the model's, and where the layout
    isn't known.
    """
    quantizer = assignment.quantizer
    assert quantizer is not None
    if isinstance(weight, Held):
        return Packed(assignment=assignment, blocks=_held(assignment.name, weight, quantizer, unrotated))
    if unrotated:
        quantizer = quantizer.unrotated
    return Packed(assignment=assignment, blocks=_blocks(assignment.name, _read(assignment, weight), quantizer))


def errors(packed: Packed, weight: torch.Tensor | Held) -> tuple[float, float | None]:
    """The `error` and the `rotated_error` of `ExportedTensor`, of a weight and what `pack` made of it: 0 of a packed one."""
    if isinstance(weight, Held):
        return 0.0, None
    read, trained = _read(packed.assignment, weight), packed.assignment.quantizer
    rotated = None
    if trained is not None and trained != packed.blocks.quantizer:
        rotated = relative_error(_blocks(packed.assignment.name, read, trained), read)
    return relative_error(packed.blocks, read), rotated


def _read(assignment: Assignment, weight: torch.Tensor) -> torch.Tensor:
    """The weight as its matmul reads it: [..., N, K], K contiguous, in the dtype that it computes in."""
    quantizer = assignment.quantizer
    assert quantizer is not None
    if tuple(weight.shape) != assignment.shape:
        raise ExportError(
            f"The weight {assignment.name!r} has the shape {tuple(weight.shape)}; expected {assignment.shape}, as the model "
            "has it. Give the config.json, or the model, that the checkpoint was saved with."
        )
    if assignment.outputs == UNKNOWN:
        raise ExportError(
            f"The weight {assignment.name!r} of shape {tuple(weight.shape)} doesn't tell which dimension is contracted; "
            f"expected an nn.Linear, or matrices [N, K] or [K, N] with N != K. Keep it with exclude=[{assignment.name!r}]."
        )
    weight = weight.detach()
    if assignment.compute in _LOWER:
        weight = weight.to(assignment.compute)
    if assignment.outputs == COLUMNS:
        weight = weight.transpose(-1, -2)
    if quantizer.square and weight.shape[-2] % quantizer.group_rows and weight.dim() > 2:
        raise ExportError(
            f"The weights {assignment.name!r} have {weight.shape[-2]} rows each, and {quantizer.name!r} has square blocks "
            f"of {quantizer.group_rows}, which would reach from one matrix into the next. Keep it with "
            f"exclude=[{assignment.name!r}]."
        )
    return weight.contiguous()


def _held(name: str, weight: Held, quantizer: Quantizer, unrotated: bool) -> QuantizedTensor:
    if unrotated and quantizer.rotation:
        raise ExportError(
            f"The weight {name!r} is packed in codes that are rotated by {quantizer.rotation}; unrotated=True needs the "
            "weight that they were made of. Leave it out, export before quartet_compile.pack, or use format='bf16'."
        )
    codes, scales = (part.flatten(0, -2) for part in (weight.codes, weight.scales))
    return QuantizedTensor(
        codes=codes,
        scales=scales,
        tensor_scale=weight.tensor_scale,
        mask=None,
        shape=torch.Size(weight.rows),
        quantizer=quantizer,
    )


def relative_error(blocks: QuantizedTensor, weight: torch.Tensor) -> float:
    """Squared error of the restored values over the sum of squares of the weight; 0 for a weight of zeros."""
    total = weight.float().square().sum()
    return float((blocks.restore() - weight.float()).square().sum() / total) if total else 0.0


def _blocks(name: str, weight: torch.Tensor, quantizer: Quantizer) -> QuantizedTensor:
    blocks = quantize(weight, quantizer)
    if blocks.nan_scales or not bool(blocks.tensor_scale.isfinite().all()):
        groups = blocks.nan_scales // quantizer.group_rows
        raise ExportError(
            f"The weight {name!r} has a NaN or an infinity, in {groups} of its groups; expected finite values, since other "
            "code reads the scale byte of NaN as a number. Export an earlier checkpoint."
        )
    return blocks
