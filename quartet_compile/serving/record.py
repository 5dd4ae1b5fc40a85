"""What an export wrote: a line for each tensor."""

from __future__ import annotations

import dataclasses
import pathlib

from ..tables import aligned, ruled


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportedTensor:
    """One tensor of the model.

    became: the format of what was written. bytes: of it. reason: why.
    error: squared error of what a loader reads over the sum of squares of the weight; None for what isn't quantized.
    rotated_error: with `unrotated=True`, the same of the rotated weight that the model was trained with.
    """

    name: str
    shape: tuple[int, ...]
    became: str
    bytes: int
    reason: str
    error: float | None = None
    rotated_error: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
    """What `qc.export` wrote. warnings: what to know before it is served."""

    folder: pathlib.Path
    format: str
    tensors: tuple[ExportedTensor, ...]
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        unrotated = any(tensor.rotated_error is not None for tensor in self.tensors)
        header = ("tensor", "shape", "became", "bytes", "error", *["error when rotated"] * unrotated, "because")
        rows: list[tuple[str, ...]] = [header]
        for each in self.tensors:
            errors = [each.error, *[each.rotated_error] * unrotated]
            shown = ["" if error is None else f"{error:.5f}" for error in errors]
            shape = "x".join(map(str, each.shape))
            rows.append((each.name, shape, each.became, f"{each.bytes:,}", *shown, each.reason))
        packed = sum(tensor.error is not None for tensor in self.tensors)
        total = sum(tensor.bytes for tensor in self.tensors)
        end = [
            "",
            f"{packed} of {len(self.tensors)} tensors in FP4, {total:,} bytes, in {self.folder} (format {self.format!r}).",
            "Error: squared, over the sum of squares of the weight.",
            *(f"Warning: {warning}" for warning in self.warnings),
        ]
        return "\n".join([*ruled(aligned(rows)), *end])
