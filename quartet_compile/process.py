"""All that a process remembers between calls, in one place. Caches of pure functions (`functools.cache`) aren't in it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import threading
import weakref
from collections import Counter
from collections.abc import Iterator, MutableMapping
from typing import Any

from torch.utils.weak import WeakIdKeyDictionary


class Running(threading.local):
    """What is under way in a thread.

    inspections: those of `frontend/watch.py`, the innermost last. capturing: whether `capture/capture.py` runs a model.
    """

    def __init__(self) -> None:
        self.inspections: list[Any] = []
        self.capturing = False

    def compiling(self, *what: Any) -> None:
        """Tell the innermost inspection of a graph that Inductor compiles next: `Saying.compiling` in frontend/said.py."""
        if self.inspections:
            self.inspections[-1].saying.compiling(*what)

    def compiled(self, *what: Any) -> None:
        """Tell the innermost inspection of a graph that is compiled: `Saying.compiled` in frontend/said.py."""
        if self.inspections:
            self.inspections[-1].saying.compiled(*what)

    @contextlib.contextmanager
    def reported(self) -> Iterator[None]:
        """Tell the innermost inspection, if there is one, of an error that our backend raises inside: Dynamo may hide it."""
        try:
            yield
        except Exception as error:
            if self.inspections:
                self.inspections[-1].failures.append(error)
            raise


@dataclasses.dataclass
class Process:
    """reports:      `report/records.py`: what the pass did to each graph, by its uuid.
    seen:         `backend.py`: the names in the graphs compiled so far under a policy.
    graphs:       `report/stats.py`: the graphs that measure themselves, in their order, each with the `id`s of the
                  parameters that it reads.
    compilations: `report/stats.py`: how often each uuid was compiled.
    reading:      `report/stats.py`: the graphs that read a parameter.
    tables:       `kernels/stats.py`: what graphs have measured.
    weights:      `kernels/weight_cache.py`: what was made of weights, by the storage of each.
    writes:       `kernels/stats.py`: the number of the next write to a table.
    switched:     `frontend/set_recipe.py`: the recipes that a compiled object has had.
    configs:      `frontend/set_recipe.py`: the configurations among which any compiled object was switched.
    outer:        `frontend/nested.py`: the other backend that compiled a module of ours into its graph.
    running:      what is under way in a thread.
    watchers:     `_compat/calls.py`: who watches a compiled object, by a number that Dynamo hands on.
    numbers:      `_compat/calls.py`: the next of these numbers.
    limits:       `_compat/dynamo.py`: torch's recompile limits before `set_recipe` raised them.
    enabled:      `frontend/enable.py`: what every `torch.compile` of Inductor uses, None for Inductor itself.
    replaces_inductor: the same: whether torch asks it.
    backends:     `backend.py`: the backends that were registered by name.
    recipes:      `config/presets.py`: the recipes that were registered by name.
    talk:         `ranks/talk.py`: what this rank has told the others.
    counts_steps: `ranks/steps.py`: whether it is asked before each step of an optimizer.
    said:         `frontend/said.py`: the lines about compiled models so far.
    library_products: `kernels/library.py`: the products that the library has run, as they were reported.
    trying:       `kernels/library.py`: whether calls of the library are trials.
    """

    reports: dict[str, list[Any]] = dataclasses.field(default_factory=dict)
    seen: dict[Any, set[str]] = dataclasses.field(default_factory=dict)
    graphs: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    compilations: Counter[str] = dataclasses.field(default_factory=Counter)
    reading: MutableMapping[Any, list[str]] = dataclasses.field(default_factory=WeakIdKeyDictionary)
    tables: dict[str, Any] = dataclasses.field(default_factory=dict)
    weights: MutableMapping[Any, dict[Any, Any]] = dataclasses.field(default_factory=WeakIdKeyDictionary)
    writes: Iterator[int] = dataclasses.field(default_factory=itertools.count)
    switched: MutableMapping[Any, Any] = dataclasses.field(default_factory=weakref.WeakKeyDictionary)
    configs: set[Any] = dataclasses.field(default_factory=set)
    outer: MutableMapping[Any, Any] = dataclasses.field(default_factory=weakref.WeakKeyDictionary)
    running: Running = dataclasses.field(default_factory=Running)
    watchers: MutableMapping[int, Any] = dataclasses.field(default_factory=weakref.WeakValueDictionary)
    numbers: Iterator[int] = dataclasses.field(default_factory=itertools.count)
    limits: dict[str, int] = dataclasses.field(default_factory=dict)
    enabled: Any = None
    replaces_inductor: bool = False
    backends: dict[str, Any] = dataclasses.field(default_factory=dict)
    recipes: dict[str, Any] = dataclasses.field(default_factory=dict)
    talk: Any = None
    counts_steps: bool = False
    said: set[str] = dataclasses.field(default_factory=set)
    library_products: set[tuple[str, int, int, int]] = dataclasses.field(default_factory=set)
    trying: bool = False


process = Process()
