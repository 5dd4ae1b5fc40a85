"""The private parts of torch that the backend and the passes use, in one place.

Supported: torch 2.11 and later. A torch that is older, or that lacks one of these parts, gives an `ImportError` that
names the part. (`kernels/lowering/inductor.py` is the same for Inductor's lowering.)
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import torch

from .process import process

MINIMUM_TORCH = (2, 11)


def _version() -> tuple[int, ...]:
    return tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])


def _private(path: str) -> Any:
    """The object at `module:attribute`, or an error that says which part of torch is missing."""
    module, _, attribute = path.partition(":")
    try:
        loaded = importlib.import_module(module)
        return getattr(loaded, attribute) if attribute else loaded
    except (ImportError, AttributeError) as error:
        raise _missing(path.replace(":", ".")) from error
    except OSError as error:  # Dynamo makes the cache folder as it is imported
        raise _cannot_import(
            f"torch can't use its cache folder ({error}), so nothing can be compiled. Set TORCHINDUCTOR_CACHE_DIR to a "
            "folder that may be made and written, or unset it."
        ) from error


def _missing(what: str) -> BaseException:
    return _cannot_import(
        f"quartet_compile needs {what}, which torch {torch.__version__} lacks. "
        "It is tested with torch 2.11 to 2.13: install one of them, or a newer quartet_compile."
    )


def _cannot_import(message: str) -> BaseException:
    """The error; on the command line, which imports the package before it runs anything, one line and no traceback."""
    if sys.argv[:1] == ["-m"] and __package__ in sys.orig_argv:
        return SystemExit(f"{__package__}: {message}")
    return ImportError(message)


if _version() < MINIMUM_TORCH:
    raise _cannot_import(
        f"quartet_compile needs torch >= {'.'.join(map(str, MINIMUM_TORCH))}, found {torch.__version__}. "
        "Upgrade with: pip install -U torch"
    )

if TYPE_CHECKING:
    from torch._dynamo.exc import ShortenTraceback as ShortenTraceback
else:
    ShortenTraceback = _private("torch._dynamo.exc:ShortenTraceback")
"""An error of this class reaches the user as it is; any other becomes a `BackendCompilerFailed`."""

OpOverload: type = _private("torch._ops:OpOverload")
FakeTensorMode: type = _private("torch._subclasses:FakeTensorMode")
TorchDispatchMode: type = _private("torch.utils._python_dispatch:TorchDispatchMode")
OptimizedModule: type[Any] = _private("torch._dynamo:OptimizedModule")
DispatchMode: type = _private("torch.utils._python_dispatch:TorchDispatchMode")
ValueRead: tuple[type[Exception], ...] = (
    _private("torch._subclasses.fake_tensor:DataDependentOutputException"),
    _private("torch._subclasses.fake_tensor:DynamicOutputShapeException"),
)
"""Errors of code that needs a tensor's values, where only its shape is known."""
NotCompiled: tuple[type[Exception], ...] = (
    _private("torch._dynamo.exc:Unsupported"),
    _private("torch._dynamo.exc:FailOnRecompileLimitHit"),
)
"""What Dynamo raises under `fullgraph=True` for code that it would else run eagerly."""
CustomGraphPass: type = _private("torch._inductor.custom_graph_pass:CustomGraphPass")
GradOutput: type = _private("torch._functorch._aot_autograd.descriptors:GradAOTOutput")
PlainInput: type = _private("torch._functorch._aot_autograd.descriptors:PlainAOTInput")
ParamInput: type = _private("torch._functorch._aot_autograd.descriptors:ParamAOTInput")
BufferInput: type = _private("torch._functorch._aot_autograd.descriptors:BufferAOTInput")


def compile_fx(gm: torch.fx.GraphModule, inputs: list, config_patches: dict[str, Any]) -> Any:
    """Inductor on a Dynamo graph, with configuration patches that last through the lazy backward compilation."""
    return _private("torch._inductor.compile_fx:compile_fx")(gm, inputs, config_patches=config_patches)


def mode_options(mode: str) -> dict[str, Any]:
    """Inductor's options for a `torch.compile` mode."""
    return dict(_private("torch._inductor:list_mode_options")(mode))


