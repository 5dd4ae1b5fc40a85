"""Products on AMX. No machine of ours has it: the same source runs with its instructions emulated (amx_tiles.h), and is
compiled for the real ones."""

import os
import pathlib
import subprocess
import sys

import pytest
import torch

from quartet_compile.errors import OptionError
from quartet_compile.kernels import paths
from quartet_compile.kernels.cpu import amx, loader, toolchain

HERE = pathlib.Path(__file__).parent
SUPPORT = HERE.parent / "support"
AMX_FLAGS = tuple("-m" + feature for feature in toolchain.ISA_FEATURES["amx"])


@pytest.fixture
def flags() -> list[str]:
    compiler = toolchain.require_compiler()
    command = [compiler, *AMX_FLAGS, "-x", "c++", "-fsyntax-only", os.devnull]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip(f"{compiler} does not know AMX")
    return [compiler, *(flag for flag in toolchain.toolchain().compile_flags if not flag.startswith("-m")), *AMX_FLAGS]


@pytest.mark.skipif("avx512vnni" not in toolchain.supported_isas(), reason="the packing needs AVX512")
@pytest.mark.parametrize("path", [SUPPORT / "amx_cases.py", HERE / "test_cpu_gemm.py"], ids=["tiles", "every product"])
def test_products_by_emulated_tiles(path, flags):
    environment = os.environ | {toolchain.ISA_VARIABLE: "avx512vnni", "PYTHONPATH": str(SUPPORT)}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "emulated_amx",
        "-k",
        "not 131072",
    ]
    done = subprocess.run([*command, str(path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_real_instructions(flags):
    source = str(loader.SOURCES / "gemm.cpp")
    assembly = toolchain.run([*flags, "-S", "-o", "-", source])
    for instruction in ("ldtilecfg", "tileloadd", "tdpbssd", "tdpbf16ps", "tilestored", "tilerelease"):
        assert f"\t{instruction}\t" in assembly or f"\t{instruction}\n" in assembly, instruction


@pytest.fixture
def amx_cpu(monkeypatch):
    """A CPU that has AMX, as /proc/cpuinfo tells it."""
    present = {toolchain._plain(feature) for feature in toolchain.ISA_FEATURES["amx"]}
    monkeypatch.setattr(toolchain, "_cpu_features", lambda: present)
    monkeypatch.setattr(toolchain, "isa", toolchain.isa.__wrapped__)
    monkeypatch.setattr(paths, "isa", toolchain.isa)
    monkeypatch.delenv(toolchain.ISA_VARIABLE, raising=False)


PRODUCTS = [(name, name, False) for name in ("mxfp4", "nvfp4", "mxfp8")]


def test_amx_where_it_may_be_used(amx_cpu, monkeypatch):
    monkeypatch.setattr(toolchain, "reason_against_amx", lambda compiler: None)
    assert toolchain.supported_isas()[:2] == ["amx", "avx512vnni"] and toolchain.isa() == "amx"
    texts = [paths.path_of(torch.device("cpu"), [product]) for product in PRODUCTS]
    assert texts == [
        f"CPU: emulated in {units} (AMX), no FP4 hardware" for units in ("int8 and bf16", "bf16", "float32")
    ]


def test_amx_refused(amx_cpu, monkeypatch):
    """The level below, and a word of why wherever the path is named."""
    monkeypatch.setattr(toolchain, "reason_against_amx", lambda compiler: "Linux refuses the permission")
    assert toolchain.isa() == "avx512vnni" and toolchain.supported_isas()[0] == "avx512vnni"
    why = "this CPU's AMX can't be used: Linux refuses the permission"
    path = paths.path_of(torch.device("cpu"), PRODUCTS[:1])
    assert path == f"CPU: emulated in int8 (AVX512-VNNI; {why}), no FP4 hardware"
    monkeypatch.setenv(toolchain.ISA_VARIABLE, "amx")
    with pytest.raises(OptionError, match=f"is 'amx', but {why}; it supports avx512vnni, .*Unset"):
        toolchain.isa()


@pytest.mark.skipif("amxtile" in toolchain._cpu_features(), reason="this CPU has AMX")
def test_linux_gives_no_amx_where_there_is_none():
    assert "Linux refuses the permission (arch_prctl: " in amx.reason_against_amx.__wrapped__("c++")
