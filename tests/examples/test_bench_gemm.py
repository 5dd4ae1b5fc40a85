"""The benchmark of the CPU's products: what it measures and writes, not how fast."""

import bench_gemm
import pytest
import torch


def test_the_products_are_of_the_same_matrices():
    torch.manual_seed(0)
    made = {name: call() for name, call in bench_gemm.products(64, 96, 128).items()}
    for name, bound in {"bf16": 0.01, "MXFP4": 0.3, "NVFP4": 0.2, "MXFP8": 0.05}.items():
        error = (made[name] - made["float32"]).norm() / made["float32"].norm()
        assert 0 < error < bound, name


def test_the_best_round_counts():
    clock = iter([0.0, 3.0, 3.0, 4.0, 10.0, 12.0, 20.0, 25.0])
    assert bench_gemm.best({"a": lambda: None, "b": lambda: None}, 2, lambda: next(clock)) == {"a": 2.0, "b": 1.0}


def test_a_line_a_shape(capsys):
    before = torch.get_num_threads()
    try:
        assert bench_gemm.main(["--shapes", "32x64x32", "5x7x9", "--threads", "1", "--rounds", "1"]) == 0
    finally:
        torch.set_num_threads(before)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["32x64x32", "5x7x9"]
    assert all(len(line.split()) == 6 for line in lines[2:])


@pytest.mark.parametrize("wrong", ["32x64", "32x64xk", "512"])
def test_a_wrong_shape_is_an_error(wrong, capsys):
    with pytest.raises(SystemExit):
        bench_gemm.main(["--shapes", wrong])
    assert f"{wrong!r} is no shape; expected MxNxK" in capsys.readouterr().err
