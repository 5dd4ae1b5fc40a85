"""How a GPU without FP4 tensor cores multiplies FP4 operands."""

from __future__ import annotations

import os

from ..errors import QuartetError

VARIABLE = "QUARTET_GPU_PRODUCTS"


def product_format() -> str:
    """`"fp8"` (the default) or `"bf16"`, from the environment variable QUARTET_GPU_PRODUCTS.

    Both give the same products to accumulation error: MXFP4 is exact in bf16, and in E4M3 with a scale a row wherever the
    row's scales allow; other tiles fall back to bf16. A GPU without FP8 uses bf16 whatever this says.
    """
    chosen = os.environ.get(VARIABLE) or "fp8"
    if chosen not in ("fp8", "bf16"):
        raise QuartetError(f"{VARIABLE} is {chosen!r}; expected 'fp8' or 'bf16'. Unset it for the default, 'fp8'.")
    return chosen
