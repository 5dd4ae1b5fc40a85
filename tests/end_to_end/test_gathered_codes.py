"""`wire="quantized"`: the same bits as without it, from fewer bytes; what wired.py runs on two and four processes."""

from __future__ import annotations

import pytest
from ranks import run_ranks

WEIGHTS = [f"W of {name}.{index}" for index in (0, 1) for name in ("ups", "downs")]


@pytest.fixture(scope="module")
def two(once):
    return once("wired:two", lambda: run_ranks("wired:two", 2))


@pytest.fixture(scope="module")
def four(once):
    return once("wired:of_world", lambda: run_ranks("wired:of_world", 4))


@pytest.fixture(params=[2, pytest.param(4, marks=pytest.mark.slow)])
def ranks(request):
    return request.getfixturevalue({2: "two", 4: "four"}[request.param])


def test_weights_take_a_third_of_the_bytes_of_bf16(ranks):
    for rank in ranks:
        found = rank["bf16"]
        assert found["equal"] and found["sent"] == WEIGHTS and not found["kept"]
        assert found["quantized"] <= 0.36 * found["high"]
        assert found["bytes"] == [len(ranks) * found[wire] for wire in ("high", "quantized")]


def test_rows_that_ranks_have_in_unequal_parts(ranks):
    for rank in ranks:
        assert rank["odd sizes"]["equal"] and rank["odd sizes"]["sent"] == WEIGHTS and not rank["odd sizes"]["kept"]


def test_nvfp4_after_ranks_agree_on_the_largest_magnitude(ranks):
    for rank in ranks:
        found = rank["nvfp4"]
        assert found["equal"] and found["sent"] == WEIGHTS and not found["kept"]
        assert found["quantized"] <= 0.36 * found["high"]


def test_activations_under_sequence_parallelism(ranks):
    for rank in ranks:
        found = rank["sequence parallel"]
        gathered = {f"X of layers.{layer}.{name}" for layer in (0, 1) for name in ("attention.q_proj", "mlp.0")}
        assert found["equal"] and set(found["sent"]) == gathered and found["quantized"] < found["high"]
        assert {name.partition(" ")[0] for name in found["kept"]} == {"dY"}
        assert all("along its columns too" in reason for reason in found["kept"].values())


def test_checkpointed_weights_are_gathered_again_as_codes(two):
    for rank in two:
        found = rank["checkpointed"]
        assert found["equal"] and found["sent"] == WEIGHTS and found["quantized"] < 0.45 * found["high"]


def test_a_cast_after_the_gather_goes_before_it(two):
    for rank in two:
        assert rank["autocast"]["equal"] and rank["autocast"]["sent"] == [
            name.replace("W of ", "W of inner.") for name in WEIGHTS
        ]


def test_what_is_read_in_high_precision_too_is_gathered_as_it_is(two):
    for rank in two:
        found = rank["also read"]
        assert found["equal"] and found["sent"] == WEIGHTS[1::2] and [*found["kept"]] == WEIGHTS[::2]
        assert all("it is read in high precision too, by " in reason for reason in found["kept"].values())


def test_ranks_whose_parts_differ_in_size_share_no_compiled_graph():
    first, second = run_ranks("wired:uuids", 2)
    assert first["even"] and first["even"] == second["even"]
    assert first["odd"] and first["odd"] != second["odd"]


@pytest.mark.slow
def test_through_inductor():
    for rank in run_ranks("wired:by_inductor", 2):
        assert rank["equal"] and rank["sent"] == [4, 4]


def test_ranks_with_tokens_of_their_own_draw_their_own_noise():
    for rank in run_ranks("wired:drawn_alike", 2):
        assert rank["data"] == [0] and rank["tensor"] == [1]
