"""Errors for what a user wrote. Each message names what it got, what was expected, and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from . import _compat


class QuartetError(_compat.Shortened, ValueError):
    """Base of every error that Quartet Compile raises on purpose; `torch.compile` passes it on unwrapped."""

    def __init__(self, message: str) -> None:
        super().__init__(message, first_useful_frame=None)


_compat.shorten(QuartetError)


class QuantizerError(QuartetError):
    """An unknown quantizer, or fields that contradict each other."""


class RecipeError(QuartetError):
    """An unknown recipe, or operands that contradict each other."""


class OptionError(QuartetError):
    """An unknown option, or a value that an option can't have."""


class PatternError(QuartetError):
    """A name pattern that matches nothing."""


class StrictError(QuartetError):
    """With `strict=True`, a matmul that should run in low precision and can't."""


class StatsError(QuartetError):
    """Statistics of a model that has none."""


class WeightCacheError(QuartetError):
    """With `QUARTET_DEBUG=weights`, an operand of the weight cache that differs from what its weight gives now."""


class ReportError(QuartetError):
    """A picture of a report that can't be made."""


class CaptureError(QuartetError):
    """A model that could not be captured as graphs."""


class ExportError(QuartetError):
    """Weights that can't be written as asked."""


class PackError(QuartetError):
    """A weight can't be packed, or the files of FP4 weights don't fit the model."""


class WireError(QuartetError):
    """A weight of which ranks gathered the codes alone, and that something reads in high precision."""


class CompilerError(QuartetError):
    """No C++ compiler, or one that can't build the CPU kernels."""


def suggest(name: object, known: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the nearest known name, or an empty string."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
