"""Warnings: one way to give them, one table, and the page that lists it."""

from __future__ import annotations

import ast
import functools
import pathlib
import subprocess
import sys
import warnings

import pytest
import torch

import quartet_compile as qc
from quartet_compile import backend
from quartet_compile.warn import KINDS, warn

ROOT = pathlib.Path(__file__).parents[2]
SOURCES = sorted(path for room in ("quartet_compile", "passes", "kernels") for path in (ROOT / room).rglob("*.py"))


def calls(path):
    """What each call in a file calls, with its first argument."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node.args[0] if node.args else None


def test_each_code_is_used_and_each_use_has_a_code_of_the_table():
    used = [first for path in SOURCES for called, first in calls(path) if called == "warn"]
    assert all(isinstance(first, ast.Constant) for first in used)
    assert {first.value for first in used} == set(KINDS)


def test_there_is_no_other_way_to_warn():
    ways = {called: path.name for path in SOURCES for called, _ in calls(path) if "warnings.warn" in called}
    assert ways == {"warnings.warn_explicit": "warn.py"}


def test_the_page_lists_the_table():
    page = (ROOT / "docs" / "warnings.md").read_text().splitlines()
    rows = [line for line in page if line.startswith("| QC")]
    assert rows == [f"| {code} | {kind.meaning} | {kind.remedy} |" for code, kind in KINDS.items()]


def test_a_warning_points_at_the_users_line_and_is_given_once_for_it():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(2):
            warn("QC103", "a part")
    (only,) = caught
    assert (only.filename, only.category, str(only.message)) == (__file__, qc.QuartetWarning, "quartet QC103: a part")


def test_a_code_can_be_silenced():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "quartet QC103")
        warn("QC103", "a part")
        with pytest.raises(qc.QuartetWarning, match="quartet QC105: a pattern"):
            warn("QC105", "a pattern")


@pytest.mark.parametrize("platform, name", [("win32", "Windows"), ("darwin", "macOS")])
def test_another_system_gets_a_sentence_before_anything_is_compiled(monkeypatch, platform, name):
    compiled = torch.compile(torch.nn.Linear(64, 64), backend="quartet")
    monkeypatch.setattr(backend, "require_linux", functools.partial(on, monkeypatch, platform, backend.require_linux))
    with pytest.raises(qc.QuartetError, match=f"built on Linux, and this is {name}. Train on Linux"):
        compiled(torch.randn(32, 64))


@pytest.mark.parametrize("platform, name", [("win32", "Windows"), ("darwin", "macOS")])
def test_a_gpu_of_another_system_too(monkeypatch, platform, name):
    """Where another Triton, or Metal, would fail later, with less to say."""
    monkeypatch.setattr(backend, "device_of", lambda inputs: torch.device("cuda"))
    monkeypatch.setattr(backend, "require_linux", functools.partial(on, monkeypatch, platform, backend.require_linux))
    compiled = torch.compile(torch.nn.Linear(64, 64), backend="quartet")
    with pytest.raises(qc.QuartetError, match=f"GPU kernels are built on Linux, and this is {name}. Train on Linux"):
        compiled(torch.randn(32, 64))


def on(monkeypatch, platform, check, *given):
    """The check, on another system."""
    with monkeypatch.context() as patched:
        patched.setattr(sys, "platform", platform)
        return check(*given)


def test_a_system_without_file_locks_has_the_package():
    program = "import sys; sys.modules['fcntl'] = None; import quartet_compile as qc; print('quartet' in qc.recipes())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr
