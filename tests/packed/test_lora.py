"""peft's LoRA beside packed weights."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers as hf
from captured import compiled
from peft import LoraConfig, get_peft_model
from tiny_llama import LLAMA
from torch import nn

import quartet_compile as qc


@pytest.fixture
def llama():
    torch.manual_seed(0)
    return hf.LlamaForCausalLM(LLAMA).bfloat16().requires_grad_(False)


def adapted(model, **options):
    torch.manual_seed(3)
    made = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj", "down_proj"], **options))
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
    return made


@pytest.mark.parametrize("recipe", ["quartet", "nvfp4"])
def test_loss_and_gradients_are_those_of_unpacked_weights(llama, recipe):
    tokens = torch.arange(3, 51).reshape(2, 24)
    found = []
    for base in (copy.deepcopy(llama), qc.pack(llama, recipe=recipe)):
        model = adapted(base)
        torch.manual_seed(5)
        loss = compiled(model, recipe=recipe)[0](input_ids=tokens, labels=tokens).loss
        loss.backward()
        found.append((loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (a, expected), (b, got) = found
    assert torch.equal(a, b) and got.keys() == expected.keys() and len(got) == 6
    assert all(torch.equal(got[name], expected[name]) for name in got)


def test_packing_after_the_adapters(llama):
    """The adapters are trained, so they stay."""
    model = qc.pack(adapted(llama))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 6 and all("lora_" in name for name in trained)
    layer = model.base_model.model.model.layers[0]
    assert "weight_packed" in layer.mlp.down_proj.base_layer._buffers
    assert "weight_packed" in layer.mlp.up_proj._buffers


def test_merging_is_an_error_until_the_weights_are_back(llama):
    model = adapted(qc.pack(llama))
    with pytest.raises(qc.PackError, match="packed weight was written to.*quartet_compile.unpack"):
        model.merge_and_unload()
    merged = qc.unpack(model).merge_and_unload()
    assert type(merged.model.layers[0].mlp.down_proj) is nn.Linear
