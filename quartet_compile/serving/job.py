"""What is to be exported, checked as far as it can be before any weight is read."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..callables import uncompiled
from ..capture.explain import explain
from ..compiled import compiled_by_us, same_options
from ..config.options import configure
from ..errors import ExportError
from ..report.report import Report
from .format import Format, Job
from .plan import named, plan
from .skeleton import call, skeleton
from .source import FolderSource, ModelSource, Source


def job_of(
    model: Any,
    chosen: Format,
    *,
    inputs: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None,
    of: nn.Module | None,
    report: Report | None,
    unrotated: bool,
    activations: str | None,
    options: Mapping[str, Any],
) -> Job:
    """What is to be written, checked as far as it can be before any weight is read."""
    source, subject = _source(model, of)
    whole: nn.Module = uncompiled(subject)
    compiled = compiled_by_us(model if isinstance(source, ModelSource) else subject)
    config = configure(options) if compiled is None else same_options(compiled, options)
    if compiled is not None:
        options = compiled.options
    if report is None:
        args, keywords = call(whole, inputs, kwargs)
        report = explain(subject, *args, kwargs=keywords, **options)
    found = plan(report, whole, config.policy)
    found = dataclasses.replace(found, assignments=named(found, source.names))
    found.require_quantized()
    quantizer = chosen.quantizer(found, unrotated) if chosen.operands else None
    if quantizer is not None:
        for each in found.quantized:
            chosen.check_width(each, quantizer)
    chosen.check_activations(activations, quantizer)
    job = Job(plan=found, source=source, unrotated=unrotated, quantizer=quantizer, activations=activations)
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
    return ModelSource(whole), model if of is None else of
