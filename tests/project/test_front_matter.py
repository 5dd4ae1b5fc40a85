"""What says which version this is, and under which licence: all of it agrees."""

from __future__ import annotations

import pathlib
import re

import pytest

import quartet_compile as qc
from quartet_compile.__main__ import main

ROOT = pathlib.Path(__file__).parents[2]


def text(name):
    return (ROOT / name).read_text()


def test_the_version_is_the_same_everywhere(capsys):
    (version,) = re.findall(r'^version = "(.+)"$', text("pyproject.toml"), re.MULTILINE)
    assert qc.__version__ == version
    assert re.search(rf"^version: {re.escape(version)}$", text("CITATION.cff"), re.MULTILINE)
    assert re.findall(r"^## ([\d.]+)", text("CHANGELOG.md"), re.MULTILINE)[0] == version
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out == f"quartet-compile {version}\n"


def test_the_licence_is_the_same_everywhere():
    assert 'license = "Apache-2.0"' in text("pyproject.toml")
    assert re.search(r"^license: Apache-2.0$", text("CITATION.cff"), re.MULTILINE)
    assert "Apache License" in text("LICENSE") and "Version 2.0, January 2004" in text("LICENSE")


def test_the_files_that_contributors_are_sent_to_exist():
    named = re.findall(r"\b(?:docs|tests|passes|kernels|machines)/[\w/]+(?:\.\w+)?", text("CONTRIBUTING.md"))
    assert len(named) >= 8
    for name in named:
        assert (ROOT / name).exists() or (ROOT / "quartet_compile" / name).exists(), name
