"""Packages that only some functions need."""

from __future__ import annotations

import importlib
from types import ModuleType

from .errors import QuartetError


def needed(module: str, what: str, error: type[QuartetError], extra: str = "") -> ModuleType:
    """The module, imported when `what` first needs it; without its package an `error` that says how to get it. extra: of
    this package, which brings it."""
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.partition(".")[0] != package:
            raise
        both = f" (or pip install 'quartet-compile[{extra}]')" if extra else ""
        raise error(f"{what} needs {package}, which isn't installed: pip install {package}{both}.") from None
