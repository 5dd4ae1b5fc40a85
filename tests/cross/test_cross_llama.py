"""A Llama block's forward and backward, compiled for each architecture by the command line: which instructions the products
became, and that nothing spills. Two processes at a time, one for each target."""

from __future__ import annotations

import concurrent.futures
import json
import pathlib
import re
import subprocess
import sys
from collections import Counter

import pytest

pytest.importorskip("triton")

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
MODEL = """
import sys
sys.path.insert(0, {examples!r})
import torch
from llama import Block, Size, rotary_table

def build():
    size = Size(layers=1, width=96, heads=2, lr=0.0, seq=64)
    with torch.device("meta"):
        cos, sin = (table.bfloat16() for table in rotary_table(size.seq, size.width // size.heads))
        x = torch.empty(4, size.seq, size.width, dtype=torch.bfloat16, requires_grad=True)
        return Block(size).bfloat16(), (x, cos, sin)
"""
QUICK = ("sm_90", "sm_100", "sm_120")
OTHERS = ("sm_80", "sm_89", "sm_103")

TENSOR_MEMORY = ("scaled_mm_tma", {"tcgen05.mma.kind::mxf4.block_scale.block32"})
PRODUCTS = {
    "sm_89": ("scaled_mm_fp8", {"mma.sync.m16n8k32.e4m3", "mma.sync.m16n8k16.bf16"}),
    "sm_90": ("scaled_mm_fp8", {"wgmma.m64n128k32.e4m3", "wgmma.m64n128k16.bf16"}),
    "sm_100": TENSOR_MEMORY,
    "sm_103": TENSOR_MEMORY,
    "sm_120": ("scaled_mm", {"mma.sync.m16n8k64.kind::mxf4nvf4.block_scale.block32.e2m1.ue8m0"}),
}
"""The template of a product and its matrix instructions; bf16 where FP8 can't hold an operand. sm_80 has neither: there
the products are the library's."""

ROTATING = {"wgmma.m64n32k16.bf16"}
"""The instructions that only rotate a product back."""


def cross_compile(target, model):
    command = [sys.executable, "-m", "quartet_compile", "cross-compile", f"{model}:build", "--target", target]
    command += ["--json", "--out", str(model.with_name(target))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    sources = [path.read_text() for path in model.with_name(target).glob("*_triton_*.py")]
    return {**json.loads(done.stdout), "sources": sources}


@pytest.fixture(scope="module")
def artifacts(request, tmp_path_factory):
    wanted = {item.callspec.params["target"] for item in request.session.items if item.module is request.module}
    model = tmp_path_factory.mktemp("cross_llama") / "block.py"
    model.write_text(MODEL.format(examples=str(EXAMPLES)))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return dict(zip(sorted(wanted), pool.map(lambda t: cross_compile(t, model), sorted(wanted)), strict=True))


targets = pytest.mark.parametrize("target", [*QUICK, *(pytest.param(t, marks=pytest.mark.slow) for t in OTHERS)])


@targets
def test_what_becomes_of_a_block(artifacts, target):
    artifact = artifacts[target]
    assert artifact["failures"] == []
    ours = [kernel for kernel in artifact["kernels"] if kernel["op"]]
    launches = Counter()
    for kernel in ours:
        assert kernel["stack_bytes"] == 0, kernel["name"]
        assert kernel["tmem_columns"] <= 512
        assert kernel["predicted_seconds"] > 0
        launches[kernel["op"]] += sum(kernel["launches"].values())
    assert launches["quantize"] == 4 + 7  # X of q, k, v; of o; of gate, up; of down. And seven W
    assert launches["quantize_pair"] == 7
    assert launches["requantize"] == 4 + 7

    library = sum(sum(c["launches"].values()) for c in artifact["library_calls"] if c["name"].startswith("aten.mm"))
    assert library == (21 if target == "sm_80" else 0)
    assert launches["unrotate"] == (14 if target == "sm_80" else 0)
    if target in PRODUCTS:
        op, instructions = PRODUCTS[target]
        assert launches[op] == 21
        for kernel in ours:
            if kernel["op"] == op:
                assert set(kernel["mma"]) - ROTATING == instructions
                assert (kernel["tmem_columns"] > 0) == (PRODUCTS[target] is TENSOR_MEMORY)
    assert {site["rewritten"] for graph in artifact["report"]["graphs"] for site in graph["sites"]} == {True, False}


@targets
def test_swiglu_and_its_gradient_take_one_exponential_each(artifacts, target):
    exponentials = [len(re.findall(r"\bexp\(|\bexp2\(|\bsigmoid\(", source)) for source in artifacts[target]["sources"]]
    assert sorted(filter(None, exponentials)) == [1, 1]


@targets
def test_conversion_to_e2m1(artifacts, target):
    """Rounding to nearest takes the instruction where there is one."""
    nearest = [k for k in artifacts[target]["kernels"] if k["op"] == "quantize"]
    native = int(target.removeprefix("sm_")) >= 100
    assert nearest
    for kernel in nearest:
        assert bool(kernel["conversions"]) == native, kernel["name"]
        assert not native or set(kernel["conversions"]) == {"cvt.rn.satfinite.e2m1x2.f32"}
