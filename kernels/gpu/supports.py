"""What the GPU's templates know of the tables of `kernels/quantizer.py`, `kernels/operand_formats.py` and
`kernels/architectures.py`."""

from __future__ import annotations

import itertools

from ..support import Support

_FORMATS = ("mxfp4", "nvfp4", "mxfp8")

GPU = Support(
    "The GPU backend",
    "kernels/gpu/supports.py",
    {
        "elements": ("e2m1", "e4m3", "float32"),  # what rounds nothing is the reference's
        "scale_format": ("e8m0", "e4m3"),
        "scale": ("absmax", "quest", "four-over-six"),
        "scale_rounding": ("down", "nearest", "up", "error", "even"),
        "rounding": ("nearest", "stochastic", "eden"),
        "group": (16, 32),
        "group_rows": (1, 16, 32),
        "rotation": (0, 16, 32, 64, 128),
        "noise_bits": (8, 16),
        "operand format": (*_FORMATS, "float32"),
        "product of": tuple(itertools.product((*_FORMATS, "float32"), repeat=2)),
        "architecture": ("ampere", "ada", "hopper", "blackwell", "blackwell-rtx"),
        "products": ("fp8", "bf16"),
    },
)
TEMPLATE_PRODUCTS = frozenset(itertools.product(_FORMATS, repeat=2))
"""Products that have templates; those of what rounds nothing are the reference's."""

GROUPED_PRODUCTS = frozenset((name, name) for name in _FORMATS)
"""The same for grouped products; those of two formats are the reference's too."""
