"""What of a model runs outside of captured graphs: where the graph breaks are, and which matmuls run eagerly."""

from __future__ import annotations

import contextlib
import logging
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from .. import _compat
from ..config.names import clean
from ..passes.products.eager import Reading, products
from ..places import is_users, place
from ..report.report import Site

EAGER = "runs eagerly, outside of every graph"


class EagerProducts:
    """A dispatch mode that notes the forward products which run while no captured graph does.

    in_graph: set while a captured graph runs. sites: what was noted.
    """

    in_graph = False

    def watch(self, modules: list[nn.Module]) -> None:
        """Start without notes; names are those of these modules."""
        self.sites: list[Site] = []
        self._names = {id(module): clean(name) for root in modules for name, module in root.named_modules()}

    def note(self, func: Any, args: tuple, result: Any) -> None:
        """An op that has run."""
        if self.in_graph or _compat.is_tracing() or _compat.is_in_backward():
            return
        self.sites += [self._site(reading) for reading, *_ in products(func, args, result)]

    def _site(self, reading: Reading) -> Site:
        m, n, k = reading.shape
        return Site(
            name=self._name(),
            shape=(int(m), int(n), int(k)),
            dtype=str(reading.weight.dtype).removeprefix("torch."),
            rewritten=False,
            reason=EAGER,
            gemms={"fprop": "high precision"},
        )

    def _name(self) -> str:
        """The innermost module whose forward is running, or else the line of code."""
        frame: types.FrameType | None = sys._getframe()
        line = "?"
        while frame is not None:
            name = self._names.get(id(frame.f_locals.get("self")))
            if name:
                return name
            if line == "?" and is_users(frame.f_code.co_filename):
                line = place(frame.f_code.co_filename, frame.f_lineno)
            frame = frame.f_back
        return line


class FakeEagerProducts(EagerProducts, _compat.FakeTensorMode):
    """The same where tensors are fakes."""

    def __init__(self, modules: list[nn.Module]) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.watch(modules)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Mapping | None = None) -> Any:
        before = len(self.sites)
        result = super().__torch_dispatch__(func, types, args, kwargs or {})
        inside = self.sites[before:]  # on fakes, the result of some ops is found by other ops
        del self.sites[before:]
        self.note(func, args, result)
        self.sites[before:] = self.sites[before:] or inside
        return result


class RealEagerProducts(EagerProducts, _compat.TransparentMode):
    """The same where tensors have values."""

    def __init__(self, modules: list[nn.Module]) -> None:
        super().__init__()
        self.watch(modules)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Mapping | None = None) -> Any:
        whole = _compat.decomposed(func, args, kwargs or {}, self)
        if whole is not NotImplemented:
            return whole
        result = func(*args, **(kwargs or {}))
        self.note(func, args, result)
        return result


@contextlib.contextmanager
def graph_breaks() -> Iterator[list[str]]:
    """Where and why graphs break inside: `model.py:12: Call to print`. Filled as they happen."""
    reasons: list[str] = []
    logger = _compat.graph_break_logger()
    handler = _Listener(reasons)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield reasons
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


class _Listener(logging.Handler):
    """Reads Dynamo's log of graph breaks."""

    def __init__(self, reasons: list[str]) -> None:
        super().__init__()
        self._reasons = reasons

    def emit(self, record: logging.LogRecord) -> None:
        found = _compat.graph_break(record.getMessage())
        if found is None:
            return
        file, number, reason = found
        line = f"{place(file, number)}: {reason}"
        if line not in self._reasons:
            self._reasons.append(line)
