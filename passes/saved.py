"""What the forward of a site leaves for its backward."""

from __future__ import annotations

import dataclasses

from .graph import Matrix
from .products.form import Form
from .share import Quantized


@dataclasses.dataclass(frozen=True)
class Saved:
    """Both operands, and their codes if the recipe makes any."""

    form: Form
    x_original: Matrix
    w_original: Matrix
    x: Quantized | None = None
    w: Quantized | None = None
