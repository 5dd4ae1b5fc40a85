"""`python -m quartet_compile cross-compile`, and the example."""

from __future__ import annotations

import importlib.util
import json

import cross_compile_llama
import pytest

from quartet_compile import progress
from quartet_compile.__main__ import main
from quartet_compile.cross import binary
from quartet_compile.machines.targets import find_target

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
    def fails(name, source, folder, target):
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


@pytest.mark.slow
def test_the_example_by_op(capsys):
    cross_compile_llama.main(["--size", "test", "--batch", "1", "--target", "sm_90", "--by-op"])
    out = capsys.readouterr().out
    rows = {line.split("  ")[0]: line for line in out.splitlines()}
    assert {"quantize", "quantize_pair", "requantize", "scaled_mm", "decode_fp8", "library calls"} <= set(rows)
    assert "wgmma.m64n128k32.e4m3" in rows["scaled_mm"]
    assert "The linear layers on a H200 SXM, predicted:" in out
    assert "graph " not in out  # the long table


@pytest.mark.parametrize(
    "name, architecture, chip",
    [("b200", "sm_100", "B200"), ("RTX 5090", "sm_120", "RTX 5090"), ("H100", "sm_90", "H100 SXM")],
)
def test_a_target_by_its_chip(name, architecture, chip):
    found = find_target(name)
    assert (found.name, found.chip) == (architecture, chip)


def test_without_triton_it_says_so_and_does_not_blame_the_model(model, capsys, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "triton" else find_spec(name, *rest)
    )
    assert main(["cross-compile", model, "--input", "8x64"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "needs Triton" in err and "pip install triton" in err and "apture" not in err


def test_progress_for_a_person_who_watches(model, capsys, monkeypatch):
    monkeypatch.setattr(progress, "is_watched", lambda: True)
    assert main(["cross-compile", model, "--input", "8x64", "--recipe", "bf16", "--no-grad", "--target", "h200"]) == 0
    err = capsys.readouterr().err.splitlines()
    assert err[0] == "quartet: generating the code for sm_90 (H200 SXM)"
    assert err[1:] == ["quartet: compiling kernel 1 of 1"]
