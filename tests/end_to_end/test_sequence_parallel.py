"""A language model in Megatron's layout with sequence parallelism, on two processes: what sequence_parallel.py runs."""

from __future__ import annotations

import pytest
from ranks import run_ranks

LINEARS = [*(f"attention.{name}_proj" for name in "koqv"), "mlp.0", "mlp.2"]


@pytest.fixture(scope="module")
def two(once):
    return once("sequence_parallel:two", lambda: run_ranks("sequence_parallel:two", 2))


def test_it_equals_one_process(two):
    for rank in two:
        assert rank["exact"]["worst"] < 2e-5 and abs(rank["exact"]["loss"] - rank["loss"]) < 1e-5
        assert rank["exact"]["rewritten"] == [f"layers.{layer}.{name}" for layer in (0, 1) for name in LINEARS]


def test_gradients_point_the_same_way_on_every_rank(two):
    one, other = (rank["quartet"] for rank in two)
    assert one["norm"] == other["norm"] and one["loss"] == other["loss"]
    assert min(one["cosine"], other["cosine"]) > 0.9 and max(one["cosine"], other["cosine"]) < 0.9999
