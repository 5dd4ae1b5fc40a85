"""A rank that does otherwise than the rest: each rank ends with an error that says what differs, and none hangs.
disagreeing.py on two and four processes."""

from __future__ import annotations

import pytest
from ranks import run_ranks


@pytest.fixture(scope="module")
def two(once):
    return once("disagreeing_two", lambda: run_ranks("disagreeing:two", 2))


@pytest.mark.parametrize("way", ["by name", "quartet", "regions", "enable", "gather_codes", "ddp", "fsdp", "dtensor"])
def test_a_rank_with_other_options_is_told_what_differs(two, way):
    """Where ranks are known to meet, each is; else which one is a matter of time."""
    option, value = ("wire", "'quantized'") if way in ("fsdp", "dtensor") else ("recipe", "'exact'")
    told = [rank["options"][way] for rank in two if rank["options"][way]]
    assert len(told) >= (2 if way in ("ddp", "fsdp", "dtensor") else 1)
    for error in told:
        assert f"{option}=" in error and value in error and "exclude" not in error


@pytest.mark.parametrize("way", ["alike", "evaluation"])
def test_recipes_that_are_switched_alike_are_no_error(two, way):
    assert [rank["later"][way] for rank in two] == [["", 6], ["", 6]]


SWITCHES = [
    ("one alone", 3, "rank 0 computes with recipe='exact', and rank {} with recipe='quartet'"),
    ("another recipe", 3, "recipe='quartet-rtn'"),
    ("another step", 3, "rank 0 computes with recipe='exact', and rank {} with recipe='quartet'"),
]


def check(ranks, way, step, expected):
    message, done = ranks[0]["later"][way]
    assert all(rank["later"][way] == [message, done] for rank in ranks) and step - 1 <= done <= step + 1
    assert f"At optimizer step {step} " in message and "set_recipe on all" in message
    assert any(expected.format(rank) in message for rank in range(1, len(ranks)))


@pytest.mark.parametrize(
    ("way", "step", "expected"),
    [*SWITCHES, ("the others alone", 2, "rank {} computes with recipe='exact', and rank 0 with recipe='quartet'")],
)
def test_a_switch_of_one_rank_ends_all_at_the_same_step(two, way, step, expected):
    check(two, way, step, expected)


def test_a_rank_that_was_never_asked_to_gather_codes(two):
    for number, rank in enumerate(rank["codes"] for rank in two):
        assert f"and rank {1 - number} with" in rank["never asked"] and "wire='quantized'" in rank["never asked"]
        assert "wire='quantized'" in rank["by quartet"] and "wire='high'" in rank["by quartet"]
        assert rank["alike"] == ""
    assert "rank 1 said nothing of it in 3 seconds" in two[0]["codes"]["silent"]


@pytest.mark.slow
@pytest.mark.parametrize("switch", SWITCHES)
def test_four_ranks_end_at_the_same_step(four, switch):
    check(four, *switch)


@pytest.fixture(scope="module")
def four(once):
    return once("disagreeing_four", lambda: run_ranks("disagreeing:four", 4))


@pytest.mark.slow
def test_a_switch_that_changes_what_is_gathered():
    first, second = run_ranks("disagreeing:later_on_the_wire", 2)
    assert first["alike"] == second["alike"] == ["", 6]
    for rank in (first, second):
        message, done = rank["another recipe"]
        assert done == 1 and "recipe='mxfp8'" in message and "recipe='exact'" in message
    message, done = first["one alone"]
    assert second["one alone"] == [message, done] and done <= 3
    assert "recipe='mxfp8' on rank 0 after 1 optimizer steps" in message and "not called on rank 1" in message
