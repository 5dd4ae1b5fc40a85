"""A compilation in one sentence: how many matmuls are in low precision, and what share of the work that is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ..config.options import Policy
from ..config.recipe import HIGH_PRECISION, Recipe
from .report import GraphReport, Site, precision


def counted(sites: Sequence[Site]) -> str:
    """`"14 of 17 matmuls (93 % of FLOPs outside attention) in FP4"`; without the share if it is 0, or not known."""
    done, found = sum(site.rewritten for site in sites), share(sites)
    percent = "" if not found else f" ({_percent(found)} of FLOPs outside attention)"
    return f"{done} of {len(sites)} matmuls{percent} in {precision(sites)}"


def share(sites: Sequence[Site]) -> float | None:
    """The part of the FLOPs that is quantized, forward and backward, of all products but those that can't be paired with
    their backward ones, as attention. None if there are none, or if their sizes aren't known to the compiler.

    A number of rows that is dynamic but the same everywhere does not matter.
    """
    paired = [site for site in sites if "dgrad" in site.gemms]
    rows = {site.shape[0] for site in paired}
    whole, quantized = 0, 0
    for site in paired:
        m, n, k = site.shape
        m = 1 if len(rows) == 1 else m
        if not isinstance(m, int) or not isinstance(n, int) or not isinstance(k, int):
            return None
        present = [how for how in site.gemms.values() if how is not None]
        whole += m * n * k * len(present)
        quantized += m * n * k * sum(how != HIGH_PRECISION for how in present)
    return quantized / whole if whole else None


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


def _percent(part: float) -> str:
    """Rounded down, so that 100 % is all."""
    return f"{int(100 * part)} %"
