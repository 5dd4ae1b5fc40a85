"""The pass: every weight matmul of a joint graph, with its dgrad and wgrad, to low precision.

    find sites -> decide -> rewrite forward -> rewrite backward -> measure, if asked to -> verify

It runs as Inductor's `joint_custom_pre_pass`, on training and on inference graphs. Everything that it depends on is in
its `uuid`, since Inductor's caches skip it when they know the graph.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from torch import fx

from .._compat import BufferInput, CustomGraphPass, ParamInput, PlainInput
from ..config import Policy
from ..errors import StrictError
from ..names import clean
from ..recipe import Recipe, operands
from ..regions import mark_of
from ..report import GraphReport, Observed, Site
from ..rules import Rules
from .backward import rewrite_backward
from .forward import rewrite_forward
from .graph import Builder, description_of, tangents
from .match import MatmulSite, find_sites
from .others import OtherProduct, find_others
from .plan import Decision, decide, quantized
from .show import show
from .stats import Measure, observe
from .verify import verify
from .weights import Weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphInputs:
    """What Dynamo knows of a graph's inputs, by position: the parameters' names, every input's name, which are buffers.

    shared_by: the process groups over which inputs are distributed, as in tensor parallelism.
    """

    parameters: dict[int, str]
    names: dict[int, str]
    state: frozenset[int] = frozenset()
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
        training = bool(tangents(graph))
        recipes = self.policy.recipe if training else self.policy.eval_recipe
        parameters, state, names = self._placeholders(graph)
        before = show(graph, names) if self.text else ""
        weights = Weights(graph, parameters, state)
        decisions = self._decide(graph, weights, recipes)
        self._check_strict(decisions)
        described = {decision.site.node: [_describe(decision)] for decision in decisions}
        for other in find_others(graph, weights):
            if other.node not in described or other.inside:
                described.setdefault(other.inside or other.node, []).append(_describe_other(other, parameters))
        sites = tuple(site for node in graph.nodes for site in described.get(node, ()))
        chosen = {d.site.index: d.recipe for d in decisions if d.rewrite}
        measure = Measure(self._uuid, {d.site.index: d.name for d in decisions}) if self.policy.stats else None
        rewritten = [d.site for d in decisions if d.rewrite]
        observed = rewrite(graph, rewritten, len(decisions), chosen, self.inputs.shared_by, measure)
        after = show(graph, names) if self.text else ""
        if is_nested(graph):  # the graph around it reports what is inside
            return
        self.record(GraphReport(sites=sites, training=training, before=before, after=after, observed=observed))

    def _placeholders(self, graph: fx.Graph) -> tuple[dict[fx.Node, str], set[fx.Node], dict[fx.Node, str]]:
        """The parameters by name, the buffers, and every input's name."""
        parameters, state, names = {}, set(), {}
        for node in graph.nodes:
            if node.op != "placeholder":
                continue
            description = description_of(node.meta.get("desc"))
            if isinstance(description, ParamInput):
                parameters[node] = names[node] = description.target
            elif isinstance(description, BufferInput):
                state.add(node)
                names[node] = description.target
            elif isinstance(description, PlainInput):
                if description.idx in self.inputs.parameters:
                    parameters[node] = self.inputs.parameters[description.idx]
                if description.idx in self.inputs.state:
                    state.add(node)
                if description.idx in self.inputs.names:
                    names[node] = self.inputs.names[description.idx]
        return parameters, state, names

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
    return not any(node.meta.get("desc") for node in graph.nodes)


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
    ranks share the noise. Returns what the graph measures of itself, if it is to."""
    if not sites:
        return ()
    build = Builder(graph)
    replaced = [node for site in sites for node in quantized(site, recipes[site.index]).values()]
    saved = rewrite_forward(sites, recipes, build)
    rewrite_backward(sites, saved, recipes, build, seeds, shared_by)
    observed = observe(build, sites, recipes, measure) if measure else ()
    graph.eliminate_dead_code()
    verify(graph, replaced)
    return observed


def _module(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    return clean(list(stack.values())[-1][0]) if stack else ""


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
