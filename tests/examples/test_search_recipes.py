"""The comparison of recipes over seeds: what counts as a difference, and a tiny run of the real thing."""

from __future__ import annotations

import pytest
import search_recipes
import torch

import quartet_compile as qc
from quartet_compile.config.rules import rules


def losses(mine, theirs):
    return {"mine": dict(enumerate(mine)), "theirs": dict(enumerate(theirs))}


def test_a_gap_is_taken_within_each_seed():
    """Seeds differ by much more than recipes do."""
    found = search_recipes.gap(losses([2.01, 3.02, 4.03], [2.0, 3.0, 4.0]), "mine", "theirs")
    assert found.mean == pytest.approx(0.02) and found.spread == pytest.approx(0.01) and found.seeds == 3
    assert found.clear and str(found) == "+0.0200 ± 0.0100"


@pytest.mark.parametrize(
    ("mine", "why"),
    [
        ([2.01, 3.05, 4.00], "the spread is larger"),
        ([2.02, 3.02, 3.999], "the sign differs"),
        ([2.02, 3.02], "two seeds say nothing"),
    ],
)
def test_what_is_no_difference(mine, why):
    assert not search_recipes.gap(losses(mine, [2.0, 3.0, 4.0]), "mine", "theirs").clear, why


def test_the_table_ranks_and_claims_only_what_is_clear():
    rows = [
        {"recipe": recipe, "seed": seed, "loss": loss + seed}
        for recipe, values in {
            "bf16": (2.0, 2.0, 2.0),
            "quartet-rtn": (2.05, 2.05, 2.05),
            "better": (2.02, 2.021, 2.019),
            "noisy": (2.01, 2.09, 2.08),
        }.items()
        for seed, loss in enumerate(values)
    ]
    lines = search_recipes.table(rows).splitlines()[2:]
    assert [line.split()[0] for line in lines] == ["bf16", "better", "quartet-rtn", "noisy"]
    by_name = {line.split()[0]: line for line in lines}
    assert by_name["better"].endswith("lower") and by_name["noisy"].endswith("no difference shown")


def test_every_candidate_is_legal_and_passes_through_the_backend():
    model, x = torch.nn.Linear(64, 64), torch.randn(64, 64)
    for name, recipe in search_recipes.RECIPES.items():
        report = qc.explain(model, x, recipe=recipe)
        assert report.recipe == rules("recipe", recipe).name == name
        assert [site.rewritten for site in report.sites] == [recipe.rewrites]


@pytest.mark.slow
def test_a_small_search_runs_and_goes_on(tmp_path, capsys):
    arguments = [
        "--only",
        "bf16",
        "quartet-rtn",
        "--seeds",
        "0",
        "--size",
        "test",
        "--steps",
        "3",
        "--eval-batches",
        "1",
    ]
    assert search_recipes.main([*arguments, "--out", str(tmp_path)]) == 0
    before = search_recipes.read(tmp_path / "runs.csv")
    assert [(row["recipe"], row["steps"]) for row in before] == [("bf16", "3"), ("quartet-rtn", "3")]
    assert search_recipes.main([*arguments, "--out", str(tmp_path)]) == 0
    assert search_recipes.read(tmp_path / "runs.csv") == before
    assert "quartet-rtn" in capsys.readouterr().out
