"""Equal matmuls of equal layers as one line of a report: `layers.0-31.mlp.up (x32)`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from .report import Site


@dataclasses.dataclass(frozen=True)
class Fold:
    """Sites that differ in nothing that a report shows but numbers in their names. name: of all of them."""

    name: str
    sites: tuple[Site, ...]

    @property
    def site(self) -> Site:
        """One of them."""
        return self.sites[0]


_Parts = tuple[str | frozenset[int], ...]


def folded(sites: Sequence[Site]) -> list[Fold]:
    """The sites in the order of their first, equal ones together.

    Names are compared part by part, parts that are numbers last: those of one fold are all that there are between its
    ranges, as `experts.0-7` in each of `layers.0-31`.
    """
    rows: list[tuple[_Parts, Site, list[Site]]] = [(_parts(site.name), site, [site]) for site in sites]
    deepest = max((len(parts) for parts, _, _ in rows), default=0)
    rows = _merged(rows, None)
    for position in reversed(range(deepest)):
        rows = _merged(rows, position)
    return [Fold(_name(parts, len(found)), tuple(found)) for parts, _, found in rows]


def _parts(name: str) -> _Parts:
    return tuple(frozenset([int(part)]) if part.isdecimal() else part for part in name.split("."))


def _merged(
    rows: Iterable[tuple[_Parts, Site, list[Site]]], position: int | None
) -> list[tuple[_Parts, Site, list[Site]]]:
    """Put rows together that are equal but for the numbers at one position of the name; None: that are equal."""
    found: dict[object, tuple[_Parts, Site, list[Site]]] = {}
    for parts, site, sites in rows:
        at = parts[position] if position is not None and position < len(parts) else None
        free = isinstance(at, frozenset)
        rest = parts if not free or position is None else (*parts[:position], "", *parts[position + 1 :])
        same = (site.shape, site.dtype, site.rewritten, site.reason, site.recipe, site.runs_in)
        times = len(sites) // (len(at) if isinstance(at, frozenset) else 1)
        key = (rest, free, same, times if free else None)
        if key not in found:
            found[key] = parts, site, [*sites]
            continue
        before, first, held = found[key]
        if isinstance(at, frozenset) and position is not None:
            known = before[position]
            assert isinstance(known, frozenset)
            before = (*before[:position], known | at, *before[position + 1 :])
        found[key] = before, first, [*held, *sites]
    return list(found.values())


def _name(parts: _Parts, count: int) -> str:
    name = ".".join(part if isinstance(part, str) else _ranges(part) for part in parts)
    return f"{name} (x{count})" if count > 1 else name


def _ranges(numbers: Iterable[int]) -> str:
    """`0-3,5` of 0, 1, 2, 3, 5."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
