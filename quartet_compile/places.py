"""Places in source code, as messages name them, and whether they are the user's."""

from __future__ import annotations

import importlib.util
import os
import sysconfig

import torch

_PARTS = filter(None, (importlib.util.find_spec(f"{__package__}.{part}") for part in ("passes", "kernels")))
_FOLDERS = (
    *torch.__path__,
    os.path.dirname(__file__),
    *(folder for part in _PARTS for folder in part.submodule_search_locations or ()),
)
_NOT_USERS = ("<", *(folder + os.sep for folder in _FOLDERS))
_PYTHON = sysconfig.get_path("stdlib") + os.sep


def is_users(filename: str) -> bool:
    """Whether a source file is neither torch's nor this package's nor Python's own."""
    return not filename.startswith(_NOT_USERS) and (not filename.startswith(_PYTHON) or "site-packages" in filename)


def place(filename: str, line: int | None) -> str:
    """`file:line`, the file relative to the working folder if it is inside."""
    relative = os.path.relpath(filename)
    return f"{filename if relative.startswith('..') else relative}:{line}"
