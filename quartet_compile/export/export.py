"""`export`: a trained model's FP4 weights as a folder that other code loads."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import warnings as python_warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..callables import uncompiled
from ..capture.explain import explain
from ..compiled import compiled_by_us, same_options
from ..config.options import configure
from ..errors import ExportError
from ..report.report import Report
from .format import Format, Job, Writer
from .formats import format_named
from .packing import pack
from .plan import named, plan
from .record import Exported, ExportedTensor
from .skeleton import call, skeleton
from .source import FolderSource, ModelSource, Source
from .staging import new_folder


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
    progress: bool = False,
    **options: Any,
) -> Exported:
    """Write the weights that a model's FP4 forward pass computes with, for `format`: compressed-tensors, gguf, gpt-oss,
    fp-quant or bf16 (docs/export.md says who loads each).

    model: a Module, compiled or not; or the path of a checkpoint folder with safetensors, which is read a tensor at a
        time. of: the model that such a checkpoint is of, weights or none (on the meta device); by default what its
        config.json describes.
    folder: must not exist. It appears as a whole when all is written, with config.json and, of a checkpoint, what lay
        beside the weights (tokenizer).
    inputs, kwargs: what the model is called with to see which matmuls run in FP4; shapes matter, values don't. By default
        a batch of tokens, for a language model of transformers. report: that of `explain` with these options, if it is
        there already.
    unrotated: quantize rotated weights again without their rotation, for loaders that can't rotate.
    options: those of training, as `recipe` and `exclude`; by default those that the model was compiled with.

    A weight becomes FP4 exactly if the report says so of its matmul; everything else becomes bfloat16, integers stay.
    Raises `ExportError` with nothing written: for a folder that exists, a forward pass that the format can't express,
    groups with a NaN, no space left.
    """
    chosen, target = format_named(format), pathlib.Path(folder)
    job = job_of(
        model, chosen, inputs=inputs, kwargs=kwargs, of=of, report=report, unrotated=unrotated, options=options
    )
    with new_folder(target) as staged:
        tensors = _write(job, chosen, staged, progress)
        _write_config(job, chosen, staged)
        for path in job.source.companions:
            shutil.copyfile(path, staged / path.name)
    warnings = tuple(chosen.warnings(job))
    for warning in warnings:
        python_warnings.warn(f"quartet: exported as {format!r}: {warning}.", stacklevel=2)
    return Exported(folder=target, format=format, tensors=tuple(tensors), warnings=warnings)


def job_of(
    model: Any,
    chosen: Format,
    *,
    inputs: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None,
    of: nn.Module | None,
    report: Report | None,
    unrotated: bool,
    options: Mapping[str, Any],
) -> Job:
    """What is to be written, checked as far as it can be before any weight is read."""
    source, subject = _source(model, of)
    whole: nn.Module = uncompiled(subject)
    compiled = compiled_by_us(subject)
    config = configure(options) if compiled is None else same_options(compiled, options)
    if report is None:
        args, keywords = call(whole, inputs, dict(kwargs or {}))
        report = explain(subject, *args, kwargs=keywords, **options)
    found = plan(report, whole, config.policy)
    found = dataclasses.replace(found, assignments=named(found, source.names))
    shapes = {name: tuple(tensor.shape) for name, tensor in whole.state_dict().items()}
    single = chosen.name != "bf16"
    quantizer = chosen.quantizer(found, unrotated) if single else None
    for each in found.quantized if quantizer else ():
        chosen.check_width(each, shapes.get(each.name, (0,)), quantizer)  # type: ignore[arg-type]
    if not found.quantized:
        found.quantizer  # noqa: B018  raises, with the reasons
    job = Job(plan=found, source=source, unrotated=unrotated, quantizer=quantizer)
    chosen.check(job)
    return job


def _source(model: Any, of: Any) -> tuple[Source, Any]:
    """The weights, and the model that tells what each is for, as it was given: compiled or not."""
    if isinstance(model, (str, os.PathLike)):
        folder = pathlib.Path(model)
        return FolderSource(folder), skeleton(folder) if of is None else of
    whole = uncompiled(model)
    if not isinstance(whole, nn.Module):
        raise ExportError(
            f"export got a {type(model).__name__}; expected a Module, compiled or not, or the path of a checkpoint folder."
        )
    return ModelSource(whole), model


@torch.no_grad()
def _write(job: Job, chosen: Format, staged: pathlib.Path, progress: bool) -> list[ExportedTensor]:
    records = []
    with _opened(chosen, job, staged) as writer:
        for name, tensor in _shown(job.source.tensors(), len(job.source.names), progress):
            assignment = job.plan.assignments[name]
            errors: dict[str, Any] = {}
            if assignment.quantizer is None:
                became, size = writer.keep(name, tensor)
            else:
                weight = pack(assignment, tensor, unrotated=job.unrotated)
                became, size = writer.packed(weight)
                errors = dict(error=weight.error, rotated_error=weight.rotated_error)
            records.append(
                ExportedTensor(
                    name=name, shape=tuple(tensor.shape), became=became, bytes=size, reason=assignment.reason, **errors
                )
            )
    return records


@contextlib.contextmanager
def _opened(chosen: Format, job: Job, staged: pathlib.Path) -> Iterator[Writer]:
    writer = chosen.writer(job, staged)
    try:
        yield writer
    except BaseException:
        with contextlib.suppress(OSError):
            writer.abandon()
        raise
    writer.close()


def _write_config(job: Job, chosen: Format, staged: pathlib.Path) -> None:
    settings = chosen.settings(job)
    config = {**job.config, **({"dtype": "bfloat16"} if job.config else {})}
    config.pop("torch_dtype", None)
    if settings:
        config["quantization_config"] = settings
    if config:
        (staged / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _shown(tensors: Iterable[Any], count: int, progress: bool) -> Iterable[Any]:
    """The tensors, with a bar on stderr where somebody watches it."""
    if not progress:
        return tensors
    try:
        from tqdm import tqdm
    except ImportError:
        raise ExportError("A progress bar needs tqdm: pip install 'quartet-compile[export]'.") from None
    bar: Iterable[Any] = tqdm(tensors, total=count, unit="tensor", disable=None)
    return bar
