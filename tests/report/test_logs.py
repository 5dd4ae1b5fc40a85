"""`TORCH_LOGS=quartet_compile`: what is said of each graph, also of one that comes from the compile cache."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import torch
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8))
torch.compile(model, backend="quartet")(torch.randn(32, 64)).sum().backward()
"""


def said(folder, logs: str, quiet: str) -> str:
    """What a process of its own writes, with the compile cache in a folder."""
    environment = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(folder),
        "QUARTET_QUIET": quiet,
        **({"TORCH_LOGS": logs} if logs else {}),
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, cwd=folder, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    runs = {
        "unasked": "",
        "quiet": "",
        "warm": "quartet_compile",
        "debug": "+quartet_compile",
        "warm debug": "+quartet_compile",
    }
    return {run: said(folder, logs, "1" if run == "quiet" else "") for run, logs in runs.items()}


def test_one_line_is_said_unasked(outputs):
    lines = [line for line in outputs["unasked"].splitlines() if "matmul" in line]
    assert len(lines) == 1 and lines[0].startswith("quartet: Sequential: 1 of 2 matmuls (")
    assert "CPU: emulated in" in lines[0] and lines[0].endswith("; compiling, which takes a while the first time")


def test_nothing_is_said_where_it_is_not_wanted(outputs):
    assert "matmul" not in outputs["quiet"]


@pytest.mark.parametrize("run", ["warm", "debug", "warm debug"])
def test_the_table_of_each_graph(outputs, run):
    assert "training graph: 1 of 2 matmuls in FP4" in outputs[run]
    assert "training graph: 1 of 2 matmuls in FP4; CPU: emulated in" in outputs[run]
    assert "N is 8, below the group of 32" in outputs[run]


def test_the_diff_at_debug_level_only(outputs):
    assert "scaled_mm" not in outputs["warm"]
    assert "+fwd" in outputs["debug"] and "+fwd" in outputs["warm debug"]
