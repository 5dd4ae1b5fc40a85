"""The command `doctor`: what it finds here, and its exit code where something is wrong."""

from __future__ import annotations

import json

import pytest
import torch

from quartet_compile import _compat
from quartet_compile.__main__ import main
from quartet_compile.doctor import checks as looked_at
from quartet_compile.doctor import numbers
from quartet_compile.kernels.cpu import loader, toolchain


@pytest.fixture(autouse=True)
def compiles_once(monkeypatch, request):
    """Compiles a layer in the test that is about it only, and times few products."""
    monkeypatch.setattr(numbers, "ROUNDS", 1)
    if "compiles" not in request.node.name:
        monkeypatch.setattr(numbers, "linear", lambda: (True, "not looked at here"))


def found(capsys):
    code = main(["doctor", "--json"])
    return code, {check["name"]: check for check in json.loads(capsys.readouterr().out)}


def test_a_machine_that_works(capsys):
    code, checks = found(capsys)
    assert code == 0
    assert checks["bits"]["state"] == "ok" and "equal the reference" in checks["bits"]["found"]
    assert checks["MXFP4"]["found"].startswith("CPU: emulated in")
    assert checks["speed"]["found"].startswith("a product of MXFP4 is ")
    assert "x as fast as bf16's (512x1792x640, " in checks["speed"]["found"]


def test_a_layer_compiles_to_the_bits_of_the_reference(monkeypatch, capsys):
    assert numbers.linear() == (True, "a compiled linear layer equals the reference, 64x64x64 by quartet")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(numbers.reference, "scaled_mm", lambda *operands: torch.zeros(64, 64))
    assert numbers.linear() == (False, "a compiled linear layer differs from the reference, 64x64x64")
    monkeypatch.setattr(torch, "compile", lambda *model, **options: breaks)
    assert numbers.linear() == (False, "a linear layer can't be compiled: no Python.h")


def breaks(x):
    raise RuntimeError("\nno Python.h\nmore")


def test_a_line_each(capsys):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(looked_at.examine()) and lines[0].startswith("quartet-compile  ok ")


def test_other_bits_are_a_failure(capsys, monkeypatch):
    quantize = numbers.native.quantize
    monkeypatch.setattr(numbers.native, "quantize", lambda x, chosen, **seeds: quantize(2 * x + 1, chosen, **seeds))
    code, checks = found(capsys)
    assert code == 1 and checks["bits"]["state"] == "failed" and "nvfp4-rtn" in checks["bits"]["found"]


def test_another_product_is_a_failure(capsys, monkeypatch):
    """Of rows whose scales are apart only: what AMX multiplies by bf16."""
    product = numbers.scaled_mm

    def wrong(a, b, *rest):
        return product(a, b, *rest) + (a.scales.max() > 120)

    monkeypatch.setattr(numbers, "scaled_mm", wrong)
    code, checks = found(capsys)
    assert (
        code == 1
        and checks["products"]["found"] == "the CPU's product differs from the reference, scales 5 binades apart"
    )


def test_no_compiler_is_a_failure(capsys, monkeypatch):
    monkeypatch.setattr(toolchain._compat, "cpp_compiler", lambda: None)
    code, checks = found(capsys)
    assert code == 1 and "Install g++" in checks["C++ compiler"]["found"]


@pytest.mark.parametrize("tested, state", [((2, 11), "not known"), ((99, 0), "ok")])
def test_a_torch_that_is_newer_than_those_tested(capsys, monkeypatch, tested, state):
    monkeypatch.setattr(_compat.installed, "TESTED_TORCH", tested)
    assert found(capsys)[1]["torch"]["state"] == state


@pytest.mark.parametrize(
    "torch_, triton, state, words",
    [
        ("2.13.1+cu130", "3.9.0", "ok", "3.9.0, which was tested with torch 2.13"),
        ("2.13.0", "3.7.1", "not known", "not tested with torch 2.13; tested were 3.6 with torch 2.11"),
    ],
)
def test_whether_this_pair_is_tested(monkeypatch, torch_, triton, state, words):
    monkeypatch.setattr(looked_at.torch, "__version__", torch_)
    monkeypatch.setattr(looked_at.importlib.metadata, "version", lambda name: triton)
    assert looked_at._triton()[0] == state and words in looked_at._triton()[1]


@pytest.mark.parametrize(
    "name, state, words",
    [
        ("TORCH_COMPILE_DISABLE", "failed", "nothing is compiled, so nothing is in FP4"),
        ("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "not known", "every process compiles anew"),
    ],
)
def test_a_variable_that_changes_what_runs(monkeypatch, name, state, words):
    for known in (*looked_at.OFF, *looked_at.ODD):
        monkeypatch.delenv(known, raising=False)
    assert looked_at._settings()[0] == "ok"
    monkeypatch.setenv(name, "1")
    assert looked_at._settings()[0] == state and words in looked_at._settings()[1]


def test_a_damaged_build_and_a_cache_that_is_off(monkeypatch, tmp_path):
    monkeypatch.setattr(_compat, "cache_dir", lambda: str(tmp_path))
    built = tmp_path / "made.so"
    built.write_bytes(b"a library")
    (tmp_path / "quartet").mkdir()
    built.rename(loader._named(tmp_path / "quartet", "0" * 32, built))
    assert looked_at._caches()[1].startswith("1 build of the CPU kernels, ")
    damaged = tmp_path / "quartet" / f"{'1' * 32}-{'2' * 32}.so"
    damaged.write_bytes(b"half a lib")
    assert (
        looked_at._caches()[0] == "not known"
        and f"1 more are damaged, and are built again; delete {damaged}" in (looked_at._caches()[1])
    )
    monkeypatch.setattr(_compat, "kept_graphs", lambda: None)
    assert "Inductor's cache of graphs is off" in looked_at._caches()[1]
