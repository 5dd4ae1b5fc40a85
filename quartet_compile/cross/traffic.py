"""How many bytes one launch moves, and how many operations its matrix products take.

Of Inductor's kernels: each tensor once, what it updates in place twice (a gather counts its whole table, a slice its whole
source). Of ours: what the op needs, from the sizes in the kernel's text, since its operands are parts of larger buffers.
"""

from __future__ import annotations

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
        return moved, _template_operations(name, given)
    op, number_format = ours
    sizes = {found[0]: int(found[1]) * int(found[2] or 1) for found in _SIZE.findall(source)}
    moved = tensor_bytes(value for key, value in given.items() if not _PARTS.match(key))
    if is_product(op):
        if not {"M", "N", "K"} <= sizes.keys():
            return tensor_bytes(given.values()), None
        m, n, k = sizes["M"], sizes["N"], sizes["K"]
        mask = m * n // 8 if re.search(r"\bMASK\b", source) else 0
        return moved + _packed((m + n) * k, number_format) + mask, 2 * m * n * k
    elements = sizes.get("ROWS", 0) * sizes.get("COLUMNS", 0)
    if op.startswith("requantize"):
        moved += _packed(elements, number_format)
    if op.startswith("unrotate") and re.search(r"\bMASK\b", source):
        moved += elements // 8
    return moved, 0


def _packed(elements: int, number_format: str) -> int:
    """Bytes of codes, and of a scale a group."""
    group = 16 if number_format == "nvfp4" else 32
    return elements // (1 if number_format == "mxfp8" else 2) + elements // group


def _template_operations(name: str, given: Mapping[str, Any]) -> int | None:
    """2 M N K of Inductor's own GEMM templates, `arg_A` [.., M, K] and `arg_B` [.., K, N]; None of its other ones."""
    if not name.startswith("triton_tem"):
        return 0
    a, b = given.get("arg_A"), given.get("arg_B")
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor) or min(a.dim(), b.dim()) < 2:
        return None
    return 2 * a.numel() * b.shape[-1]


def library_traffic(func: Any, args: tuple, kwargs: dict, result: Any) -> tuple[int, int | None, torch.dtype | None]:
    """Bytes, operations and the dtype of the operands of a library call; operations are None for our reference ops."""
    moved = tensor_bytes(_tensors((args, kwargs, result)))
    if is_reference(str(func)):
        return moved, None, None
    count = flop_registry.get(func.overloadpacket)
    dtypes = [tensor.dtype for tensor in _tensors(args) if tensor.is_floating_point()]
    if count is None or not dtypes:
        return moved, 0, None
    return moved, int(count(*args, **kwargs, out_val=result)), dtypes[0]


def tensor_bytes(values: Iterable[Any]) -> int:
    """Bytes of the distinct tensors among values; a broadcast dimension takes none."""
    distinct = {id(value): value for value in values if isinstance(value, torch.Tensor)}
    return sum(map(_bytes, distinct.values()))


def _bytes(tensor: torch.Tensor) -> int:
    elements = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        elements *= size if stride or not size else 1
    return elements * tensor.element_size()


def _tensors(values: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    _compat.map_tensors(lambda _, tensor: found.append(tensor), "", values)
    return found
