"""Inductor on a GPU that isn't there: what it asks of torch and Triton, answered from the facts of a `Chip`.

Every private part of torch and Triton that cross compilation needs is in this file. Two contexts, each of which puts back
what it replaced, also after an error:

    with code_only(folder):        # around Dynamo and AOTAutograd: Inductor writes no cache, measures nothing, loads nothing
        with fake_gpu(target):     # around what Inductor does with a graph of CUDA tensors
            ...

Dynamo and AOTAutograd run outside of `fake_gpu`, on CPU tensors: autograd asks C++ for the tensor's device, and a build of
torch without that device ends the process. The graph moves to the GPU between tracing and Inductor's joint passes.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import pathlib
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, Protocol
from unittest import mock

import torch
import torch._dynamo.device_interface
import torch._functorch.config
import torch._inductor.compile_fx
import torch._inductor.config
import torch._inductor.fx_passes.joint_graph
import torch._inductor.fx_passes.post_grad
import torch._inductor.graph
import torch._inductor.select_algorithm
from torch._inductor.codecache import PyCodeCache
from torch._subclasses import FakeTensor
from torch._subclasses.fake_tensor import in_kernel_invocation_manager
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
from torch.utils._python_dispatch import _disable_current_modes as without_modes

DEVICE = torch.device("cuda", 0)


class Chip(Protocol):
    """What is asked of a GPU, as `machines.targets.Target` has it."""

    @property
    def name(self) -> str: ...
    @property
    def chip(self) -> str: ...
    @property
    def amd(self) -> bool: ...
    @property
    def warp(self) -> int: ...
    @property
    def capability(self) -> tuple[int, int]: ...
    @property
    def architecture(self) -> int: ...
    @property
    def processors(self) -> int: ...
    @property
    def threads_sm(self) -> int: ...
    @property
    def shared_bytes(self) -> int: ...
    @property
    def shared_bytes_sm(self) -> int: ...
    @property
    def l2_bytes(self) -> int: ...
    @property
    def memory_bytes(self) -> int: ...


CODE_ONLY: dict[str, Any] = {
    "compile_threads": 1,  # a pool of workers would start to compile, for the driver that isn't there
    "fx_graph_cache": False,
    "fx_graph_remote_cache": False,
    "autotune_local_cache": False,
    "autotune_remote_cache": False,
    "bundled_autotune_remote_cache": False,
    "benchmark_epilogue_fusion": False,
    "shape_padding": False,  # decides by measuring
    "cpp_wrapper": False,
    "triton.cudagraphs": False,
    "triton.autotune_at_compile_time": False,
}
"""Inductor's configuration where nothing can be measured or loaded."""

_ROCM = "7.0"
"""What `torch.version.hip` says where the target is AMD's: Inductor asks no more than whether it is there."""

_CACHES = ("torch.utils._triton", "torch._inductor.utils", "torch._inductor.codegen.cuda.cuda_env")
_CACHED = (
    "torch._inductor.runtime.hints:DeviceProperties.create",
    "torch._inductor.codecache:CacheBase.get_system",
    "torch._inductor.kernel.mm:_is_sm7x_or_older_gpu",
    "torch._inductor.comm_analysis:get_gpu_type",
    "torch._inductor.scheduler:get_estimate_runtime_cache",
)
"""Modules and functions whose `functools.cache` remembers answers about the device."""


