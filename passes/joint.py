"""The pass: every weight matmul of a joint graph, with its dgrad and wgrad, to low precision.

    find sites -> decide -> rewrite (forward, backward, measure if asked to, verify)

It runs as Inductor's `joint_custom_pre_pass`, on training and on inference graphs. Everything that it depends on is in
its `uuid`, since Inductor's caches skip it when they know the graph.
"""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Callable

from torch import fx

from .._compat import BufferInput, CustomGraphPass, ParamInput, PlainInput, description_of, module_stack
from ..config.marks import mark_of
from ..config.names import clean
from ..config.options import Policy
from ..config.recipe import Recipe, operands
from ..config.rules import Rules
from ..errors import QuartetError, StrictError
from ..report.report import GraphReport, Observed, Site
from .graph import tangents
from .match import MatmulSite, find_sites
from .others import OtherProduct, find_others
from .plan import Decision, decide, quantized
from .rewrite import RewriteError, rewrite
from .show import show
from .stats import Measure
from .weights import Weights

log = logging.getLogger("quartet_compile")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphInputs:
    """What Dynamo knows of a graph's inputs, by position: the parameters' names, every input's name, which are buffers, and
    which are other matrices that get a gradient.

    shared_by: the process groups over which inputs are distributed, as in tensor parallelism.
    """

    parameters: dict[int, str]
    names: dict[int, str]
    state: frozenset[int] = frozenset()
    leaves: frozenset[int] = frozenset()
    shared_by: tuple[str, ...] = ()


class QuartetPass(CustomGraphPass):
    """The pass for one graph, with the configuration bound.

    record: called with the `GraphReport` of each graph that the pass ran on.
    text:   also render the graphs before and after (`explain` does, compilation doesn't).
    """

    def __init__(
        self, policy: Policy, inputs: GraphInputs, uuid: str, record: Callable[[GraphReport], None], text: bool = False
    ) -> None:
        self.policy, self.inputs, self.record, self.text = policy, inputs, record, text
        self._uuid = uuid

    def uuid(self) -> str:
        """Identifies the pass in Inductor's cache keys."""
        return self._uuid

    def __call__(self, graph: fx.Graph) -> None:
        """Rewrite a graph in place. Where the pass itself fails, what it fails on stays as it was, with a warning, or with
        `strict=True` a `StrictError`: a bug here must not stop a training."""
        try:
            self._run(graph)
        except QuartetError:
            raise
        except Exception as error:
            self._tell("a graph", error)
            if not is_nested(graph):
                self.record(GraphReport(sites=(), training=bool(tangents(graph)), before="", after=""))

    def _run(self, graph: fx.Graph) -> None:
        training = bool(tangents(graph))
        recipes = self.policy.recipe if training else self.policy.eval_recipe
        parameters, state, leaves, names = self._placeholders(graph)
        before = show(graph, names) if self.text else ""
        weights = Weights(graph, parameters, state, leaves)
        decisions = self._decide(graph, weights, recipes)
        self._check_strict(decisions)
        others = find_others(graph, weights)
        order = {node: position for position, node in enumerate(graph.nodes)}
        decisions, observed = self._rewrite(graph, decisions)
        after = show(graph, names) if self.text else ""
        described = {decision.site.node: [_describe(decision)] for decision in decisions}
        for other in others:
            if other.node not in described or other.inside:
                described.setdefault(other.inside or other.node, []).append(_describe_other(other, parameters))
        sites = tuple(site for node in sorted(described, key=order.__getitem__) for site in described[node])
        if is_nested(graph):  # the graph around it reports what is inside
            return
        self.record(GraphReport(sites=sites, training=training, before=before, after=after, observed=observed))

    def _rewrite(self, graph: fx.Graph, decisions: list[Decision]) -> tuple[list[Decision], tuple[Observed, ...]]:
        """Rewrite what was decided. Returns the decisions, those reversed on which the pass failed, and what the graph
        measures of itself."""
        measure = Measure(self._uuid, {d.site.index: d.name for d in decisions}) if self.policy.stats else None
        while True:
            chosen = [decision for decision in decisions if decision.rewrite]
            recipes = {decision.site.index: decision.recipe for decision in chosen}
            sites = [decision.site for decision in chosen]
            try:
                return decisions, rewrite(graph, sites, len(decisions), recipes, self.inputs.shared_by, measure)
            except RewriteError as failure:
                decisions = [self._kept(d, failure) if d.site.index in failure.sites else d for d in decisions]

    def _kept(self, decision: Decision, failure: RewriteError) -> Decision:
        reason = self._tell(repr(decision.name), failure.__cause__)
        return dataclasses.replace(decision, rewrite=False, reason=reason)

    def _tell(self, what: str, error: BaseException | None) -> str:
        """Warn, or with `strict=True` raise, of a failure of the pass. Returns the reason for the report."""
        how = f"{type(error).__name__}: {error}"
        reason = f"the pass failed on it ({how}), which is a bug of Quartet Compile: please report it"
        if self.policy.strict:
            raise StrictError(
                f"strict=True, and {what} stays in high precision: {reason}. Or set strict=False."
            ) from error
        warnings.warn(f"quartet: {what} stays in high precision: {reason}.", stacklevel=2)
        log.debug("the pass failed on %s", what, exc_info=error)
        return reason

    def _placeholders(self, graph: fx.Graph) -> tuple[dict[fx.Node, str], ...]:
        """The names of the parameters, of the buffers, of other matrices that get a gradient, and of every input."""
        parameters, state, leaves, names = {}, {}, {}, {}
        for node in graph.nodes:
            if node.op != "placeholder":
                continue
            description = description_of(node)
            if isinstance(description, ParamInput):
                parameters[node] = names[node] = description.target
            elif isinstance(description, BufferInput):
                state[node] = names[node] = description.target
            elif isinstance(description, PlainInput):
                index, inputs = description.idx, self.inputs
                names[node] = inputs.names.get(index, "")
                if index in inputs.parameters:
                    parameters[node] = inputs.parameters[index]
                if index in inputs.state:
                    state[node] = names[node]
                if index in inputs.leaves:
                    leaves[node] = names[node]
        return parameters, state, leaves, {node: name for node, name in names.items() if name}

    def _decide(self, graph: fx.Graph, weights: Weights, recipes: Rules) -> list[Decision]:
        sites = find_sites(graph, weights)
        nodes = [site.node for site in sites]
        return decide(
            sites,
            weights,
            {node: _module(node) for node in nodes},
            {node: mark_of(node.meta) for node in nodes},
            self.policy,
            recipes,
            nested=is_nested(graph),
        )

    def _check_strict(self, decisions: list[Decision]) -> None:
        if not self.policy.strict:
            return
        for decision in decisions:
            if decision.eligible and not decision.rewrite:
                raise StrictError(
                    f"strict=True, and the matmul {decision.name!r} stays in high precision: {decision.reason}. "
                    f"Exclude it (exclude=[{decision.name!r}]) or set strict=False."
                )


