"""A module that holds FP4 codes in the place of a weight.

    {name}_packed        uint8[..., N, P / 2]      two E2M1 codes a byte, the even column in the low nibble
    {name}_scale         uint8[..., N, P / group]  E8M0 of groups of 32; NVFP4: the bits of float8_e4m3fn, groups of 16
    {name}_tensor_scale  int32[0]                  NVFP4: int32[1], the bits of a float32
    {name}_quantizer     uint8[length]             the name of the quantizer that made the codes, in UTF-8

are persistent buffers; `P` is `K` padded to whole groups. All are integers, which `model.to(dtype)` leaves alone. The
attribute of the weight's name is now a property: a compiled graph sees one op, `quartet::decode`, of which the passes take
the codes; elsewhere it gives the weight's values, made anew at each use. The class of such a module is a subclass of what
it was, so `isinstance` and everything else hold.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import nn

from .. import _compat
from ..errors import PackError
from ..held import DTYPE, LAYOUT, Layout, held, layout_of, packed_names
from ..kernels.quantizer import Quantizer

PARTS = ("packed", "scale", "tensor_scale", "quantizer")
"""The suffixes of the buffers."""

_CHECK = "quartet_check"
"""The attribute of the hook that looks at a state dict before it is loaded."""


class Codes(NamedTuple):
    """The codes of a weight `[..., N, K]` as its module holds them. dtype: of the weight."""

    packed: torch.Tensor
    scale: torch.Tensor
    tensor_scale: torch.Tensor
    layout: Layout
    dtype: torch.dtype


def codes_of(
    codes: torch.Tensor,
    scales: torch.Tensor,
    tensor_scale: torch.Tensor,
    quantizer: Quantizer,
    columns: int,
    turned: bool,
    dtype: torch.dtype,
) -> Codes:
    """Blocks of `[..., N, K]` as buffers. tensor_scale: float32[1], or float32[0] where the format has none."""
    layout = Layout(quantizer.name, columns, turned)
    return Codes(codes, scales.view(torch.uint8), tensor_scale.view(torch.int32), layout, dtype)


class ReadOnly(torch.Tensor):
    """The values of a packed weight outside of a graph. What would write to them raises `PackError`, since the next use
    decodes the weight again; what it computes is an ordinary tensor."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        first = args[0] if args else None
        if func == torch.Tensor.data.__get__:  # type: ignore[attr-defined]
            return first
        plain_name = name.strip("_")
        in_place = (name.endswith("_") and not name.startswith("__")) or (
            name.startswith("__i") and plain_name[1:] in _IN_PLACE
        )
        writes = in_place or name in ("__setitem__", "__set__")
        if (writes and isinstance(first, cls)) or isinstance(kwargs.get("out"), cls):
            raise PackError(
                f"A packed weight was written to (by {plain_name}); expected reads only, since it is stored as codes. Give "
                "it back first: quartet_compile.unpack(model)."
            )
        return _compat.plainly(func, args, kwargs)


_IN_PLACE = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift", "matmul")


def hold(module: nn.Module, name: str, codes: Codes) -> None:
    """Put codes in the place of the parameter `name` of a module."""
    names = (*packed_names(module), name)
    del module._parameters[name]
    for part, tensor in zip(PARTS, (*codes[:3], _text(codes.layout.quantizer)), strict=True):
        module.register_buffer(f"{name}_{part}", tensor.to(codes.packed.device))
    empty = torch.empty(0, dtype=codes.dtype, device=codes.packed.device)
    module.register_buffer(f"{name}_{DTYPE}", empty, persistent=False)
    setattr(module, f"{name}_{LAYOUT}", codes.layout)
    if len(names) == 1:
        setattr(module, _CHECK, module.register_load_state_dict_pre_hook(_check_state))
    module.__class__ = _packed_class(_original(type(module)), names)


def release(module: nn.Module, name: str) -> torch.Tensor:
    """Take the codes of a weight away again. Returns its values."""
    values = held(module, name).values().detach()
    for part in (*PARTS, DTYPE):
        delattr(module, f"{name}_{part}")
    delattr(module, f"{name}_{LAYOUT}")
    left = tuple(other for other in packed_names(module) if other != name)
    original = _original(type(module))
    module.__class__ = _packed_class(original, left) if left else original
    if not left:
        getattr(module, _CHECK).remove()
        delattr(module, _CHECK)
    return values


def _property(name: str) -> property:
    def read(self: nn.Module) -> torch.Tensor:
        values = held(self, name).values()
        return values if torch.compiler.is_compiling() else values.as_subclass(ReadOnly)

    return property(read, doc=f"The values of the packed weight {name!r}.")


def _original(cls: type) -> type:
    return cls.__mro__[1] if "quartet_packed" in vars(cls) else cls


@functools.cache
def _packed_class(original: Any, names: tuple[str, ...]) -> type:
    def extra_repr(self: nn.Module) -> str:
        said = ", ".join(f"{name} packed as {layout_of(self, name).quantizer}" for name in names)
        return ", ".join(filter(None, [original.extra_repr(self), said]))

    def reduce(self: nn.Module) -> tuple[Any, ...]:
        return _made, (original, names), self.__dict__

    attributes: dict[str, Any] = {name: _property(name) for name in names}
    attributes |= {"__reduce__": reduce, "extra_repr": extra_repr}
    return type(f"Packed{original.__name__}", (original,), {**attributes, "quartet_packed": names})


def _made(original: type, names: tuple[str, ...]) -> nn.Module:
    made: nn.Module = object.__new__(_packed_class(original, names))
    return made


def _check_state(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Raise `PackError` for a state dict that holds a packed weight of this module in other codes, or in none."""
    for name in packed_names(module):
        own = layout_of(module, name).quantizer
        if f"{prefix}{name}_quantizer" in state:
            found = bytes(state[f"{prefix}{name}_quantizer"].tolist()).decode(errors="replace")
        else:
            found = "no codes" if f"{prefix}{name}" in state else own
        if found != own:
            raise PackError(
                f"The state dict has {found} for {prefix + name!r}, and the model holds codes of {own}; expected those. "
                "Pack a model of the original weights with the recipe of the state dict, or load them before "
                "quartet_compile.pack."
            )


def _text(name: str) -> torch.Tensor:
    return torch.tensor(list(name.encode()), dtype=torch.uint8, device="cpu")
