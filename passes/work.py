"""A graph on its way through the passes: what they are given, and what each leaves for the next."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import fx

from ..config.options import Policy
from ..config.recipe import Recipe
from ..config.rules import Rules
from ..report.report import Cached, Gathered, Observed
from .graph import Builder, backward_of, snapshot
from .inputs import GraphInputs, Placeholders, is_nested, placeholders_of
from .packed import merge_gathered, packed_weights
from .saved import Saved
from .site import Decision, MatmulSite, OtherProduct, quantized
from .weights import Weights


@dataclasses.dataclass(kw_only=True)
class Work:
    """Given:

    graph:  the joint graph, or an inference graph. policy: the user's. shared_by: the process groups whose ranks draw the
            same seeds. table: the key of the table that the graph's statistics go to.
    nested: the graph is the body of a higher-order op.
    inputs, weights: what its placeholders are, and where the values of the graph come from.

    Found:  backward, what depends on a gradient before anything is rewritten; sites, every forward matmul with its
            backward ones; decisions, one for each; others, the products that are never rewritten.
    Made, anew at each attempt to rewrite the graph:
    build:  the door for new nodes. saved: what the forward of each site leaves for its backward, by index.
    observed: what the rows of the graph's table are of. gathered: what ranks gather and then quantize, for the report.
    cached: what is made of weights, and whether it is kept, for the report.
    idle:   waits for collectives that are read no more, which FX would keep.
    """

    graph: fx.Graph
    policy: Policy
    inputs: Placeholders
    weights: Weights
    shared_by: tuple[str, ...] = ()
    table: str = ""
    nested: bool = False
    training: bool = True
    backward: frozenset[fx.Node] = frozenset()
    sites: list[MatmulSite] = dataclasses.field(default_factory=list)
    decisions: list[Decision] = dataclasses.field(default_factory=list)
    others: list[OtherProduct] = dataclasses.field(default_factory=list)
    build: Builder = dataclasses.field(init=False)
    saved: dict[int, Saved] = dataclasses.field(default_factory=dict)
    observed: tuple[Observed, ...] = ()
    gathered: tuple[Gathered, ...] = ()
    cached: tuple[Cached, ...] = ()
    idle: set[fx.Node] = dataclasses.field(default_factory=set)

    @classmethod
    def on(cls, graph: fx.Graph, policy: Policy, inputs: GraphInputs, table: str = "") -> Work:
        """The work that a graph is before any pass. inputs: what Dynamo knows of its inputs."""
        merge_gathered(graph)
        known = placeholders_of(graph, inputs)
        packed = packed_weights(graph, known.names)
        weights = Weights(graph, known.parameters, known.state, known.leaves, packed)
        training, nested = bool(backward_of(graph)), is_nested(graph)
        return cls(
            graph=graph,
            policy=policy,
            inputs=known,
            weights=weights,
            shared_by=inputs.shared_by,
            table=table,
            nested=nested,
            training=training,
        )

    def __post_init__(self) -> None:
        self.build = Builder(self.graph)

    @property
    def rules(self) -> Rules:
        """The recipes for graphs of this kind."""
        return self.policy.recipe if self.training else self.policy.eval_recipe

    @property
    def chosen(self) -> list[MatmulSite]:
        """The sites that are rewritten."""
        return [decision.site for decision in self.decisions if decision.rewrite]

    @property
    def recipes(self) -> dict[int, Recipe]:
        """The recipe of each of them, by the site's index."""
        return {d.site.index: d.recipe for d in self.decisions if d.rewrite and d.recipe is not None}

    @property
    def replaced(self) -> dict[fx.Node, int]:
        """The matmuls that are replaced, each with the index of its site."""
        recipes = self.recipes
        return {node: site.index for site in self.chosen for node in quantized(site, recipes[site.index]).values()}

    def attempt(self) -> Callable[[], None]:
        """Begin to rewrite the graph. Returns a function that gives it back as it is now."""
        self.build, self.saved, self.idle = Builder(self.graph), {}, set()
        self.observed, self.gathered, self.cached = (), (), ()
        return snapshot(self.graph)
