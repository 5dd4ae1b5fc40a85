"""`export_state`: the FP4 tensors of a model in memory, for an engine that takes new weights in place (RL rollouts)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..errors import ExportError
from ..held import Held
from ..report.report import Report
from .format import Format, Job, Tensors, in_bf16
from .formats import FORMATS, format_named
from .job import job_of
from .packing import pack


class ExportedState:
    """The named tensors of a model in a format, made while they are read. Iterating gives `(name, tensor)`, as vLLM's
    `load_weights` takes them; each iteration reads the weights as they are then.

    names and tensors: those of the file that `qc.export` writes (its module in `quartet_compile/serving` has dtypes and
        layouts), on the device of each weight. What stays in high precision is bfloat16; a parameter that is bfloat16
        already is the model's own memory, to be copied before the next optimizer step.
    order: that of the state dict, so layer by layer; one weight's FP4 is held at a time.
    config: the `quantization_config` that an engine needs, once.

    Iterating raises `ExportError` at the first weight with a NaN or an infinity.
    """

    def __init__(self, job: Job, chosen: Format) -> None:
        assert chosen.tensors is not None
        self._job, self._tensors = job, chosen.tensors
        self.config: dict[str, Any] = chosen.settings(job)
        self.warnings: tuple[str, ...] = tuple(chosen.warnings(job))

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in self._job.source.tensors():
            yield from self._made(name, tensor).items()

    @torch.no_grad()
    def _made(self, name: str, tensor: torch.Tensor | Held) -> Tensors:
        assignment = self._job.plan.assignments[name]
        if assignment.quantizer is None:
            return {name: in_bf16(tensor)}
        return self._tensors(pack(assignment, tensor, unrotated=self._job.unrotated))


def export_state(
    model: nn.Module,
    *,
    format: str = "compressed-tensors",
    inputs: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    of: nn.Module | None = None,
    report: Report | None = None,
    unrotated: bool = False,
    activations: str | None = None,
    **options: Any,
) -> ExportedState:
    """The weights that a model's FP4 forward pass computes with, as named tensors in memory, weight by weight.

        state = qc.export_state(model)             # once: which weights are FP4
        for step in range(steps):
            train(model)
            engine.load_weights(state)             # any iterable of (name, tensor)

    Arguments and errors are those of `qc.export`; the formats are those of tensors by name, so not `gguf`. Of a sharded
    model every rank gets each tensor whole; all of them must read the state at the same time.
    """
    chosen = format_named(format)
    if chosen.tensors is None:
        expected = ", ".join(each.name for each in FORMATS.values() if each.tensors is not None)
        raise ExportError(
            f"Format {format!r} is a file, not tensors by name; expected one of {expected}. Write the file with qc.export."
        )
    if not isinstance(model, nn.Module):
        raise ExportError(f"export_state got a {type(model).__name__}; expected a Module, compiled or not.")
    job = job_of(
        model,
        chosen,
        inputs=inputs,
        kwargs=kwargs,
        of=of,
        report=report,
        unrotated=unrotated,
        activations=activations,
        options=options,
    )
    return ExportedState(job, chosen)
