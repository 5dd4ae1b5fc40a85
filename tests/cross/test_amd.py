"""Cross compilation for AMD's gfx950. Kernels are compiled and their assembly is read; nobody has run any of them."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from models import MetaExperts
from torch import nn

pytest.importorskip("triton")

import quartet_compile as qc
from quartet_compile.cross import amdgcn
from quartet_compile.cross.artifact import Kernel
from quartet_compile.cross.cross_compile import judge
from quartet_compile.errors import QuartetError
from quartet_compile.kernels import paths
from quartet_compile.kernels.lowering import device
from quartet_compile.machines.targets import TARGETS

MATRIX = "v_mfma_scale_f32_32x32x64_f8f6f4"


def compiled(recipe="quartet"):
    linear = nn.Linear(256, 384, bias=False, device="meta", dtype=torch.bfloat16)
    x = torch.empty(512, 256, device="meta", dtype=torch.bfloat16, requires_grad=True)
    return qc.cross_compile(linear, x, target="gfx950", recipe=recipe)


@pytest.fixture(scope="module")
def mxfp4():
    return compiled()


def products(artifact, op="scaled_mm"):
    return [kernel for kernel in artifact.kernels if kernel.op == op]


def test_products_are_fp4_matrix_instructions(mxfp4):
    assert sum(sum(kernel.launches.values()) for kernel in products(mxfp4)) == 3
    assert all(set(kernel.mma) == {f"{MATRIX}.e2m1"} for kernel in products(mxfp4))
    assert Counter(kernel.op for kernel in mxfp4.kernels)["quantize_pair"] == 1


def test_what_the_report_has(mxfp4):
    """Registers, scratch and LDS of each kernel, and no time."""
    for kernel in mxfp4.kernels:
        assert 0 < kernel.registers <= 512 and kernel.stack_bytes == 0 and kernel.shared_bytes <= 160 * 1024
        assert kernel.threads % 64 == 0 and kernel.predicted_seconds is None and kernel.instructions is None
        assert any("instructions in its text" in note for note in kernel.notes)
        assert "gfx950" in kernel.ptx.partition("\n")[0] and kernel.cubin[:4] == b"\x7fELF"
    assert max(kernel.shared_bytes for kernel in products(mxfp4)) > 0
    assert mxfp4.speedup is None and mxfp4.realistic_speedup is None
    text = str(mxfp4)
    assert "No time is predicted" in text and "No GPU of AMD's has run" in text and "us predicted" not in text
    assert json.loads(mxfp4.to_json())["target"]["name"] == "gfx950"


def test_no_tile_function_is_in_ptx(mxfp4):
    """The assembler would refuse it; the instruction that rounds a product by itself is AMD's."""
    (pair,) = [kernel for kernel in mxfp4.kernels if kernel.op == "quantize_pair"]
    assert "v_mul_f32" in pair.ptx and not mxfp4.failures


def test_files_have_amds_names(mxfp4, tmp_path):
    mxfp4.write(tmp_path)
    ends = Counter(path.suffix for path in tmp_path.iterdir())
    assert ends == {".py": len(mxfp4.kernels) + 2, ".amdgcn": len(mxfp4.kernels), ".hsaco": len(mxfp4.kernels)}


def test_torch_is_as_before(mxfp4):
    assert torch.version.hip is None


@pytest.mark.parametrize(
    "recipe", [pytest.param("mxfp8", marks=pytest.mark.slow), pytest.param("nvfp4", marks=pytest.mark.slow)]
)
def test_other_formats(recipe):
    """MXFP8 has its instruction; scales of 16 elements are not the unit's, so NVFP4 is the library's product in bf16."""
    artifact = compiled(recipe)
    assert all(kernel.stack_bytes == 0 for kernel in artifact.kernels)
    kinds = {kind for kernel in products(artifact) for kind in kernel.mma}
    library = sum(sum(call.launches.values()) for call in artifact.library_calls if call.name == "aten.mm")
    assert (kinds, library) == (({f"{MATRIX}.e4m3"}, 0) if recipe == "mxfp8" else (set(), 3))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["quartet", "nvfp4"])
