"""A graph that Dynamo runs again with other parameters, as for the blocks between two graph breaks: its matmuls are listed
once for each, by the names of those parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ..report.report import GraphReport

Names = Mapping[int, str]
"""Of parameters, by their position among a graph's inputs."""


class Reused:
    """The reports of one graph, the last in the list that holds them, from `first` on; `ran` adds to them what it runs with
    other parameters.

    names: of the parameters that it was captured with.
    """

    def __init__(self, graphs: list[GraphReport], first: int, names: Names) -> None:
        self._graphs, self._first, self._names = graphs, first, dict(names)
        self._own = graphs[first:]
        self._known = [self._names]

    def noticing(self, compiled: Callable[..., Any], names: Callable[[], Mapping[int, str]]) -> Callable[..., Any]:
        """The compiled graph, with `ran` at each call. names: of all tensors that have one then, by `id`."""

        def run(*args: Any) -> Any:
            known = names()
            self.ran({at: known[id(args[at])] for at in self._names if id(args[at]) in known})
            return compiled(*args)

        return run

    def ran(self, names: Names) -> None:
        """A call, with the names of its parameters; those that aren't known keep their name."""
        names = {**self._names, **names}
        if names in self._known:
            return
        self._known.append(names)
        renamed = _renaming([(self._names[at], names[at]) for at in self._names])
        for place, own in enumerate(self._own, self._first):
            held = self._graphs[place]
            self._graphs[place] = replace(
                held,
                sites=(
                    *held.sites,
                    *(replace(site, name=renamed(site.name), weight=renamed(site.weight)) for site in own.sites),
                ),
                gathered=(*held.gathered, *(replace(item, matmul=renamed(item.matmul)) for item in own.gathered)),
                cached=(*held.cached, *(replace(item, matmul=renamed(item.matmul)) for item in own.cached)),
            )


def _renaming(pairs: list[tuple[str, str]]) -> Callable[[str], str]:
    """What a module or parameter is called where parameters have the second names of the pairs instead of the first: as the
    longest path that leads to one of them, or that both names of one have in front of what is equal in them."""
    paths: dict[str, str] = {}
    for before, after in pairs:
        paths[before] = after
        old, new = before.split("."), after.split(".")
        while len(old) > 1 and len(new) > 1 and old[-1] == new[-1]:
            old, new = old[:-1], new[:-1]
            paths[".".join(old)] = ".".join(new)

    def renamed(name: str) -> str:
        parts = name.split(".")
        for end in range(len(parts), 0, -1):
            front = paths.get(".".join(parts[:end]))
            if front is not None:
                return ".".join([front, *parts[end:]])
        return name

    return renamed
