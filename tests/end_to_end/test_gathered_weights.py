"""FSDP2 gathers codes of weights: gathered_weights.py on two and four processes, with `wire="quantized"` and without."""

from __future__ import annotations

import pytest
from ranks import run_ranks

LAYERS = [f"layers.{layer}.{part}" for layer in (0, 1) for part in ("down", "up")]


def check(found, rewritten=LAYERS):
    assert found["equal"] and found["state unchanged"]
    assert 0 < found["quantized"] <= 0.36 * found["high"]
    assert found["rewritten"] == rewritten


@pytest.fixture(scope="module")
def two(once):
    return once("gathered_weights:two", lambda: run_ranks("gathered_weights:two", 2, timeout=500))


@pytest.fixture(scope="module")
def four(once):
    return once("gathered_weights:four", lambda: run_ranks("gathered_weights:four", 4, timeout=500))


def test_the_same_bits_from_a_third_of_the_bytes():
    for rank in run_ranks("gathered_weights:in_bf16", 2):
        check(rank)
        explained, rewritten = rank["explained"], ["layers.0.down", "layers.0.up", "layers.1.down"]
        assert explained["plain"] == 0 and explained["same"] and explained["equal"] and explained["ranks"] == [2]
        assert (
            sorted(explained["sent"])
            == [f"W of {name}" for name in rewritten]
            == sorted(f"W of {name}" for name in explained["rewritten"])
        )
        assert explained["kept"] == {"layers.1.up": "excluded by 'layers.1.up'"}
        for before, after in explained["bytes"]:
            assert before * rank["quantized"] == after * rank["high"]  # as the process group counts them
        assert "Ranks gather 3 of 4 operands in low precision" in explained["text"]
        assert "as it is: W of layers.1.up, [128, 96]: excluded by 'layers.1.up'" in explained["text"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        "odd sizes",
        "checkpointed",
        "stays gathered",
        "as a whole",
        "enabled",
        "accumulated",
        "no mask",
        "nvfp4",
        "nvfp4, odd sizes",
    ],
)
def test_two_processes(two, case):
    for rank in two:
        check(rank[case])


@pytest.mark.slow
@pytest.mark.parametrize("case", ["odd sizes", "replicas"])
def test_four_processes(four, case):
    for rank in four:
        check(rank[case])


@pytest.mark.slow
def test_by_inductor(two, four):
    for rank in (*two, *four):
        check(rank["by Inductor"])


@pytest.mark.slow
def test_several_matrices_in_one_weight(two):
    for rank in two:
        check(rank["matrices"], ["layers.0"])


@pytest.mark.slow
def test_what_is_kept_is_gathered_as_it_is(two):
    for rank in two:
        assert rank["excluded"]["equal"] and rank["excluded"]["rewritten"] == LAYERS[:2]
        assert rank["excluded"]["high"] > rank["excluded"]["quantized"] > 0.5 * rank["excluded"]["high"]
        assert rank["originals"]["equal"] and rank["originals"]["quantized"] == rank["originals"]["high"]


@pytest.mark.slow
def test_a_distributed_checkpoint_is_an_ordinary_one(two):
    assert all(rank["resumed"] for rank in two)


@pytest.mark.slow
def test_what_reads_such_a_weight_in_high_precision_is_an_error():
    for rank in run_ranks("gathered_weights:errors", 2):
        assert "Compile the module that reads it" in rank["eager"]
        assert "'layers.0.up.weight'" in rank["few rows"] and "M is 8 in training" in rank["few rows"]
        assert "or cast before the quantizer" in rank["cast"] and "exclude=['layers.0.up']" in rank["cast"]
        assert "the recipe 'quartet2' doesn't quantize it by mxfp4-quest" in rank["other recipe"]
        assert all(rank[case].startswith("WireError") for case in ("eager", "few rows", "cast", "other recipe"))
        assert "for other options" in rank["twice"] and "fully_shard on it first" in rank["not sharded"]
        assert "already; expected a model that hasn't run" in rank["late"]
