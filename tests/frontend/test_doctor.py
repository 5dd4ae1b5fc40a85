"""The command `doctor`: what it finds here, and its exit code where something is wrong."""

from __future__ import annotations

import json

import pytest

from quartet_compile import _compat, doctor
from quartet_compile.__main__ import main
from quartet_compile.kernels.cpu import toolchain


def found(capsys):
    code = main(["doctor", "--json"])
    return code, {check["name"]: check for check in json.loads(capsys.readouterr().out)}


def test_a_machine_that_works(capsys):
    code, checks = found(capsys)
    assert code == 0
    assert checks["bits"]["state"] == "ok" and "equal the reference" in checks["bits"]["found"]
    assert checks["MXFP4"]["found"].startswith("CPU: emulated in")
    assert checks["speed"]["state"] == "not known"


def test_a_line_each(capsys):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(doctor.examine()) and lines[0].startswith("quartet-compile  ok ")


def test_other_bits_are_a_failure(capsys, monkeypatch):
    quantize = doctor.native.quantize
    monkeypatch.setattr(doctor.native, "quantize", lambda x, chosen, **seeds: quantize(2 * x + 1, chosen, **seeds))
    code, checks = found(capsys)
    assert code == 1 and checks["bits"]["state"] == "failed" and "nvfp4-rtn" in checks["bits"]["found"]


def test_another_product_is_a_failure(capsys, monkeypatch):
    """Of rows whose scales are apart only: what AMX multiplies by bf16."""
    product = doctor.scaled_mm

    def wrong(a, b, *rest):
        return product(a, b, *rest) + (a.scales.max() > 120)

    monkeypatch.setattr(doctor, "scaled_mm", wrong)
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
