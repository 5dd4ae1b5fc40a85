"""A training process that SIGKILL ends at any moment leaves nothing in its cache folder that changes the next one: dying.py
dies, and runs again with the same folder."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest
from dying import MOMENTS

SCRIPT = pathlib.Path(__file__).parents[1] / "support" / "dying.py"


def run(cache, folder, moment=""):
    """Inductor compiles in the process itself, which is where the moments are."""
    settings = {
        "TORCHINDUCTOR_CACHE_DIR": str(cache),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "PYTHONPATH": str(SCRIPT.parent),
    }
    command = [sys.executable, str(SCRIPT), moment, str(folder)]
    return subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, timeout=400)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A cache folder that was empty, and what a process with it prints."""
    cache = tmp_path_factory.mktemp("clean")
    done = run(cache, cache / "export")
    assert done.returncode == 0, done.stderr
    return cache, json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("moment", [*MOMENTS, "backward", "the optimizer steps"])
def test_the_next_run_is_as_if_nothing_had_been(clean, tmp_path, moment):
    cache, expected = clean
    if not moment.startswith("the library"):  # which takes long to build
        (tmp_path / "quartet").mkdir()
        for built in (cache / "quartet").glob("*.so"):
            shutil.copy(built, tmp_path / "quartet")
    killed = run(tmp_path, tmp_path / "export", moment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "export").exists()
    done = run(tmp_path, tmp_path / "export")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected
