"""The torch that is installed: whether its version fits, and its private parts by name."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import torch

from ..warn import warn

MINIMUM_TORCH = (2, 11)
TESTED_TORCH = (2, 14)
"""The newest version that the tests were run with (docs/support.md)."""

_PACKAGE = __name__.partition(".")[0]


def check_version() -> None:
    """Raise `ImportError` for a torch that is too old, and warn of one that is newer than those tested."""
    if _version() < MINIMUM_TORCH:
        raise cannot_import(
            f"{_PACKAGE} needs torch >= {_dotted(MINIMUM_TORCH)}, found {torch.__version__}. "
            "Upgrade with: pip install -U torch"
        )
    if _version() > TESTED_TORCH:
        warn(
            "QC201",
            f"{_PACKAGE} is tested with torch {tested_range()}, found {torch.__version__}, which is newer: its private "
            "parts may have changed. If something fails, please report it to Quartet Compile with both versions, and with "
            "what tests/project/test_contract.py says.",
        )


def private(path: str) -> Any:
    """The object at `module:attribute`, or an error that says which part of torch is missing."""
    module, _, attribute = path.partition(":")
    try:
        loaded = importlib.import_module(module)
        return getattr(loaded, attribute) if attribute else loaded
    except (ImportError, AttributeError) as error:
        raise missing(path.replace(":", ".")) from error
    except OSError as error:  # Dynamo makes the cache folder as it is imported
        raise cannot_import(
            f"torch can't use its cache folder ({error}), so nothing can be compiled. Set TORCHINDUCTOR_CACHE_DIR to a "
            "folder that may be made and written, or unset it."
        ) from error


def missing(what: str) -> BaseException:
    """The error for a torch that lacks a private part."""
    return cannot_import(
        f"{_PACKAGE} needs {what}, which torch {torch.__version__} lacks. "
        f"It is tested with torch {tested_range()}: install one of them, or a newer {_PACKAGE}."
    )


class UnfitTorch(ImportError):
    """A torch that can't be used: too old, without one of the private parts, or without a cache folder."""


def cannot_import(message: str) -> BaseException:
    """The error; on the command line, which imports the package before it runs anything, one line and no traceback."""
    if sys.argv[:1] == ["-m"] and _PACKAGE in sys.orig_argv:
        return SystemExit(f"{_PACKAGE}: {message}")
    return UnfitTorch(message)


def is_tested() -> bool:
    """Whether the version is one of those that the tests were run with, or between them."""
    return MINIMUM_TORCH <= _version() <= TESTED_TORCH


def _version() -> tuple[int, ...]:
    return tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])


def tested_range() -> str:
    """Those versions, as `"2.11 to 2.14"`."""
    return f"{_dotted(MINIMUM_TORCH)} to {_dotted(TESTED_TORCH)}"


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
