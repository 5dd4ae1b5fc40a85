"""HSDP, pipeline stages, checkpoints that are loaded on other numbers of ranks, and which rank says what: layouts.py on real
process groups."""

from __future__ import annotations

import itertools

import pytest
from ranks import run_ranks

LINEARS = ["attention.k_proj", "attention.o_proj", "attention.q_proj", "attention.v_proj", "mlp.down", "mlp.up"]


LAYER_0 = [f"layers.0.{part}" for part in LINEARS]
"""What a rank compiles of two layers by regions: layers.1 has the code of layers.0."""

GEMMS = 3
"""Of a linear layer in training: fprop, dgrad and wgrad."""


def check(rank, recipe):
    """Under `exact` the gradients are those of one process; under `quartet` they point the same way."""
    if recipe == "exact":
        assert rank["worst"] < 2e-5
    else:
        assert rank["worst"] > 1e-3 and rank["cosine"] > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["exact", "quartet"])
def test_hsdp_equals_one_process(recipe):
    for rank in run_ranks("layouts:hsdp", 4, recipe):
        check(rank, recipe)
        assert rank["state"] and rank["products"] == 2 * len(LINEARS) * GEMMS
        assert rank["fp4"] == LAYER_0


@pytest.mark.parametrize("recipe", [pytest.param("exact", marks=pytest.mark.slow), "quartet"])
def test_pipeline_stages_equal_one_process(recipe):
    """Of two microbatches; the first linear of all has no gradient of its input."""
    for index, rank in enumerate(run_ranks("layouts:pipeline", 2, recipe)):
        check(rank, recipe)
        own = [f"layers.{index}.{part}" for part in LINEARS]
        assert rank["products"] == 2 * (GEMMS * (len(LINEARS) + 1) - (index == 0))
        assert rank["fp4"] == (["last", *own] if index else ["first", *own])


@pytest.mark.slow
def test_a_checkpoint_of_two_ranks_goes_on_on_one_and_then_on_four(tmp_path):
    """Each takes up what the one before left, bit for bit, and takes a step in FP4."""
    found, source = [], ""
    for world in (2, 1, 4):
        target = str(tmp_path / str(world))
        ranks = run_ranks("layouts:resharded", world, source, target)
        assert all(rank == ranks[0] for rank in ranks)
        assert ranks[0]["fp4"] == LAYER_0 and ranks[0]["products"] == 2 * len(LINEARS) * GEMMS
        found.append(ranks[0])
        source = target
    for before, after in itertools.pairwise(found):
        assert before["saved"] == after["loaded"] != after["saved"]


def test_the_first_rank_alone_says_what_is_compiled():
    first, second = run_ranks("layouts:lines", 2)
    (line,) = first
    assert "Model: 14 of 16 matmuls" in line and second == []
