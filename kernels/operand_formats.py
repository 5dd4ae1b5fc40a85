"""The formats of quantized operands, and which pairs of them a product takes, as data."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch

from ..errors import QuantizerError


class OperandFormat(NamedTuple):
    """How the elements and scales of an operand lie in memory; `packed` elements are one item of `codes`."""

    elements: str
    scale_format: str
    group: int
    codes: torch.dtype
    packed: int
    scales: torch.dtype

    @property
    def two_level(self) -> bool:
        """Whether the scales are relative to one of the whole tensor."""
        return self.scale_format == "e4m3"

    @property
    def bits(self) -> int:
        """Of an element."""
        return 8 * self.codes.itemsize // self.packed


OPERAND_FORMATS: Mapping[str, OperandFormat] = MappingProxyType(
    {
        "mxfp4": OperandFormat("e2m1", "e8m0", 32, torch.uint8, 2, torch.uint8),
        "nvfp4": OperandFormat("e2m1", "e4m3", 16, torch.uint8, 2, torch.float8_e4m3fn),
        "mxfp8": OperandFormat("e4m3", "e8m0", 32, torch.float8_e4m3fn, 1, torch.uint8),
        "float32": OperandFormat("float32", "e8m0", 32, torch.float32, 1, torch.uint8),
    }
)
"""Every format by name; `"float32"`, which rounds nothing, has no scales."""

PRODUCT_FORMATS: frozenset[tuple[str, str]] = frozenset(itertools.product(OPERAND_FORMATS, OPERAND_FORMATS))
"""The pairs of formats that a product takes: any two."""


def check_format(name: str, codes: torch.Tensor, scales: torch.Tensor) -> OperandFormat:
    """The format of this name, which codes and scales must be in. Raises `QuantizerError`."""
    if name not in OPERAND_FORMATS:
        raise QuantizerError(f"Unknown number format {name!r}; expected one of {', '.join(OPERAND_FORMATS)}.")
    found = OPERAND_FORMATS[name]
    if (codes.dtype, scales.dtype) != (found.codes, found.scales):
        raise QuantizerError(
            f"An operand in {name} has codes {codes.dtype} and scales {scales.dtype}; expected {found.codes} and "
            f"{found.scales}. Pass the format of the quantizer that made it."
        )
    return found


def check_product(a: str, b: str) -> tuple[str, str]:
    """The formats of a product's operands, which must be a pair of `PRODUCT_FORMATS`. Raises `QuantizerError`."""
    if (a, b) not in PRODUCT_FORMATS:
        raise QuantizerError(
            f"A product has operands in {a!r} and {b!r}; expected a pair of PRODUCT_FORMATS in "
            "kernels/operand_formats.py. Quantize both to one format."
        )
    return a, b


def format_with(elements: str, scale_format: str) -> str:
    """The name of the format with such elements and scales. Raises `QuantizerError`."""
    for name, known in OPERAND_FORMATS.items():
        if known.elements == elements and known.scale_format == scale_format:
            return name
    raise QuantizerError(
        f"A quantizer has elements={elements!r} and scale_format={scale_format!r}, as no format has; expected those of one "
        f"of {', '.join(OPERAND_FORMATS)}."
    )
