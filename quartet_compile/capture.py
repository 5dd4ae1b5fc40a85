"""Run a model on fake tensors through Dynamo and AOTAutograd, with the pass and without Inductor."""

from __future__ import annotations

import collections
import contextlib
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import fx
from torch._subclasses import FakeTensorMode

from . import _compat
from .backend import graph_inputs, graph_uuid, names_in
from .config import Config
from .errors import CaptureError, QuartetError
from .passes.joint import QuartetPass
from .report import GraphReport


class Capture:
    """A Dynamo backend that runs the pass and keeps its reports; compiled graphs run as plain FX graphs."""

    def __init__(self, config: Config, names: Mapping[int, str] | None = None, text: bool = True) -> None:
        self.config, self.names, self.text = config, names or {}, text
        self.graphs: list[GraphReport] = []
        self.seen: set[str] = set()

    def __call__(self, gm: fx.GraphModule, example_inputs: list) -> Any:
        inputs = graph_inputs(gm, self.names)
        self.seen |= names_in(gm, inputs)
        uuid = graph_uuid(gm, self.config, inputs)
        run = QuartetPass(self.config.policy, inputs, uuid, self.graphs.append, text=self.text)

        def partition(joint: fx.GraphModule, joint_inputs: Any, **kwargs: Any) -> Any:
            run(joint.graph)
            joint.recompile()
            return _compat.default_partition(joint, joint_inputs, **kwargs)

        def compile_inference(graph: fx.GraphModule, _: list) -> Callable:
            run(graph.graph)
            graph.recompile()
            return _compat.make_boxed(graph.forward)

        def compile_part(graph: fx.GraphModule, _: list) -> Callable:
            return _compat.make_boxed(graph.forward)

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


def uncompiled(model: Callable) -> Callable:
    """What `torch.compile` was given, if it was; else the model itself."""
    if isinstance(model, torch._dynamo.OptimizedModule):
        return model._orig_mod
    return getattr(model, "_torchdynamo_orig_callable", model)


def run_on_fakes(model: Callable, inputs: tuple, backend: Capture) -> tuple[str, ...]:
    """Call `model(*inputs)` with the tensors replaced by fakes, compiled by `backend`. Weights, random state and
    compiled code stay as they are. Returns why parts of it ran outside graphs.

    Raises `CaptureError`, with what was captured up to there, where the code reads a tensor's value or fails.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes = torch.utils._pytree.tree_map_only(torch.Tensor, mode.from_tensor, inputs)
    with _graph_breaks() as breaks, mode:
        try:
            torch.compile(_entry(model), backend=backend, dynamic=False)(*fakes)
        except QuartetError:
            raise
        except Exception as error:
            seen = sum(len(graph.sites) for graph in backend.graphs)
            raise CaptureError(
                f"Could not capture the model on fake tensors, after {len(backend.graphs)} graphs with {seen} matmuls: "
                f"{type(error).__name__}: {error}\nCode that reads a tensor's value (as .item()) or that fails outside "
                "torch.compile too can't be explained: call explain on the part of the model before it."
            ) from error
    return tuple(breaks)


def _entry(model: Callable) -> Callable:
    """A function that calls the model, with a code object of its own, so that Dynamo's cache of the model's code is
    left alone."""

    def entry(*args: Any) -> Any:
        return model(*args)

    return types.FunctionType(
        entry.__code__.replace(co_name="explain"), entry.__globals__, "explain", None, entry.__closure__
    )


@contextlib.contextmanager
def _graph_breaks() -> Iterator[list[str]]:
    """The reasons of the graph breaks that happen inside."""
    counters = _compat.graph_break_counter()
    before = collections.Counter(counters)
    reasons: list[str] = []
    yield reasons
    for reason, count in (collections.Counter(counters) - before).items():
        reasons.append(f"{reason.strip().splitlines()[0]} ({count}x)")
