"""Tables, as text and for notebooks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from html import escape


def aligned(rows: Sequence[Sequence[str]], left: Collection[int]) -> list[str]:
    """A table's lines, the first row its head, under which is a rule; the columns in `left` are aligned there."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    return lines


def html(rows: Sequence[Sequence[str]], left: Collection[int], bold: Collection[int] = ()) -> str:
    """The same as an element of a notebook, readable on light and dark backgrounds. bold: rows, by number after the head."""
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
