"""A folder that is there as a whole, or not at all."""

from __future__ import annotations

import os

import pytest

from quartet_compile.serving.staging import new_folder


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_folder_has_the_rights_of_any_other(tmp_path, umask):
    before = os.umask(umask)
    try:
        (tmp_path / "plain").mkdir()
        with new_folder(tmp_path / "served"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "served").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_umask_of_the_process_is_left_alone(tmp_path, monkeypatch):
    """It belongs to all threads: one that makes a file meanwhile must not make it writable by everybody."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask was changed"))
    with new_folder(tmp_path / "served"):
        pass
