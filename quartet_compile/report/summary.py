"""A compilation in one sentence: how many matmuls are in low precision, and what share of the work that is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ..config.options import Policy
from ..config.recipe import HIGH_PRECISION, Recipe
from .report import GraphReport, Site, precision


def counted(sites: Sequence[Site], with_share: bool = True) -> str:
    """`"14 of 17 matmuls (93 % of FLOPs outside attention) in FP4"`; without the share if it is 0, or not known."""
    done, found = sum(site.rewritten for site in sites), share(sites) if with_share else None
    of_flops = "" if not found else f" ({percent(found)} of FLOPs outside attention)"
    return f"{done} of {len(sites)} matmuls{of_flops} in {precision(sites)}"


def share(sites: Sequence[Site]) -> float | None:
    """The part of the FLOPs that is quantized, forward and backward, of all products but those that can't be paired with
    their backward ones, as attention. None if there are none, or if their sizes aren't known to the compiler.

    A number of rows that is dynamic but the same everywhere does not matter.
    """
    known = whole(sites)
    if not known:
        return None
    quantized = 0
    for site, size in _sizes(sites).items():
        quantized += (size or 0) * sum(how not in (None, HIGH_PRECISION) for how in sites[site].gemms.values())
    return quantized / known


def part_of(some: Sequence[Site], sites: Sequence[Site]) -> float | None:
    """The part of these FLOPs that some of the sites have; None if none of them is paired, or if sizes aren't known."""
    known, own = whole(sites), {id(site) for site in some}
    found = [number for number, site in enumerate(sites) if id(site) in own and "dgrad" in site.gemms]
    sizes = _sizes(sites)
    return sum((sizes[number] or 0) * _present(sites[number]) for number in found) / known if known and found else None


def whole(sites: Sequence[Site]) -> int | None:
    """These FLOPs in units of a multiply-add; None if sizes aren't known to the compiler."""
    total = 0
    for number, size in _sizes(sites).items():
        if size is None:
            return None
        total += size * _present(sites[number])
    return total


def _present(site: Site) -> int:
    return sum(how is not None for how in site.gemms.values())


def _sizes(sites: Sequence[Site]) -> dict[int, int | None]:
    """M N K of each site that is paired, by its place; None of one whose sizes aren't known."""
    paired = {number: site for number, site in enumerate(sites) if "dgrad" in site.gemms}
    rows = {site.shape[0] for site in paired.values()}
    found: dict[int, int | None] = {}
    for number, site in paired.items():
        m, n, k = site.shape
        m = 1 if len(rows) == 1 else m
        known = isinstance(m, int) and isinstance(n, int) and isinstance(k, int)
        found[number] = int(m) * int(n) * int(k) if known else None
    return found


def recipes_of(policy: Policy, graph: GraphReport) -> list[Recipe]:
    """The recipes that a graph is compiled with, each once."""
    rules = policy.recipe if graph.training else policy.eval_recipe
    return list(dict.fromkeys(recipe for _, recipe in rules))


def products_of(policy: Policy, graph: GraphReport) -> set[tuple[str, str, bool]]:
    """The pairs of operand formats that a graph multiplies, each with whether its products are grouped."""
    used = {(site.recipe, site.grouped) for site in graph.sites if site.rewritten}
    known = [(recipe, grouped) for recipe in recipes_of(policy, graph) for name, grouped in used if name == recipe.name]
    return {(gemm.a.format, gemm.b.format, grouped) for recipe, grouped in known for _, gemm in recipe.gemms()}


def why_nothing(sites: Sequence[Site], shown: int = 3) -> str:
    """The reasons of matmuls that are all kept, the most frequent first: `"dtype float64; ... (2 matmuls)"`."""
    counts = Counter(site.reason for site in sites).most_common()
    parts = [f"{reason} ({count} matmul{'s' * (count != 1)})" for reason, count in counts[:shown]]
    return "; ".join([*parts, *[f"{len(counts) - shown} more reasons"] * (len(counts) > shown)])


def percent(part: float) -> str:
    """Rounded down, so that 100 % is all."""
    return f"{int(100 * part)} %" if part >= 0.01 or not part else "< 1 %"
