"""`QUARTET_DEBUG`: what a process checks or prints beyond what users need, in words separated by commas.

passes    the graph after each pass that changes it, on stderr (passes/pipeline.py)
weights   every operand that the weight cache gives is made again and compared (kernels/weight_cache.py)
"""

from __future__ import annotations

import os

from .errors import OptionError, suggest

VARIABLE = "QUARTET_DEBUG"
WORDS = ("passes", "weights")


def asked(word: str) -> bool:
    """Whether one of `WORDS` is asked for. Raises `OptionError` if anything else is."""
    given = os.environ.get(VARIABLE, "")
    if not given:
        return False
    found = {each.strip() for each in given.split(",")} - {""}
    for other in sorted(found - {*WORDS}):
        raise OptionError(
            f"{VARIABLE} has {other!r}; expected {', '.join(WORDS)}, separated by commas{suggest(other, WORDS)}."
        )
    return word in found
