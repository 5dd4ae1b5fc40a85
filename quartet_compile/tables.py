"""Tables, as lines of text and for notebooks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from html import escape


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


def html(rows: Sequence[Sequence[str]], left: Collection[int], bold: Collection[int] = ()) -> str:
    """Rows, the first of them the head, as an element of a notebook, readable on light and dark backgrounds. bold: rows, by
    number after the head."""
    return "".join(["<table>", _row(rows[0], left, "th"), *_body(rows[1:], left, bold), "</table>"])


def _body(rows: Sequence[Sequence[str]], left: Collection[int], bold: Collection[int]) -> list[str]:
    return [_row(row, left, "td", "font-weight:bold" if number in bold else "") for number, row in enumerate(rows)]


def _row(cells: Sequence[str], left: Collection[int], tag: str, style: str = "") -> str:
    def cell(column: int, text: str) -> str:
        side = "left" if column in left else "right"
        return f'<{tag} style="{";".join(filter(None, (f"text-align:{side}", style)))}">{escape(text)}</{tag}>'

    return f"<tr>{''.join(cell(column, text) for column, text in enumerate(cells))}</tr>"


def html_lines(lines: Iterable[str]) -> str:
    """A paragraph for each line that isn't empty."""
    return "".join(f"<div>{escape(line)}</div>" for line in lines if line)


def html_folded(title: str, text: str, preformatted: bool = True) -> str:
    """What a reader unfolds: a text, or an element that is there already; nothing of an empty one."""
    inner = f"<pre>{escape(text)}</pre>" if preformatted else text
    return f"<details><summary>{escape(title)}</summary>{inner}</details>" if text else ""
