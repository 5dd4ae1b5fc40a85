"""How many bytes one launch moves, and how many operations its matrix products take.

Of Inductor's kernels: each tensor once, what it updates in place twice (a gather counts its whole table, a slice its whole
source). Of ours: what the op needs, from the sizes in the kernel's text, since its operands are parts of larger buffers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from .. import _compat

_MARKER = re.compile(r"# quartet: (\w+) (\w+)")
_SIZE = re.compile(r"^ +(M|N|K|ROWS|COLUMNS) = \(?(\d+)\)?(?: \* (\d+))?\s*$", re.MULTILINE)
_PARTS = re.compile(r"^arg_(A|B|CODES|MASK|(\w+_)?SCALES)$")
"""Arguments that are parts of a quantized operand's buffer."""
_MATMULS = ("mm", "addmm", "bmm", "baddbmm")
_SCALED = torch.ops.aten._scaled_mm_v2.default
_SCALED_FORMATS = {
    (torch.float4_e2m1fn_x2, torch.float8_e8m0fnu): "mxfp4",
    (torch.float4_e2m1fn_x2, torch.float8_e4m3fn): "nvfp4",
    (torch.float8_e4m3fn, torch.float8_e8m0fnu): "mxfp8",
    (torch.float8_e4m3fn, torch.float32): "mxfp4",
}
"""By the dtypes of elements and scales."""


def marker(source: str) -> tuple[str, str] | None:
    """The op and the format of a template of ours, as `("scaled_mm", "mxfp4")`; None for any other kernel."""
    found = _MARKER.search(source)
    return (found.group(1), found.group(2)) if found else None


def is_product(op: str) -> bool:
    """Whether an op of ours is a product of quantized operands, in any of its kernels."""
    return op.startswith(("scaled_mm", "scaled_grouped_mm"))


def is_reference(name: str) -> bool:
    """Whether a library call is an op of ours without a kernel, in plain PyTorch; drawing the seed is one call itself."""
    return name.startswith("quartet.") and not name.startswith("quartet.seed")


def kernel_traffic(name: str, source: str, given: Mapping[str, Any]) -> tuple[int, int | None]:
    """Bytes and operations of one launch of a kernel. given: its arguments by name. None: not known."""
    ours = marker(source)
    if ours is None:
        moved = tensor_bytes(given.values()) + tensor_bytes(v for k, v in given.items() if k.startswith("in_out_ptr"))
        sizes = product_sizes(name, source, given)
        return moved, 2 * math.prod(sizes) if sizes else None if name.startswith("triton_tem") else 0
    op, number_format = ours
    moved = _bytes_of_whole(given)
    if is_product(op):
        sizes = product_sizes(name, source, given)
        if sizes is None:
            return tensor_bytes(given.values()), None
        _, m, n, k = sizes
        mask = m * n // 8 if re.search(r"\bMASK\b", source) else 0
        return moved + _packed((m + n) * k, number_format) + mask, 2 * m * n * k
    elements = elements_of(source)
    if op.startswith("requantize"):
        moved += _packed(elements, number_format)
    if op.startswith("unrotate") and re.search(r"\bMASK\b", source):
        moved += elements // 8
    return moved, 0


def _packed(elements: int, number_format: str) -> int:
    """Bytes of codes, and of a scale a group."""
    group = 16 if number_format == "nvfp4" else 32
    return elements // (1 if number_format == "mxfp8" else 2) + elements // group


def product_sizes(name: str, source: str, given: Mapping[str, Any]) -> tuple[int, int, int, int] | None:
    """Batch, M, N, K of a kernel that multiplies: ours, or Inductor's own GEMM template of `arg_A` [.., M, K] and `arg_B`
    [.., K, N]; None of any other, and of products of groups whose rows are known only at run time."""
    ours = marker(source)
    if ours is not None:
        sizes = _sizes(source)
        if not is_product(ours[0]) or not {"M", "N", "K"} <= sizes.keys():
            return None
        return 1, sizes["M"], sizes["N"], sizes["K"]
    a, b = given.get("arg_A"), given.get("arg_B")
    if not name.startswith("triton_tem") or not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return None
    if min(a.dim(), b.dim()) < 2:
        return None
    return _sizes_of(a, b)


