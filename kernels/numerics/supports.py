"""What the reference knows of the tables of `kernels/quantizer.py` and `kernels/operand_formats.py`."""

from __future__ import annotations

import itertools

from ..support import Support

_FORMATS = ("mxfp4", "nvfp4", "mxfp8", "float32")

REFERENCE = Support(
    "The reference backend",
    "kernels/numerics/supports.py",
    {
        "elements": ("e2m1", "e4m3", "float32"),
        "scale_format": ("e8m0", "e4m3"),
        "scale": ("absmax", "quest", "four-over-six"),
        "scale_rounding": ("down", "nearest", "up", "error", "even"),
        "rounding": ("nearest", "stochastic", "eden"),
        "group": (16, 32),
        "group_rows": (1, 16, 32),
        "rotation": (0, 16, 32, 64, 128),
        "noise_bits": (8, 16),
        "operand format": _FORMATS,
        "product of": tuple(itertools.product(_FORMATS, repeat=2)),
    },
)
