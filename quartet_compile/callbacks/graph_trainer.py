"""torchtitan's GraphTrainer, which traces a step as one graph and runs passes on it: ours among them.

    qc.callbacks.graph_trainer(recipe="quartet", exclude=["layers.0.*"])    # before the trainer is made
    --compile.pass_pipeline quartet                                         # or compile.pass_pipeline in its config

The pipeline is torchtitan's default with our pass after `canonicalize_graph_pass`: after it, since it takes away what hides
the shapes of matmuls, and before memory policies and the bucketing of collectives, which see what we put there.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from .. import _compat
from ..config.listed import lists_options
from ..config.options import Policy, configure
from ..errors import OptionError
from ..frontend.said import Saying
from ..optional import needed
from ..passes.inputs import GraphInputs
from ..passes.joint import QuartetPass
from ..ranks import check_ranks
from ..report.report import GraphReport

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..config.listed import Options

_ROOM = "torchtitan.experiments.graph_trainer"
_PRODUCTS = ("scaled_mm", "scaled_grouped_mm")


@lists_options
def graph_trainer(pipeline: str = "quartet", **options: Unpack[Options]) -> Pipeline:
    """Register a pass pipeline of torchtitan's GraphTrainer that computes in FP4 with these options. Returns the pipeline.

    pipeline: its name, for `compile.pass_pipeline`. Names of matmuls are the model's own. Raises `OptionError`, also for
    `inductor` and `mode`, which are torchtitan's to say here, and `RecipeError`.
    """
    config = configure(options)
    if config.inductor:
        raise OptionError(
            "callbacks.graph_trainer got mode or inductor; expected neither. GraphTrainer's own compile options say how its "
            "graph is compiled."
        )
    made = Pipeline(config.policy, functools.partial(check_ranks, config))
    registry = needed(f"{_ROOM}.registry", "callbacks.graph_trainer", OptionError)
    registry.register_pass_pipeline(pipeline)(made)
    registry.register_post_init_hook(pipeline)(made.learn)
    return made


class Pipeline:
    """The passes for a traced step. policy: ours. check: called before they run.

    graphs: what our pass did to each graph.
    """

    def __init__(self, policy: Policy, check: Callable[[], None]) -> None:
        self.policy, self.graphs = policy, list[GraphReport]()
        self._check, self._models = check, list[nn.Module]()

    def learn(self, trainer: Any) -> None:
        """Take the models of a trainer, whose parameters the graph is a function of."""
        self._models = list(trainer.model_parts)

    def __call__(self, traced: Any, config: Any, *, parallel_dims: Any = None) -> list[Callable[..., Any]]:
        """torchtitan's passes with ours among them. traced: its `TracedResult`."""
        self._check()
        passes = needed(f"{_ROOM}.passes", "callbacks.graph_trainer", OptionError)
        steps = passes.construct_default_graph_passes(traced, config, parallel_dims=parallel_dims)
        found = [_name(step) for step in steps]
        ours = functools.partial(quartet_pass, traced=traced, pipeline=self)
        steps.insert(_after(found, "canonicalize_graph_pass"), ours)
        if config.compile.memory_policy in ("default", "sac_and_offload"):
            steps.insert(_after([*map(_name, steps)], "tag_with_memory_policy_pass"), save_products)
        return steps

    def inputs(self) -> tuple[dict[str, nn.Parameter], tuple[str, ...]]:
        """The parameters of the models by name, and the process groups that they are distributed over."""
        found = {
            name: parameter
            for model in self._models
            for name, parameter in model.named_parameters(remove_duplicate=False)
        }
        if not found:
            raise OptionError(
                "The pass pipeline of Quartet Compile doesn't know the model; expected a GraphTrainer to run it. Without "
                "one, call learn(...) with what has model_parts."
            )
        groups = (group for parameter in found.values() for group in _compat.mesh_groups(parameter))
        return found, tuple(dict.fromkeys(groups))


def quartet_pass(gm: fx.GraphModule, example_inputs: Any, *, traced: Any, pipeline: Pipeline) -> fx.GraphModule:
    """Rewrite the weight matmuls of a traced step in place."""
    from ..kernels import lowering  # noqa: F401  for the passes after it that compile

    parameters, groups = pipeline.inputs()
    _describe(gm.graph, traced, parameters)
    reports: list[GraphReport] = []
    inputs = GraphInputs(parameters={}, names={}, shared_by=groups)
    QuartetPass(pipeline.policy, inputs, f"graph_trainer_{uuid.uuid4().hex}", reports.append)(gm.graph)
    gm.graph.lint()
    gm.recompile()
    pipeline.graphs += reports
    device = next((e.device for e in example_inputs if isinstance(e, torch.Tensor)), torch.device("cpu"))
    saying = Saying("GraphTrainer")
    for report in reports[-1:]:  # the last holds what the others, of higher-order ops inside of it, do
        saying.compiled(report, pipeline.policy, device)
    saying.over()
    return gm


def save_products(gm: fx.GraphModule, example_inputs: Any) -> fx.GraphModule:
    """Keep the results of FP4 products for backward, as this memory policy does those of matmuls."""
    for node in gm.graph.nodes:
        if _compat.is_recomputed(node) and _op(node) in _PRODUCTS:
            _compat.save(node)
    return gm


def _describe(graph: fx.Graph, traced: Any, parameters: dict[str, nn.Parameter]) -> None:
    """Say of the graph's inputs and results what AOTAutograd says of those of its own graphs."""
    known = {name: _compat.ParamInput(name) for name in parameters}
    state = [known.get(name) or _compat.BufferInput(name) for name in traced.state_fqns]
    trained = [_compat.GradOutput(known[name]) for name, parameter in parameters.items() if parameter.requires_grad]
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    flat = _flat([*state, *range(len(state), traced.num_flat_inputs)], traced.input_subclass_layouts)
    for node, description in zip(placeholders, flat, strict=True):
        _compat.describe(node, _compat.PlainInput(description) if isinstance(description, int) else description)
    (output,) = (node for node in graph.nodes if node.op == "output")
    results = [None, *trained]  # the loss first
    _compat.describe(output, list(_flat(results, traced.output_subclass_layouts)))


def _flat(described: Iterable[Any], layouts: Any) -> Iterable[Any]:
    """Each description as often as there are tensors in what it is of."""
    for index, description in enumerate(described):
        yield from [description] * (layouts[index].num_tensors if index in layouts else 1)


def _after(names: list[str], name: str) -> int:
    """The place after a pass. Raises `OptionError` if there is none of this name."""
    if name not in names:
        raise OptionError(
            f"torchtitan's default pipeline has no {name}; it has {', '.join(names)}. Install torchtitan 0.3.0, with which "
            "Quartet Compile is tested."
        )
    return names.index(name) + 1


def _name(step: Callable[..., Any]) -> str:
    return (step.func if isinstance(step, functools.partial) else step).__name__


def _op(node: fx.Node) -> str:
    return _compat.op_name(node.target).removeprefix("quartet::") if node.op == "call_function" else ""
