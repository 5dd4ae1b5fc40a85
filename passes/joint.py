"""The pass: every weight matmul of a joint graph, with its dgrad and wgrad, to low precision.

It runs the pipeline of `passes/__init__.py` as Inductor's `joint_custom_pre_pass`, on training and on inference graphs, and
records what it did. Everything that it depends on is in its `uuid`, since Inductor's caches skip it when they know the
graph.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from .._compat import CustomGraphPass
from ..config.options import Policy
from ..errors import QuartetError
from ..report.report import GraphReport
from . import PIPELINE
from .describe import describe
from .failures import tell
from .graph import backward_of
from .inputs import GraphInputs, is_nested
from .packed import check_gathered
from .pipeline import run
from .show import show
from .weight_cache import require_cpu
from .work import Work


class QuartetPass(CustomGraphPass):
    """The pass for one graph, with the configuration bound.

    record: called with the `GraphReport` of each graph that the pass ran on.
    text:   also render the graphs before and after (`explain` does, compilation doesn't).
    seconds: what each pass of the pipeline took on the last graph.
    """

    def __init__(
        self, policy: Policy, inputs: GraphInputs, uuid: str, record: Callable[[GraphReport], None], text: bool = False
    ) -> None:
        self.policy, self.inputs, self.record, self.text = policy, inputs, record, text
        self.seconds: dict[str, float] = {}
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
        except Exception as error:  # noqa: BLE001
            tell("a graph", error, self.policy.strict)
            if not is_nested(graph):
                self.record(GraphReport(sites=(), training=bool(backward_of(graph)), before="", after=""))

    def _run(self, graph: fx.Graph) -> None:
        work = Work.on(graph, self.policy, self.inputs, self._uuid)
        require_cpu(work)
        order = {node: position for position, node in enumerate(graph.nodes)}
        before = show(graph, dict(work.inputs.names)) if self.text else ""
        self.seconds = run(PIPELINE, work)
        check_gathered(graph, work.weights.names)
        after = show(graph, dict(work.inputs.names)) if self.text else ""
        if not work.nested:  # of a nested graph, the graph around it reports what is inside
            sites = describe(work, order)
            report = GraphReport(
                sites=sites,
                training=work.training,
                before=before,
                after=after,
                observed=work.observed,
                gathered=work.gathered,
                cached=work.cached,
            )
            self.record(report)
