"""What a generated module launches: its wrapper runs on fake tensors, and each kernel and library call is noted."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import torch

from .. import _compat
from .._compat.fake_gpu import DEVICE, TorchDispatchMode, relabel, storage_address, without_modes
from ..kernels.library import trying
from .generated import load
from .traffic import (
    bytes_in_bf16,
    kernel_traffic,
    library_bytes_in_bf16,
    library_format,
    library_result,
    library_sizes,
    library_traffic,
    marker,
    product_sizes,
    tensor_bytes,
    tensors_in,
)

_ALLOCATIONS = ("empty", "empty_strided", "new_empty", "new_empty_strided")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """One launch of a Triton kernel, or one call of a library.

    name: the kernel's function, or the op. source: the kernel's, empty for a library call.
    bytes: that it moves to and from memory.
    operations: of its matrix products, two a multiply-add; 0 where there are none; None where they are not known.
    dtype: of the operands of a library's matrix product.
    ctas: thread blocks of the grid, of a kernel that is told its grid (a template); 0 where it is not known.
    sizes: batch, M, N, K of a matrix product; None of anything else, and where they are not known.
    number_format: of the quantized operands of a library's product; else empty.
    bf16_bytes: that the same product would move with operands in bf16.
    reads, writes: the storages of its arguments, by address; all of them are kept while a graph runs.
    """

    name: str
    source: str
    bytes: int
    operations: int | None
    dtype: torch.dtype | None = None
    ctas: int = 0
    sizes: tuple[int, int, int, int] | None = None
    number_format: str = ""
    bf16_bytes: int = 0
    reads: frozenset[int] = frozenset()
    writes: frozenset[int] = frozenset()


def run_on_fakes(
    source: str, constants: Mapping[str, torch.Tensor], inputs: list, mode: Any
) -> tuple[list[Launch], list]:
    """Run a generated module on fake CUDA tensors of a mode, in `fake_gpu`: its launches in order, and its outputs."""
    recorder = _Recorder()
    with without_modes():
        fakes = {name: relabel(mode.from_tensor(value)) for name, value in constants.items()}
    call = load(source, fakes, triton=recorder.kernel, cpp=recorder.cpp, device=DEVICE)
    with torch.no_grad(), mode, recorder, trying():
        outputs = call(list(inputs))
    return recorder.launches, list(outputs)


class _Recorder(TorchDispatchMode):
    """Notes the launches of its kernels and the ops that the wrapper calls."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[Launch] = []
        self._kept: list[Any] = []

    def kernel(self, name: str, source: str) -> Any:
        return _Kernel(name, source, self)

    def places(self, values: Any) -> frozenset[int]:
        """The storages of all tensors among values, kept so that no other takes their address."""
        storages = [tensor.untyped_storage() for tensor in tensors_in(values)]
        self._kept += storages
        return frozenset(map(storage_address, storages))

    def cpp(self, source: str) -> Any:
        return lambda *args: self.launches.append(
            Launch(name="C++ kernel on the CPU", source="", bytes=tensor_bytes(args), operations=None)
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = library_result(func, args, kwargs)
        if not _is_free(func):
            moved, operations, dtype = library_traffic(func, args, kwargs, result)
            self.launches.append(
                Launch(
                    name=str(func),
                    source="",
                    bytes=moved,
                    operations=operations,
                    dtype=dtype,
                    sizes=library_sizes(func, args),
                    number_format=library_format(func, args),
                    bf16_bytes=library_bytes_in_bf16(func, args, moved),
                    reads=self.places((args, {name: value for name, value in kwargs.items() if name != "out"})),
                    writes=self.places(result),
                )
            )
        return result


class _Kernel:
    """Stands in for a compiled Triton kernel."""

    def __init__(self, name: str, source: str, recorder: _Recorder) -> None:
        self._name, self._source, self._recorder = name, source, recorder
        found = re.findall(rf"^def {re.escape(name)}\((.*?)\):", source, re.MULTILINE | re.DOTALL)
        self._parameters = [part.split(":")[0].strip() for part in found[0].split(",")]

    def run(self, *args: Any, **_: Any) -> None:
        given = dict(zip(self._parameters, args, strict=False))
        moved, operations = kernel_traffic(self._name, self._source, given)
        grid = [size for size in args[len(self._parameters) :] if isinstance(size, int)]
        sizes = product_sizes(self._name, self._source, given)
        written = [value for key, value in given.items() if re.match(r"(in_)?out_ptr", key)]
        self._recorder.launches.append(
            Launch(
                name=self._name,
                source=self._source,
                bytes=moved,
                operations=operations,
                ctas=math.prod(grid) if len(grid) == 3 else 0,
                sizes=sizes,
                bf16_bytes=bytes_in_bf16(self._source, given) if sizes and marker(self._source) else moved,
                reads=self._recorder.places([value for key, value in given.items() if not key.startswith("out_ptr")]),
                writes=self._recorder.places(written),
            )
        )


def _is_free(func: Any) -> bool:
    """Whether an op launches nothing: it allocates, asks, or makes a view."""
    if func.namespace == "prim" or func.overloadpacket.__name__ in _ALLOCATIONS:
        return True
    return _compat.makes_a_view(func)
