"""accelerate's list of backends: `torch_compile_backend="quartet"` in Hugging Face's `TrainingArguments`.

accelerate takes the backends of an enumeration. Names that it doesn't have are asked of the enumeration's `_missing_`; ours
knows those of our backends.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from .imported import when_imported

_Names = Callable[[], list[str]]


def extend_accelerate(names: _Names) -> None:
    """Let accelerate take the backends that `names` gives when it asks, now or from its import on."""
    when_imported("accelerate.utils.dataclasses", lambda module: _extend(module, names))


def _extend(module: ModuleType, names: _Names) -> None:
    enumeration = getattr(module, "DynamoBackend", None)
    if enumeration is None:  # half imported, or another accelerate: its own error names the backend
        return
    before = enumeration._missing_

    def missing(cls: Any, value: Any) -> Any:
        if not isinstance(value, str) or value.lower() not in names():
            return before(value)
        member = str.__new__(cls, value)
        member._name_ = member._value_ = value
        return cls._value2member_map_.setdefault(value, member)

    enumeration._missing_ = classmethod(missing)
