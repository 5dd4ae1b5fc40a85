"""The comparison of gradients: a tiny run of it, and why smooth data are what QuEST rounds worst."""

from __future__ import annotations

import csv

import pytest
import torch

import quartet_compile as qc

pytest.importorskip("transformers")
import gradient_cosines

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


def test_the_rms_of_a_group_is_its_deviation_where_its_mean_is_zero():
    """The mean of a rotated group is its first element. Alone, that has no deviation, and QuEST loses it."""
    x = torch.randn(64, 32)
    x[:, 0] = 0
    quest, rms = gradient_cosines.by_deviation(x), gradient_cosines.by_rms(x)
    assert (quest - rms).norm() < 1e-6 * x.norm()
    alone = torch.linspace(1.0, 1.99, 64)[:, None] * torch.eye(32)[0]
    lost, kept = (
        (f(alone) - alone).norm() / alone.norm() for f in (gradient_cosines.by_deviation, gradient_cosines.by_rms)
    )
    assert lost > 0.5 and kept < 0.2


def test_constant_groups_are_clipped_by_quest_and_by_nothing_else():
    """A constant rotates to one value of sqrt(32) in its group's first place: 5.7 standard deviations. QuEST clips at 2.92
    of them or, with scales rounded down, at as little as half of that. Constants over one binade, so every scale is met."""
    x = torch.linspace(1.0, 1.99, 64)[:, None].expand(64, 32).contiguous()
    errors = {
        name: (qc.quantize(x, q).restore() - x).norm() / x.norm() for name, q in gradient_cosines.FORWARDS.items()
    }
    assert errors["quest"] > 0.6 and errors["quest nearest"] > 0.35 and errors["quest error"] > 0.25
    assert all(error < 0.15 for name, error in errors.items() if not name.startswith("quest"))
