"""What a backend knows of a table: whatever else the table holds, the backend refuses, by name.

CPU = Support("The CPU backend", "kernels/cpu/supports.py", {"scale": ("absmax", "quest"), ...})
CPU.reason(quantizer)             # None, or why this backend can't
CPU.require(quantizer)            # raises with that reason
CPU.refusal("scale", "median")    # the error of a dispatch that has no such case
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Mapping

from ..errors import QuantizerError
from .operand_formats import check_product
from .quantizer import Quantizer


@dataclasses.dataclass(frozen=True, eq=False)
class Support:
    """What one backend declares, in the file `declared_in`; entries: what it knows, by the field of a quantizer or the
    name of another table."""

    backend: str
    declared_in: str
    entries: Mapping[str, Collection]

    @functools.cache  # noqa: B019  there is one of these a backend, as long as the process lives
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

    def require(self, quantizer: Quantizer) -> None:
        """Raise `QuantizerError` unless this backend can quantize so."""
        _demand(self.reason(quantizer))

    def require_product(self, a: str, b: str) -> None:
        """Raise `QuantizerError` unless this backend can multiply operands of these two formats."""
        _demand(self.reason_of("product of", check_product(a, b)))

    def require_entry(self, table: str, entry: object) -> None:
        """Raise `QuantizerError` unless this backend knows an entry of a table."""
        _demand(self.reason_of(table, entry))

    def refusal(self, table: str, entry: object) -> QuantizerError:
        """The error for an entry that no branch of the code takes."""
        return QuantizerError(
            self.reason_of(table, entry)
            or f"{self.backend} has no code here for {table}={entry!r}, which {self.declared_in} says that it knows; take "
            "it out of that file, or write the code."
        )


def _demand(reason: str | None) -> None:
    if reason is not None:
        raise QuantizerError(reason)