def known_modes() -> list[str]:
    """The modes of `torch.compile`."""
    return ["default", *(m for m in _private("torch._inductor:list_mode_options")() if m != "default")]


def inductor_options() -> dict[str, type | None]:
    """The names of Inductor's configuration, each with the class of its value, None where that isn't one class."""
    config = _private("torch._inductor.config")
    types = {name: config.get_type(name) for name in config.get_config_copy()}
    return {name: kind if inspect.isclass(kind) else None for name, kind in types.items()}


def cache_dir() -> str:
    """Inductor's cache folder."""
    return _private("torch._inductor.runtime.cache_dir_utils:cache_dir")()


def aot_module_simplified(gm: torch.fx.GraphModule, inputs: list, **compilers: Any) -> Any:
    """AOTAutograd on a Dynamo graph with the given compilers."""
    return _private("torch._functorch.aot_autograd:aot_module_simplified")(gm, inputs, **compilers)


def decompositions() -> dict:
    """The operator decompositions that Inductor uses; that of max-pooling needs Inductor's lowerings to be loaded."""
    _private("torch._inductor.lowering")
    return _private("torch._inductor.decomposition:select_decomp_table")()


def make_boxed(function: Any) -> Any:
    """Wrap a function of many arguments as AOTAutograd calls compiled graphs."""
    return _private("functorch.compile:make_boxed_func")(function)


def default_partition(*args: Any, **kwargs: Any) -> Any:
    """The min-cut partitioner, as Inductor calls it."""
    return _private("torch._functorch.partitioners:min_cut_rematerialization_partition")(
        *args, compiler="inductor", **kwargs
    )


def trace_artifact(name: str, text: Callable[[], str]) -> None:
    """Put a text into the trace that `TORCH_TRACE` writes and tlparse shows. Without one, `text` isn't called."""

    def describe() -> dict[str, str]:
        return {"name": name, "encoding": "string"}

    _private("torch._logging:trace_structured")("artifact", metadata_fn=describe, payload_fn=text)


def graph_break_logger() -> logging.Logger:
    """Dynamo's log of graph breaks (`TORCH_LOGS=graph_breaks`)."""
    return _private("torch._logging:getArtifactLogger")("torch._dynamo.symbolic_convert", "graph_breaks")


@contextlib.contextmanager
def dynamo_sizes_restored() -> Iterator[None]:
    """Forget which sizes Dynamo saw change inside; it would make them dynamic at the next compilation."""
    state = _private("torch._dynamo.pgo:get_code_state")()
    before = copy.deepcopy(dict(state))
    try:
        yield
    finally:
        state.clear()
        state.update(before)


def compile_apart(function: Callable, backend: Callable) -> Callable:
    """`torch.compile` without dynamic shapes whose recompilations don't count for other compilations of the same code
    (torch 2.12 and later; before, they count)."""
    apart: dict[str, Any] = (
        {"isolate_recompiles": True} if "isolate_recompiles" in inspect.signature(torch.compile).parameters else {}
    )
    return torch.compile(function, backend=backend, dynamic=False, **apart)


class Watcher(Protocol):
    """What is told of the calls of one compiled object."""

    def __call__(self) -> contextlib.AbstractContextManager | None:
        """What the next call runs in, None for nothing."""

    def inlined(self, backend: Any) -> None:
        """Dynamo compiles a function that calls the object, and takes its code into the graph for this backend."""


def watch_calls(watcher_of: Callable[[Any, Any, dict[str, Any]], Watcher | None]) -> None:
    """From now on, tell of each call of what `torch.compile` makes; `watcher_of` gives the watcher for a slot (see
    `backend_slot`), the function that is compiled, and the arguments of `torch.compile` besides the backend; or None.

    A backend's own `backend_ctx_ctor` is no place for it: a dispatch mode that is entered there is still half active
    afterwards, since `torch.compile` saves the dispatch keys after it and puts them back.
    """
    context = _private("torch._dynamo.eval_frame:OptimizeContext")
    original = context.__call__

    @functools.wraps(original)
    def call(self: Any, function: Any) -> Any:
        made = original(self, function)
        slot = None if isinstance(made, (torch.nn.Module, type)) else backend_slot(made)
        how = {"dynamic": self._dynamic, "fullgraph": self.fullgraph}
        watcher = watcher_of(slot, function, how) if slot is not None else None
        return made if watcher is None else _watched(made, watcher)

    context.__call__ = call