@contextlib.contextmanager
def code_only(folder: str, on_joint_graph: Callable[[torch.fx.GraphModule], Any]) -> Iterator[None]:
    """Inductor without caches, measurements and loading; it writes only to `folder`.

    on_joint_graph: a context, by the graph, in which Inductor runs its joint passes, the custom one included.
    """
    joint_passes = torch._inductor.compile_fx._recursive_joint_graph_passes
    signature = inspect.signature(joint_passes)
    cpu = torch.device("cpu")

    def in_context(gm: torch.fx.GraphModule, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(gm, *args, **kwargs)
        given.arguments["input_device"] = cpu  # for which Inductor's patterns are traced at first use
        with on_joint_graph(gm):
            return joint_passes(*given.args, **given.kwargs)

    torch._inductor.fx_passes.joint_graph.lazy_init(cpu)
    torch._inductor.fx_passes.post_grad.lazy_init()

    folder_class = torch._inductor.fx_passes.joint_graph.UniformValueConstantFolder
    selector = torch._inductor.select_algorithm.AlgorithmSelectorCache
    modules = dict(PyCodeCache.modules_no_attr), dict(PyCodeCache.linemaps)
    known = len(PyCodeCache.modules)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_environment(TORCHINDUCTOR_CACHE_DIR=folder))
        stack.enter_context(mock.patch.object(torch._inductor.compile_fx, "_recursive_joint_graph_passes", in_context))
        stack.enter_context(mock.patch.object(selector, "do_autotuning", _first_choice))
        for name in ("__init__", "run"):
            stack.enter_context(mock.patch.object(folder_class, name, _on_cpu(getattr(folder_class, name))))
        stack.enter_context(torch._functorch.config.patch(enable_autograd_cache=False))
        stack.enter_context(torch._functorch.config.patch(force_non_lazy_backward_lowering=True))
        try:
            yield
        finally:
            del PyCodeCache.modules[known:]
            PyCodeCache.modules_no_attr, PyCodeCache.linemaps = modules


