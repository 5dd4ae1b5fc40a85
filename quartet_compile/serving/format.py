"""What a format is: which FP4 weights it can hold, and what it writes for each."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, Protocol

import torch

from ..errors import ExportError
from ..held import Held
from ..kernels.quantizer import Quantizer
from ..report.report import COLUMNS
from .packing import Packed
from .plan import Assignment, Plan
from .shards import Shards
from .source import Source

Tensors = dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One export. config: of the model. quantizer: of all FP4 weights as they are written; None in a format that dequantizes
    them. activations: the number format that the server rounds activations to; None for none."""

    plan: Plan
    source: Source
    unrotated: bool
    quantizer: Quantizer | None
    activations: str | None = None

    @property
    def config(self) -> dict[str, Any]:
        return self.source.config


class Writer(Protocol):
    """Writes the tensors of one export; each call says what the tensor became, and in how many bytes."""

    def keep(self, name: str, tensor: torch.Tensor | Held) -> tuple[str, int]: ...

    def packed(self, weight: Packed) -> tuple[str, int]: ...

    def close(self) -> None: ...

    def abandon(self) -> None:
        """Close what an error left open, without one of its own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """A file format for FP4 weights.

    holds:     what it is, for messages and the command line.
    operands:  the number formats that it can hold; none of a format that dequantizes all of them.
    rotations: the sizes of rotations whose weights its loaders can use; 0 is none.
    activations: the number formats that it can tell a server to round activations to, each with weights in the same.
    tensors:   what a weight becomes: the tensors of the file by name; None for a format whose file isn't tensors by name.
    check:     raises `ExportError` for a model that it can't hold.
    settings:  what `config.json` says of it: its `quantization_config`; empty for none.
    warnings:  what to know before it is served.
    writer:    makes the writer.
    """

    name: str
    holds: str
    check: Callable[[Job], None]
    writer: Callable[[Job, pathlib.Path], Writer]
    operands: tuple[str, ...] = ()
    rotations: tuple[int, ...] = ()
    activations: tuple[str, ...] = ()
    tensors: Callable[[Packed], Tensors] | None = None
    settings: Callable[[Job], dict[str, Any]] = lambda job: {}
    warnings: Callable[[Job], list[str]] = lambda job: []

    def quantizer(self, plan: Plan, unrotated: bool) -> Quantizer:
        """That of all FP4 weights as they are written. Raises `ExportError` for one that the format can't hold."""
        quantizer = plan.quantizer.unrotated if unrotated else plan.quantizer
        bf16 = "format='bf16' writes what the forward pass computes with"
        if quantizer.format not in self.operands:
            raise ExportError(
                f"Format {self.name!r} holds {' and '.join(self.operands)}; the weights of recipe {plan.recipe!r} are "
                f"{quantizer.format} ({quantizer.name}). {bf16}."
            )
        if quantizer.shrink != 1.0:
            raise ExportError(
                f"The weights of recipe {plan.recipe!r} ({quantizer.name}) are divided by "
                f"shrink={quantizer.shrink} when they are "
                f"read, which no {quantizer.format} file can say: their values are no multiples of powers of two. {bf16}."
            )
        if quantizer.rotation not in self.rotations:
            expected = " or ".join(str(size) if size else "none" for size in self.rotations)
            raise ExportError(
                f"The weights of recipe {plan.recipe!r} are rotated by {quantizer.rotation}, and a file in "
                f"format {self.name!r} has "
                f"rotation {expected}. unrotated=True quantizes them without rotation and says what that costs; {bf16}."
            )
        return quantizer

    def check_activations(self, activations: str | None, quantizer: Quantizer | None) -> None:
        """Raise `ExportError` for activations that the format, or these weights, can't have."""
        if activations is None:
            return
        if activations not in self.activations:
            expected = " or ".join(map(repr, self.activations)) or "none"
            raise ExportError(
                f"activations is {activations!r}; format {self.name!r} tells a server to round activations to {expected}. "
                "Leave it out: activations stay in high precision."
            )
        if quantizer is None or quantizer.format != activations:
            raise ExportError(
                f"activations is {activations!r}, and the weights are {quantizer.format if quantizer else 'bfloat16'}; both "
                "operands of a product have one format. Leave it out, or give a recipe with such weights."
            )

    def check_width(self, assignment: Assignment, quantizer: Quantizer) -> None:
        """Raise `ExportError` for rows that don't fill their last group."""
        columns = assignment.shape[-2 if assignment.outputs == COLUMNS else -1]
        if columns % quantizer.block:
            raise ExportError(
                f"The weight {assignment.name!r} has rows of {columns}; expected a multiple of {quantizer.block}, as format "
                f"{self.name!r} has no padding. Keep it in high precision with exclude=[...], or use format='bf16'."
            )


def only_linears(job: Job, name: str) -> None:
    """Raise `ExportError` for an FP4 weight of something else than an `nn.Linear`."""
    for each in job.plan.quantized:
        if not each.linear:
            raise ExportError(
                f"The weight {each.name!r} is FP4 and not of an nn.Linear; format {name!r} holds linear "
                "layers only. Keep it with "
                "exclude=[...], or use format='bf16' (for the experts of gpt-oss: format='gpt-oss')."
            )


class SafetensorsWriter:
    """The writer of the formats whose weights are named tensors in safetensors. Floating-point numbers that stay in high
    precision become bfloat16."""

    def __init__(self, tensors: Callable[[Packed], Tensors], became: Callable[[Packed], str], shards: Shards) -> None:
        self._tensors, self._became, self._shards = tensors, became, shards

    def keep(self, name: str, tensor: torch.Tensor | Held) -> tuple[str, int]:
        kept = in_bf16(tensor)
        self._shards.add(name, kept)
        return str(kept.dtype).removeprefix("torch."), kept.nbytes

    def packed(self, weight: Packed) -> tuple[str, int]:
        tensors = self._tensors(weight)
        for name, tensor in tensors.items():
            self._shards.add(name, tensor)
        return self._became(weight), sum(tensor.nbytes for tensor in tensors.values())

    def close(self) -> None:
        self._shards.close()

    def abandon(self) -> None:
        self._shards.abandon()


def safetensors_writer(
    tensors: Callable[[Packed], Tensors], became: Callable[[Packed], str]
) -> Callable[[Job, pathlib.Path], Writer]:
    """The `writer` of such a format. tensors, became: what a weight becomes, as tensors and in words."""
    return lambda job, folder: SafetensorsWriter(tensors, became, Shards(folder, job.source.names))


def in_bf16(tensor: torch.Tensor | Held) -> torch.Tensor:
    """A tensor as it is kept: float32 and float16 as bfloat16, others as they are; of a packed weight its values."""
    tensor = tensor.values() if isinstance(tensor, Held) else tensor
    return tensor.to(torch.bfloat16) if tensor.dtype in (torch.float32, torch.float16, torch.float64) else tensor
