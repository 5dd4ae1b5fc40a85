"""How the codes and scales of a quantized operand are stored, by the name of its number format."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from ..errors import QuartetError


class Format(NamedTuple):
    """group: elements that share a scale, 0 if there are no scales. bits: of an element. two_level: whether the scales are
    relative to one of the whole tensor."""

    codes: torch.dtype
    scales: torch.dtype
    group: int
    bits: int
    two_level: bool = False

    @property
    def packed(self) -> int:
        """Elements in one entry of the codes."""
        return 2 if self.bits == 4 else 1


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "mxfp4": Format(torch.uint8, torch.uint8, group=32, bits=4),
        "nvfp4": Format(torch.uint8, torch.float8_e4m3fn, group=16, bits=4, two_level=True),
        "mxfp8": Format(torch.float8_e4m3fn, torch.uint8, group=32, bits=8),
        "float32": Format(torch.float32, torch.uint8, group=0, bits=32),
    }
)
"""`Quantizer.format` is one of these names."""


def check_format(name: str, codes: Any, scales: Any) -> Format:
    """The format of this name, which codes and scales must be in. Raises `QuartetError`."""
    if name not in FORMATS:
        raise QuartetError(f"Unknown number format {name!r}; expected one of {', '.join(FORMATS)}.")
    found = FORMATS[name]
    if (codes.dtype, scales.dtype) != (found.codes, found.scales):
        raise QuartetError(
            f"An operand in {name} has codes {codes.dtype} and scales {scales.dtype}; expected {found.codes} and "
            f"{found.scales}. Pass the format of the quantizer that made it."
        )
    return found
