"""The one door to C++: no other file allocates what a kernel fills, or takes the address of a tensor.

    codes = Array("codes", torch.uint8, (rows, full // 2))
    filled, address = codes.empty()     # for a kernel to fill
    codes.address(x.codes)              # for one to read; an error if the tensor is anything else

A kernel knows sizes and nothing else: a tensor of another dtype, device, size or layout would be read as garbage or
written beyond its end.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ...errors import QuartetError
from .entries import enumerations

ELEMENT_TYPES = {getattr(torch, name[1:].lower()): number for name, number in enumerations()["Type"].items()}
"""The types of elements that the kernels know, by their numbers in C++."""

_CPU = torch.device("cpu")


class Address(int):
    """The address of a tensor that was checked."""


class Array(NamedTuple):
    """What a kernel takes a pointer for: contiguous, row-major, on the CPU."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    def empty(self) -> tuple[torch.Tensor, Address]:
        """A tensor for a kernel to fill, and where it is."""
        made = torch.empty(self.shape, dtype=self.dtype, device=_CPU)
        return made, Address(made.data_ptr())

    def address(self, x: torch.Tensor | None) -> Address:
        """Where the elements of `x` are; keep it until the call is over. Raises `QuartetError` if it is anything else."""
        if (
            x is None
            or x.shape != self.shape
            or x.dtype != self.dtype
            or not x.is_cpu
            or not x.is_contiguous()
            or x.is_neg()
        ):
            raise QuartetError(
                f"A CPU kernel got {_words(x)} as {self.name}; expected {self.dtype} of shape {self.shape}, "
                "contiguous, on the CPU. Pass the parts of a quantized operand together, as the op that made them "
                "returned them."
            )
        return _place(x, self.name)


def matrix_address(x: torch.Tensor) -> Address:
    """Where the elements of a matrix are whose rows are contiguous; at any distance from each other."""
    if x.dim() != 2 or x.dtype not in ELEMENT_TYPES or not x.is_cpu or x.is_neg() or not _has_rows(x):
        dtypes = ", ".join(map(str, ELEMENT_TYPES))
        raise QuartetError(
            f"A CPU kernel got {_words(x)} as a matrix; expected two dimensions, the last contiguous, of a dtype of "
            f"{dtypes}, on the CPU. Pass x.float().contiguous()."
        )
    return _place(x, "a matrix")


def _place(x: torch.Tensor, name: str) -> Address:
    """Where a tensor is. Raises `QuartetError` for one that is made of others, as a DTensor, and is nowhere itself."""
    address = x.data_ptr()
    if not address and x.numel():
        raise QuartetError(
            f"A CPU kernel got a {type(x).__name__} without memory of its own as {name}; expected a plain tensor. Pass the "
            "one that it is made of: of a DTensor x.full_tensor(), or x.to_local()."
        )
    return Address(address)


def _has_rows(x: torch.Tensor) -> bool:
    """Whether the elements of each row lie side by side; PyTorch leaves the strides of one element or none as they were."""
    return x.stride(1) == 1 or x.is_contiguous()


def _words(x: torch.Tensor | None) -> str:
    if x is None:
        return "None"
    negated = ", to be negated" if x.is_neg() else ""
    return f"{x.dtype} of shape {tuple(x.shape)} and strides {x.stride()}{negated}, on {x.device}"