def is_nested(graph: fx.Graph) -> bool:
    """Whether a graph is the body of a higher-order op: AOTAutograd describes the inputs of all others."""
    return not any(description_of(node) for node in graph.nodes)


def _module(node: fx.Node) -> str:
    stack = module_stack(node.meta)
    return clean(stack[-1][0]) if stack else ""


def _sizes(shape: tuple) -> tuple:
    return tuple(size if isinstance(size, int) else str(size) for size in shape)


def _describe(decision: Decision) -> Site:
    site = decision.site
    present = {"fprop": site.node, "dgrad": site.dgrad, "wgrad": site.wgrad}
    gemms = {}
    for role, node in present.items():
        gemm = getattr(decision.recipe, role) if decision.rewrite else None
        gemms[role] = None if node is None else operands(gemm)
    return Site(
        name=decision.name,
        shape=_sizes(site.shape),
        dtype=_dtype(site.node),
        rewritten=decision.rewrite,
        reason=decision.reason,
        gemms=gemms,
        recipe=decision.recipe.name if decision.rewrite else "",
        runs_in=_runs_in(site, decision.recipe) if decision.rewrite else _dtype(site.node),
    )


def _describe_other(other: OtherProduct, parameters: dict[fx.Node, str]) -> Site:
    parameter = parameters.get(other.weight, "")
    return Site(
        name=_module(other.node) or parameter.removesuffix(".weight") or other.kind,
        shape=_sizes(other.shape),
        dtype=_dtype(other.node),
        rewritten=False,
        reason=other.reason,
        gemms={"fprop": operands(None)},
        runs_in=_dtype(other.node),
    )


def _runs_in(site: MatmulSite, recipe: Recipe) -> str:
    """`fp4`; if not all GEMMs of a site are, with their roles; if they differ, each format with its roles."""
    formats: dict[str, list[str]] = {}
    for role in quantized(site, recipe):
        gemm = getattr(recipe, role)
        formats.setdefault({"e2m1": "fp4", "e4m3": "fp8"}.get(gemm.a.elements, "fp4"), []).append(role)
    if len(formats) == 1 and len(quantized(site, recipe)) == 1 + len(site.backward):
        return next(iter(formats))
    return " + ".join(f"{name} ({', '.join(roles)})" for name, roles in formats.items())


def _dtype(node: fx.Node) -> str:
    value = node.meta["val"]
    value = value[0] if isinstance(value, (tuple, list)) else value
    return str(value.dtype).removeprefix("torch.")
