"""Load and run the wrapper module that Inductor generates for a GPU, with the kernels and the device of the caller's choice.

The same loader counts launches on fake tensors (`launches.py`) and runs a module in Triton's interpreter on a CPU
(`tests/support/interpreted_module.py`).
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch

from .._compat.fake_gpu import async_compile_replaced


class KernelMaker(Protocol):
    """Makes an object with `run(*args, stream=...)` out of a kernel's source."""

    def __call__(self, name: str, source: str) -> Any: ...


def load(
    source: str,
    constants: Mapping[str, torch.Tensor],
    *,
    triton: KernelMaker,
    cpp: Callable[[str], Any],
    device: torch.device,
) -> Callable[[list], Any]:
    """The module's `call`: it takes a list of inputs, which it empties, and returns the outputs.

    constants: tensors that the module reads by name. triton: makes each Triton kernel; cpp: makes each C++ kernel, of a
    part of the model that runs on the CPU. device: where the module's buffers are allocated, whatever device it was
    generated for.
    """
    compiler = types.SimpleNamespace(
        triton=lambda name, text, **_: triton(name, text),
        cpp_pybinding=lambda _, text: cpp(text),
        wait=lambda names: None,
    )
    namespace: dict[str, Any] = {"__name__": "generated_module", "__file__": "<generated module>"}
    with async_compile_replaced(compiler):
        exec(compile(source, "<generated module>", "exec"), namespace)
    namespace.update({**_on(device), **constants})
    return namespace["call"]


def _on(device: torch.device) -> dict[str, Any]:
    """The functions of a generated module that need a GPU, for another device."""
    nothing = lambda *args, **kwargs: None  # noqa: E731
    return {
        "torch": _Torch(),
        "device": lambda *args, **kwargs: device,
        "get_raw_stream": lambda index: 0,
        "empty_strided_cuda": lambda size, stride, dtype: torch.empty_strided(size, stride, dtype=dtype, device=device),
        "reinterpret_tensor": reinterpret,
        "copy_if_misaligned": lambda tensor: tensor,
        "assert_size_stride": nothing,
        "assert_alignment": nothing,
    }


def reinterpret(tensor: torch.Tensor, size: tuple, stride: tuple, offset: int = 0) -> torch.Tensor:
    """A view with this layout, its offset counted from the tensor's own."""
    return torch.as_strided(tensor, size, stride, tensor.storage_offset() + offset)


class _Torch:
    """torch, on whatever device the tensors are."""

    class cuda:
        _DeviceGuard = staticmethod(lambda index: _NoGuard())
        set_device = staticmethod(lambda index: None)
        synchronize = staticmethod(lambda: None)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


class _NoGuard:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: Any) -> None: ...