def replace_inductor(backend_for: Callable[[dict[str, Any]], Any]) -> None:
    """From now on, ask at each `torch.compile` of Inductor which backend to use instead; None for Inductor.

    `backend_for` gets Inductor's options that the call has, those of its mode included. What was compiled before stays as it
    is, also where a copy of it is made later; so does ahead-of-time Inductor.
    """
    wrapper, context = _private("torch:_TorchCompileInductorWrapper"), _private("torch._dynamo.eval_frame:OptimizeContext")
    made, entered = wrapper.__init__, context.__init__

    @functools.wraps(made)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        self._quartet_backend = backend_for(dict(self.config)) if type(self) is wrapper else None

    @functools.wraps(entered)
    def enter(self: Any, *args: Any, **kwargs: Any) -> None:
        entered(self, *args, **kwargs)
        slot = _slot_of(self.callback)
        held = None if slot is None else getattr(slot, _BACKEND)
        backend = getattr(held, "_quartet_backend", None)
        if backend is not None:
            put_backend(slot, _private("torch:_TorchCompileWrapper")(backend, None, None, held.dynamic))

    wrapper.__init__, context.__init__ = init, enter


def backend_names() -> list[str]:
    """The names that `torch.compile` takes as a backend, those of entry points included."""
    return list(_private("torch._dynamo.backends.registry:list_backends")(exclude_tags=()))


def register_backend(function: Callable, name: str) -> None:
    """Let `torch.compile(backend=name)` find a backend."""
    _private("torch._dynamo.backends.registry:register_backend")(compiler_fn=function, name=name)


def _watched(made: Callable, watcher: Watcher) -> Callable:
    @functools.wraps(made)
    def watched(*args: Any, **kwargs: Any) -> Any:
        context = watcher()
        if context is None:
            return made(*args, **kwargs)
        with context:
            return made(*args, **kwargs)

    comptime, number = _private("torch._dynamo.comptime:comptime"), next(process.numbers)
    inline = made._torchdynamo_inline

    def inlined(*args: Any, **kwargs: Any) -> Any:
        inlined_number = number  # noqa: F841  `_tell_inlined` reads it
        comptime(_tell_inlined)
        return inline(*args, **kwargs)

    process.watchers[number] = watcher
    watched._torchdynamo_inline = inlined
    watched._torchdynamo_wrapper_id = id(watched)  # it stands for `made`, whose attributes it has
    watched._quartet_compiled = made
    _private("torch._dynamo.eval_frame:skip_code")(watched.__code__)
    return watched


def _tell_inlined(context: Any) -> None:
    """Called by Dynamo while it takes a watched function into a graph."""
    watcher = process.watchers.get(context.get_local("inlined_number").as_python_constant())
    translator = context._i_will_not_complain_if_bc_breaks_InstructionTranslator()
    if watcher is not None:
        held = translator.output.compiler_fn
        held = getattr(held, _BACKEND, held)
        watcher.inlined(getattr(held, "compiler_fn", held))


def owner_of(function: Any) -> torch.nn.Module | None:
    """The module that a function which `torch.compile` was given calls: a bound method's, or one with a frame around it."""
    inner = _variable(function, "fn")
    found = getattr(function, "__self__", None) if inner is None else getattr(inner, "__self__", inner)
    return found if isinstance(found, torch.nn.Module) else None


def is_watched_call(frame: Any) -> bool:
    """Whether a frame is the outermost one of a call that `watch_calls` runs something around."""
    return frame.f_code.co_name == "watched" and frame.f_code.co_filename == __file__


def compilations_tried() -> int:
    """How many frames Dynamo has tried to compile in this process, failures and recompilations included."""
    return _counters["frames"]["total"]


def reasons_not_compiled() -> dict[str, int]:
    """Why Dynamo could not compile something, in its own words, and how often so far."""
    return dict(_counters["unimplemented"])


_counters: dict[str, Any] = _private("torch._dynamo.utils:counters")


def is_at_limit(code: Any) -> bool:
    """Whether Dynamo has compiled a code object so often that it compiles nothing new for it."""
    config = _private("torch._dynamo.config")
    entries = _private("torch._C._dynamo.eval_frame")._debug_get_cache_entry_list(code)
    return len(entries) >= config.recompile_limit


