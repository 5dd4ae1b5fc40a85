"""DDP, FSDP2, tensor parallelism and a mesh of both, on two and four processes: what sharded.py runs, judged here."""

from __future__ import annotations

import pytest
from ranks import run_ranks

LINEARS = ["attention.k_proj", "attention.o_proj", "attention.q_proj", "attention.v_proj", "mlp.down", "mlp.up"]
PARALLEL = ["0", "1.down", "1.up", "2.down", "2.up"]


@pytest.fixture(scope="module")
def two(once):
    return once("sharded:two", lambda: run_ranks("sharded:two", 2))


@pytest.fixture(scope="module")
def four(once):
    return once("sharded:four", lambda: run_ranks("sharded:four", 4))


@pytest.mark.parametrize("mode", ["ddp", "ddp, graph break"])
def test_ddp_equals_one_process(two, mode):
    """With a break between blocks, in a loop, the product after it runs eagerly, and blocks are named by themselves."""
    blocks = {"up", "down"}
    for rank in two:
        assert rank[mode]["of rounding"] <= 1
        assert {name.rpartition(".")[2] for name in rank[mode]["names"]} >= blocks | (
            {"out"} if mode == "ddp" else set()
        )


def test_data_parallel_ranks_draw_their_own_noise(two):
    assert len({rank["ddp"]["seed"] for rank in two}) == 2


def test_ddp_under_quartet_is_the_mean_of_its_replicas(two):
    names = ["first", "last", *(f"layers.{layer}.{part}" for layer in (0, 1) for part in LINEARS)]
    for rank in two:
        assert rank["ddp, quartet"]["worst"] < 1e-5 and rank["ddp, quartet"]["repeats"]
        assert rank["ddp, quartet"]["names"] == names


@pytest.mark.parametrize("mode", ["fsdp", "fsdp, blocks"])
def test_fsdp_equals_one_process(two, mode):
    for rank in two:
        assert rank[mode]["of rounding"] <= 1 and rank[mode]["state unchanged"]
        assert {name.partition("layers.0.")[2] or name for name in rank[mode]["names"]} == set(LINEARS)


def test_fsdp_in_bf16(two):
    for rank in two:
        assert rank["fsdp, bf16"]["cosine"] > 0.9 and rank["fsdp, bf16"]["names"] == LINEARS
        assert rank["fsdp, bf16"]["reasons"] == ["attention: attention: product of two activations"]


def test_fsdp_under_quartet_is_the_mean_of_its_replicas(two):
    for rank in two:
        assert rank["fsdp, quartet"]["worst"] < 1e-5 and rank["fsdp, quartet"]["repeats"]


def test_a_distributed_checkpoint_loads_in_an_untouched_model(two):
    assert all(rank["fsdp, quartet"]["loads"] for rank in two)


def test_tensor_parallel_equals_one_process(two):
    for rank in two:
        assert rank["tensor parallel"]["of rounding"] <= 1
        assert rank["tensor parallel"]["rewritten"] == PARALLEL and rank["tensor parallel"]["kept"] == []


def test_tensor_parallel_under_quartet_is_an_eager_reference_sharded_by_hand(two):
    assert all(rank["tensor parallel, by hand"]["worst"] < 1e-5 for rank in two)


def test_exclude_under_ddp_buckets(two):
    """Three buckets, so three graphs; every name is the model's own."""
    for rank in two:
        assert rank["policy"]["ddp"]["graphs"] > 1
        kept = {"layers.1.up", "layers.1.down", "out"}
        expected = {*kept, "layers.0.up", "layers.0.down", "layers.2.up", "layers.2.down"}
        assert rank["policy"]["ddp"]["sites"] == {name: name not in kept for name in expected}


def test_exclude_under_fsdp_and_checkpoint_wrappers(two):
    """By regions: a layer for which the patterns decide otherwise has code of its own."""
    for rank in two:
        sites = {name: done for name, done in rank["policy"]["fsdp"]["sites"].items() if name.startswith("layers")}
        assert sorted(sites) == sorted(f"layers.{layer}.{part}" for layer in (0, 1) for part in LINEARS)
        kept = {name for name, done in sites.items() if not done}
        projections = {f"layers.1.{part}" for part in LINEARS if part.startswith("attention")}
        assert kept == {"layers.0.mlp.up", "layers.1.mlp.up", *projections}


ENCODER = ["linear1", "linear2", "self_attn", "self_attn.out_proj"]


@pytest.mark.parametrize("way", ["quartet", "regions"])
def test_fsdp_over_torchs_own_blocks_is_in_graphs(two, way):
    for rank in two:
        found = rank["fsdp, ways"][way]
        assert found["of rounding"] <= 1 and found["state unchanged"] and not found["told"]
        names = [name.replace(".in_proj_weight", "") for name in found["rewritten"]]
        assert names == [
            "first",
            "last",
            *(f"layers.0.{part}" for part in ENCODER),
        ]  # layers.1 has the code of layers.0


def test_fsdp_that_is_compiled_whole_by_name_says_what_runs_eagerly(two):
    for rank in two:
        found = rank["fsdp, ways"]["by name"]
        (message,) = found["told"]
        assert "'first', 'layers.0.self_attn'" in message and "hooks of FSDP2" in message
        assert "quartet_compile.quartet(model)" in message and found["rewritten"] == []


def test_blocks_compiled_inside_of_enable_have_full_names_under_fsdp(two):
    for rank in two:
        found = rank["fsdp, enabled"]["model"]
        expected = {f"layers.{layer}.{part}": True for layer in (0, 1) for part in LINEARS} | {"layers.1.mlp.up": False}
        sites = {name: done for name, done in found["sites"].items() if not name.endswith("attention")}
        assert found["of rounding"] <= 1 and sites == expected and not found["told"]


def test_fsdp_tells_the_names_of_blocks_and_a_pattern_for_one_of_them_is_warned_of(two):
    for rank in two:
        found = rank["fsdp, enabled"]["alone"]
        sites = {name: done for name, done in found["sites"].items() if not name.endswith("attention")}
        assert found["of rounding"] <= 1 and sites == {f"layers.0.{part}": True for part in LINEARS}
        (message,) = found["told"]
        assert "'layers.1' and 'layers.0' can't differ" in message and "quartet_compile.enable(model, ...)" in message


def test_tensor_parallel_ranks_agree_on_shared_operands(two):
    one, other = (rank["tensor parallel, quartet"] for rank in two)
    assert one["replicated gradient"] == other["replicated gradient"]
    assert min(one["cosine"], other["cosine"]) > 0.85 and one["repeats"] and other["repeats"]


@pytest.mark.slow
def test_four_ranks_equal_one_process(four):
    for rank in four:
        assert rank["fsdp"]["of rounding"] <= 1 and rank["fsdp"]["state unchanged"]
        assert rank["mesh"]["of rounding"] <= 1 and rank["mesh"]["kept"] == []


@pytest.mark.slow
def test_a_mesh_repeats_its_noise(four):
    for rank in four:
        assert rank["mesh, quartet"]["cosine"] > 0.9 and rank["mesh, quartet"]["repeats"]


@pytest.mark.slow
def test_a_mesh_shares_noise_along_its_model_dimension_only(four):
    seeds = {tuple(rank["noise"]["coordinates"]): rank["noise"]["seed"] for rank in four}
    assert seeds[0, 0] == seeds[0, 1] != seeds[1, 0] == seeds[1, 1]
