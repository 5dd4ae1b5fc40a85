"""Who is told how far something is that may take minutes."""

from __future__ import annotations

import sys
from collections.abc import Callable

Progress = bool | Callable[[str], object]
"""False: nobody. True: a person who watches stderr. A callable, as `print`: it is told in words what is done next."""


def teller(progress: Progress) -> Callable[[str], object]:
    """What to call with what is done next."""
    if callable(progress):
        return progress
    return _to_stderr if progress and is_watched() else lambda text: None


def is_watched() -> bool:
    """Whether a person sees what is written to stderr."""
    return sys.stderr.isatty()


def _to_stderr(text: str) -> None:
    print(f"quartet: {text}", file=sys.stderr, flush=True)
