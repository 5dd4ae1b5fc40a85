"""What products make of an operand: once for all products that read it.

Inductor lowers one op at a time and merges no equal kernels. So the value that stands for a part of the operand in the graph
carries what was made of it, among the `annotations` that a node of Inductor's IR has for those who lower.
"""

from __future__ import annotations

import dataclasses
from typing import Any

_KEY = "quartet.derived"


@dataclasses.dataclass
class Derived:
    """swizzled: of scales, the same in the order of tensor memory. fp8, bf16: of codes, the operand's values in these; `fp8`
    with the scale of each row and whether its values aren't exact. None: not made yet."""

    swizzled: Any = None
    fp8: list[Any] | None = None
    bf16: Any = None


def derived_of(part: Any) -> Derived:
    """What was made of an operand's codes or scales: of the argument of a lowering, as it was given."""
    return part.annotations.setdefault(_KEY, Derived())
