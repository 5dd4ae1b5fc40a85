"""What docs/ say is tested, is: every test and test file that they name exists."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest

import quartet_compile as qc

ROOT = pathlib.Path(__file__).parents[2]
DEFINED = {
    path.name: set(re.findall(r"^ *def (test_\w+)", path.read_text(), re.MULTILINE))
    for path in (ROOT / "tests").rglob("test_*.py")
}


@pytest.mark.parametrize(
    "page",
    ["support.md", "ecosystem.md", "gpu.md", "export.md", "packed.md", "weight_cache.md", "scale.md", "advise.md"],
)
def test_every_test_that_a_page_names_exists(page):
    text = (ROOT / "docs" / page).read_text()
    named = set(re.findall(r"\b(?:(test_\w+\.py)(?:::(test_\w+))?|(test_\w+))", text))
    assert named
    for file, within, alone in named:
        assert not file or file in DEFINED, file
        assert not within or within in DEFINED[file], f"{file}::{within}"
        assert not alone or any(alone in tests for tests in DEFINED.values()), alone


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_every_link_of_a_page_outside_the_site_leads_somewhere(page):
    """Those of docs/ are what `make docs` checks, with their anchors."""
    text = re.sub(r"```.*?```|`[^`]*`", "", (ROOT / page).read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    assert targets or page != "README.md"
    for target in targets:
        assert (ROOT / target).exists(), target


def test_every_public_name_is_on_the_page_of_functions():
    page = (ROOT / "docs" / "api.md").read_text()
    listed = set(re.findall(r"^::: quartet_compile\.(?:[a-z_]+\.)+(\w+)$", page, re.MULTILINE))
    assert {name for names in qc._HOMES.values() for name in names} - {"TARGETS"} <= listed


@pytest.mark.slow
def test_the_site_is_built_strictly_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    done = subprocess.run(
        ["make", "--no-print-directory", "docs", f"DOCS_DIR={os.path.relpath(tmp_path, ROOT)}", f"PYTHON={sys.executable}"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        assert not re.search(r'<(?:script|img|link)[^>]*(?:src|href)="https?:', page.read_text()), page
