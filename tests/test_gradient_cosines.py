"""The comparison of gradients: a tiny run of it, and why smooth data are what QuEST rounds worst."""

from __future__ import annotations

import csv

import pytest
import torch

import quartet_compile as qc

pytest.importorskip("transformers")
import gradient_cosines  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_tiny_run_prints_a_table_and_writes_the_rows(tmp_path, capsys):
    out = tmp_path / "cosines.csv"
    sizes = ["--hidden", "64", "--layers", "1", "--batch", "1", "--tokens", "32", "--draws", "1", "--seeds", "2"]
    recipes = ["quartet", "mxfp8", "W"]
    assert gradient_cosines.main(["--models", "llama", "--recipes", *recipes, *sizes, "--out", str(out)]) == 0
    with out.open() as file:
        rows = [row for row in csv.DictReader(file) if row["measure"] == "cosine" and row["part"] == "all"]
    assert [(row["recipe"], row["matmuls"]) for row in rows] == [("quartet", "7"), ("mxfp8", "7"), ("W", "0")]
    cosines = {row["recipe"]: float(row["mean"]) for row in rows}
    assert 0.7 < cosines["quartet"] < cosines["mxfp8"] < 1.0
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]) == 1 + len(recipes)


@pytest.mark.parametrize("name", gradient_cosines.FORWARDS)
def test_a_constant_group_loses_half_or_more_under_quest_only(name):
    """It rotates to one value of sqrt(32) in its first place, which is 5.7 standard deviations of the group; QuEST clips
    at 2.92 of them or, with scales rounded down, at half of that."""
    x = torch.full((1, 32), 1.3)
    error = ((qc.quantize(x, gradient_cosines.FORWARDS[name]).restore() - x).norm() / x.norm()).item()
    lost = {"quest": 0.45, "quest nearest": 0.2, "quest error": 0.1}
    assert error > lost[name] if name in lost else error < 0.2