class _MakeOnCPU(TorchDispatchMode):
    """What would be made on the GPU is made on the CPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        cpu = torch.device("cpu")
        place = lambda value: cpu if isinstance(value, torch.device) else value  # noqa: E731
        return func(*map(place, args), **{name: place(value) for name, value in (kwargs or {}).items()})


def _on_cpu(method: Callable) -> Callable:
    """A method that folds constants by running ops, which therefore must run on the CPU."""

    @functools.wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        with _MakeOnCPU():
            return method(*args, **kwargs)

    return run


def _first_choice(_: Any, name: str, input_nodes: Any, layout: Any, input_gen: Any, key: Any, choices: Any, *a: Any,
                  **k: Any) -> dict[Any, float]:  # fmt: skip
    """Instead of measured times: the order in which the choices were given."""
    return {choice: float(index) for index, choice in enumerate(choices)}


def compile_fx(
    gm: torch.fx.GraphModule, inputs: list, patches: dict[str, Any], inner_compile: Callable, decompositions: dict
) -> Any:
    """Inductor on a Dynamo graph; inner_compile: what compiles each forward and backward graph."""
    return torch._inductor.compile_fx.compile_fx(
        gm, inputs, inner_compile=inner_compile, config_patches=patches, decompositions=decompositions
    )


def kind_of_graph(how: dict[str, Any]) -> str:
    """Which part of a program a graph is, by the arguments of `inner_compile`."""
    return "backward" if how.get("is_backward") else "inference" if how.get("is_inference") else "forward"


def generate(gm: torch.fx.GraphModule, inputs: list, **how: Any) -> tuple[str, dict[str, torch.Tensor]] | None:
    """The source that Inductor generates for a graph of CUDA tensors, and the constants that it reads by name, on the
    CPU; None for a graph without calls. In `fake_gpu`."""
    made: list[tuple[str, dict[str, torch.Tensor]]] = []

    def keep(graph: Any, wrapper_code: Any) -> Any:
        made.append((wrapper_code.value, dict(graph.constants)))
        graph.cache_key, graph.cache_path = PyCodeCache.write(wrapper_code.value)
        graph.cache_linemap = []
        return types.SimpleNamespace(call=lambda inputs: [], __file__=graph.cache_path)

    lowering = torch._inductor.graph.GraphLowering
    with contextlib.ExitStack() as stack:
        _replace(stack, lowering, "_compile_to_module_lines", keep)
        _replace(stack, lowering, "constant_name", lambda graph, name, device: name)  # a copy on the GPU is its own
        torch._inductor.compile_fx.compile_fx_inner(gm, inputs, **how)
    return made[0] if made else None


@contextlib.contextmanager
def fake_gpu(target: Chip) -> Iterator[None]:
    """torch and Triton as on a machine with one GPU of this target, as far as Inductor asks."""
    import triton.knobs
    import triton.runtime
    from torch._inductor.runtime import triton_helpers

    properties = _properties(target)
    cuda = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_properties": lambda device=None: properties,
        "get_device_capability": lambda device=None: target.capability,
        "get_device_name": lambda device=None: properties.name,
        "is_tf32_supported": lambda: True,
        "is_bf16_supported": lambda including_emulation=True: True,
        "set_device": lambda device: None,
        "_exchange_device": lambda device: 0,
        "_maybe_exchange_device": lambda device: 0,
        "synchronize": lambda device=None: None,
        "get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda state, device=None: None,
        "_DeviceGuard": lambda index: contextlib.nullcontext(),
    }
    interface = torch._dynamo.device_interface.CudaInterface
    driver = triton.runtime.driver
    with contextlib.ExitStack() as stack:
        replace = functools.partial(_replace, stack)
        stack.enter_context(
            _environment(
                TRITON_CACHE_DIR=triton.knobs.cache.dir,  # Inductor would set its own
                TRITON_DEFAULT_FP_FUSION=os.environ.get("TRITON_DEFAULT_FP_FUSION", "1"),  # 3.9 warns where unset
            )
        )
        for name, answer in cuda.items():
            replace(torch.cuda, name, answer)
            if name in vars(interface):
                replace(interface, name, staticmethod(answer))
        replace(interface, "get_raw_stream", staticmethod(lambda device: 0))
        replace(interface.Worker, "current_device", staticmethod(lambda: 0))
        replace(interface.Worker, "get_device_properties", staticmethod(lambda device=None: properties))
        replace(torch._C, "_cuda_getCurrentRawStream", lambda device: 0)
        replace(triton_helpers, "set_driver_to_gpu", lambda: None)
        replace(torch._inductor.compile_fx, "_warn_tf32_disabled", lambda: None)  # of the process, not of the target
        replace(driver, "_active", _Driver(target))
        replace(torch.version, "hip", _ROCM if target.amd else torch.version.hip)
        for name, function in _UNGUARDED.items():
            replace(FakeTensor, name, function)
        _forget_device()
        try:
            yield
        finally:
            _forget_device()


_UNGUARDED: dict[str, Callable] = {
    "__invert__": lambda x: torch.bitwise_not(x),
    "contiguous": lambda x, *, memory_format=torch.contiguous_format: (
        x if x.is_contiguous(memory_format=memory_format) else x.clone(memory_format=memory_format)
    ),
    "copy_": lambda x, source, non_blocking=False: torch.ops.aten.copy_.default(x, source, non_blocking),
    "__getitem__": lambda x, index: _getitem(x, index),
}
"""Methods of tensors that select the tensor's device in C++ before they dispatch, by ones that only dispatch."""


def _getitem(x: torch.Tensor, index: Any) -> torch.Tensor:
    """`x[index]`, of integers and slices by ops that only dispatch."""
    indices = index if isinstance(index, tuple) else (index,)
    if not all(type(item) in (int, slice) for item in indices):
        return torch.Tensor.__getitem__(x, index)
    dim = 0
    for item in indices:
        if type(item) is int:
            x = x.select(dim, item)
        else:
            x = torch.ops.aten.slice.Tensor(x, dim, item.start, item.stop, 1 if item.step is None else item.step)
            dim += 1
    return x


def _replace(stack: contextlib.ExitStack, owner: Any, name: str, value: Any) -> None:
    stack.enter_context(mock.patch.object(owner, name, value, create=True))


