"""What a compiled model says of itself at its first compilation, in one line: how much of it is in FP4, and on what.

The line goes to the logger `quartet_compile.summary`, and to stderr where nobody has configured logging, on rank 0 only. A
model with weight matmuls of which none is in FP4 warns instead, with the reasons. `QUARTET_QUIET=1` and
`logging.getLogger("quartet_compile.summary").setLevel("WARNING")` silence the line; the warning is Python's to filter.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

import torch

from .. import _compat
from ..config.options import Policy
from ..config.recipe import Recipe
from ..errors import OptionError
from ..kernels.paths import path_of
from ..passes.plan import EXCLUDED, MARKED
from ..passes.weights import ACTIVATIONS
from ..process import process
from ..report.report import GraphReport, Site
from ..report.summary import counted, products_of, recipes_of, why_nothing
from ..warn import warn

VARIABLE = "QUARTET_QUIET"
_QUIET = {"": False, "0": False, "1": True}

log = logging.getLogger("quartet_compile.summary")
log.setLevel(logging.INFO)


class Saying:
    """What is said of one compiled object. name: its class or function."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._graphs: list[tuple[GraphReport, Policy, torch.device]] = []
        self._early = 0  # matmuls that the line while it compiles was about
        self._over = self._warned = False

    def compiling(self, graph: GraphReport, policy: Policy, device: torch.device) -> None:
        """The pass has rewritten a graph; Inductor compiles it next."""
        if not self._over and not self._early and any(site.rewritten for site in graph.sites):
            self._early = len(graph.sites)
            self._say([(graph, policy, device)], "; compiling, which takes a while the first time")

    def compiled(self, graph: GraphReport, policy: Policy, device: torch.device) -> None:
        """A graph is compiled, or was found in the cache."""
        self._graphs.append((graph, policy, device))

    def failed(self) -> None:
        """The call ended in an error, and its graphs with it."""
        self._graphs = []

    def over(self) -> None:
        """The call is over."""
        graphs, self._graphs = self._graphs, []
        sites = [site for graph, _, _ in graphs for site in graph.sites]
        recipes = _recipes(graphs)
        if any(site.rewritten for site in sites) or (_weights(sites) and _is_wished(sites, recipes)):
            if not self._over and len(sites) != self._early:
                self._say(graphs, "")
            self._over = True
        elif _weights(sites) and not self._warned:
            self._over = self._warned = True
            warn(
                "QC101",
                f"{self._name}: none of {len(sites)} matmuls in FP4 (recipe {_names(recipes)}): "
                f"{why_nothing(_weights(sites))}. quartet_compile.explain(model, *inputs) lists each.",
            )

    def _say(self, graphs: Sequence[tuple[GraphReport, Policy, torch.device]], end: str) -> None:
        if _is_quiet() or not log.isEnabledFor(logging.INFO) or _compat.rank() != 0:
            return
        sites = [site for graph, _, _ in graphs for site in graph.sites]
        paths = [path_of(device, found) for graph, policy, device in graphs if (found := products_of(policy, graph))]
        parts = [f"{counted(sites)}, recipe {_names(_recipes(graphs))}", *dict.fromkeys(paths)]
        text = f"quartet: {self._name}: {'; '.join(parts)}{end}"
        if text in process.said:
            return
        process.said.add(text)
        if log.hasHandlers():
            log.info("%s", text)
        else:
            print(text, file=sys.stderr, flush=True)


def _recipes(graphs: Sequence[tuple[GraphReport, Policy, torch.device]]) -> list[Recipe]:
    return list(dict.fromkeys(recipe for graph, policy, _ in graphs for recipe in recipes_of(policy, graph)))


def _names(recipes: Sequence[Recipe]) -> str:
    return ", ".join(dict.fromkeys(recipe.name for recipe in recipes))


def _weights(sites: Sequence[Site]) -> list[Site]:
    """The matmuls that FP4 is for: none of two activations, as in attention."""
    return [site for site in sites if "dgrad" in site.gemms and site.reason != ACTIVATIONS]


def _is_wished(sites: Sequence[Site], recipes: Sequence[Recipe]) -> bool:
    """Whether the user asked for high precision: by a recipe without low precision, or of every weight matmul by name."""
    named = all(site.reason.startswith((EXCLUDED, MARKED)) for site in _weights(sites))
    return named or not any(recipe.rewrites for recipe in recipes)


def _is_quiet() -> bool:
    given = os.environ.get(VARIABLE, "")
    if given not in _QUIET:
        raise OptionError(f"{VARIABLE} is {given!r}; expected 1, for no line about a compiled model, or 0.")
    return _QUIET[given]