def is_in_graph(filename: str) -> bool:
    """Whether a frame of this source file is a compiled graph, or an FX graph that runs op by op."""
    return filename.startswith(_GRAPHS)


_GRAPHS = (os.path.join(os.path.dirname(torch.__file__), "_inductor") + os.sep, "<eval_with_key>")


def annotation() -> dict[str, Any]:
    """What `torch.fx.traceback.annotate` says where the program is now."""
    return _private("torch.fx.traceback").current_meta.get("custom") or {}


def hides_errors() -> bool:
    """Whether Dynamo runs eagerly what a backend raises for (`torch._dynamo.config.suppress_errors`)."""
    return _private("torch._dynamo.config").suppress_errors


def compiled_forward(module: torch.nn.Module, **how: Any) -> Callable:
    """The module's class's forward, compiled for this module. Dynamo skips the code of torch's own modules at a frame's
    start, and inlines it into this frame."""
    forward = type(module).forward.__get__(module)
    if type(module).forward.__module__.startswith("torch.nn."):
        forward = _private("torch._dynamo.external_utils:wrap_inline")(forward)
    return torch.compile(forward, **how)


_BACKEND = "_torchdynamo_orig_backend"
_LIMITS = ("recompile_limit", "accumulated_recompile_limit")


def backend_slot(compiled: Any) -> Any | None:
    """The object inside of what `torch.compile` returned that holds its backend; None for anything else. Dynamo reads it
    at each call: it is what it compiles with, and what it tells the entries of its cache apart by."""
    if isinstance(compiled, OptimizedModule):
        slot = getattr(compiled.dynamo_ctx, "callback", None)
    else:
        slot = _variable(compiled, "callback")
    if not hasattr(slot, _BACKEND):
        if slot is not None and getattr(compiled, "_torchdynamo_wrapper_id", None) == id(compiled):
            raise _missing(f"{_BACKEND} of a compiled object")
        return None
    return _slot_of(slot)


def _slot_of(callback: Any) -> Any | None:
    """The innermost object of Dynamo's callbacks that holds a backend; None if none does."""
    slot = callback if hasattr(callback, _BACKEND) else None
    while slot is not None and hasattr(getattr(slot, _BACKEND), _BACKEND):
        slot = getattr(slot, _BACKEND)
    return slot


def _variable(function: Any, name: str) -> Any:
    """A variable that a function has from the one around it; None if there is none."""
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    with contextlib.suppress(ValueError):  # no such name, or it has no value yet
        index = names.index(name)
        return function.__closure__[index].cell_contents
    return None


def backend_in(slot: Any) -> tuple[Any, dict[str, Any], Any]:
    """The backend in a slot, as a function, its arguments, and the object by which Dynamo knows it."""
    held = getattr(slot, _BACKEND)
    return getattr(held, "compiler_fn", held), getattr(held, "kwargs", {}), held


def other_backend(held: Any, function: Any, kwargs: dict[str, Any]) -> Any:
    """What `torch.compile` would have made of another backend under the same settings."""
    made = copy.copy(held)
    made.compiler_fn, made.kwargs = function, kwargs
    return made


def put_backend(slot: Any, held: Any) -> None:
    """Let a compiled object use another backend from its next call on."""
    setattr(slot, _BACKEND, held)


def allow_variants(count: int) -> None:
    """Let Dynamo keep so many variants of a code object, each with as many entries as one had before.

    A code object that is at the limit already would run uncompiled what it has no entry for, which would be all of a
    new variant: Dynamo may compile it again.
    """
    config, frames = _private("torch._dynamo.config"), _private("torch._dynamo.convert_frame")
    for name in _LIMITS:
        one = process.limits.setdefault(name, getattr(config, name))
        setattr(config, name, max(getattr(config, name), one * count))
    c, types = _private("torch._C._dynamo.eval_frame"), _private("torch._dynamo.types")
    again = types.FrameExecStrategy(types.FrameAction.DEFAULT, types.FrameAction.DEFAULT)
    for code in (reference() for reference in frames.input_codes.seen):
        if code is not None and len(c._debug_get_cache_entry_list(code)) >= process.limits["recompile_limit"]:
            c.set_code_exec_strategy(code, again)


