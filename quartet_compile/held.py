"""What a module holds in the place of a packed weight, as everyone reads it: packed/module.py puts it there and says what
the buffers are; serving/ writes the codes as they are."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

DTYPE, LAYOUT = "dtype", "layout"
"""The suffixes of an empty buffer of the weight's dtype, which is not saved and follows `model.to(dtype)`; and of what
Python knows of the weight."""


class Layout(NamedTuple):
    """What the buffers don't say of a weight. quantizer: its name. columns: K. turned: the weight is [..., K, N]."""

    quantizer: str
    columns: int
    turned: bool


class Held(NamedTuple):
    """A packed weight: codes uint8[..., N, P / 2], scales [..., N, P / group] and tensor scale as the ops take them.
    dtype: of its values."""

    codes: torch.Tensor
    scales: torch.Tensor
    tensor_scale: torch.Tensor
    layout: Layout
    dtype: torch.dtype

    @property
    def rows(self) -> tuple[int, ...]:
        """`[..., N, K]`."""
        return (*self.codes.shape[:-1], self.layout.columns)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        *matrices, n, k = self.rows
        return (*matrices, k, n) if self.layout.turned else self.rows

    def dim(self) -> int:
        return len(self.shape)

    def numel(self) -> int:
        return math.prod(self.shape)

    def values(self) -> torch.Tensor:
        """The weight, as one op of its codes."""
        blocks = self.codes, self.scales, self.tensor_scale
        values = torch.ops.quartet.decode(*blocks, self.layout.quantizer, self.layout.columns, self.dtype)
        return values.transpose(-1, -2) if self.layout.turned else values


def packed_names(module: nn.Module) -> tuple[str, ...]:
    """The names of the packed weights of a module."""
    return getattr(type(module), "quartet_packed", ())


def layout_of(module: nn.Module, name: str) -> Layout:
    """What a module knows of a packed weight."""
    layout: Layout = getattr(module, f"{name}_{LAYOUT}")
    return layout


def held(module: nn.Module, name: str) -> Held:
    """A packed weight of a module."""
    tensor_scale = getattr(module, f"{name}_tensor_scale").view(torch.float32)
    scales = getattr(module, f"{name}_scale")
    scales = scales.view(torch.float8_e4m3fn) if tensor_scale.numel() else scales  # two levels, those of NVFP4
    dtype = getattr(module, f"{name}_{DTYPE}").dtype
    return Held(getattr(module, f"{name}_packed"), scales, tensor_scale, layout_of(module, name), dtype)
