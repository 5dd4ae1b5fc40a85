"""What AMD's assembly says of a kernel: its text, as Triton compiles it for a `gfx` target."""

from __future__ import annotations

import re
from collections import Counter

from ..errors import QuartetError

_MFMA = re.compile(r"^\s+(v_s?mfmac?_\w+)\s([^;\n]*)", re.MULTILINE)
_CONVERSION = re.compile(r"^\s+(v_cvt_\w*fp4\w*)", re.MULTILINE)
_STORE = re.compile(r"^\s+(?:global|buffer|flat)_(?:store|atomic)_", re.MULTILINE)
_INSTRUCTION = re.compile(r"^\t(?:s|v|ds|global|buffer|flat|scratch)_\w+", re.MULTILINE)
_OPERANDS = {"0": "e4m3", "1": "e5m2", "4": "e2m1"}
"""What the operands of a matrix instruction with scales are, by its modifiers cbsz and blgp, which are 0 where they aren't
written (AMD Instinct MI350 ISA, "MFMA with scaling")."""


def matrix_instructions(text: str) -> Counter[str]:
    """The kinds of matrix instructions and how often each is there: `v_mfma_scale_f32_32x32x64_f8f6f4.e2m1`."""
    return Counter(_kind(name, rest) for name, rest in _MFMA.findall(text))


def _kind(name: str, rest: str) -> str:
    if "f8f6f4" not in name:
        return name
    modifiers = [(re.search(rf"\b{modifier}:(\d)", rest) or ["", "0"])[1] for modifier in ("cbsz", "blgp")]
    formats = dict.fromkeys(_OPERANDS.get(number, f"format {number}") for number in modifiers)
    return f"{name}.{'.'.join(formats)}"


def conversions(text: str) -> Counter[str]:
    """The conversions to and from E2M1."""
    return Counter(_CONVERSION.findall(text))


def instruction_count(text: str) -> int:
    """Instructions in the text: those of a loop once."""
    return len(_INSTRUCTION.findall(text))


def stores(text: str) -> bool:
    """Whether it writes to memory."""
    return bool(_STORE.search(text))


def resources(text: str) -> tuple[int, int, int, int]:
    """Vector registers a thread (those of sums included), bytes of scratch a thread, bytes of LDS a block that it has by
    itself, and threads a block: the metadata at the end of the text."""
    names = ("vgpr_count", "private_segment_fixed_size", "group_segment_fixed_size", "max_flat_workgroup_size")
    found = [re.search(rf"^\s+\.{name}:\s+(\d+)$", text, re.MULTILINE) for name in names]
    if None in found:
        raise QuartetError(
            f"the assembly tells no {names[found.index(None)]}; expected AMD's metadata of a kernel in it"
        )
    registers, scratch, shared, threads = (int(match[1]) for match in found if match)
    return registers, scratch, shared, threads
