"""`python -m quartet_compile cross-compile`, and the example."""

from __future__ import annotations

import json

import cross_compile_llama
import pytest

from quartet_compile.__main__ import main
from quartet_compile.cross import binary

MODEL = """
from torch import nn

def build():
    return nn.Sequential(nn.Linear(64, 64), nn.Tanh())
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("cross_cli") / "cross_model.py"
    path.write_text(MODEL)
    return f"{path}:build"


def test_a_table_and_files(model, capsys, tmp_path):
    code = main(
        ["cross-compile", model, "--input", "8x64", "--recipe", "bf16", "--target", "sm_90", "--out", str(tmp_path)]
    )
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert "extern (library)" in out and "kernels compiled for sm_90, not run" in out
    assert {"forward_0.py", "backward_0.py"} <= {path.name for path in tmp_path.iterdir()}


def test_json(model, capsys):
    assert main(["cross-compile", model, "--input", "8x64", "--recipe", "bf16", "--no-grad", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["target"]["name"] == "sm_100"
    assert [module["graph"] for module in data["modules"]] == ["inference 0"]


def test_an_unknown_target(model, capsys):
    assert main(["cross-compile", model, "--input", "8x64", "--target", "sm_9"]) == 2
    assert "Unknown target 'sm_9' (did you mean 'sm_90'?)" in capsys.readouterr().err


def test_kernels_that_fail_are_in_the_table_and_in_the_error(model, capsys, monkeypatch):
    def fails(name, source, folder):
        raise RuntimeError("ptxas said no")

    monkeypatch.setattr(binary, "compile_kernel", fails)
    assert main(["cross-compile", model, "--input", "8x64", "--recipe", "bf16", "--target", "sm_90"]) == 2
    out, err = capsys.readouterr()
    assert "does not compile: RuntimeError: ptxas said no" in err
    assert "FAILED: triton_poi_fused" in out


def test_the_example(capsys, tmp_path):
    cross_compile_llama.main(["--size", "test", "--recipe", "bf16", "--target", "sm_120", "--out", str(tmp_path)])
    out = capsys.readouterr().out
    assert "recipe 'bf16'" in out and "_scaled_dot_product_flash_attention" in out and "forward 0:" in out


def test_the_example_by_op(capsys):
    cross_compile_llama.main(["--size", "test", "--batch", "1", "--target", "sm_90", "--by-op"])
    out = capsys.readouterr().out
    rows = {line.split("  ")[0]: line for line in out.splitlines()}
    assert {"quantize", "quantize_pair", "requantize", "scaled_mm", "unrotate", "decode_fp8", "library calls"} <= set(
        rows
    )
    assert "wgmma.m64n128k32.e4m3" in rows["scaled_mm"]
    assert "The linear layers on a H200 SXM, predicted:" in out
    assert "graph " not in out  # the long table
