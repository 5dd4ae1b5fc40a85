"""Cross compilation on a machine without a GPU: what is generated, what its binaries hold, what fails loudly, and that
nothing is left behind. Nothing here runs on a GPU."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections import Counter

import pytest
import torch
from models import MetaExperts, Net
from torch import nn

import quartet_compile as qc
from quartet_compile._compat.fake_gpu import code_only, fake_gpu, scratch_folder
from quartet_compile.config.options import configure
from quartet_compile.cross import binary
from quartet_compile.cross.artifact import Kernel
from quartet_compile.cross.backend import CrossBackend
from quartet_compile.cross.cross_compile import judge
from quartet_compile.cross.sass import issued
from quartet_compile.cross.traffic import kernel_traffic
from quartet_compile.machines.roofline import format_of_mma, predict
from quartet_compile.machines.targets import TARGETS, find_target

MLP = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.LayerNorm(128), nn.Linear(128, 64)).bfloat16()
X = torch.zeros(32, 64, dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def hopper():
    return qc.cross_compile(MLP, X, target="sm_90", recipe="bf16")


@pytest.fixture(scope="module")
def blackwell():
    linear = nn.Linear(128, 256, bias=False, device="meta", dtype=torch.bfloat16)
    x = torch.empty(128, 128, device="meta", dtype=torch.bfloat16, requires_grad=True)
    return qc.cross_compile(linear, x, target="sm_100")


def test_a_model_in_high_precision(hopper):
    assert hopper.graphs == ["forward 0", "backward 0"]
    assert all(kernel.registers > 0 and kernel.stack_bytes == 0 and kernel.threads >= 32 for kernel in hopper.kernels)
    assert all(".target sm_90" in kernel.ptx and kernel.cubin[:4] == b"\x7fELF" for kernel in hopper.kernels)
    calls = {call.name: call for call in hopper.library_calls}
    matmuls = [call for name, call in calls.items() if name in ("aten.mm", "aten.addmm")]
    assert sum(sum(call.launches.values()) for call in matmuls) == 2 + 3  # the model's input needs no gradient
    assert sum(call.operations for call in matmuls) == 5 * 2 * 32 * 64 * 128


def test_a_layer_norm_keeps_its_statistics_as_a_gpu_does(hopper):
    assert "empty_strided_cuda((32, 1), (1, 1), torch.float32)" in hopper.modules[0].source


def test_fp4_products_on_blackwell(blackwell):
    products = [kernel for kernel in blackwell.kernels if kernel.op.startswith("scaled_mm")]
    assert sum(sum(kernel.launches.values()) for kernel in products) == 3
    for kernel in products:
        assert [kind for kind in kernel.mma if kind.startswith("tcgen05.mma.kind::mxf4.block_scale")]
        assert 0 < kernel.tmem_columns <= 512 and kernel.stack_bytes == 0 and kernel.number_format == "mxfp4"
        assert kernel.operations == 2 * 128 * 128 * 256 * sum(kernel.launches.values())
        assert kernel.predicted_seconds > 0
    assert any(kernel.conversions for kernel in blackwell.kernels if kernel.op.startswith("quantize"))


def test_matmuls_beside_bf16(blackwell, hopper):
    """Each product with its share of what quantizes; nothing is lost or counted twice."""
    quantizing = [kernel for kernel in blackwell.kernels if not kernel.op.startswith("scaled_mm")]
    whole = blackwell.quantized
    assert sum(kernel.predicted_seconds for kernel in quantizing) == pytest.approx(whole.quantizing.full)
    assert sum(kernel.realistic_seconds for kernel in quantizing) == pytest.approx(whole.quantizing.realistic)
    assert sorted((one.m, one.n, one.k) for one in blackwell.matmuls) == [
        (128, 128, 256),
        (128, 256, 128),
        (256, 128, 128),
    ]
    assert all(one.quantizing.full > 0 and one.number_format == "mxfp4" for one in blackwell.matmuls)
    assert blackwell.unfed.full == 0 and blackwell.speedup >= blackwell.realistic_speedup > 0
    assert {one.speedup for one in hopper.matmuls} == {1.0}


def test_the_loops_of_a_product_hold_all_its_matrix_instructions():
    """Trips times instructions is the work: 128 x 128 x 64 multiply-adds a UTCOMMA, whose thread issues for its CTA."""
    linear = nn.Linear(4096, 1024, bias=False, device="meta", dtype=torch.bfloat16)
    with torch.no_grad():
        art = qc.cross_compile(linear, torch.empty(4096, 4096, device="meta", dtype=torch.bfloat16), target="sm_100")
    (product,) = (kernel for kernel in art.kernels if kernel.op == "scaled_mm_tma")
    ctas = min(TARGETS["sm_100"].processors, (4096 // 128) * (1024 // 128))
    counted = issued(binary.disassemble(product.cubin), ctas)
    assert counted["UTCOMMA"] * 128 * 128 * 64 == 4096 * 1024 * 4096
    assert product.instructions == counted.total() * product.threads


def test_the_table_and_the_json(blackwell, hopper):
    text = str(blackwell)
    assert "predicted us" in text.splitlines()[0]
    assert "not run. Times are predicted" in text and "8 TB/s" in text and "fp4 9000" in text
    assert [line for line in text.splitlines() if line.startswith("scaled_mm") and "tcgen05.mma.kind::mxf4" in line]
    assert "extern (library)" in str(hopper)
    assert [line for line in text.splitlines() if line.startswith("all quantized")]
    assert f"Quantized matmuls: {blackwell.speedup:.2f}x bf16 predicted" in text
    assert "Quantized matmuls" not in str(hopper)
    compared = json.loads(blackwell.to_json())
    assert (compared["speedup"], compared["realistic_speedup"]) == (blackwell.speedup, blackwell.realistic_speedup)
    assert len(compared["matmuls"]) == 3 and compared["quantized"]["quantizing_share"] > 0
    data = json.loads(hopper.to_json())
    assert data["speedup"] is None and {one["number_format"] for one in data["matmuls"]} == {""}
    assert data["target"]["chip"] == "H200 SXM" and data["failures"] == []
    assert len(data["kernels"]) == len(hopper.kernels) and "ptx" not in data["kernels"][0]
    assert "ptx" in json.loads(hopper.to_json(text=True))["kernels"][0]


def test_sources_and_binaries_are_written(hopper, tmp_path):
    hopper.write(tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"forward_0.py", "backward_0.py"} <= names
    assert all(sum(name.endswith(end) for name in names) >= len(hopper.kernels) for end in (".py", ".ptx", ".cubin"))


class Mixed(nn.Module):
    """What is awkward to move to a GPU: attention, embeddings, tables as attributes, constants, dropout, a graph break."""

    def __init__(self, head: int = 32) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(50, 64), nn.Linear(64, 64, bias=False)
        self.table, self.head = torch.randn(16, 64), head

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids) + self.table + torch.arange(64, device=ids.device)
        x = torch.dropout(x * torch.tensor([1.0, 2.0] * 32, device=ids.device), 0.1, self.training)
        torch._dynamo.graph_break()
        q = x.to(self.out.weight.dtype).unflatten(-1, (-1, self.head)).transpose(1, 2)
        y = nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    "target, instruction", [("sm_100", "tcgen05.mma.kind::mxf4"), ("sm_120", "mma.sync.m16n8k64.kind::mxf4nvf4")]
)
def test_grouped_products_are_fp4_on_blackwell(target, instruction):
    x = torch.empty(256, 128, device="meta", dtype=torch.bfloat16, requires_grad=True)
    art = qc.cross_compile(MetaExperts(), x, torch.empty(4, device="meta", dtype=torch.int32), target=target)
    products = [kernel for kernel in art.kernels if kernel.op == "scaled_grouped_mm"]
    assert len(products) == 3
    for kernel in products:
        assert any(kind.startswith(instruction) for kind in kernel.mma) and kernel.stack_bytes == 0


@pytest.mark.parametrize("dtype, kernel", [(torch.bfloat16, "flash"), (torch.float32, "efficient")])
def test_awkward_models(dtype, kernel):
    art = qc.cross_compile(Mixed().to(dtype), torch.zeros(2, 16, dtype=torch.long), target="sm_80", recipe="bf16")
    assert art.graphs == ["forward 0", "backward 0", "forward 1", "backward 1"]
    assert len(art.report.eager) == 1
    names = {call.name for call in art.library_calls}
    attention = f"aten._scaled_dot_product_{kernel}_attention"
    assert {attention, f"{attention}_backward"} <= names


def test_inference_has_one_graph():
    with torch.no_grad():
        art = qc.cross_compile(nn.Linear(64, 64), torch.zeros(4, 64), target="sm_120", recipe="bf16")
    assert art.graphs == ["inference 0"]


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("target", ["sm_90", "sm_100"])
def test_a_product_of_more_outputs_than_32_bits_count(target, dynamic):
    """Places have 64 bits then, and a descriptor takes 32."""
    linear = nn.Linear(128, 16384, bias=False, device="meta", dtype=torch.bfloat16)
    x = torch.empty(131072, 128, device="meta", dtype=torch.bfloat16)
    if dynamic:
        torch._dynamo.mark_dynamic(x, 0)
    with torch.no_grad():
        art = qc.cross_compile(linear, x, target=target)
    (product,) = (kernel for kernel in art.kernels if kernel.op.startswith("scaled_mm"))
    assert "INDEX_DTYPE : tl.constexpr = tl.int64" in product.source and "make_tensor_descriptor" in product.source


def test_an_input_that_reads_a_larger_tensor_joins_no_kernel_of_short_places():
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.Linear(8192, 32, bias=False, device="meta", dtype=torch.bfloat16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            gate, up = x.chunk(2, -1)
            return self.down(nn.functional.silu(gate) * up)

    for rows, joins in ((131072, False), (65536, True)):
        with torch.no_grad():
            x = torch.empty(rows, 16384, device="meta", dtype=torch.bfloat16)
            art = qc.cross_compile(Gated(), x, target="sm_120")
        ours = [kernel.source for kernel in art.kernels if kernel.op == "quantize"]
        assert any("tl.sigmoid" in source for source in ours) == joins
        assert all("INDEX_DTYPE : tl.constexpr = tl.int32" in source for source in ours)


@pytest.mark.parametrize(("hidden", "joins"), [(16352, False), (8160, True)])
def test_an_epilogue_that_reads_a_larger_tensor_is_a_kernel_of_its_own(hidden, joins):
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(64, hidden, bias=False, device="meta", dtype=torch.bfloat16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.up(x[:, :64]) * torch.tanh(x[:, 64:])

    with torch.no_grad():
        x = torch.empty(131072, 64 + hidden, device="meta", dtype=torch.bfloat16)
        art = qc.cross_compile(Gated(), x, target="sm_120")
    (product,) = (kernel.source for kernel in art.kernels if kernel.op == "scaled_mm")
    assert ("tanh" in product) == joins and "INDEX_DTYPE : tl.constexpr = tl.int32" in product


PARTS = {
    "columns": lambda wide: wide[:, 8192:],
    "every second": lambda wide: wide[:, torch.arange(8192, device=wide.device) * 2 + 1],
    "columns cut off": lambda wide: nn.functional.pad(wide, (-8192, 0)),
    "columns gathered": lambda wide: wide.gather(1, wide[:, :8192].long()),
}
PAIRS = {"pairs summed": lambda wide: wide.unflatten(1, (8192, 2)).sum(2)}
"""By a sum so short that Inductor writes it out; known to the kernel of an input alone, by what it reads."""


@pytest.mark.parametrize(
    ("place", "part"), [("in an epilogue", part) for part in PARTS] + [("in an input", part) for part in PARTS | PAIRS]
)
def test_a_part_that_grows_beyond_32_bits_is_compiled_again(place, part):
    """The kernel that it is in counts in 32 bits, and nothing else that it reads grows as large."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.Linear(8192, 32, bias=False, device="meta", dtype=torch.bfloat16)
            self.up = nn.Linear(64, 8192, bias=False, device="meta", dtype=torch.bfloat16)

        def forward(self, x: torch.Tensor, wide: torch.Tensor) -> torch.Tensor:
            read = torch.tanh((PARTS | PAIRS)[part](wide))
            return self.down(read) if place == "in an input" else self.up(x) * read

    torch._dynamo.reset()
    backend, made = CrossBackend(configure({}), find_target("sm_120")), []
    compiled = torch.compile(Gated(), backend=backend, dynamic=True)
    with torch.no_grad(), scratch_folder() as folder, code_only(folder, backend.on_joint_graph):
        for rows in (65536, 131000, 131200):
            inputs = [torch.empty(rows, columns, device="meta", dtype=torch.bfloat16) for columns in (64, 16384)]
            for tensor in inputs:
                torch._dynamo.mark_static(tensor, 1)
            compiled(*inputs)
            made.append(len(backend.modules))
    assert made == [1, 1, 2]
    assert all(site.rewritten for graph in backend.graphs for site in graph.sites)
    small, large = (backend.modules[at].source for at in (0, -1))
    assert small.count(".run(") < large.count(".run(")  # what reads the part is a kernel of its own