def _properties(target: Chip) -> types.SimpleNamespace:
    """What `torch.cuda.get_device_properties` would say."""
    return types.SimpleNamespace(
        name=f"{'AMD' if target.amd else 'NVIDIA'} {target.chip}",
        major=target.capability[0],
        minor=target.capability[1],
        multi_processor_count=target.processors,
        total_memory=target.memory_bytes,
        L2_cache_size=target.l2_bytes,
        max_threads_per_multi_processor=target.threads_sm,
        max_threads_per_block=1024,
        regs_per_multiprocessor=65536,
        warp_size=target.warp,
        shared_memory_per_block=49152,
        shared_memory_per_block_optin=target.shared_bytes,
        shared_memory_per_multiprocessor=target.shared_bytes_sm,
        gcnArchName=target.name if target.amd else "",
    )


class _Driver:
    """A Triton driver that knows its target and can't launch."""

    def __init__(self, target: Chip) -> None:
        from triton.backends.compiler import GPUTarget

        backend = ("hip", target.name) if target.amd else ("cuda", target.architecture)
        self._target = GPUTarget(*backend, target.warp)

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return DEVICE

    def get_device_interface(self) -> Any:
        return torch.cuda


def _forget_device() -> None:
    """Clear what torch remembers about the device."""
    for module in filter(None, map(sys.modules.get, _CACHES)):
        for value in list(vars(module).values()):
            if isinstance(value, functools._lru_cache_wrapper):
                value.cache_clear()
    for place in _CACHED:
        module, _, path = place.partition(":")
        value = sys.modules.get(module)
        for name in path.split("."):
            value = getattr(value, name, None)
        if hasattr(value, "cache_clear"):
            value.cache_clear()


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Environment variables inside; afterwards the whole environment is as it was."""
    with mock.patch.dict(os.environ, values):
        yield


def relabel(tensor: Any, device: torch.device = DEVICE) -> Any:
    """A fake tensor on another device, of the same storage; anything else, and what is there already, as it is."""
    if not isinstance(tensor, FakeTensor) or tensor.fake_device == device:
        return tensor
    with without_modes(), torch.no_grad(), in_kernel_invocation_manager(tensor.fake_mode):
        alias = torch.ops.aten.alias.default(tensor)
    return FakeTensor(tensor.fake_mode, alias, device)


def storage_address(storage: torch.UntypedStorage) -> int:
    """Which storage it is, of fake tensors too, which have no data; another may take the address once this one is freed."""
    return storage._cdata


@contextlib.contextmanager
def async_compile_replaced(compiler: Any) -> Iterator[None]:
    """Modules that Inductor generated, executed inside, give their kernels to this compiler."""
    import torch._inductor.async_compile as module

    with contextlib.ExitStack() as stack:
        _replace(stack, module, "AsyncCompile", lambda: compiler)
        _replace(stack, torch._C, "_cuda_getCurrentRawStream", lambda device: 0)
        yield


def compile_triton(name: str, path: pathlib.Path) -> tuple[str, bytes, int]:
    """PTX, cubin and dynamic shared memory of the Inductor kernel `name` in a file, by its first configuration; for AMD the
    assembly and its binary. In `fake_gpu`."""
    import importlib.util

    from torch._inductor.runtime import triton_heuristics

    spec = importlib.util.spec_from_file_location(f"quartet_cross_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kernel = getattr(module, name)
    static = triton_heuristics.StaticTritonCompileResult
    with mock.patch.object(static, "can_statically_launch", return_value=None):
        compiled = kernel._precompile_config(kernel.configs[0]).kernel
    text, binary = ("amdgcn", "hsaco") if "amdgcn" in compiled.asm else ("ptx", "cubin")
    return compiled.asm[text], compiled.asm[binary], compiled.metadata.shared


def scratch_folder() -> Any:
    """A temporary folder for what Inductor writes on its way."""
    import tempfile

    return tempfile.TemporaryDirectory(prefix="quartet_cross_", ignore_cleanup_errors=True)


def triton_bin() -> pathlib.Path:
    """The folder of NVIDIA's tools in the Triton wheel."""
    import triton

    return pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
