"""Compile a model with the pass and without Inductor: the rewritten graphs run as they are, in milliseconds."""

from __future__ import annotations

from typing import Any

import torch

from quartet_compile.capture.capture import Capture
from quartet_compile.config.options import configure
from quartet_compile.report.report import Site


def compiled(model: Any, **options: Any) -> tuple[Any, Capture]:
    """The compiled model, and the backend, whose `graphs` fill as graphs are compiled."""
    torch._dynamo.reset()
    backend = Capture(configure(options), text=False)
    return torch.compile(model, backend=backend, dynamic=False), backend


def sites(backend: Capture) -> list[Site]:
    """The matmuls of all graphs."""
    return [site for graph in backend.graphs for site in graph.sites]


def decisions(report: Any) -> dict[str, bool]:
    """Whether each matmul of a report was rewritten, by name."""
    return {site.name: site.rewritten for site in report.sites}


def reasons(report: Any) -> dict[str, str]:
    """Why each matmul of a report was or wasn't rewritten, by name."""
    return {site.name: site.reason for site in report.sites}
