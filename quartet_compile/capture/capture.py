"""Run a model on fake tensors through Dynamo and AOTAutograd, with the pass and without Inductor."""

from __future__ import annotations

import contextlib
import dataclasses
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import fx

from .. import _compat
from ..backend import graph_inputs, graph_uuid, names_in
from ..callables import modules_of
from ..compiled import uncompile_parts
from ..config.options import Config
from ..errors import CaptureError, QuartetError
from ..passes.joint import QuartetPass
from ..places import is_users, place
from ..process import process
from ..report.report import GraphReport, Site
from .call import Call, batch_hint
from .eager import EagerProducts, FakeEagerProducts, RealEagerProducts, graph_breaks
from .restore import memory_restored, random_state_restored, settings_restored, tensors_of, untouched
from .reused import Reused


class Capture:
    """A Dynamo backend that runs the pass and keeps its reports; compiled graphs run as plain FX graphs.

    names: of parameters and inputs, by `id`. names_now: the same of parameters that are new in each call, as FSDP2's are.
    """

    is_quartet = True

    def __init__(
        self,
        config: Config,
        names: Mapping[int, str] | None = None,
        text: bool = True,
        names_now: Callable[[], Mapping[int, str]] = dict,
    ) -> None:
        self.config, self.names, self.text, self.names_now = config, names or {}, text, names_now
        self.graphs: list[GraphReport] = []
        self.seen: set[str] = set()
        self.mode: EagerProducts | None = None

    def __call__(self, gm: fx.GraphModule, example_inputs: list) -> Any:
        inputs = graph_inputs(gm, {**self.names_now(), **self.names})
        self.seen |= names_in(gm, inputs)
        uuid = graph_uuid(gm, self.config, inputs)
        run = QuartetPass(self.config.policy, inputs, uuid, self.graphs.append, text=self.text)
        before = len(self.graphs)
        compiled = compile_plainly(gm, example_inputs, run, self._running)
        reused = Reused(self.graphs, before, inputs.parameters)
        return reused.noticing(compiled, lambda: {**self.names_now(), **self.names})

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ran:
    """What a call under a capturing backend came to.

    breaks: why parts of it ran outside of graphs. eager_sites: the matmuls that did. error: what ended it before its end.
    """

    breaks: tuple[str, ...]
    eager_sites: tuple[Site, ...]
    error: Exception | None = None


class Backend(Protocol):
    """A Dynamo backend that captures: graphs: what it did to each. names: what it calls parameters and inputs, by `id`.
    mode: sees what runs outside of its graphs."""

    graphs: list[GraphReport]
    names: Mapping[int, str]
    mode: EagerProducts | None

    def __call__(self, gm: fx.GraphModule, example_inputs: list[Any]) -> Any: ...


def run_on_fakes(call: Call, backend: Backend) -> Ran:
    """Run a call with the tensors replaced by fakes, compiled by `backend`. Weights, gradients, module attributes, random
    state and compiled code stay as they are.

    Raises `CaptureError`, with what was captured up to there, where the code reads a tensor's value or fails.
    """
    ran = try_on_fakes(call, backend)
    if ran.error is not None:
        raise capture_error(call, ran.error, backend.graphs) from ran.error
    return ran


def try_on_fakes(call: Call, backend: Backend) -> Ran:
    """The same, with what the model's code raised as the result's error."""
    mode = FakeEagerProducts(modules_of(call.model))
    fakes: dict[str, torch.Tensor] = {}

    def fake(name: str, tensor: torch.Tensor) -> torch.Tensor:
        made = mode.from_tensor(tensor)
        fakes[name] = made
        return made

    call = call.map(fake)
    backend.names = {**backend.names, **{id(made): name for name, made in reversed(fakes.items())}}
    return run(call, backend, mode)


def run(call: Call, backend: Backend, mode: FakeEagerProducts | RealEagerProducts) -> Ran:
    """Run a call compiled by `backend`; mode: sees what runs outside of the graphs."""
    backend.mode = mode
    error = None
    memory = memory_restored(tensors_of(call.model))
    kept = settings_restored(), random_state_restored(), memory, untouched(call.model)
    with contextlib.ExitStack() as stack:
        for context in kept:
            stack.enter_context(context)
        breaks = stack.enter_context(graph_breaks())
        stack.enter_context(mode)
        stack.enter_context(_capturing())
        stack.enter_context(_compat.errors_on_fakes_unlogged())
        for module in modules_of(call.model):  # what is compiled would run by itself behind a graph break
            uncompile_parts(module)
        try:
            _compat.compile_apart(_entry(call.model), backend)(*call.inputs, **call.kwargs)
        except QuartetError:
            raise
        except Exception as raised:  # noqa: BLE001  whatever the model's code raises
            error = raised
    return Ran(breaks=tuple(breaks), eager_sites=tuple(mode.sites), error=error)


@contextlib.contextmanager
def _capturing() -> Iterator[None]:
    """Our backend compiles nothing inside."""
    before, process.running.capturing = process.running.capturing, True
    try:
        yield
    finally:
        process.running.capturing = before


def capture_error(call: Call, error: Exception, graphs: list[GraphReport]) -> CaptureError:
    """What to tell of a call that could not be captured: where, why, the remedy, and what was seen."""
    sites = [site.name for graph in graphs for site in graph.sites]
    if isinstance(error, _compat.ValueRead):
        remedy = (
            "The line needs a tensor's values (as .item(), or a branch on one), which a fake tensor doesn't have: leave the "
            "part of the model with it out."
        )
    else:
        remedy = batch_hint(call) or "Check that the model runs without torch.compile on these inputs."
    return CaptureError(
        f"Could not capture the model{reason_of(error)}\n{remedy}\n"
        f"Captured up to there: {len(graphs)} graph{'s' * (len(graphs) != 1)} with {len(sites)} "
        f"matmul{'s' * (len(sites) != 1)}{': ' * bool(sites)}{', '.join(sites)}."
    )


def reason_of(error: Exception) -> str:
    """` at file:line, in function: code: Error: message` of the user's innermost line."""
    message = _compat.wrapped_error(error) or f"{type(error).__name__}: {str(error).partition(chr(10) * 2)[0]}"
    return f"{_where(error)}: {message}"


def _where(error: Exception) -> str:
    """` at file:line, in function: code` of the user's innermost line."""
    frames = [*traceback.extract_tb(error.__traceback__), *_compat.user_stack(error)]
    users = [frame for frame in frames if is_users(frame.filename)]
    if not users:
        return ""
    last = users[-1]
    return f" at {place(last.filename, last.lineno)}, in {_compat.function_name(last.name)}: `{last.line}`"


def _entry(model: Callable) -> Callable:
    """A function that calls the model, with a code object of its own, so that Dynamo's cache of the model's code is
    left alone. Of an instance of a class that `torch.compile` was given, it runs what the class had as its call."""
    model = _compat.original_call(model)

    def entry(*args: Any, **kwargs: Any) -> Any:
        return model(*args, **kwargs)

    return types.FunctionType(
        entry.__code__.replace(co_name="explain"), entry.__globals__, "explain", None, entry.__closure__
    )
