"""The formats by name. A new one is a file with a `Format`, and an entry here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ..errors import ExportError, suggest
from . import bf16, compressed_tensors, fp_quant, gguf_file, gpt_oss
from .format import Format

FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        each.name: each
        for each in (compressed_tensors.FORMAT, gguf_file.FORMAT, gpt_oss.FORMAT, fp_quant.FORMAT, bf16.FORMAT)
    }
)


def format_named(name: object) -> Format:
    """The format of this name. Raises `ExportError`."""
    if not isinstance(name, str) or name not in FORMATS:
        known = "; ".join(f"{each.name!r}: {each.holds}" for each in FORMATS.values())
        raise ExportError(f"Unknown format {name!r}{suggest(name, FORMATS)}; expected one of {known}.")
    return FORMATS[name]
