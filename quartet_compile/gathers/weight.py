"""A weight of which a rank has the codes, the scales and the trust mask, and nothing else.

It has the weight's shape and dtype, and a gradient. A graph that reads it has one op, `quartet::gathered`, of which the
passes take the parts (passes/packed.py); anything else that reads it is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from .. import _compat

_aten = torch.ops.aten


class Made(NamedTuple):
    """How a weight was quantized. quantizer: its name. size: of the weight, `[..., N, K]`. dtype: before the quantizer."""

    quantizer: str
    size: tuple[int, ...]
    dtype: torch.dtype


class GatheredWeight(torch.Tensor):
    """`[..., N, K]`, or if `turned` `[..., K, N]`, of codes `uint8[..., N, P / 2]`, scales `uint8[..., N, P / group]`,
    tensor_scale `float32[0]` and mask `uint8[..., N, P / 8]`, or `[..., N, 0]` without one; `P` is `K` padded to whole
    groups."""

    codes: torch.Tensor
    scales: torch.Tensor
    tensor_scale: torch.Tensor
    mask: torch.Tensor
    made: Made
    turned: bool

    @staticmethod
    def __new__(cls: Any, parts: Mapping[str, torch.Tensor], made: Made, turned: bool = False) -> GatheredWeight:
        size, stride = list(made.size), [*torch.empty(made.size, device="meta").stride()]
        if turned:
            for each in (size, stride):
                each[-2:] = each[:-3:-1]
        codes = parts["codes"]
        weight: GatheredWeight = _compat.wrapper(cls, size, stride, made.dtype, codes.device)
        vars(weight).update(parts, made=made, turned=turned)
        return weight

    def __tensor_flatten__(self) -> tuple[list[str], tuple[Made, bool]]:
        return [*_PARTS], (self.made, self.turned)

    @staticmethod
    def __tensor_unflatten__(
        parts: Mapping[str, torch.Tensor], how: tuple[Made, bool], size: Any, stride: Any
    ) -> GatheredWeight:
        return GatheredWeight(parts, *how)

    def _stable_hash_for_caching(self) -> str:
        """What torch's cache of compiled graphs knows such a weight by."""
        return repr((self.made, self.turned))

    def again(self, turned: bool) -> GatheredWeight:
        """Another tensor of the same parts."""
        return GatheredWeight({name: getattr(self, name) for name in _PARTS}, self.made, turned)

    def read(self) -> torch.Tensor:
        """What a graph has of it."""
        parts = (getattr(self, name) for name in _PARTS)
        weight: torch.Tensor = torch.ops.quartet.gathered(
            *parts, self.made.quantizer, self.made.size[-1], self.made.dtype
        )
        return weight.transpose(-1, -2) if self.turned else weight

    def __repr__(self) -> str:  # type: ignore[override]
        return f"GatheredWeight(shape={tuple(self.shape)}, dtype={self.dtype}, quantizer={self.made.quantizer!r})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        moved = _MOVED.get(op)
        if moved is not None and (found := moved(*args)) is not None:
            return found
        plain = _compat.map_instances(cls, GatheredWeight.read, (args, dict(kwargs or {})))
        return op(*plain[0], **plain[1])


_PARTS = ("codes", "scales", "tensor_scale", "mask")


def _same(weight: GatheredWeight, *_: Any) -> GatheredWeight:
    return weight.again(weight.turned)


def _as_strided(weight: GatheredWeight, size: Any, stride: Any, start: Any = None) -> GatheredWeight | None:
    same = (*size,) == (*weight.shape,) and (*stride,) == weight.stride() and not start
    return _same(weight) if same else None


def _view(weight: GatheredWeight, size: Any) -> GatheredWeight | None:
    return _same(weight) if (*size,) == (*weight.shape,) else None


def _t(weight: GatheredWeight) -> GatheredWeight:
    return weight.again(not weight.turned)


def _transpose(weight: GatheredWeight, *dims: int) -> GatheredWeight | None:
    rank = weight.dim()
    return _t(weight) if {dim % rank for dim in dims} == {rank - 2, rank - 1} else None


def _permute(weight: GatheredWeight, dims: list[int]) -> GatheredWeight | None:
    rank = weight.dim()
    return _t(weight) if [dim % rank for dim in dims] == [*range(rank - 2), rank - 1, rank - 2] else None


def _zeros_like(weight: GatheredWeight, **_: Any) -> torch.Tensor:
    return torch.zeros(weight.shape, dtype=weight.dtype, device=weight.device)


_MOVED: dict[Any, Callable[..., Any]] = {
    _aten.alias.default: _same,
    _aten.detach.default: _same,
    _aten.as_strided.default: _as_strided,
    _aten.view.default: _view,
    _aten.t.default: _t,
    _aten.transpose.int: _transpose,
    _aten.permute.default: _permute,
    _aten.zeros_like.default: _zeros_like,
}
"""The ops that don't read the weight; of None, they do."""
