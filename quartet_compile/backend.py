"""The Dynamo backend: `torch.compile(model, backend="quartet")`.

A Dynamo graph goes to Inductor as it would without us, with one addition: the pass of `passes/joint.py`. The pass is
built for each graph, since Inductor's caches drop node metadata: what the pass reads (names, marks, configuration,
sources) is in its `uuid`, so that a changed mark or recipe never meets a stale cache entry.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from . import _compat, kernels, passes
from .config.marks import KEY, class_mark
from .config.names import clean, matches
from .config.options import Config, configure
from .kernels.architectures import product_format
from .passes.inputs import GraphInputs
from .passes.joint import QuartetPass
from .process import process
from .report import records
from .report.stats import remember


def quartet_backend(
    gm: fx.GraphModule, example_inputs: list, *, mode: str | None = None, options: Mapping[str, Any] | None = None
) -> Any:
    """The backend that `torch.compile(model, backend="quartet", options=..., mode=...)` finds by its entry point."""
    with process.running.reported():
        config = configure(options, mode)
        compiled = compile_graph(gm, example_inputs, config)
    warn_unmatched(config)
    return compiled


quartet_backend.is_quartet = quartet_backend.is_watched = True


def compile_graph(
    gm: fx.GraphModule, example_inputs: list, config: Config, names: Mapping[int, str] | None = None
) -> Any:
    """Compile one Dynamo graph. names: full parameter names by `id`, where the whole model is known."""
    from .kernels import lowering  # noqa: F401  here, since it loads Inductor, which an import of the package shouldn't

    inputs = graph_inputs(gm, names or {})
    uuid = graph_uuid(gm, config, inputs)
    if config.policy.stats:
        uuid = remember(uuid, parameters_of(gm))
    run = QuartetPass(config.policy, inputs, uuid, records.writer(uuid), text=records.wants_text())
    seen = names_in(gm, inputs)
    compiled = _compat.compile_fx(gm, example_inputs, {**dict(config.inductor), _compat.claim_joint_pass(): run})
    process.matched.setdefault(config.policy, set()).update(p for p in config.policy.patterns if matches(p[1], seen))
    _log(uuid)
    return compiled


def graph_inputs(gm: fx.GraphModule, names: Mapping[int, str]) -> GraphInputs:
    """Names of a Dynamo graph's inputs, and which of them are parameters, buffers and other matrices that get a gradient, by
    position. Parameters are also the tensors with a gradient of a dict by the names of parameters, as `functional_call` has
    it."""
    parameters, state, leaves, all_names = {}, set(), set(), {}
    groups: dict[str, None] = {}
    for index, (example, source) in _compat.arguments(gm).items():
        all_names[index] = names.get(id(example)) or clean(source) or _compat.root_name(source)
        groups |= dict.fromkeys(_compat.mesh_groups(example))
        if isinstance(example, torch.nn.Parameter):
            parameters[index] = all_names[index]
        elif _compat.is_buffer(source):
            state.add(index)
        elif isinstance(example, torch.Tensor) and example.requires_grad and example.is_leaf:
            if _compat.is_parameter(source):
                parameters[index] = all_names[index]
            elif example.dim() == 2:
                leaves.add(index)
    return GraphInputs(
        parameters=parameters,
        names=all_names,
        state=frozenset(state),
        leaves=frozenset(leaves),
        shared_by=tuple(groups),
    )


def parameters_of(gm: fx.GraphModule) -> list[torch.nn.Parameter]:
    """The parameters that a Dynamo graph reads."""
    examples = (argument.example for argument in _compat.arguments(gm).values())
    return [example for example in examples if isinstance(example, torch.nn.Parameter)]


def names_in(gm: fx.GraphModule, inputs: GraphInputs) -> set[str]:
    """Every module path and parameter name of a Dynamo graph."""
    paths = {clean(path) for node in gm.graph.nodes for path, _ in _compat.module_stack(node.meta)}
    return {name for name in (*paths, *inputs.parameters.values()) if name}


def graph_uuid(gm: fx.GraphModule, config: Config, inputs: GraphInputs) -> str:
    """Hash of everything that the pass depends on besides the graph that Inductor hashes itself."""
    digest = hashlib.sha256(sources_hash().encode())
    settings = (config, inputs, torch.is_grad_enabled(), product_format(), records.wants_text())
    digest.update(repr(settings).encode())
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            digest.update(repr(_compat.example_shape(node)).encode())
        stack = _compat.module_stack(node.meta)
        modules = [(clean(path), _qualified(cls), class_mark(cls)) for path, cls in stack]
        mark = _compat.annotations_of(node.meta).get(KEY)
        digest.update(repr((mark, modules)).encode())
    return digest.hexdigest()


@functools.cache
def sources_hash() -> str:
    """Hash of this package's sources and of the versions of torch and triton."""
    digest = hashlib.sha256()
    for package in (pathlib.Path(__file__).parent, *map(pathlib.Path, (*passes.__path__, *kernels.__path__))):
        for path in sorted(package.rglob("*")):
            if path.suffix in (".py", ".cpp", ".h", ".jinja"):
                digest.update(path.name.encode() + path.read_bytes())
    for distribution in ("torch", "triton"):
        try:
            digest.update(importlib.metadata.version(distribution).encode())
        except importlib.metadata.PackageNotFoundError:
            digest.update(b"absent")
    return digest.hexdigest()


def warn_unmatched(config: Config) -> None:
    """Warn of each pattern of this configuration that no graph compiled so far has matched."""
    for option, pattern in sorted(set(config.policy.patterns) - process.matched[config.policy]):
        warnings.warn(
            f"quartet: {option} pattern {pattern!r} matches no module in the graphs compiled so far. "
            "quartet_compile.explain(model, *inputs) lists the names; quartet_compile.quartet(model, ...) checks them "
            "before anything is compiled.",
            stacklevel=2,
        )


def _log(uuid: str) -> None:
    """Tell `TORCH_LOGS=quartet_compile` of a compiled graph, also one from a cache; `+quartet_compile` of its diff too."""
    for graph in records.read(uuid):
        done = sum(site.rewritten for site in graph.sites)
        kind = "training" if graph.training else "inference"
        records.log.info("%s graph: %d of %d matmuls in FP4\n%s", kind, done, len(graph.sites), graph.table())
        records.log.debug("%s graph, before and after\n%s", kind, graph.diff())


def _qualified(cls: Any) -> str:
    return f"{getattr(cls, '__module__', '')}.{getattr(cls, '__qualname__', cls)}"