def is_tracing() -> bool:
    """Whether Dynamo or AOTAutograd is tracing now."""
    return _private("torch._guards:TracingContext").try_get() is not None


def is_in_backward() -> bool:
    """Whether autograd's engine is calling."""
    return _private("torch._C:_current_graph_task_id")() != -1


def map_tensors(function: Callable[[str, torch.Tensor], Any], name: str, value: Any) -> Any:
    """`value` with `function(name, tensor)` for every tensor in it; the name has its place, as `batch['ids']`."""
    tree = _private("torch.utils._pytree")

    def leaf(path: tuple, item: Any) -> Any:
        return function(name + tree.keystr(path), item) if isinstance(item, torch.Tensor) else item

    return tree.tree_map_with_path(leaf, value)


def plain_tensors(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensors with storage that a tensor is made of: itself, or the parts of a wrapper, as of a DTensor, or of a
    sparse one; none of a lazy parameter."""
    if torch.nn.parameter.is_lazy(tensor):
        return []
    if _private("torch.utils._python_dispatch:is_traceable_wrapper_subclass")(tensor):
        names, _ = tensor.__tensor_flatten__()
        return [plain for name in names for plain in plain_tensors(getattr(tensor, name))]
    if tensor.layout not in _SPARSE_PARTS:
        return [tensor] if tensor.layout == torch.strided else []
    return [getattr(tensor, part)() for part in _SPARSE_PARTS[tensor.layout]]


_SPARSE_PARTS = {
    torch.sparse_coo: ("_indices", "_values"),
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}


def is_fake(tensor: torch.Tensor) -> bool:
    """Whether a tensor, or a part of it, has no values."""
    return _private("torch._subclasses.fake_tensor:is_fake")(tensor)


def fake_like(mode: Any, tensor: torch.Tensor) -> torch.Tensor:
    """A fake tensor with the static layout, dtype and device of another, and a storage of its own."""
    fake_tensor = _private("torch._subclasses.fake_tensor")
    with fake_tensor.in_kernel_invocation_manager(mode):
        meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    return fake_tensor.FakeTensor(mode, meta, tensor.device)


def is_fully_sharded(module: torch.nn.Module) -> bool:
    """Whether FSDP2's `fully_shard` was given this module."""
    available = torch.distributed.is_available()
    return available and isinstance(module, _private("torch.distributed.fsdp:FSDPModule"))


def sharded_name(module: torch.nn.Module) -> str | None:
    """The name of a module in the model that FSDP2 sharded, None if it doesn't know; it does from the first call of the
    outermost module that `fully_shard` was given."""
    if not is_fully_sharded(module):
        return None
    group = module._get_fsdp_state()._fsdp_param_group
    names = {id(inner): name for name, inner in module.named_modules()}
    for part in group.fsdp_params if group is not None else ():
        inside = f"{names[id(part._module_info.module)]}.{part._module_info.param_name}".strip(".")
        if part._param_fqn is not None and part._param_fqn.endswith(f".{inside}"):
            return part._param_fqn.removesuffix(f".{inside}")
    return None


def group_ranks(name: str) -> list[int]:
    """The global ranks of a process group, by its name."""
    group = _private("torch.distributed.distributed_c10d:_resolve_process_group")(name)
    return torch.distributed.get_process_group_ranks(group)


def mesh_groups(value: Any) -> tuple[str, ...]:
    """The names of the process groups over which a DTensor is distributed, one for each dimension of its mesh; none of
    another value."""
    if not torch.distributed.is_available() or not isinstance(value, _private("torch.distributed.tensor:DTensor")):
        return ()
    mesh = value.device_mesh
    return tuple(mesh.get_group(dim).group_name for dim in range(mesh.ndim))


def claim_joint_pass() -> str:
    """The Inductor option that our pass runs as. Raises `RuntimeError` if a pass of the user's own is there."""
    option = "joint_custom_pre_pass"
    if getattr(_private("torch._inductor.config"), option):
        raise RuntimeError(
            f"backend='quartet' runs as Inductor's {option}, and torch._inductor.config.{option} is set to a pass of your "
            "own, which would be lost. Set it as joint_custom_post_pass instead, which runs after the rewriting."
        )
    return option