def test_grouped_products(recipe):
    x = torch.empty(256, 128, device="meta", dtype=torch.bfloat16, requires_grad=True)
    ends = torch.empty(4, device="meta", dtype=torch.int32)
    artifact = qc.cross_compile(MetaExperts(), x, ends, target="gfx950", recipe=recipe)
    grouped = products(artifact, "scaled_grouped_mm")
    assert len(grouped) == 3 and all(kernel.stack_bytes == 0 for kernel in grouped)
    assert all((set(kernel.mma) == {f"{MATRIX}.e2m1"}) == (recipe == "quartet") for kernel in grouped)


@pytest.mark.parametrize(
    ("fields", "failure"),
    [
        ({"mma": Counter({f"{MATRIX}.e2m1": 8})}, None),
        ({"mma": Counter({"v_mfma_f32_32x32x16_bf16": 8})}, "no FP4 matrix instruction, which gfx950 has"),
        ({"mma": Counter({f"{MATRIX}.e4m3": 8})}, "no FP4 matrix instruction"),
        ({"mma": Counter({"v_mfma_f32_32x32x16_bf16": 8}), "number_format": "nvfp4"}, None),
        ({"mma": Counter({f"{MATRIX}.e2m1": 8}), "shared_bytes": 200_000}, "200000 bytes of shared memory"),
        ({"mma": Counter({f"{MATRIX}.e2m1": 8}), "stack_bytes": 16}, "16 bytes of stack"),
    ],
)
def test_what_a_product_of_ours_must_have(fields, failure):
    kernel = Kernel(name="k", source="", op="scaled_mm", **{"number_format": "mxfp4", **fields})
    failures, _ = judge(kernel, True, TARGETS["gfx950"])
    assert (failures == ()) if failure is None else failure in failures[0]


ASSEMBLY = """
\tv_mfma_scale_f32_32x32x64_f8f6f4 v[0:15], v[20:23], v[24:27], v[0:15], v30, v31 op_sel_hi:[0,0,0] cbsz:4 blgp:4 ; x
\tv_mfma_scale_f32_32x32x64_f8f6f4 v[0:15], v[20:27], v[28:35], v[0:15], v36, v37 op_sel_hi:[0,0,0]
\tv_mfma_scale_f32_32x32x64_f8f6f4 v[0:15], v[20:27], v[28:35], v[0:15], v36, v37 op_sel_hi:[0,0,0] blgp:4
\tv_mfma_f32_16x16x32_bf16 a[0:3], v[0:3], v[4:7], a[0:3]
\tglobal_store_dwordx4 v2, v[4:7], s[0:1]
\ts_endpgm
    .group_segment_fixed_size: 4096
    .max_flat_workgroup_size: 256
    .private_segment_fixed_size: 12
    .vgpr_count:     318
"""


def test_what_is_read_of_an_assembly():
    assert amdgcn.matrix_instructions(ASSEMBLY) == {
        f"{MATRIX}.e2m1": 1,
        f"{MATRIX}.e4m3": 1,
        f"{MATRIX}.e4m3.e2m1": 1,
        "v_mfma_f32_16x16x32_bf16": 1,
    }
    assert amdgcn.resources(ASSEMBLY) == (318, 12, 4096, 256)
    assert amdgcn.instruction_count(ASSEMBLY) == 6 and amdgcn.stores(ASSEMBLY)
    assert not amdgcn.stores(ASSEMBLY.replace("global_store", "global_load"))
    with pytest.raises(QuartetError, match="tells no vgpr_count"):
        amdgcn.resources("")


def test_a_gpu_of_this_kind(monkeypatch):
    """What `doctor` and a compiled model say of it."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "AMD Instinct MI355X")
    gpu = torch.device("cuda", 0)
    assert device.has_fp4(gpu) and not device.converts_to_fp4(gpu) and not device.multiplies_in_fp8(gpu)
    text = paths.path_of(gpu, [("mxfp4", "mxfp4", False)])
    assert text == "AMD Instinct MI355X: native MXFP4, kernels that were compiled for gfx950 and that nobody has run"
    assert "emulated in bf16" in paths.path_of(gpu, [("nvfp4", "nvfp4", False)])