def test_what_is_picked_out_of_a_later_tensor_keeps_no_epilogue_out():
    """As a loss picks the targets' logits, which the products before them can't read."""

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(64, 8192, bias=False, device="meta", dtype=torch.bfloat16)

        def forward(self, x: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = torch.tanh(self.up(x))
            twice = y[:, :, None].expand(-1, -1, 2) + targets[:, :, None]
            return y, twice.flatten(1).gather(1, targets)

    with torch.no_grad():
        x = torch.empty(131200, 64, device="meta", dtype=torch.bfloat16)
        art = qc.cross_compile(Head(), x, torch.empty(131200, 1, device="meta", dtype=torch.int64), target="sm_120")
    (product,) = (kernel.source for kernel in art.kernels if kernel.op == "scaled_mm")
    assert "tanh" in product


def test_fp8_values_beyond_32_bits_have_places_of_64():
    """A product whose operand has 2^31 values has half as many bytes of codes, whose places have 32 bits."""
    linear = nn.Linear(69632, 128, bias=False, device="meta", dtype=torch.bfloat16)
    with torch.no_grad():
        art = qc.cross_compile(linear, torch.empty(32768, 69632, device="meta", dtype=torch.bfloat16), target="sm_89")
    (product,) = (kernel for kernel in art.kernels if kernel.op == "scaled_mm_fp8")
    assert re.search(r"m(ul|ad)\.wide\.[su]32[^;]*\b69632\b|m(ul|ad)\.lo\.s64[^;]*\b69632\b", product.ptx)


def test_blocks_that_share_a_graph_are_all_in_the_report():
    """In float32, with products of one short step and gradients of ReLU behind their rotation: none of them spills."""
    artifact = qc.cross_compile(Net(blocks=3, break_graph=True, hidden=256), torch.randn(2, 64, 64), target="sm_100")
    names = {site.name for site in artifact.report.sites if site.rewritten}
    assert names == {f"layers.{block}.{part}" for block in range(3) for part in ("up", "down")}
    assert "of one run of each graph" in str(artifact)


def test_the_same_kernel_of_two_graphs_is_compiled_once():
    class Twice(nn.Module):
        def forward(self, x):
            y = torch.tanh(x)
            torch._dynamo.graph_break()
            return torch.tanh(y)

    with torch.no_grad():
        art = qc.cross_compile(Twice(), torch.zeros(64), target="sm_90")
    assert [dict(kernel.launches) for kernel in art.kernels] == [{"inference 0": 1, "inference 1": 1}]


# What is wrong


def test_an_unknown_target():
    with pytest.raises(qc.OptionError, match=r"Unknown target 'sm_1000' \(did you mean 'sm_100'\?\).*sm_120 \(RTX"):
        qc.cross_compile(MLP, X, target="sm_1000")


def test_another_chip_of_an_architecture():
    chip = dataclasses.replace(find_target("sm_90"), chip="H20", rates={"float32": 44e12, "bf16": 148e12})
    art = qc.cross_compile(nn.Linear(64, 64), torch.zeros(4, 64), target=chip, recipe="bf16")
    assert "one H20" in str(art)


HEAD = """
import triton
import triton.language as tl
from torch._inductor.runtime import triton_helpers, triton_heuristics
from torch._inductor.runtime.hints import DeviceProperties
triton_helpers.set_driver_to_gpu()

@triton_heuristics.template(
    num_stages=1, num_warps=1,
    triton_meta={'signature': {'in_ptr0': '*fp32', 'out_ptr0': '*fp32'}, 'constants': {}, 'configs': [{}],
                 'device': DeviceProperties(type='cuda', index=0, multi_processor_count=132, cc=90, major=9,
                                            regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048,
                                            max_threads_per_block=1024, warp_size=32)},
    inductor_meta={'kernel_name': 'kernel', 'grid_type': 'FixedGrid', 'fixed_grid': ['1', '1', '1']},
)
@triton.jit
def kernel(in_ptr0, out_ptr0):
"""
SPILLS = (
    HEAD
    + """
    index = tl.arange(0, 16384)
    x = tl.load(in_ptr0 + index)
    tl.store(out_ptr0 + index, x * tl.sum(x))
"""
)
EMPTY = (
    HEAD
    + """
    x = tl.load(in_ptr0)
"""
)


@pytest.mark.parametrize("source, failure", [(SPILLS, "bytes of stack a thread"), (EMPTY, "its body is empty")])
def test_bad_kernels_are_seen_in_their_binaries(source, failure, tmp_path):
    target = TARGETS["sm_90"]
    with fake_gpu(target):
        made = binary.compile_kernel("kernel", source, str(tmp_path), target)
    read = {name: value for name, value in vars(made).items() if name != "stores"}
    ours = Kernel(name="kernel", source=source, op="quantize", number_format="mxfp4", **read)
    assert failure in judge(ours, made.stores, target)[0][0]


def test_a_spill_of_inductors_own_is_a_note():
    failures, notes = judge(Kernel(name="k", source="", stack_bytes=8), True, TARGETS["sm_100"])
    assert not failures and "8 bytes of stack" in notes[0]


def test_shared_memory_of_inductors_own_is_a_note():
    """Inductor measures several configurations, and one that asks for too much drops out."""
    failures, notes = judge(Kernel(name="k", source="", shared_bytes=131128), True, TARGETS["sm_120"])
    assert not failures and "131128 bytes of shared memory; a CTA has at most 101376" in notes[0]


@pytest.mark.parametrize(
    "fields, target, failure",
    [
        ({"tmem_columns": 1024}, "sm_100", "1024 columns of tensor memory; there are 512"),
        ({"shared_bytes": 120000}, "sm_120", "120000 bytes of shared memory; a CTA has at most 101376"),
        ({"mma": Counter({"tcgen05.mma.kind::f16": 8})}, "sm_100", "no FP4 matrix instruction, which sm_100 has"),
        ({"mma": Counter({"tcgen05.mma.kind::f16": 8})}, "sm_90", None),
        ({"mma": Counter({"mma.sync.m16n8k64.kind::mxf4nvf4.block_scale.e2m1": 8})}, "sm_120", None),
        ({"number_format": "mxfp8"}, "sm_100", "no FP8 matrix instruction, which sm_100 has"),
    ],
)
def test_what_a_product_of_ours_must_have(fields, target, failure):
    usual = {"mma": Counter({"tcgen05.mma.kind::mxf4.block_scale": 8}), "number_format": "mxfp4"}
    kernel = Kernel(name="k", source="", op="scaled_mm", **{**usual, **fields})
    failures, _ = judge(kernel, True, TARGETS[target])
    assert [line for line in failures if failure and failure in line] if failure else not failures


def test_the_error_lists_every_failed_kernel_and_has_the_artifact(monkeypatch):
    def fails(name, source, folder):
        raise RuntimeError(f"no code for {name}")

    monkeypatch.setattr(binary, "compile_kernel", fails)
    with pytest.raises(qc.CrossCompileError, match="failures in the kernels compiled for sm_90") as caught:
        qc.cross_compile(MLP, X, target="sm_90", recipe="bf16")
    art = caught.value.artifact
    assert len(art.failures) == len(art.kernels) > 1
    assert all(kernel.name in str(caught.value) and kernel.source for kernel in art.kernels)
    assert "FAILED" in str(art)


def test_a_model_that_does_not_run():
    with pytest.raises(qc.CaptureError, match="same reduction dim"):
        qc.cross_compile(nn.Linear(64, 64), torch.zeros(4, 63))


# What is left behind


def state():
    """What cross compilation changes for its time, and must put back."""
    import torch._functorch.config
    import torch._inductor.config
    import triton.runtime
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor import compile_fx, graph, select_algorithm
    from torch._inductor.codecache import PyCodeCache
    from torch._inductor.fx_passes import joint_graph
    from torch._inductor.runtime import triton_helpers
    from torch._subclasses import FakeTensor
    from torch.utils._triton import has_triton

    owners = (torch.cuda, CudaInterface, CudaInterface.Worker, FakeTensor, graph.GraphLowering, triton_helpers, compile_fx,
              select_algorithm.AlgorithmSelectorCache, joint_graph.UniformValueConstantFolder)  # fmt: skip
    return {
        **{f"{owner.__name__}.{name}": id(value) for owner in owners for name, value in vars(owner).items()
           if not name.startswith("__") or name in ("__init__", "__invert__", "__getitem__")},
        "driver": triton.runtime.driver._active,
        "environment": dict(os.environ),
        "inductor": torch._inductor.config.get_config_copy(),
        "functorch": torch._functorch.config.get_config_copy(),
        "random": torch.get_rng_state().tolist(),
        "has_triton": has_triton(),
        "modules": len(PyCodeCache.modules),
        "cuda": torch.cuda.is_available(),
        "stream": hasattr(torch._C, "_cuda_getCurrentRawStream"),
    }  # fmt: skip


def changed(before, after):
    return {name for name in before.keys() | after.keys() if before.get(name, "absent") != after.get(name, "absent")}


@pytest.mark.parametrize("fails", ["", "capture", "codegen", "compile"])
def test_nothing_is_left_behind(fails, monkeypatch):
    qc.explain(MLP, X)
    weights = {name: (id(p), p.clone(), p.grad) for name, p in MLP.named_parameters()}
    x = torch.zeros(3, 5, dtype=torch.bfloat16) if fails == "capture" else X
    if fails == "codegen":
        monkeypatch.setattr("quartet_compile.cross.generated.reinterpret", None)  # called by the generated wrapper
    if fails == "compile":
        monkeypatch.setattr(binary, "triton_bin", lambda: binary.pathlib.Path("/nowhere"))
    before = state()
    if fails:
        with pytest.raises(qc.QuartetError, match={"codegen": "could not generate the graph 'forward 0'"}.get(fails)):
            qc.cross_compile(MLP, x, target="sm_90", recipe="bf16")
    else:
        qc.cross_compile(MLP, x, target="sm_90", recipe="bf16")
    assert not changed(before, state())
    for name, p in MLP.named_parameters():
        assert id(p) == weights[name][0] and torch.equal(p, weights[name][1]) and p.grad is weights[name][2]
    compiled = torch.compile(nn.Linear(8, 8), backend="inductor")  # on the CPU, as ever
    assert compiled(torch.zeros(2, 8)).device.type == "cpu"


# Predictions


def test_rooflines():
    target = TARGETS["sm_100"]
    assert predict(8_000_000_000, 0, "float32", target) == (1e-3, "memory")
    assert predict(0, 9_000_000_000_000, "fp4", target) == (1e-3, "fp4")
    assert predict(1, None, "fp4", target) == (None, "")


@pytest.mark.parametrize(
    "instruction, kind, number_format",
    [
        (
            "tcgen05.mma.cta_group::1.kind::mxf4.block_scale.scale_vec::2X",
            "tcgen05.mma.kind::mxf4.block_scale.block32",
            "fp4",
        ),
        (
            "mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::4X.f32.e2m1.e2m1.f32.ue4m3",
            "mma.sync.m16n8k64.kind::mxf4nvf4.block_scale.block16.e2m1.ue4m3",
            "fp4",
        ),
        ("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", "mma.sync.m16n8k16.bf16", "bf16"),
        ("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16", "wgmma.m64n128k16.bf16", "bf16"),
        ("wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3", "wgmma.m64n128k32.e4m3", "fp8"),
        ("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", "mma.sync.m16n8k8.tf32", "tf32"),
    ],
)
def test_kinds_of_matrix_instructions(instruction, kind, number_format):
    assert binary.mma_kind(instruction) == kind
    assert format_of_mma([kind]) == number_format


def test_traffic_of_our_product():
    source = "# quartet: scaled_mm mxfp4, x\n    M = 256\n    N = 128\n    K = 192 * 2\n"
    buffer, out = torch.empty(100000, dtype=torch.uint8), torch.empty(256, 128, dtype=torch.bfloat16)
    given = {"arg_A": buffer, "arg_A_SCALES": buffer, "arg_B": buffer, "out_ptr0": out}
    packed = (256 + 128) * 384 // 2 + (256 + 128) * 384 // 32
    assert kernel_traffic("k", source, given) == (packed + 256 * 128 * 2, 2 * 256 * 128 * 384)


def test_traffic_of_inductors_kernels():
    x = torch.empty(64)
    assert kernel_traffic("k", "", {"in_ptr0": x, "out_ptr0": torch.empty(64), "xnumel": 64}) == (512, 0)
    assert kernel_traffic("k", "", {"in_out_ptr0": x}) == (512, 0)
    assert kernel_traffic("k", "", {"in_ptr0": torch.empty(1, 64).expand(100, 64)}) == (256, 0)
    a, b = torch.empty(8, 16), torch.empty(16, 4)
    assert kernel_traffic("triton_tem_fused_mm_0", "", {"arg_A": a, "arg_B": b})[1] == 2 * 8 * 16 * 4
