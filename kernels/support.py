"""What a backend knows of a table: whatever else the table holds, the backend refuses, by name.

CPU = Support("The CPU backend", "kernels/cpu/supports.py", {"scale": ("absmax", "quest"), ...})
CPU.reason(quantizer)             # None, or why this backend can't
CPU.refusal("scale", "median")    # the error of a dispatch that has no such case
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from ..errors import QuantizerError
from .quantizer import Quantizer


class Support(NamedTuple):
    """What one backend declares, in the file `declared_in`; entries: what it knows, by the field of a quantizer or the
    name of another table."""

    backend: str
    declared_in: str
    entries: Mapping[str, Collection]

    def reason(self, quantizer: Quantizer) -> str | None:
        """Why this backend can't quantize so, or None if it can."""
        for field in self.entries:
            if hasattr(quantizer, field) and (why := self.reason_of(field, getattr(quantizer, field))):
                return why
        return None

    def reason_of(self, table: str, entry: object) -> str | None:
        """Why this backend doesn't take one entry of a table, or None if it does."""
        known = self.entries[table]
        if entry in known:
            return None
        return (
            f"{self.backend} doesn't know {table}={entry!r}; it knows {', '.join(map(repr, known))}. Use one of these, or "
            f"another backend; a new entry needs its code, and its name in {self.declared_in}."
        )

    def refusal(self, table: str, entry: object) -> QuantizerError:
        """The error for an entry that no branch of the code takes."""
        return QuantizerError(
            self.reason_of(table, entry)
            or f"{self.backend} has no code here for {table}={entry!r}, which {self.declared_in} says that it knows; take "
            "it out of that file, or write the code."
        )


def require(reason: str | None) -> None:
    """Raise `QuantizerError` with what `supports` said, if it said no."""
    if reason is not None:
        raise QuantizerError(reason)
