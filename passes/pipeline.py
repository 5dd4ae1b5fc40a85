"""Run a list of passes on a graph: those that look at it once, those that change it until none of them fails on a site.

After each pass that changed the graph, and once more at the end, it is checked against the spec (spec.py). Where a pass
or the check fails, the graph goes back to what it was, the site at fault stays in high precision, and the rest is
rewritten again.

`QUARTET_DEBUG=passes` prints the graph after each of these passes; a `TORCH_TRACE` log has it too, for tlparse.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from .. import _compat, debug
from .failures import keep
from .show import show
from .verify import verify
from .work import Work

log = logging.getLogger("quartet_compile")


class Pass(NamedTuple):
    """A step of the pipeline. changes: it rewrites the graph, instead of finding out about it."""

    name: str
    run: Callable[[Work], None]
    changes: bool = False


def run(pipeline: Iterable[Pass], work: Work) -> dict[str, float]:
    """Run the passes in their order. Returns the seconds that each took, and the checks, with failed attempts.

    Raises what a pass that changes nothing raises, and `StrictError` for a site on which another fails under `strict`.
    """
    seconds: dict[str, float] = {}
    prints = debug.asked("passes")
    looking = [step for step in pipeline if not step.changes]
    changing = [step for step in pipeline if step.changes]
    for step in looking:
        _timed(seconds, step.name, step.run, work)
    while work.chosen:
        undo = work.attempt()
        try:
            for step in changing:
                edits = work.build.edits
                _timed(seconds, step.name, step.run, work)
                work.build.working_on = None
                if work.build.edits != edits:
                    _timed(seconds, "verify", verify, work)
                    _tell(step.name, work, prints)
            _timed(seconds, "verify", verify, work, True)
        except Exception as error:  # noqa: BLE001
            undo()
            keep(work, error)
        else:
            work.graph.eliminate_dead_code(lambda node: node not in work.idle and node.is_impure())
            break
    _compat.trace_artifact("quartet_pass_seconds", lambda: json.dumps(seconds))
    log.debug("passes: %s", ", ".join(f"{name} {1e3 * took:.1f} ms" for name, took in seconds.items()))
    return seconds


def _timed(seconds: dict[str, float], name: str, function: Callable, *args: object) -> None:
    start = time.perf_counter()
    try:
        function(*args)
    finally:
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start


def _tell(name: str, work: Work, prints: bool) -> None:
    """Show the graph after a pass to whoever wants it."""

    def text() -> str:
        return show(work.graph, dict(work.inputs.names))

    if prints:
        sys.stderr.write(f"quartet: after {name}\n{text()}\n")
    _compat.trace_artifact(f"quartet_after_{name}", text)
