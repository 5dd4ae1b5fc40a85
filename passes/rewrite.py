"""Rewrite the chosen sites of a graph: all of them, or none and say which one failed.

forward -> backward -> measure, if asked to -> verify
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from ..config.recipe import Recipe
from ..report.report import Observed
from .backward import rewrite_backward
from .forward import rewrite_forward
from .graph import Builder, VerifyError, snapshot
from .plan import quantized
from .site import MatmulSite
from .stats import Measure, observe
from .verify import verify


class RewriteError(Exception):
    """The rewriting failed, and the graph is as it was before. sites: the indices of the sites on which it failed; the
    cause says how."""

    def __init__(self, sites: set[int]) -> None:
        super().__init__(f"rewriting the sites {sorted(sites)} failed")
        self.sites = sites


def rewrite(
    graph: fx.Graph,
    sites: list[MatmulSite],
    seeds: int,
    recipes: Mapping[int, Recipe],
    shared_by: tuple[str, ...],
    measure: Measure | None = None,
) -> tuple[Observed, ...]:
    """Rewrite the given sites of a graph in place. seeds: how many sites the graph has, kept ones too, so that keeping
    one more doesn't change the noise of the others. recipes: by the site's index. shared_by: the process groups whose
    ranks share the noise. Returns what the graph measures of itself, if it is to.

    Raises `RewriteError` for whatever fails inside.
    """
    if not sites:
        return ()
    build, restore = Builder(graph), snapshot(graph)
    replaced = {node: site.index for site in sites for node in quantized(site, recipes[site.index]).values()}
    try:
        saved = rewrite_forward(sites, recipes, build)
        rewrite_backward(sites, saved, recipes, build, seeds, shared_by)
        build.working_on = None
        observed = observe(build, sites, recipes, measure) if measure else ()
        verify(graph, list(replaced))
    except Exception as error:
        restore()
        node = error.node if isinstance(error, VerifyError) else None
        failed = replaced.get(node, build.author.get(node, build.working_on))
        raise RewriteError({site.index for site in sites} if failed is None else {failed}) from error
    graph.eliminate_dead_code()
    return observed
