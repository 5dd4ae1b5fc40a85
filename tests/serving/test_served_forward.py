"""What transformers with compressed-tensors computes from our file, beside `eval="served-..."`."""

import compressed_tensors.quantization.lifecycle.forward as foreign
import pytest
import torch
import transformers as hf
from tiny_llama import INPUTS, LLAMA

import quartet_compile as qc

TOKENS = torch.arange(32).reshape(2, 16)


def relative(value, expected):
    return ((value - expected).norm() / expected.norm()).item()


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:quartet. exported as", "ignore:You passed")
@pytest.mark.parametrize("recipe, unrotated", [("jetfire-fp4", False), ("quartet", True)])
def test_dynamic_activations_are_those_of_the_mirror(tmp_path, monkeypatch, recipe, unrotated):
    """Each layer's input is rounded to our bits; logits agree to bfloat16's rounding between the layers, and no other
    forward pass is as near."""
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(LLAMA, dtype=torch.bfloat16)
    how = dict(format="compressed-tensors", recipe=recipe, unrotated=unrotated, activations="mxfp4")
    qc.export(model, tmp_path / "served", kwargs=INPUTS, **how)
    loaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "served", dtype=torch.bfloat16)
    rounded, round_foreign = [], foreign.forward_quantize

    def spy(module, value, base_name, args):
        made = round_foreign(module, value, base_name, args)
        if base_name == "input":
            rounded.append((value.clone(), made.clone()))
        return made

    monkeypatch.setattr(foreign, "forward_quantize", spy)
    logits = loaded(TOKENS).logits
    assert len(rounded) == 7
    for value, made in rounded:
        assert torch.equal(qc.quantize(value, "rotation=0,scale_rounding=even").restore().to(made.dtype), made)
    distances = {}
    for as_ in ("w4a4", "w4a16"):
        torch._dynamo.reset()
        options = {"recipe": recipe, "eval": f"served-{as_}" + "-unrotated" * unrotated}
        distances[as_] = relative(torch.compile(model, backend="quartet", options=options)(TOKENS).logits, logits)
    assert distances["w4a4"] < 0.03 < 0.05 < distances["w4a16"], distances


@pytest.mark.parametrize(
    "how, expected",
    [
        (dict(format="compressed-tensors", activations="mxfp8"), ["'mxfp8'", "'mxfp4'", "Leave it out"]),
        (dict(format="bf16", activations="mxfp4"), ["'bf16'", "none"]),
        (dict(format="compressed-tensors", activations="mxfp4", recipe="nvfp4"), ["nvfp4", "one format"]),
    ],
)
def test_refused_activations(tmp_path, how, expected):
    model = hf.AutoModelForCausalLM.from_config(LLAMA, dtype=torch.bfloat16)
    with pytest.raises(qc.ExportError) as caught:
        qc.export(model, tmp_path / "served", kwargs=INPUTS, **how)
    assert all(part in str(caught.value) for part in expected), caught.value
    assert not (tmp_path / "served").exists()
