"""The Dynamo backend of cross compilation: a graph takes the product's path up to its generated source, and runs on
fakes."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import fx

from .. import _compat
from .._compat.fake_gpu import CODE_ONLY, compile_fx, fake_gpu, generate, kind_of_graph, relabel
from ..backend import graph_inputs, graph_uuid, names_in
from ..capture.eager import EagerProducts
from ..capture.reused import Reused
from ..config.options import Config
from ..errors import QuartetError
from ..machines.targets import Target
from ..passes.joint import QuartetPass
from ..report.report import GraphReport
from .gpu_graph import decompositions, to_gpu, use_gpu_attention
from .launches import Launch, run_on_fakes

Runner = Callable[[list], Any]


class GenerationError(QuartetError):
    """A captured graph that Inductor can't generate code for without a GPU."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generated:
    """A generated module, the constants that it reads, and what it launches, in order."""

    graph: str
    source: str
    constants: Mapping[str, torch.Tensor]
    launches: list[Launch]


class CrossBackend:
    """Compiles Dynamo graphs of CPU tensors to source for the target.

    run_with: makes what runs in place of a compiled graph out of its source and constants; by default it makes fake outputs.
    modules, graphs: what was generated and rewritten. Everything happens inside of `fake_gpu.code_only`.
    """

    def __init__(
        self,
        config: Config,
        target: Target,
        names: Mapping[int, str] | None = None,
        run_with: Callable[[str, Mapping[str, torch.Tensor]], Runner] | None = None,
    ) -> None:
        self.config, self.target, self.names, self.run_with = config, target, names or {}, run_with
        self.modules: list[Generated] = []
        self.graphs: list[GraphReport] = []
        self.seen: set[str] = set()
        self.mode: EagerProducts | None = None
        self._count = 0

    def __call__(self, gm: fx.GraphModule, example_inputs: list) -> Any:
        from ..kernels import lowering  # noqa: F401  registers the templates of our ops; not at import, it loads Inductor

        inputs = graph_inputs(gm, self.names)
        self.seen |= names_in(gm, inputs)
        uuid = graph_uuid(gm, self.config, inputs)
        run = QuartetPass(self.config.policy, inputs, uuid, self.graphs.append)
        patches = {**dict(self.config.inductor), **CODE_ONLY, _compat.claim_joint_pass(): run}
        use_gpu_attention(gm)
        number, self._count = self._count, self._count + 1

        def compile_part(part: fx.GraphModule, part_inputs: list, **how: Any) -> Runner:
            return self._compile_part(f"{kind_of_graph(how)} {number}", part, part_inputs, how)

        before = len(self.graphs)
        compiled = compile_fx(gm, example_inputs, patches, compile_part, decompositions())
        reused = Reused(self.graphs, before, inputs.parameters)
        return reused.noticing(compiled, lambda: self.names)

    @contextlib.contextmanager
    def on_joint_graph(self, gm: fx.GraphModule) -> Iterator[None]:
        """Inductor's joint passes see a graph of CUDA tensors."""
        to_gpu(gm)
        with fake_gpu(self.target):
            yield

    def _compile_part(self, graph: str, gm: fx.GraphModule, inputs: list, how: dict[str, Any]) -> Runner:
        outputs = [node.meta["val"] if isinstance(node, fx.Node) else node for node in _outputs(gm)]
        moved = [relabel(value) for value in inputs]
        try:
            with fake_gpu(self.target):
                made = generate(gm, moved, **how)
                if made is not None:
                    source, constants = made
                    launches, outputs = run_on_fakes(source, constants, moved, _mode_of(inputs, outputs))
        except QuartetError:
            raise
        except Exception as error:  # whatever Inductor, or a wrapper that can't run on fakes, raises
            raise GenerationError(
                f"Inductor could not generate the graph {graph!r} for {self.target.name}: {type(error).__name__}: "
                f"{str(error).partition(chr(10) * 2)[0]}\nThe model was captured; qc.explain(...) shows its matmuls. The "
                "cause follows this error's traceback."
            ) from error
        if made is None:
            return _compat.make_boxed(gm.forward)
        self.modules.append(Generated(graph=graph, source=source, constants=constants, launches=launches))
        if self.run_with is not None:
            return self._boxed(self.run_with(source, constants))
        return self._boxed(lambda _: [relabel(output, torch.device("cpu")) for output in outputs])

    def _boxed(self, run: Runner) -> Runner:
        """A runner as AOTAutograd calls it; the mode knows meanwhile that a graph runs."""

        def boxed(arguments: list) -> Any:
            if self.mode is not None:
                self.mode.in_graph = True
            try:
                return run(arguments)
            finally:
                if self.mode is not None:
                    self.mode.in_graph = False

        _compat.mark_boxed(boxed)
        return torch.compiler.disable(boxed)


def _outputs(gm: fx.GraphModule) -> tuple:
    return next(iter(reversed(gm.graph.nodes))).args[0]


def _mode_of(*values: Any) -> Any:
    """The fake tensor mode of the first fake tensor among the values."""
    modes = (_compat.fake_mode_of(value) for group in values for value in group)
    return next(mode for mode in modes if mode is not None)
