"""Records of what the pass did, where they can't be kept."""

from __future__ import annotations

import errno
import os

import pytest

from quartet_compile.process import process
from quartet_compile.report import records
from quartet_compile.report.report import GraphReport

REPORT = GraphReport(sites=(), training=True)


def full(*paths) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(process, "reports", {})
    return tmp_path / "cache"


def written() -> list[GraphReport]:
    """What another process would read."""
    process.reports.clear()
    return records.read("uuid")


def test_a_record_is_one_file(folder):
    records.writer("uuid")(REPORT)
    assert written() == [REPORT]
    assert [path.name for path in (folder / "quartet").iterdir()] == ["uuid.json"]


def test_a_folder_that_cannot_be_made_loses_the_record_only(folder):
    folder.write_text("a file where the folder should be")
    records.writer("uuid")(REPORT)
    assert records.read("uuid") == [REPORT] and written() == []


def test_a_full_disk_leaves_nothing(folder, monkeypatch):
    monkeypatch.setattr(records.os, "replace", full)
    records.writer("uuid")(REPORT)
    assert list((folder / "quartet").iterdir()) == [] and records.read("uuid") == [REPORT]


def test_a_record_that_was_cut_off_counts_as_none(folder):
    records.writer("uuid")(REPORT)
    path = folder / "quartet" / "uuid.json"
    path.write_text(path.read_text()[:-5])
    assert written() == []
