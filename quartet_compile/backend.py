"""The Dynamo backend: `torch.compile(model, backend="quartet")`.

A Dynamo graph goes to Inductor as it would without us, with one addition: the pass of `passes/joint.py`. The pass is
built for each graph, since Inductor's caches drop node metadata: what the pass reads (names, marks, configuration,
sources) is in its `uuid`, so that a changed mark or recipe never meets a stale cache entry.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import logging
import pathlib
import re
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from . import _compat, kernels, passes
from .config.listed import lists_options
from .config.marks import KEY, class_mark
from .config.names import clean, matches
from .config.options import Config, Policy, configure
from .config.presets import PRESETS
from .errors import CaptureError, OptionError, suggest
from .kernels import weight_cache
from .kernels.architectures import library_use, product_format
from .kernels.cpu.toolchain import require_compiler, require_linux
from .kernels.paths import path_of
from .passes.inputs import GraphInputs
from .passes.joint import QuartetPass
from .process import process
from .ranks import check_ranks
from .report import records
from .report.report import GraphReport
from .report.stats import remember
from .report.summary import products_of
from .warn import warn

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .config.listed import Options


class NamedBackend:
    """A backend that `torch.compile(model, backend=name, options=..., mode=...)` finds by its name.

    given: the options that the name stands for; those of a call go before them.
    """

    is_quartet = is_watched = True

    def __init__(self, name: str, given: Mapping[str, Any]) -> None:
        self.__name__, self.given = name, dict(given)

    def __call__(
        self,
        gm: fx.GraphModule,
        example_inputs: list,
        *,
        mode: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        with process.running.reported():
            config = configure(self.options(options), mode)
            compiled = compile_graph(gm, example_inputs, config)
        warn_unmatched(config)
        return compiled

    def options(self, options: Mapping[str, Any] | None) -> Any:
        """All options of a call with these."""
        return {**self.given, **options} if isinstance(options, Mapping) else (options or self.given)

    def __deepcopy__(self, memo: dict[int, Any]) -> NamedBackend:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return named_backend, (self.__name__,)


def named_backend(name: str) -> NamedBackend:
    """The backend of a preset's or a registered name. Raises `OptionError` for another one."""
    if name not in backend_names():
        known = backend_names()
        raise OptionError(
            f"Unknown backend {name!r}{suggest(name, known)}; known are {', '.join(known)}. Register it in this process "
            f"too: quartet_compile.register_backend({name!r}, ...)."
        )
    return {**_PRESETS, **process.backends}[name]


def backend_names() -> list[str]:
    """The names of our backends: those of presets, and the registered ones."""
    return [*_PRESETS, *process.backends]


def name_of_preset(preset: str) -> str:
    """The name of the backend with a preset recipe: `quartet-rtn`, `quartet-nvfp4`."""
    return preset if preset.startswith("quartet") else f"quartet-{preset}"


_PRESETS = {
    name_of_preset(preset): NamedBackend(name_of_preset(preset), {} if preset == "quartet" else {"recipe": preset})
    for preset in PRESETS
}
quartet_backend = _PRESETS["quartet"]
presets = types.SimpleNamespace(**{name.replace("-", "_"): backend for name, backend in _PRESETS.items()})
"""The backends of presets, as pyproject.toml gives them to torch."""