def bytes_in_bf16(source: str, given: Mapping[str, Any]) -> int:
    """Bytes that a product of ours would move with operands in bf16: what else it reads and writes stays as it is."""
    sizes = _sizes(source)
    return _bytes_of_whole(given) + 2 * (sizes["M"] + sizes["N"]) * sizes["K"]


def elements_of(source: str) -> int:
    """How many elements a kernel of ours quantizes, decodes or rotates; 0 of a product."""
    sizes = _sizes(source)
    return sizes.get("ROWS", 0) * sizes.get("COLUMNS", 0)


def _sizes(source: str) -> dict[str, int]:
    return {found[0]: int(found[1]) * int(found[2] or 1) for found in _SIZE.findall(source)}


def _bytes_of_whole(given: Mapping[str, Any]) -> int:
    """Bytes of the arguments that are not parts of a quantized operand's buffer."""
    return tensor_bytes(value for key, value in given.items() if not _PARTS.match(key))


def library_traffic(func: Any, args: tuple, kwargs: dict, result: Any) -> tuple[int, int | None, torch.dtype | None]:
    """Bytes, operations and the dtype of the operands of a library call; operations are None for our reference ops."""
    moved = tensor_bytes(tensors_in((args, kwargs, result)))
    if is_reference(str(func)):
        return moved, None, None
    if func is _SCALED:
        return moved, 2 * math.prod(_scaled_sizes(args)), args[0].dtype
    count = flop_registry.get(func.overloadpacket)
    dtypes = [tensor.dtype for tensor in tensors_in(args) if tensor.is_floating_point()]
    if count is None or not dtypes:
        return moved, 0, None
    return moved, int(count(*args, **kwargs, out_val=result)), dtypes[0]


def library_sizes(func: Any, args: tuple) -> tuple[int, int, int, int] | None:
    """Batch, M, N, K of a library's matrix product; None of any other call."""
    if func is _SCALED:
        return _scaled_sizes(args)
    if func.overloadpacket.__name__ not in _MATMULS:
        return None
    *_, a, b = (arg for arg in args if isinstance(arg, torch.Tensor))
    return _sizes_of(a, b)


def library_format(func: Any, args: tuple) -> str:
    """The format of the operands of a library's product, if they are quantized; else empty."""
    return _SCALED_FORMATS[args[0].dtype, args[2][0].dtype] if func is _SCALED else ""


def library_result(func: Any, args: tuple, kwargs: dict) -> Any:
    """What a library call on fake tensors gives. torch before 2.14 takes packed FP4 columns for elements when it checks the
    scales of its scaled product."""
    if func is not _SCALED:
        return func(*args, **kwargs)
    _, m, n, _ = _scaled_sizes(args)
    return args[0].new_empty((m, n), dtype=args[9])


def library_bytes_in_bf16(func: Any, args: tuple, moved: int) -> int:
    """Bytes that a library call would move with operands in bf16."""
    if func is not _SCALED:
        return moved
    _, m, n, k = _scaled_sizes(args)
    return moved - tensor_bytes(tensors_in((args[:2], args[2], args[5]))) + 2 * (m + n) * k


def _scaled_sizes(args: tuple) -> tuple[int, int, int, int]:
    a, b = args[:2]
    return 1, a.shape[0], b.shape[1], a.shape[1] * (2 if a.dtype is torch.float4_e2m1fn_x2 else 1)


def _sizes_of(a: torch.Tensor, b: torch.Tensor) -> tuple[int, int, int, int]:
    """Batch, M, N, K of a [.., M, K] @ b [.., K, N]."""
    return math.prod(a.shape[:-2]), a.shape[-2], b.shape[-1], a.shape[-1]


def tensor_bytes(values: Iterable[Any]) -> int:
    """Bytes of the distinct tensors among values; a broadcast dimension takes none."""
    distinct = {id(value): value for value in values if isinstance(value, torch.Tensor)}
    return sum(map(_bytes, distinct.values()))


def _bytes(tensor: torch.Tensor) -> int:
    elements = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        elements *= size if stride or not size else 1
    return elements * tensor.element_size()


def tensors_in(values: Any) -> list[torch.Tensor]:
    """All tensors of a nest of tuples, lists and dictionaries."""
    found: list[torch.Tensor] = []
    _compat.map_tensors(lambda _, tensor: found.append(tensor), "", values)
    return found
