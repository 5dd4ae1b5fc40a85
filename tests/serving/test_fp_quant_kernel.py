"""The values in an FP-Quant file against its own published kernel, where the package fp_quant is installed."""

from __future__ import annotations

import importlib.util
import pathlib

import pytest
import torch
from interpreted_module import in_interpreter
from safetensors.torch import load_file
from torch import nn

import quartet_compile as qc

SPEC = importlib.util.find_spec("fp_quant")


def kernel_values(weight, hadamard):
    """`mxfp4_forward_kernel` of fp_quant in Triton's interpreter: the rotated and quantized weight. Its package isn't
    imported, since that asks for a GPU."""
    path = pathlib.Path(SPEC.submodule_search_locations[0], "module/triton/mxfp4.py")
    spec = importlib.util.spec_from_file_location("fp_quant_mxfp4", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    out, size = torch.empty_like(weight), weight.numel()
    module.mxfp4_forward_kernel.fn[(size // 1024,)](
        weight, hadamard, out, None, n_elements=size, hadamard_dim=32, group_size=32,
        gaussian_scale=2.92247856 / 6.0, quest=True, BLOCK_SIZE=1024,
    )  # fmt: skip
    return out


@pytest.mark.skipif(SPEC is None, reason="needs fp_quant")
@pytest.mark.filterwarnings("ignore:quartet. exported as")
def test_the_published_kernel_gives_the_values_of_the_file(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128, bias=False))
    qc.export(model, tmp_path / "served", format="fp-quant", inputs=(torch.zeros(64, 64),), recipe="quartet")
    file = load_file(tmp_path / "served/model.safetensors")
    codes, scales = file["0.qweight"], file["0.scales"]
    levels = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    elements = torch.stack([codes & 15, codes >> 4], -1).flatten(-2).int()
    values = (
        levels[elements & 7] * (1 - 2 * (elements >> 3)) * torch.exp2(scales.float() - 127).repeat_interleave(32, -1)
    )
    hadamard = file["0.forward_hadamard_matrix"].float().sign() * 32**-0.5
    assert torch.equal(
        in_interpreter("tests/serving/test_fp_quant_kernel.py:kernel_values", model[0].weight.detach(), hadamard),
        values,
    )