@lists_options
def register_backend(name: str, **options: Unpack[Options]) -> None:
    """Make a backend of these options for trainers that take a string: `register_backend("mine", recipe="nvfp4")`, then
    `torch.compile(model, backend="mine")`.

    name: lower-case letters, digits, `-` and `_`; some trainers change other letters. Raises `OptionError` for a name that
    can't be or is taken by another backend or by other options, and for wrong options also `RecipeError`.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
        raise OptionError(
            f"register_backend got the name {name!r}; expected lower-case letters, digits, - and _, as 'my-fp4'."
        )
    config = configure(options)
    known = process.backends.get(name)
    if known is not None and configure(known.given) == config:
        return
    if known is not None or name in _compat.known_backends():
        owner = "by a preset recipe" if name in _PRESETS else "by torch or another package"
        what = owner if known is None else f"with the options {known.given}"
        raise OptionError(f"The backend name {name!r} is taken {what}; expected a new one. Choose another name.")
    process.backends[name] = backend = NamedBackend(name, options)
    _compat.register_backend(backend, name)


def compile_graph(
    gm: fx.GraphModule, example_inputs: list, config: Config, names: Mapping[int, str] | None = None
) -> Any:
    """Compile one Dynamo graph. names: full parameter names by `id`, where the whole model is known."""
    from .kernels import lowering  # noqa: F401  here, since it loads Inductor, which an import of the package shouldn't

    if process.running.capturing:  # on fake tensors, from which kernels would read
        raise CaptureError(
            "A part of the model is compiled by itself, as a class is, and runs behind a graph break, where it can't be "
            "captured with the rest. Give the part and its inputs, or compile its modules instead of their class."
        )
    device = device_of(example_inputs)
    _compat.link_whole()
    require_linux("CPU" if device.type == "cpu" else "GPU")
    if device.type == "cpu":
        require_compiler()  # before Inductor misses it, with less to say
    inputs = graph_inputs(gm, names or {})
    check_ranks(config, met_by(inputs))
    uuid = graph_uuid(gm, config, inputs)
    if config.policy.stats:
        uuid = remember(uuid, parameters_of(gm))
    write = records.writer(uuid)

    def record(graph: GraphReport) -> None:
        write(graph)
        process.running.compiling(graph, config.policy, device)

    run = QuartetPass(config.policy, inputs, uuid, record, text=records.wants_text())
    seen = names_in(gm, inputs)
    compiled = _compat.compile_fx(gm, example_inputs, {**dict(config.inductor), _compat.claim_joint_pass(): run})
    if config.policy.weight_cache:
        _compat.when_freed(compiled, weight_cache.forget)
    process.seen.setdefault(config.policy, set()).update(seen)
    for graph in records.read(uuid)[-1:]:  # the last holds what the others, of higher-order ops inside of it, do
        process.running.compiled(graph, config.policy, device)
    _log(uuid, config.policy, device)
    return compiled


def met_by(inputs: GraphInputs) -> set[int]:
    """The ranks with which a graph, or the DDP that runs it, has collectives."""
    found = {rank for group in inputs.shared_by for rank in _compat.group_ranks(group)}
    return found.union(_compat.replica_ranks() if torch.is_grad_enabled() else ())


def device_of(example_inputs: list) -> torch.device:
    """Where a graph runs: on the first device that isn't the CPU, if there is one."""
    devices = [example.device for example in example_inputs if isinstance(example, torch.Tensor)]
    return next((device for device in devices if device.type != "cpu"), torch.device("cpu"))


def graph_inputs(gm: fx.GraphModule, names: Mapping[int, str]) -> GraphInputs:
    """Names of a Dynamo graph's inputs, and which of them are parameters, buffers and other matrices that get a gradient, by
    position. Parameters are also the tensors with a gradient of a dict by the names of parameters, as `functional_call` has
    it, and what FSDP1 has in the place of parameters."""
    parameters, state, leaves, all_names = {}, set(), set(), {}
    groups: dict[str, None] = {}
    for index, (example, source) in _compat.arguments(gm).items():
        all_names[index] = names.get(id(example)) or clean(source) or _compat.root_name(source)
        groups |= dict.fromkeys(_compat.mesh_groups(example))
        if isinstance(example, torch.nn.Parameter):
            parameters[index] = all_names[index]
        elif _compat.is_buffer(source):
            state.add(index)
        elif isinstance(example, torch.Tensor) and _compat.is_flat_view(example) and _compat.is_attribute(source):
            parameters[index] = all_names[index]
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
    settings = (config, inputs, torch.is_grad_enabled(), product_format(), library_use(), records.wants_text())
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
    seen = process.seen[config.policy]
    for option, pattern in sorted(set(config.policy.patterns)):
        if not matches(pattern, seen):
            warn(
                "QC105",
                f"{option} pattern {pattern!r} matches no module in the graphs compiled so far. "
                f"{_inside_a_block(pattern, seen)}quartet_compile.explain(model, *inputs) lists the names; "
                "quartet_compile.quartet(model, ...) checks them before anything is compiled.",
            )


def _inside_a_block(pattern: str, seen: set[str]) -> str:
    """What to say of a pattern that may be meant for a block, of which only the inside is seen."""
    parts = pattern.split(".")
    found = [name for at in range(1, len(parts)) for name in sorted(seen) if matches(".".join(parts[at:]), [name])]
    roots = sorted({name.partition(".")[0] for name in seen})
    if not found and (len(parts) == 1 or set(roots) & {parts[0], "*"}):
        return ""
    known = (
        f"{found[0]!r} would be it inside of a block" if found else f"names start at {', '.join(map(repr, roots[:4]))}"
    )
    return (
        f"Names start at the module that torch.compile is given, and {known}: where blocks are compiled one by one, "
        "quartet_compile.enable(model, ...) before, or quartet_compile.quartet(model, regions=[...]) instead, gives them "
        "the model's full names. "
    )


def _log(uuid: str, policy: Policy, device: torch.device) -> None:
    """Tell `TORCH_LOGS=quartet_compile` of a compiled graph, also one from a cache; `+quartet_compile` of its diff too."""
    for graph in records.read(uuid) if records.log.isEnabledFor(logging.INFO) else ():
        done = sum(site.rewritten for site in graph.sites)
        kind = "training" if graph.training else "inference"
        path = f"; {path_of(device, products_of(policy, graph))}" if done else ""
        records.log.info("%s graph: %d of %d matmuls in FP4%s\n%s", kind, done, len(graph.sites), path, graph.table())
        records.log.debug("%s graph, before and after\n%s", kind, graph.diff())


def _qualified(cls: Any) -> str:
    return f"{getattr(cls, '__module__', '')}.{getattr(cls, '__qualname__', cls)}"
