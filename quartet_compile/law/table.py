"""CSV files of the scaling law: rows of names and positive numbers, and errors that name the file and the row."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .formula import LawError


def read_table(path: str | os.PathLike[str], numbers: Sequence[str], names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Each row's `numbers`, positive and finite, and `names`, not empty; further columns are left out."""
    return [
        {**{name: cells[name] for name in names}, **{name: positive(where, name, cells[name]) for name in numbers}}
        for where, cells in read_rows(path, lambda _: (*names, *numbers))
    ]


def read_rows(
    path: str | os.PathLike[str], expected: Callable[[Sequence[str]], Sequence[str]]
) -> Iterator[tuple[str, dict[str, str]]]:
    """(file and row, cells by column) of each row; all of the columns that are `expected` of the header have a cell."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = [name.strip() for name in reader.fieldnames or ()]
            columns = expected(header)
            missing = [name for name in columns if name not in header]
            if missing:
                raise LawError(
                    f"{path}, row 1 has no column {', '.join(missing)}: got {','.join(header) or 'nothing'}, expected "
                    f"{','.join(columns)}. Name the columns in the first row."
                )
            for row in reader:
                where = f"{path}, row {reader.line_num}"
                cells = {name.strip(): (text or "").strip() for name, text in row.items() if name is not None}
                empty = [name for name in columns if not cells[name]]
                if empty:
                    raise LawError(
                        f"{where} has nothing in column {', '.join(empty)}; expected a value. Fill it in, or drop the row."
                    )
                yield where, cells
    except OSError as error:
        raise LawError(f"{path}: {error.strerror}; expected a CSV file. Check the path.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise LawError(f"{path} can't be read as text ({error}); expected a CSV file in UTF-8.") from None


def positive(where: str, column: str, text: str) -> float:
    """The number in a cell."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        remedy = (
            "leave out runs that diverged" if column == "loss" else "write it as a plain number, as 30482560 or 3e7"
        )
        raise LawError(f"{where}: {column} is {text!r}; expected a positive, finite number: {remedy}.")
    return number
