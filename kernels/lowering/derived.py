"""What products make of an operand's buffers (swizzled scales, FP8 values, bf16 values): once for all products that read it.

Inductor lowers one op at a time and merges no equal kernels. So this one table, held by the graph that is being lowered,
knows what was derived of which part of which buffer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .inductor import V

_Key = tuple[str, tuple]


def derived(what: str, make: Callable[[], Any], *of: Any) -> Any:
    """What `make` builds of realized tensors, built at the first call with this name and these tensors."""
    table, key = _table(), _key(what, of)
    if key not in table:
        table[key] = make()
    return table[key]


def derive(what: str, value: Any, *of: Any) -> None:
    """Say that a kernel which makes realized tensors has made this of them too."""
    _table()[_key(what, of)] = value


def _table() -> dict[_Key, Any]:
    return V.graph.__dict__.setdefault("quartet_derived", {})


def _key(what: str, of: tuple) -> _Key:
    return what, tuple(map(_place, of))


def _place(x: Any) -> tuple:
    """Where a realized tensor lies: its buffer, and its part of it."""
    layout = x.get_layout()
    return x.get_name(), str(layout.offset), str(layout.size), str(layout.stride)
