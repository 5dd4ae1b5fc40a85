"""Run what Inductor generated for a GPU on CPU tensors, each Triton kernel in Triton's interpreter.

    call = load(module.source, module.constants)      # call([inputs]) -> outputs, on CPU tensors
    compiled = compile_interpreted(model, "sm_100")   # as torch.compile(model): forward and backward are interpreted

Both need TRITON_INTERPRET=1 before Triton is imported. `in_interpreter("my_test_file:function", *args)` calls a function in
a process of its own where it is set, and gives its result back.

Library calls and our ops without a kernel run as what they are, on the CPU. What differs from a GPU: no inline assembly, no
fused multiply-add, and NumPy's elementary functions.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch_scaled_mm

from quartet_compile._compat.fake_gpu import TorchDispatchMode, code_only, fake_gpu, scratch_folder
from quartet_compile.config.options import configure
from quartet_compile.cross.backend import CrossBackend
from quartet_compile.cross.generated import load as load_module
from quartet_compile.machines.targets import Target, find_target

CPU = torch.device("cpu")
HERE = pathlib.Path(__file__)


def load(source: str, constants: Mapping[str, torch.Tensor], target: str | Target = "sm_100") -> Callable[[list], Any]:
    """A generated module as a function of a list of CPU tensors (which it empties) that returns the outputs."""
    require_interpreter()
    _round_to_nearest()
    chosen = find_target(target)
    folder = scratch_folder()
    kernels: list[Any] = []

    def kernel(name: str, text: str) -> Any:
        kernels.append(_Kernel(name, text, folder.name))
        return kernels[-1]

    with fake_gpu(chosen):
        call = load_module(source, constants, triton=kernel, cpp=_no_cpp, device=CPU)

    def run(inputs: list) -> Any:
        assert folder  # the kernels' sources live as long as the function
        with torch.no_grad(), fake_gpu(chosen), _LibraryOnCPU():
            return list(call(inputs))

    return run


def compile_interpreted(
    model: Callable, target: str | Target = "sm_100", dynamic: bool = False, **options: Any
) -> Callable:
    """`torch.compile(model, backend="quartet", options=options)` for CPU tensors whose compiled graphs, forward and
    backward, are those generated for the target, run in the interpreter. `modules` of the result: what was generated."""
    chosen = find_target(target)
    backend = CrossBackend(configure(options), chosen, run_with=lambda *made: load(*made, chosen))
    compiled = torch.compile(model, backend=backend, dynamic=dynamic)

    def run(*args: Any, **kwargs: Any) -> Any:
        with scratch_folder() as folder, code_only(folder, backend.on_joint_graph):
            return compiled(*args, **kwargs)

    run.modules = backend.modules
    return run


def in_interpreter(where: str, *args: Any, timeout: float = 900) -> Any:
    """Call a function, `"file_stem:name"` in tests/ or `"path/file.py:name"`, in a process with TRITON_INTERPRET=1.
    Arguments and result travel through torch.save."""
    with tempfile.TemporaryDirectory() as folder:
        given, made = pathlib.Path(folder, "given.pt"), pathlib.Path(folder, "made.pt")
        torch.save((where, args), given)
        done = subprocess.run(
            [sys.executable, HERE, given, made],
            env={**os.environ, "TRITON_INTERPRET": "1"},
            cwd=HERE.parents[2],
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if done.returncode:
            raise AssertionError(f"{where} failed in the interpreter:\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}")
        return torch.load(made, weights_only=False)


def require_interpreter() -> None:
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("set TRITON_INTERPRET=1 before Triton is imported; in_interpreter(...) does")


def _no_cpp(source: str) -> Any:
    raise NotImplementedError("the module has a C++ kernel: part of the model runs on the CPU")


class _Kernel:
    """A kernel's function in the interpreter, with the grid and the block sizes of its first configuration."""

    def __init__(self, name: str, source: str, folder: str) -> None:
        path = pathlib.Path(folder, f"{name}.py")
        path.write_text(source)
        spec = importlib.util.spec_from_file_location(f"interpreted_{name}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.libdevice = module.tl_math = LIBDEVICE
        self._kernel = getattr(module, name)

    def run(self, *args: Any, stream: int = 0) -> None:
        with np.errstate(all="ignore"):
            values, grid = self._kernel._interpret_args_grid(args, self._kernel.configs[0])
            self._kernel.fn[grid](*values, **self._kernel.configs[0].kwargs)


class _LibraryOnCPU(TorchDispatchMode):
    """What a CPU's libraries lack: the attention kernels of a GPU, by the plain formula and without dropout; matmuls of
    bfloat16 to float32; and products of block-scaled operands."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name == "_scaled_mm_v2":
            return torch_scaled_mm.scaled_mm(*args)
        if name in ("mm", "bmm") and func._overloadname == "dtype_out":
            return kwargs["out"].copy_(args[0].float() @ args[1].float())
        if not name.startswith("_scaled_dot_product"):
            return func(*args, **kwargs)
        scale = kwargs.get("scale")
        sums, none = torch.zeros(args[0].shape[:3]), torch.zeros(2, dtype=torch.int64)  # log-sum-exp, random state
        lengths = args[0].shape[2], args[1].shape[2]
        if name == "_scaled_dot_product_flash_attention":
            query, key, value, _, causal = (*args, 0.0, False)[:5]
            return _forward(query, key, value, None, causal, scale), sums, none, none, *lengths, none, none, none
        if name == "_scaled_dot_product_efficient_attention":
            query, key, value, mask = args[:4]
            causal = args[6] if len(args) > 6 else False
            return _forward(query, key, value, mask, causal, scale), sums, none, none
        if name == "_scaled_dot_product_flash_attention_backward":
            return _backward(*args[:4], None, args[11], scale)
        if name == "_scaled_dot_product_efficient_attention_backward":
            causal = args[11] if len(args) > 11 else False
            return *_backward(*args[:4], args[4], causal, scale), None
        return func(*args, **kwargs)


def _forward(query: Any, key: Any, value: Any, mask: Any, causal: bool, scale: float | None) -> torch.Tensor:
    made = _weights(query, key, mask, causal, scale)[0] @ value.float()
    return torch.empty_like(query).copy_(made)  # of the layout that the module expects


def _backward(gradient: Any, query: Any, key: Any, value: Any, mask: Any, causal: bool, scale: float | None) -> tuple:
    weights, scale = _weights(query, key, mask, causal, scale)
    gradient = gradient.float()
    by_weight = gradient @ value.float().transpose(-2, -1)
    by_score = weights * (by_weight - (by_weight * weights).sum(-1, keepdim=True)) * scale
    made = (by_score @ key.float(), by_score.transpose(-2, -1) @ query.float(), weights.transpose(-2, -1) @ gradient)
    return tuple(torch.empty_like(x).copy_(g) for x, g in zip((query, key, value), made, strict=True))


def _weights(query: Any, key: Any, mask: Any, causal: bool, scale: float | None) -> tuple[torch.Tensor, float]:
    """softmax(Q K^T scale + mask) in float32, and the scale."""
    scale = scale or query.shape[-1] ** -0.5
    scores = query.float() @ key.float().transpose(-2, -1) * scale
    if mask is not None:
        scores = scores + mask
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), float("-inf"))
    return scores.softmax(-1), scale


def _round_to_nearest() -> None:
    """Make the interpreter round float32 to bfloat16 to nearest even, as GPUs do; it truncates."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    if getattr(InterpreterBuilder.cast_impl, "rounds", False):
        return
    original = InterpreterBuilder.cast_impl

    def cast_impl(self: Any, source: Any, dtype: Any) -> Any:
        if source.dtype.scalar == tl.float32 and dtype.scalar == tl.bfloat16:
            rounded = torch.from_numpy(np.array(source.data)).bfloat16().view(torch.int16).numpy().view(np.uint16)
            return TensorHandle(rounded, dtype.scalar)
        return original(self, source, dtype)

    cast_impl.rounds = True
    InterpreterBuilder.cast_impl = cast_impl


def _work_once() -> None:
    """Have the interpreter leave out what changes nothing: checks of each integer sum for overflow, of which it asserts
    nothing unless it debugs, and, at each call of a device function, replacing functions of Triton's that are replaced
    for the kernel that runs."""
    import triton.language as tl
    from triton.runtime import interpreter

    builder, replace, call = interpreter.interpreter_builder, interpreter._patch_lang, interpreter.GridExecutor.__call__
    assert not builder.options.debug
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
    replaced: set[types.ModuleType] = set()

    def replace_once(function: Any) -> Any:
        modules = {value for value in function.__globals__.values() if value is tl or value is tl.core}
        if modules <= replaced:
            return None
        replaced.update(modules)
        return replace(function)

    def run_kernel(self: Any, *args: Any, **kwargs: Any) -> Any:
        replaced.clear()
        return call(self, *args, **kwargs)

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = replace_once, run_kernel


def _elementwise(function: Callable, result: Any = None) -> Callable:
    """A NumPy function on the interpreter's tensors."""

    def apply(*operands: Any) -> Any:
        import triton.language as tl
        from triton.runtime.interpreter import TensorHandle

        first = operands[0]
        data = function(*(getattr(getattr(x, "handle", x), "data", x) for x in operands))
        dtype = first.dtype if result is None else getattr(tl, result)
        kept = np.asarray(data).astype(first.handle.data.dtype if result is None else result)
        kind = tl.block_type(dtype, first.shape) if first.type.is_block() else dtype
        return tl.tensor(TensorHandle(kept, dtype), kind)

    return apply


def _erf(x: np.ndarray) -> np.ndarray:
    return torch.erf(torch.from_numpy(np.ascontiguousarray(x))).numpy()


LIBDEVICE = types.SimpleNamespace(
    **{name: _elementwise(getattr(np, name)) for name in ("exp", "exp2", "log", "log2", "log1p", "expm1", "sqrt", "sin",
                                                          "cos", "tan", "tanh", "floor", "ceil", "trunc")},
    rsqrt=_elementwise(lambda x: 1 / np.sqrt(x)),
    abs=_elementwise(np.abs),
    pow=_elementwise(np.power),
    erf=_elementwise(_erf),
    nearbyint=_elementwise(np.rint),
    isnan=_elementwise(np.isnan, "int32"),
    isinf=_elementwise(np.isinf, "int32"),
)  # fmt: skip
"""The functions of CUDA's libdevice that generated kernels call."""


def _main(given: str, made: str) -> None:
    sys.path[:0] = [str(HERE.parent), str(HERE.parents[2] / "examples")]
    torch.set_num_threads(1)
    _work_once()
    where, args = torch.load(given, weights_only=False)
    module, _, name = where.rpartition(":")
    if module.endswith(".py"):
        sys.path.insert(0, str(pathlib.Path(module).parent))
        module = pathlib.Path(module).stem
    torch.save(getattr(importlib.import_module(module), name)(*args), made)


if __name__ == "__main__":
    _main(*sys.argv[1:])
