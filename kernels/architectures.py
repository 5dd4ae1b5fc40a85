"""The architectures of GPUs, and what may be chosen of how one multiplies; as data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType

from ..errors import QuantizerError, QuartetError

ARCHITECTURES: Mapping[str, str] = MappingProxyType(
    {
        "ampere": "tensor cores for bf16",
        "ada": "FP8 tensor cores, that take operands from registers",
        "hopper": "FP8 tensor cores, that take operands by descriptors",
        "blackwell": "FP4 tensor cores, that take scales from tensor memory",
        "blackwell-rtx": "FP4 tensor cores, that take operands and scales from registers",
        "cdna4": "FP4 matrix cores of AMD, that take operands and scales from registers, scales of 32 elements only",
    }
)
"""Every architecture, and what its products run on."""

CAPABILITIES: Mapping[tuple[int, int], str] = MappingProxyType(
    {
        (8, 0): "ampere",
        (8, 6): "ampere",
        (8, 7): "ampere",
        (8, 9): "ada",
        (9, 0): "hopper",
        (9, 5): "cdna4",
        (10, 0): "blackwell",
        (10, 3): "blackwell",
        (12, 0): "blackwell-rtx",
        (12, 1): "blackwell-rtx",
    }
)
"""The architecture of each compute capability, as torch numbers it; AMD's gfx950 is 9.5, which no GPU of NVIDIA's is."""

PRODUCTS: Mapping[str, str] = MappingProxyType(
    {
        "fp8": "on FP8 tensor cores, if there are some: MXFP4 in E4M3 with a scale a row, where the row's scales allow",
        "bf16": "of operands decoded to bf16",
    }
)
"""What QUARTET_GPU_PRODUCTS can say: how a GPU without FP4 tensor cores multiplies."""

VARIABLE = "QUARTET_GPU_PRODUCTS"

LIBRARY: Mapping[str, str] = MappingProxyType(
    {
        "measured": "where Inductor measures (mode='max-autotune'), the faster of the library and our template; else ours",
        "never": "our templates only",
        "always": "the library wherever it computes the same",
    }
)
"""What QUARTET_GPU_LIBRARY can say: when `torch.nn.functional.scaled_mm` multiplies quantized operands."""

LIBRARY_VARIABLE = "QUARTET_GPU_LIBRARY"


def architecture(capability: tuple[int, int]) -> str:
    """The architecture of a compute capability. Raises `QuantizerError`."""
    if capability not in CAPABILITIES:
        known = ", ".join(f"{major}.{minor}" for major, minor in CAPABILITIES)
        raise QuantizerError(
            f"The GPU has compute capability {'.'.join(map(str, capability))}; expected one of {known}. Train on one of "
            "these, or without Quartet Compile (backend='inductor')."
        )
    return CAPABILITIES[capability]


def product_format() -> str:
    """An entry of `PRODUCTS`, `"fp8"` by default, from the environment variable QUARTET_GPU_PRODUCTS.

    Both give the same products to accumulation error: MXFP4 is exact in bf16, and in E4M3 with a scale a row wherever the
    row's scales allow; other tiles fall back to bf16. A GPU without FP8 uses bf16 whatever this says.
    """
    return _chosen(VARIABLE, PRODUCTS, "fp8")


def library_use() -> str:
    """An entry of `LIBRARY`, `"measured"` by default, from the environment variable QUARTET_GPU_LIBRARY."""
    return _chosen(LIBRARY_VARIABLE, LIBRARY, "measured")


def _chosen(variable: str, table: Mapping[str, str], default: str) -> str:
    chosen = os.environ.get(variable) or default
    if chosen not in table:
        *others, last = map(repr, table)
        raise QuartetError(
            f"{variable} is {chosen!r}; expected {', '.join(others)} or {last}. Unset it for the default, {default!r}."
        )
    return chosen
