"""What each matmul of a model takes in a recipe and in bf16: the products of a cross-compiled artifact, by their sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from ..config.recipe import HIGH_PRECISION
from ..cross.artifact import Artifact
from ..cross.matmuls import Comparison, Faster, Matmul, Seconds, total
from ..machines.roofline import MATTERS
from ..report.fold import folded
from ..report.report import Site


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row(Faster):
    """Equal matmuls of equal layers in one recipe, forward and backward together.

    name: as in a report. names: of each. sizes: (M, N, K). seconds and bf16_seconds: of all of them, predicted.
    """

    name: str
    names: tuple[str, ...]
    sizes: tuple[int | str, int | str, int | str]
    seconds: Seconds
    bf16_seconds: float

    @property
    def pays(self) -> bool:
        """Whether it is faster than in bf16 even at the realistic rate."""
        return self.realistic_speedup >= MATTERS


_Key = tuple[bool, int, int, int]
"""Whether it is a product of the forward graphs, and its sizes: the transposed product is the same one."""


def rows_of(artifact: Artifact) -> list[Row]:
    """A row for each fold of rewritten matmuls whose sizes are known; those without a predicted product are left out."""
    known = _by_sizes(one for one in artifact.matmuls if one.number_format)
    rows = []
    for each in folded([site for site in artifact.report.sites if site.rewritten]):
        found = [one for site in each.sites for key in _keys(site) if (one := known.get(key)) is not None]
        whole = total(found)
        if whole is not None:
            rows.append(
                Row(
                    name=each.name, names=tuple(site.name for site in each.sites), sizes=each.site.shape,
                    seconds=whole.seconds, bf16_seconds=whole.bf16_seconds,
                )
            )  # fmt: skip
    return rows


def _by_sizes(matmuls: Iterable[Matmul]) -> Mapping[_Key, Comparison]:
    """One product of each size, the average of all that have it."""
    groups: dict[_Key, list[Matmul]] = {}
    for one in matmuls:
        groups.setdefault(_key(not one.graph.startswith("backward"), one.m, one.n, one.k), []).append(one)
    found: dict[_Key, Comparison] = {}
    for key, group in groups.items():
        whole, calls = total(group), sum(one.calls for one in group)
        if whole is not None:
            found[key] = Comparison(
                product=whole.product * (1 / calls),
                quantizing=whole.quantizing * (1 / calls),
                bf16_seconds=whole.bf16_seconds / calls,
            )
    return found


def _keys(site: Site) -> list[_Key]:
    """The products of a site that are quantized."""
    m, n, k = site.shape
    if not (isinstance(m, int) and isinstance(n, int) and isinstance(k, int)):
        return []
    sizes = {"fprop": (True, m, n, k), "dgrad": (False, m, k, n), "wgrad": (False, n, k, m)}
    return [_key(*sizes[role]) for role, how in site.gemms.items() if how not in (None, HIGH_PRECISION)]


def _key(forward: bool, m: int, n: int, k: int) -> _Key:
    return forward, min(m, n), max(m, n), k
