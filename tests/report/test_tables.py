"""Tables as lines of text, and who is told how far something is."""

from __future__ import annotations

import pytest

from quartet_compile import progress
from quartet_compile.errors import ExportError
from quartet_compile.optional import needed
from quartet_compile.tables import aligned, ruled

ROWS = [("name", "bytes", "why"), ("a", "1", "it is long"), ("longer", "10,000", "")]


def test_columns_are_as_wide_as_their_widest_cell():
    assert ruled(aligned(ROWS)) == [
        "name    bytes   why",
        "--------------------------",
        "a       1       it is long",
        "longer  10,000",
    ]


def test_numbers_end_at_one_place():
    assert aligned(ROWS, left={0, 2})[1:] == ["a            1  it is long", "longer  10,000"]


@pytest.mark.parametrize(
    "given, watched, told",
    [(False, True, ""), (True, False, ""), (True, True, "quartet: half\n"), (print, False, None)],
)
def test_who_is_told(capsys, monkeypatch, given, watched, told):
    monkeypatch.setattr(progress, "is_watched", lambda: watched)
    progress.teller(given)("half")
    out, err = capsys.readouterr()
    assert (out, err) == (("", told) if told is not None else ("half\n", ""))


@pytest.mark.parametrize("extra, remedy", [("export", " (or pip install 'quartet-compile[export]')"), ("", "")])
def test_a_package_that_is_missing(extra, remedy):
    with pytest.raises(ExportError) as caught:
        needed("quartet_lacks.part", "Reading", ExportError, extra)
    assert str(caught.value) == (
        f"Reading needs quartet_lacks, which isn't installed: pip install quartet_lacks{remedy}."
    )


def test_a_package_that_is_broken_is_no_missing_one(tmp_path, monkeypatch):
    (tmp_path / "quartet_broken.py").write_text("import quartet_lacks")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="quartet_lacks"):
        needed("quartet_broken", "Reading", ExportError)
