"""The benchmark of the kernels, on tiny shapes on the CPU: what it measures and what it writes, not how fast."""

from __future__ import annotations

import json
import math

import bench_kernels
import pytest
import torch
from bench_kernels import Clock, Row

CPU = torch.device("cpu")


def test_every_op_is_measured_and_written(tmp_path, capsys):
    path = tmp_path / "figures.json"
    assert bench_kernels.main(["--device", "cpu", "--replays", "2", "--json", str(path)]) == 0
    rows = {row["op"]: row for row in json.loads(path.read_text())["rows"]}
    assert len(rows) == 9 and all(row["seconds"] > 0 for row in rows.values())
    tokens, k, n = bench_kernels.SHAPES["tiny"][0]
    packed = 1 / 2 + 1 / 32
    bytes_ = {
        "quantize X, mask": tokens * k * (2 + packed + 1 / 8),
        "quantize X, stochastic": tokens * k * (2 + packed),
        "quantize dY, both directions": tokens * n * (2 + 2 * packed),
        "requantize X^T": tokens * k * 2 * packed,
        "requantize W^T": n * k * 2 * packed,
        "unrotate dX, mask": tokens * k * (2 + 1 / 8 + 2),
        "scaled_mm, fprop": packed * k * (tokens + n) + 2 * tokens * n,
    }
    assert {op: rows[op]["bytes"] for op in bytes_} == bytes_
    assert rows["scaled_mm, wgrad"]["flops"] == 2 * tokens * k * n
    assert rows["scaled_mm, wgrad"]["ratio"] > 0
    printed = capsys.readouterr().out
    assert all(op in printed for op in rows)


def test_an_op_that_fails_is_reported_and_the_others_are_measured(tmp_path, capsys, monkeypatch):
    def measure(clock, op, shape, function, make):
        if op.startswith("unrotate"):
            raise RuntimeError("no such kernel\nat length")
        return Row(op, shape, seconds=1e-3, bytes=10)

    monkeypatch.setattr(bench_kernels, "measure", measure)
    path = tmp_path / "figures.json"
    assert bench_kernels.main(["--device", "cpu", "--replays", "1", "--json", str(path)]) == 1
    assert "failed: RuntimeError: no such kernel\n" in capsys.readouterr().out
    rows = json.loads(path.read_text())["rows"]
    assert [row["op"] for row in rows if row["error"]] == ["unrotate dX, mask"]
    assert [row["seconds"] for row in rows if row["error"]] == [None]


def test_operands_exceed_twice_the_cache():
    clock = Clock(CPU, 1)
    clock.cache_bytes = 1000
    sets = clock.sets(lambda: (torch.zeros(100, dtype=torch.uint8), torch.zeros(25)))
    assert sum(t.nbytes for t in bench_kernels.tensors(sets)) > 2000
    clock.cache_bytes = 0
    assert len(clock.sets(lambda: (torch.zeros(1),))) == 2


def test_a_line_shows_how_it_was_timed():
    row = Row("scaled_mm, fprop", (8, 4, 2), seconds=1e-3, bytes=10**9, flops=1e12, bf16_seconds=2e-3, timed="events")
    assert bench_kernels.line(row).split() == [
        "scaled_mm,", "fprop", "8x4x2", "1000.0", "1000.0", "1.00", "1000.0", "2000.0", "2.00x", "(events)",
    ]  # fmt: skip
    assert math.isnan(Row("x", (1,)).seconds)


def test_no_gpu(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        bench_kernels.main([])
    assert "sees no GPU" in capsys.readouterr().err
