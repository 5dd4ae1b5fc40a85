"""What the pass did to each graph, kept beside Inductor's cache: on a warm cache the pass does not run at all.

A record belongs to the pass's uuid, and a uuid to a graph with its configuration, so that a second process that finds
the compiled graph in the cache finds its report too.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

from .. import _compat
from ..process import process
from .report import Cached, Gathered, GraphReport, Observed, Site

log = logging.getLogger("quartet_compile")


def wants_text() -> bool:
    """Whether a record holds the graph's text too: only where it will be logged, since rendering takes time."""
    return log.isEnabledFor(logging.DEBUG)


def writer(uuid: str) -> Callable[[GraphReport], None]:
    """A function that keeps a graph's report under this uuid, in the process and on disk. A graph with higher-order ops
    gives several reports, its own the last."""
    reports: list[GraphReport] = []

    def write(report: GraphReport) -> None:
        reports.append(report)
        process.reports[uuid] = reports
        _store(uuid, reports)

    return write


def read(uuid: str) -> list[GraphReport]:
    """The reports kept under this uuid; none if neither the process nor the cache folder has them."""
    if uuid not in process.reports:
        process.reports[uuid] = _load(uuid)
    return process.reports[uuid]


def _path(uuid: str) -> pathlib.Path:
    return pathlib.Path(_compat.cache_dir()) / "quartet" / f"{uuid}.json"


def _store(uuid: str, reports: list[GraphReport]) -> None:
    text = json.dumps([dataclasses.asdict(report) for report in reports])
    try:
        path = _path(uuid)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, ignore_cleanup_errors=True) as folder:
            written = pathlib.Path(folder) / path.name
            written.write_text(text)
            os.replace(written, path)
    except OSError as error:
        log.info("the report of this graph could not be kept in Inductor's cache folder: %s", error)


def _load(uuid: str) -> list[GraphReport]:
    try:
        return [_graph(graph) for graph in json.loads(_path(uuid).read_text())]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _graph(data: dict[str, Any]) -> GraphReport:
    sites = tuple(Site(**{**site, "shape": tuple(site["shape"])}) for site in data["sites"])
    observed = tuple(Observed(**item) for item in data["observed"])
    gathered = tuple(Gathered(**{**item, "shape": tuple(item["shape"])}) for item in data["gathered"])
    cached = tuple(Cached(**item) for item in data["cached"])
    return GraphReport(**{**data, "sites": sites, "observed": observed, "gathered": gathered, "cached": cached})
