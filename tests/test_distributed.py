"""DistributedDataParallel: buckets split the graph, graph breaks split it again, and nothing is lost."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).with_name("ddp_script.py")


@pytest.mark.parametrize("mode", ["whole", "break"])
def test_two_ranks_equal_one_process(tmp_path, mode):
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent)}
    command = [sys.executable, str(SCRIPT)]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), "2", str(tmp_path / "store"), mode],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    results = []
    for process in ranks:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        results.append(json.loads(out.splitlines()[-1]))
    for result in results:
        assert result["missing"] == []
        assert result["error"] < 2e-5
    assert results[0]["seed"] != results[1]["seed"]
