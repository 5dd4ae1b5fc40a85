"""torchtitan's models under its own parallelization and compilation of blocks, on 1 and 2 processes.

Its language models take masked attention only, whose kernels need a GPU; on a CPU they get torch's own causal attention.
"""

from __future__ import annotations

import pytest
from ranks import run_ranks

pytest.importorskip("torchtitan")

LLAMA = ["attention.qkv_linear.wqkv", "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3"]
EXPERTS = [f"moe.routed_experts.inner_experts.{weight}" for weight in ("w1_EFD", "w2_EDF", "w3_EFD")]
QWEN = ["attention.qkv_linear.wqkv", "attention.wo", *EXPERTS]
CASES = {
    "llama3": (LLAMA, "llama3", 1, {}),
    "llama3, checkpointed": (LLAMA, "llama3", 1, {"checkpointing": True}),
    "llama3, FSDP2": (LLAMA, "llama3", 2, {"shard": 2}),
    "llama3, TP": (LLAMA, "llama3", 2, {"tensor": 2}),
    "llama3, FSDP2 x TP": (LLAMA, "llama3", 4, {"shard": 2, "tensor": 2}),
    "qwen3 MoE": (QWEN, "qwen3_moe", 1, {}),
}
ROUNDING = {"llama3": 2e-5, "qwen3_moe": 2 * 2**-8}
"""Of gradients under `exact`, relative: qwen3's experts multiply in bfloat16, and round each result to it."""


@pytest.mark.parametrize("case", CASES)
def test_blocks_are_in_fp4_by_their_full_names(case):
    expected, name, world, how = CASES[case]
    ranks = run_ranks("titan:run", world, name, how, timeout=600)
    for rank in range(1, world, 2) if "tensor" in how else ():  # parts of one model, so its ranks have one loss
        assert ranks[rank]["losses"] == ranks[rank - 1]["losses"], rank
    for rank in ranks:
        assert rank["worst"] < ROUNDING[name], rank
        assert rank["falls"] and rank["plain falls"] and rank["plain"] == 0, rank
        assert 0.8 < rank["cosine"] < 0.9999, rank
        names = {f"layers.{layer}.{part}" for layer in (0, 1) for part in expected} - {"layers.1.attention.wo"}
        assert set(rank["rewritten"]) == names, rank
        assert [line for line in rank["kept"] if line.startswith("layers.1.attention.wo: excluded")], rank


def test_graph_trainer_with_its_bucketing():
    """Its default passes with ours among them, on two ranks that SimpleFSDP shards over; codes over the wire have the same
    bits."""
    for rank in run_ranks("titan:graph_trained", 2, timeout=600):
        ours, plain = rank["ours"], rank["plain"]
        assert plain["products"] == 0 and ours["products"] == 3 * 2 * len(LLAMA)
        assert ours["losses"][-1] < 0.5 * ours["losses"][0] and plain["losses"][-1] < 0.5 * plain["losses"][0]
        assert 0.8 < rank["cosine"] < 0.9999
        assert rank["names"] == sorted(f"layers.{layer}.{part}" for layer in (0, 1) for part in LLAMA)
        assert rank["codes"]["losses"] == ours["losses"]
        assert rank["codes"]["gathers"] > ours["gathers"]
