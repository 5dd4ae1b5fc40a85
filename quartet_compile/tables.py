"""Tables as lines of text."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] | None = None) -> list[str]:
    """A line a row, with columns as wide as their widest cell, two spaces between them. left: the columns that start at the
    same place, the others end there; by default all."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(_cells(row, widths, left)).rstrip() for row in rows]


def _cells(row: Sequence[str], widths: Sequence[int], left: Collection[int] | None) -> list[str]:
    return [
        cell.ljust(width) if left is None or column in left else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]


def ruled(lines: Sequence[str]) -> list[str]:
    """The lines with a rule below the first, the table's head."""
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]
