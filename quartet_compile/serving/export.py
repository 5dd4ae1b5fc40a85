"""`export`: a trained model's FP4 weights as a folder that other code loads."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..errors import ExportError
from ..held import Held
from ..optional import needed
from ..progress import Progress, teller
from ..report.report import Report
from ..warn import warn
from .format import Format, Job, Writer
from .formats import format_named
from .job import job_of
from .packing import errors, pack
from .ranks import on_first_rank
from .record import Exported, ExportedTensor
from .staging import new_folder, require_new


def export(
    model: Any,
    folder: str | os.PathLike[str],
    *,
    format: str,
    inputs: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    of: nn.Module | None = None,
    report: Report | None = None,
    unrotated: bool = False,
    activations: str | None = None,
    progress: Progress = False,
    **options: Any,
) -> Exported:
    """Write the weights that a model's FP4 forward pass computes with, for `format`: compressed-tensors, gguf, gpt-oss,
    fp-quant or bf16 (docs/export.md says who loads each).

    model: a Module, compiled or not; or the path of a checkpoint folder with safetensors, which is read a tensor at a
        time. A sharded one (DTensors: FSDP2, tensor parallelism) is gathered a weight at a time: call it on all ranks, and
        rank 0 writes.
    of: the model that a checkpoint is of, weights or none (on the meta device); by default what its config.json describes.
        Of a sharded model, the same one before it was sharded.
    folder: must not exist. It appears as a whole when all is written, with config.json and, of a checkpoint, what lay
        beside the weights (tokenizer).
    inputs, kwargs: what the model is called with to see which matmuls run in FP4; shapes matter, values don't. By default
        a batch of tokens, for a language model of transformers. report: that of `explain` with these options, if it is
        there already.
    unrotated: quantize rotated weights again without their rotation, for loaders that can't rotate.
    activations: `"mxfp4"` writes that the server rounds activations to MXFP4 too, each group of 32 by its largest
        magnitude at run time (compressed-tensors); by default they stay in high precision. `eval="served-w4a16"` and the
        like compute either here.
    progress: True shows a bar to a person who watches stderr; a callable, as `print`, is told in words what is done next.
    options: those of training, as `recipe` and `exclude`; by default those that the model was compiled with.

    A weight becomes FP4 exactly if the report says so of its matmul; everything else becomes bfloat16, integers stay.
    Raises `ExportError` with nothing written: for a folder that exists, a forward pass that the format can't express,
    groups with a NaN, no space left.
    """
    chosen, path = format_named(format), pathlib.Path(folder)
    require_new(path)  # before the work that follows
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

    def write(tensors: Iterator[tuple[str, torch.Tensor | Held]]) -> list[ExportedTensor]:
        with new_folder(path) as staged:
            records = _write(job, chosen, staged, _shown(tensors, len(job.source.names), progress))
            _write_config(job, chosen, staged)
            for companion in job.source.companions:
                shutil.copyfile(companion, staged / companion.name)
        return records

    tensors = on_first_rank(job.source, write)
    warnings = tuple(chosen.warnings(job))
    for warning in warnings:
        warn("QC301", f"exported as {format!r}: {warning}.")
    return Exported(folder=path, format=format, tensors=tuple(tensors), warnings=warnings)


@torch.no_grad()
def _write(
    job: Job, chosen: Format, staged: pathlib.Path, tensors: Iterable[tuple[str, torch.Tensor | Held]]
) -> list[ExportedTensor]:
    records = []
    with _opened(chosen, job, staged) as writer:
        for name, tensor in tensors:
            assignment = job.plan.assignments[name]
            error, rotated = None, None
            if assignment.quantizer is None:
                became, size = writer.keep(name, tensor)
            else:
                weight = pack(assignment, tensor, unrotated=job.unrotated)
                became, size = writer.packed(weight)
                error, rotated = errors(weight, tensor)
            records.append(
                ExportedTensor(
                    name=name,
                    shape=tuple(tensor.shape),
                    became=became,
                    bytes=size,
                    reason=assignment.reason,
                    error=error,
                    rotated_error=rotated,
                )
            )
    return records


@contextlib.contextmanager
def _opened(chosen: Format, job: Job, staged: pathlib.Path) -> Iterator[Writer]:
    writer = chosen.writer(job, staged)
    try:
        yield writer
        writer.close()
    except BaseException:
        writer.abandon()
        raise


def _write_config(job: Job, chosen: Format, staged: pathlib.Path) -> None:
    settings = chosen.settings(job)
    config = {**job.config, **({"dtype": "bfloat16"} if job.config else {})}
    config.pop("torch_dtype", None)
    if settings:
        config["quantization_config"] = settings
    if config:
        (staged / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _shown(tensors: Iterable[Any], count: int, progress: Progress) -> Iterator[Any]:
    """The tensors, each said before it is written; to a person by a bar."""
    if progress is True:
        yield from needed("tqdm", "A progress bar", ExportError, "export").tqdm(
            tensors, total=count, unit="tensor", disable=None
        )
        return
    tell = teller(progress)
    for number, (name, tensor) in enumerate(tensors, 1):
        tell(f"writing {name}, tensor {number} of {count}")
        yield name, tensor
