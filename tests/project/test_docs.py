"""What docs/ say is tested, is: every test and test file that they name exists."""

from __future__ import annotations

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
DEFINED = {
    path.name: set(re.findall(r"^ *def (test_\w+)", path.read_text(), re.MULTILINE))
    for path in (ROOT / "tests").rglob("test_*.py")
}


@pytest.mark.parametrize("page", ["support.md", "ecosystem.md", "gpu.md", "export.md", "scale.md"])
def test_every_test_that_a_page_names_exists(page):
    text = (ROOT / "docs" / page).read_text()
    named = set(re.findall(r"\b(?:(test_\w+\.py)(?:::(test_\w+))?|(test_\w+))", text))
    assert named
    for file, within, alone in named:
        assert not file or file in DEFINED, file
        assert not within or within in DEFINED[file], f"{file}::{within}"
        assert not alone or any(alone in tests for tests in DEFINED.values()), alone
