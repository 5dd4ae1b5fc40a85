"""Run a model on fake tensors through Dynamo and AOTAutograd, with the pass and without Inductor."""

from __future__ import annotations

import re
import traceback
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from . import _compat
from .backend import graph_inputs, graph_uuid, names_in
from .config import Config
from .eager import EagerProducts, graph_breaks, is_users, place
from .errors import CaptureError, QuartetError
from .passes.graph import VerifyError
from .passes.joint import QuartetPass
from .report import GraphReport, Site
from .sandbox import argument_names, modules_of, untouched


class Capture:
    """A Dynamo backend that runs the pass and keeps its reports; compiled graphs run as plain FX graphs."""

    is_quartet = True

    def __init__(self, config: Config, names: Mapping[int, str] | None = None, text: bool = True) -> None:
        self.config, self.names, self.text = config, names or {}, text
        self.graphs: list[GraphReport] = []
        self.seen: set[str] = set()
        self.mode: EagerProducts | None = None

    def __call__(self, gm: fx.GraphModule, example_inputs: list) -> Any:
        inputs = graph_inputs(gm, self.names)
        self.seen |= names_in(gm, inputs)
        uuid = graph_uuid(gm, self.config, inputs)
        run = QuartetPass(self.config.policy, inputs, uuid, self.graphs.append, text=self.text)
        return compile_plainly(gm, example_inputs, run, self._running)

    def _running(self, forward: Callable) -> Callable:
        """`forward`, during which the mode knows that a graph runs."""
        mode = self.mode
        if mode is None:
            return forward

        def run(*args: Any) -> Any:
            mode.in_graph = True
            try:
                return forward(*args)
            finally:
                mode.in_graph = False

        return run


def compile_plainly(
    gm: fx.GraphModule, example_inputs: list, run: QuartetPass, wrap: Callable[[Callable], Callable] = lambda f: f
) -> Any:
    """A Dynamo graph through AOTAutograd and the pass; what comes out runs op by op. wrap: applied to each graph."""

    def partition(joint: fx.GraphModule, joint_inputs: Any, **kwargs: Any) -> Any:
        run(joint.graph)
        joint.recompile()
        return _compat.default_partition(joint, joint_inputs, **kwargs)

    def compile_inference(graph: fx.GraphModule, _: list) -> Callable:
        run(graph.graph)
        graph.recompile()
        return _compat.make_boxed(wrap(graph.forward))

    @torch.compiler.disable  # autograd compiles the backward graph while Dynamo watches
    def compile_part(graph: fx.GraphModule, _: list) -> Callable:
        return _compat.make_boxed(wrap(graph.forward))

    return _compat.aot_module_simplified(
        gm,
        example_inputs,
        fw_compiler=compile_part,
        bw_compiler=compile_part,
        inference_compiler=compile_inference,
        partition_fn=partition,
        decompositions=_compat.decompositions(),
        keep_inference_input_mutations=True,
    )


def run_on_fakes(model: Callable, inputs: tuple, backend: Capture) -> tuple[tuple[str, ...], tuple[Site, ...]]:
    """Call `model(*inputs)` with the tensors replaced by fakes, compiled by `backend`. Weights, gradients, module
    attributes, random state and compiled code stay as they are. Returns why parts of it ran outside of graphs, and the
    matmuls that did.

    Raises `CaptureError`, with what was captured up to there, where the code reads a tensor's value or fails.
    """
    modules = modules_of(model)
    mode = backend.mode = EagerProducts(modules)
    fakes: dict[str, torch.Tensor] = {}

    def fake(name: str, tensor: torch.Tensor) -> torch.Tensor:
        made = mode.from_tensor(tensor)
        fakes[name] = made
        return made

    arguments = [_compat.map_tensors(fake, name, value) for name, value in _named(model, inputs)]
    backend.names = {**backend.names, **{id(made): name for name, made in reversed(fakes.items())}}
    with graph_breaks() as breaks, untouched(modules), mode:
        try:
            _compat.compile_apart(_entry(model), backend)(*arguments)
        except QuartetError:
            raise
        except Exception as error:  # whatever the model's code raises
            inner = getattr(error, "inner_exception", None)
            if isinstance(inner, VerifyError):  # a bug of ours, and not of the model's
                raise inner from error
            raise _capture_error(error, backend.graphs) from error
    return tuple(breaks), tuple(mode.sites)


def _named(model: Callable, inputs: tuple) -> list[tuple[str, Any]]:
    """Each positional input with the name that the model's signature gives it."""
    names = argument_names(model)
    names += [f"input[{index}]" for index in range(len(names), len(inputs))]
    return list(zip(names, inputs, strict=False))


def _capture_error(error: Exception, graphs: list[GraphReport]) -> CaptureError:
    sites = [site.name for graph in graphs for site in graph.sites]
    inner = re.search(r": got (\w+\(.*\))$", str(error), re.MULTILINE)  # what Dynamo's own error wraps
    message = inner.group(1) if inner else f"{type(error).__name__}: {str(error).partition(chr(10) * 2)[0]}"
    if isinstance(error, _compat.ValueRead):
        remedy = (
            "The line needs a tensor's values (as .item(), or a branch on one), which a fake tensor doesn't have: call "
            "explain on the part of the model before it, or without it."
        )
    else:
        remedy = "Check that model(*inputs) runs without torch.compile."
    return CaptureError(
        f"Could not capture the model{_where(error)}: {message}\n{remedy}\n"
        f"Captured up to there: {len(graphs)} graph{'s' * (len(graphs) != 1)} with {len(sites)} "
        f"matmul{'s' * (len(sites) != 1)}{': ' * bool(sites)}{', '.join(sites)}."
    )


def _where(error: Exception) -> str:
    """` at file:line, in function: code` of the user's innermost line."""
    frames = [*traceback.extract_tb(error.__traceback__), *(getattr(error, "real_stack", None) or ())]
    users = [frame for frame in frames if is_users(frame.filename)]
    if not users:
        return ""
    last = users[-1]
    function = re.sub(r"^torch_dynamo_resume_in_(.*)_at_\d+$", r"\1", last.name)
    return f" at {place(last.filename, last.lineno)}, in {function}: `{last.line}`"


def _entry(model: Callable) -> Callable:
    """A function that calls the model, with a code object of its own, so that Dynamo's cache of the model's code is
    left alone."""

    def entry(*args: Any) -> Any:
        return model(*args)

    return types.FunctionType(
        entry.__code__.replace(co_name="explain"), entry.__globals__, "explain", None, entry.__closure__
    )
