"""accelerate's list of backends: `torch_compile_backend="quartet"` in Hugging Face's `TrainingArguments`.

accelerate takes the backends of an enumeration. Names that it doesn't have are asked of the enumeration's `_missing_`; ours
knows those of our backends. accelerate itself is never imported here: the hook is set when it is imported.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

_MODULE = "accelerate.utils.dataclasses"


_Names = Callable[[], list[str]]


def extend_accelerate(names: _Names) -> None:
    """Let accelerate take the backends that `names` gives when it asks, now or from its import on."""
    if _MODULE in sys.modules:
        _extend(sys.modules[_MODULE], names)
    else:
        sys.meta_path.insert(0, _Finder(names))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds accelerate's module as it would be found without, once, with a loader that extends it."""

    def __init__(self, names: _Names) -> None:
        self._names = names

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._names)
        return spec


class _Loader(importlib.abc.Loader):
    """Another loader, after which the module is extended."""

    def __init__(self, inner: Any, names: _Names) -> None:
        self._inner, self._names = inner, names

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self._inner.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        self._inner.exec_module(module)
        _extend(module, self._names)


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
