"""The numbers of the entries that the C++ kernels know, read from entries.h: there is no other list of them."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from ...errors import CompilerError
from ..quantizer import CHOICES

_HEADER = Path(__file__).parent / "entries.h"
_ENUM = re.compile(r"^enum class (\w+) : int64_t \{([^}]*)\};$", re.MULTILINE)
FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "elements": "Elements",
        "scale_format": "ScaleFormat",
        "scale": "Scale",
        "scale_rounding": "ScaleRounding",
        "rounding": "Rounding",
    }
)
"""The enumeration of each field of a quantizer."""


@functools.cache
def enumerations() -> Mapping[str, Mapping[str, int]]:
    """The enumerators of entries.h with their numbers, by enumeration."""
    return read_enumerations(_HEADER.read_text())


def read_enumerations(text: str) -> Mapping[str, Mapping[str, int]]:
    """The enumerators of a header's `enum class X : int64_t`, numbered as in C++."""
    found = {}
    for name, body in _ENUM.findall(text):
        numbers: dict[str, int] = {}
        for item in body.split(","):
            key, _, value = (part.strip() for part in item.partition("="))
            numbers[key] = int(value) if value else max(numbers.values(), default=-1) + 1
        found[name] = MappingProxyType(numbers)
    return MappingProxyType(found)


@functools.cache
def numbers(field: str) -> Mapping[str, int]:
    """The entries of one of `CHOICES` that the kernels know, with their numbers. Raises `CompilerError`."""
    enumerators = dict(enumerations()[FIELDS[field]])
    known = {name: enumerators.pop(key) for name in CHOICES[field] if (key := enumerator(name)) in enumerators}
    if enumerators:
        raise CompilerError(
            f"{_HEADER} has {', '.join(enumerators)} in {FIELDS[field]}, which quantizer.py's CHOICES[{field!r}] lacks; "
            f"expected some of {', '.join(map(enumerator, CHOICES[field]))}. Add what is missing there, or install again."
        )
    return MappingProxyType(known)


def enumerator(name: str) -> str:
    """The C++ name of an entry: `kFourOverSix` for `"four-over-six"`."""
    return "k" + "".join(word.capitalize() for word in name.split("-"))
