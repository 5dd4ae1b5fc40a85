"""What the CPU kernels know of the tables of `kernels/quantizer.py` and `kernels/operand_formats.py`: of the choices, what
entries.h has."""

from __future__ import annotations

import itertools

from ..support import Support
from .entries import FIELDS, numbers

_FORMATS = ("mxfp4", "nvfp4", "mxfp8", "float32")
INTEGER_PRODUCTS = (("mxfp4", "mxfp4"), ("nvfp4", "nvfp4"))
"""Products that gemm.cpp computes from codes; the others are of decoded operands."""

CPU = Support(
    "The CPU backend",
    "kernels/cpu (entries.h, supports.py)",
    {
        **{field: tuple(numbers(field)) for field in FIELDS},
        "elements": (*numbers("elements"), "float32"),  # what rounds nothing is the reference's
        "group": (16, 32),
        "group_rows": (1, 16, 32),
        "rotation": (0, 16, 32, 64, 128),
        "operand format": _FORMATS,
        "product of": tuple(itertools.product(_FORMATS, repeat=2)),
    },
)
