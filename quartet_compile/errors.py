"""Errors for what a user wrote. Each message names what it got, what was expected, and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class QuartetError(ValueError):
    """Base of every error that Quartet Compile raises on purpose."""


class QuantizerError(QuartetError):
    """An unknown quantizer, or fields that contradict each other."""


def suggest(name: object, known: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the nearest known name, or an empty string."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
