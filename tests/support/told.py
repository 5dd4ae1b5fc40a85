"""What a call that ends in an error of ours tells its user."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import quartet_compile as qc


def told(run: Callable[[], Any]) -> str:
    """`StrictError: ...`; empty where the call ends well."""
    try:
        run()
    except qc.QuartetError as error:
        return f"{type(error).__name__}: {error}"
    return ""
