"""Predicted time of a kernel: the longest of moving its bytes, doing its matrix operations, and issuing its instructions, at
the datasheet's rates.

A lower bound, from what was compiled: no launch overhead, no cache reuse between kernels, no partly filled waves.
Instructions are counted for our own kernels (`sass.py`), loops by body times trips: what quantizes is short of instructions
sooner than of bytes. Every prediction is made twice, with all of the issue rate and with the share of it that kernels
reach.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch

from .targets import Target

_FORMATS = (
    ("fp4", r"mxf4|e2m1"),
    ("fp8", r"f8f6f4|e4m3|e5m2|[us]8\b"),
    ("bf16", r"bf16|\bf16|kind::f16"),
    ("tf32", r"tf32"),
)
_DTYPES = {
    torch.bfloat16: "bf16",
    torch.float16: "bf16",
    torch.float8_e4m3fn: "fp8",
    torch.float8_e5m2: "fp8",
    torch.float4_e2m1fn_x2: "fp4",
    torch.uint8: "fp4",
}


def format_of_mma(kinds: Iterable[str]) -> str:
    """The number format that MMA instructions multiply, as in `Target.rates`; "float32" if there are none."""
    text = " ".join(kinds)
    return next((name for name, pattern in _FORMATS if re.search(pattern, text)), "float32")


def format_of_dtype(dtype: torch.dtype | None) -> str:
    """The format in which a library multiplies tensors of a dtype, under torch's current float32 precision."""
    if dtype is torch.float32 and torch.get_float32_matmul_precision() != "highest":
        return "tf32"
    return "float32" if dtype is None else _DTYPES.get(dtype, "float32")


MATTERS = 1.05
"""A speedup that is worth being told from 1: predictions are no closer than that."""

ISSUE_SHARE = 0.6
"""Of the issue rate, in the second prediction: quantizing kernels measured on an H100 reach 44 to 68 % (docs/gpu.md)."""


def predict(
    moved: int,
    operations: int | None,
    number_format: str,
    target: Target,
    instructions: int | None = None,
    issue_share: float = 1.0,
) -> tuple[float | None, str]:
    """Seconds, and what bounds them: "memory", the format whose rate it is, or "issue"; None if the operations are not
    known, or the target's instructions are not counted. instructions: of all threads together, None where they are not
    known. issue_share: how much of the issue rate the kernel reaches."""
    if operations is None or target.amd:
        return None, ""
    rate = target.rates.get(number_format, target.rates["float32"])
    bounds = {
        "memory": moved / target.bandwidth,
        number_format: operations / rate,
        "issue": (instructions or 0) / (issue_share * target.instruction_rate),
    }
    bound = max(bounds, key=bounds.__getitem__)
    return bounds[bound], bound
