"""Exports of models whose weights are DTensors: the same bits as of the model in one piece."""

import pytest
from ranks import run_ranks


@pytest.fixture(scope="module")
def expected():
    return run_ranks("sharded_export:state", 1, "whole")[0]


@pytest.fixture(scope="module")
def fsdp(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdp")
    return run_ranks("sharded_export:fsdp", 2, str(folder)), folder


def test_each_rank_gets_the_whole_tensors(expected, fsdp):
    assert [made["state"] for made in fsdp[0]] == [expected, expected]


def test_tensor_parallel_weights_are_whole_too(expected):
    assert run_ranks("sharded_export:state", 2, "tp") == [expected, expected]


def test_rank_0_writes(fsdp, expected):
    (first, second), folder = fsdp
    assert first["tensors"] == second["tensors"] > 0
    assert [path.name for path in folder.iterdir()] == ["served"]
    assert sorted(path.name for path in (folder / "served").iterdir()) == ["config.json", "model.safetensors"]


def test_an_error_reaches_every_rank(fsdp):
    first, second = (made["refused"].partition(": ")[2] for made in fsdp[0])
    assert "'last.weight' has a NaN" in first and first in second and "Rank 0" in second


def test_a_sharded_model_says_what_it_lacks(fsdp):
    said = ("sharded", "'first', 'last'", "of=model", "exclude=['first', 'last']")
    assert all(part in made["hidden"] for made in fsdp[0] for part in said)


def test_weights_that_fsdp2_shows_need_no_other_model(expected, fsdp):
    for made in (ranks["layers"] for ranks in fsdp[0]):
        kept = {name for name in made if name not in expected}
        assert kept == {"first.weight", "last.weight"}
        assert all(made[name] == digest for name, digest in expected.items() if name.startswith("layers."))


def test_a_distributed_tensor_is_not_quantized_as_it_is(fsdp):
    assert all("DTensor" in made["quantized"] and "full_tensor()" in made["quantized"] for made in fsdp[0])
