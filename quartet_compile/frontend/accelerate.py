"""accelerate's list of backends: `torch_compile_backend="quartet"` in Hugging Face's `TrainingArguments`.

accelerate takes the backends of an enumeration. Names that it doesn't have are asked of the enumeration's `_missing_`; ours
gives those of our backends. accelerate itself is never imported here: the hook is set when it is imported.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from ..backend import backend_names

_MODULE = "accelerate.utils.dataclasses"


def install() -> None:
    """Let accelerate know our backends, now or when it is imported."""
    if _MODULE in sys.modules:
        _extend(sys.modules[_MODULE])
    else:
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds accelerate's module as it would be found without, once, with a loader that extends it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    """Another loader, after which the module is extended."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self._inner.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        self._inner.exec_module(module)
        _extend(module)


def _extend(module: ModuleType) -> None:
    enumeration = getattr(module, "DynamoBackend", None)
    if enumeration is None:  # half imported, or another accelerate: its own error names the backend
        return
    before = enumeration._missing_

    def missing(cls: Any, value: Any) -> Any:
        if not isinstance(value, str) or value.lower() not in backend_names():
            return before(value)
        member = str.__new__(cls, value)
        member._name_ = member._value_ = value
        return cls._value2member_map_.setdefault(value, member)

    enumeration._missing_ = classmethod(missing)
