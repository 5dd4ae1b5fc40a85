"""A packed model is exported with the codes that it holds, by `qc.export` and `qc.export_state`."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from tiny_llama import INPUTS, LLAMA, gpt_oss

import quartet_compile as qc

pytestmark = pytest.mark.filterwarnings("ignore:quartet QC301", "ignore:You passed")


def llama(**options):
    """A frozen one, and its state before it was packed."""
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(LLAMA, dtype=torch.bfloat16).requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return qc.pack(model, **options), before


@pytest.mark.parametrize("recipe", ["quartet", "quartet2", "jetfire-fp4"])
def test_the_file_has_the_codes_of_the_memory(recipe, tmp_path):
    """And is the file of the model before it was packed, bit for bit."""
    model, before = llama(recipe=recipe)
    made = qc.export(model, tmp_path / "packed", format="compressed-tensors", recipe=recipe)
    assert [each.error for each in made.tensors if each.error is not None] == 7 * [0.0]
    found = load_file(tmp_path / "packed" / "model.safetensors")
    for name, module in model.named_modules():
        if hasattr(module, "weight_packed"):
            assert torch.equal(found[f"{name}.weight_packed"], module.weight_packed)
            assert torch.equal(found[f"{name}.weight_scale"].view(torch.uint8), module.weight_scale)
    unpacked = hf.AutoModelForCausalLM.from_config(LLAMA, dtype=torch.bfloat16)
    unpacked.load_state_dict(before)
    qc.export(unpacked, tmp_path / "plain", format="compressed-tensors", recipe=recipe)
    expected = load_file(tmp_path / "plain" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name].view(torch.uint8), expected[name].view(torch.uint8)) for name in expected)
    configs = [(tmp_path / which / "config.json").read_text() for which in ("packed", "plain")]
    assert configs[0] == configs[1]


def test_packed_experts_go_to_gpt_oss_files(tmp_path):
    """From the file that they were loaded of, back to one with the same blocks."""
    recipe = qc.unrotated("quartet")
    model = gpt_oss()
    qc.export(model, tmp_path / "first", format="gpt-oss", recipe=recipe)
    other = gpt_oss()
    qc.load_fp4(other, tmp_path / "first")
    qc.export(other, tmp_path / "second", format="gpt-oss", recipe=recipe)
    first, second = (load_file(tmp_path / which / "model.safetensors") for which in ("first", "second"))
    experts = [name for name in first if ".experts." in name and name.endswith(("_blocks", "_scales"))]
    assert len(experts) == 4 and all(torch.equal(first[name], second[name]) for name in experts)
    assert {name: tensor.shape for name, tensor in first.items()} == {
        name: tensor.shape for name, tensor in second.items()
    }


def test_bf16_and_what_stays_in_high_precision(tmp_path):
    """A head that is packed and runs in high precision is written with the values of its codes."""
    model, _ = llama(include=["*"])
    report = qc.explain(model, kwargs=INPUTS)
    (head,) = (site for site in report.sites if site.name == "lm_head")
    assert not head.rewritten
    values = {
        name: module.weight.as_subclass(torch.Tensor)
        for name, module in model.named_modules()
        if hasattr(module, "weight_packed")
    }
    qc.export(model, tmp_path / "served", format="bf16", report=report)
    found = load_file(tmp_path / "served" / "model.safetensors")
    assert "lm_head" in values and all(torch.equal(found[f"{name}.weight"], value) for name, value in values.items())


def test_the_state_in_memory():
    model, _ = llama()
    found = dict(qc.export_state(model))
    layer = "model.layers.0.mlp.up_proj"
    assert torch.equal(found[f"{layer}.weight_packed"], model.get_submodule(layer).weight_packed)


def test_rotated_codes_dont_lose_their_rotation(tmp_path):
    """That would round a second time; the weights before packing are what `unrotated` is for."""
    model, _ = llama()
    with pytest.raises(
        qc.ExportError, match="is packed in codes that are rotated by 32; unrotated=True needs the weight"
    ):
        qc.export(model, tmp_path / "served", format="compressed-tensors", unrotated=True)
    assert not (tmp_path / "served").exists()
