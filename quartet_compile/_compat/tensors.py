"""Tensors: fake ones, those that wrappers are made of, views, and what sees every op."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from .installed import private

FakeTensorMode: type = private("torch._subclasses:FakeTensorMode")
TorchDispatchMode: type = private("torch.utils._python_dispatch:TorchDispatchMode")
ValueRead: tuple[type[Exception], ...] = (
    private("torch._subclasses.fake_tensor:DataDependentOutputException"),
    private("torch._subclasses.fake_tensor:DynamicOutputShapeException"),
)
"""Errors of code that needs a tensor's values, where only its shape is known."""

check: Callable[[bool, Callable[[], str]], None] = private("torch:_check")
"""Raises `RuntimeError` with the text unless the condition holds; of symbolic sizes it is remembered."""


class TransparentMode(TorchDispatchMode):
    """A dispatch mode under which Dynamo compiles, as it does under none of a user's own."""

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Asked by torch."""
        return True


def decomposed(op: Any, args: tuple, kwargs: Mapping, mode: Any) -> Any:
    """The result of an op that is made of others, each of which the mode sees; NotImplemented for any other op.

    Under `inference_mode` a dispatch mode is given such ops whole, as `linear`.
    """
    if not torch.is_inference_mode_enabled():
        return NotImplemented
    TorchDispatchMode.__enter__(mode)  # not what a subclass does once a call
    try:
        return op.decompose(*args, **kwargs)
    finally:
        TorchDispatchMode.__exit__(mode, None, None, None)


def is_in_backward() -> bool:
    """Whether autograd's engine is calling."""
    return private("torch._C:_current_graph_task_id")() != -1


def base_of(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor that a tensor is a view of; itself if it is none."""
    return tensor if tensor._base is None else tensor._base


def map_tensors(function: Callable[[str, torch.Tensor], Any], name: str, value: Any) -> Any:
    """`value` with `function(name, tensor)` for every tensor in it; the name has its place, as `batch['ids']`."""
    tree = private("torch.utils._pytree")

    def leaf(path: tuple, item: Any) -> Any:
        return function(name + tree.keystr(path), item) if isinstance(item, torch.Tensor) else item

    return tree.tree_map_with_path(leaf, value)


def plain_tensors(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensors with storage that a tensor is made of: itself, or the parts of a wrapper, as of a DTensor, or of a
    sparse one; none of a lazy parameter."""
    if torch.nn.parameter.is_lazy(tensor):
        return []
    if private("torch.utils._python_dispatch:is_traceable_wrapper_subclass")(tensor):
        names, _ = tensor.__tensor_flatten__()
        parts = [getattr(tensor, name) for name in names]  # a DTensor's mesh is one of them
        return [plain for part in parts if isinstance(part, torch.Tensor) for plain in plain_tensors(part)]
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


def plainly(function: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """A function of torch's on tensors of a Python subclass as if they were ordinary ones."""
    with private("torch._C:DisableTorchFunctionSubclass")():
        return function(*args, **kwargs)


def is_fake(tensor: torch.Tensor) -> bool:
    """Whether a tensor, or a part of it, has no values."""
    return private("torch._subclasses.fake_tensor:is_fake")(tensor)


def fake_mode_of(value: Any) -> Any | None:
    """The mode that a fake tensor was made in; None of anything else."""
    return getattr(value, "fake_mode", None)


def fake_like(mode: Any, tensor: torch.Tensor) -> torch.Tensor:
    """A fake tensor with the static layout, dtype and device of another, and a storage of its own."""
    fake_tensor = private("torch._subclasses.fake_tensor")
    with fake_tensor.in_kernel_invocation_manager(mode):
        meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    return fake_tensor.FakeTensor(mode, meta, tensor.device)


def wrapper(cls: type, size: Any, stride: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """A tensor of a subclass, without storage."""
    make = private("torch:Tensor")._make_wrapper_subclass
    return make(cls, size, strides=stride, dtype=dtype, device=device)


def map_instances(cls: type, function: Callable[[Any], Any], value: Any) -> Any:
    """`value` with `function(item)` for every item of a class in it."""
    tree = private("torch.utils._pytree")
    return tree.tree_map_only(cls, function, value)
