"""`load_fp4`: files of FP4 weights stay packed, and mean what other loaders take them to mean."""

from __future__ import annotations

import json

import accelerate
import pytest
import tiny_llama
import torch
import transformers as hf
from captured import compiled, sites
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import quartet_compile as qc
from quartet_compile.packed.module import packed_names

pytestmark = pytest.mark.filterwarnings("ignore:quartet. exported as", "ignore:MXFP4 inference")

SIZES = tiny_llama.SIZES
X = (torch.zeros(64, 64),)
ROTATION = {"type": "hadamard", "head_dim": 64, "apply": [{"location": "input"}]}


class Net(nn.Module):
    def __init__(self, device=None):
        super().__init__()
        self.up, self.down = nn.Linear(64, 96, device=device), nn.Linear(96, 64, device=device)
        self.norm = nn.LayerNorm(64, device=device)

    def forward(self, x):
        return self.norm(self.down(self.up(x).relu()))


@pytest.fixture(scope="module")
def gpt_oss(tmp_path_factory):
    """A tiny one with random weights, as a folder, and its config."""
    folder = tmp_path_factory.mktemp("gpt-oss") / "served"
    qc.export(tiny_llama.gpt_oss(), folder, format="gpt-oss", recipe="jetfire-fp4")
    return folder, tiny_llama.GPT_OSS


def empty(config):
    with accelerate.init_empty_weights():
        model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.set_experts_implementation("grouped_mm")
    return model


class Largest(TorchDispatchMode):
    """The most elements that any floating-point result of an op has."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(each, torch.Tensor) and each.is_floating_point():
                self.elements = max(self.elements, each.numel())
        return result


def test_a_gpt_oss_file_stays_packed(gpt_oss):
    folder, config = gpt_oss
    model = empty(config)
    with Largest() as seen:
        assert qc.load_fp4(model, folder) is model
    experts = model.model.layers[0].mlp.experts
    assert set(packed_names(experts)) == {"gate_up_proj", "down_proj"}
    assert seen.elements < experts.gate_up_proj_packed.numel() * 2
    file = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.experts.gate_up_proj"
    assert torch.equal(experts.gate_up_proj_packed, file[f"{name}_blocks"].flatten(-2))
    assert torch.equal(experts.gate_up_proj_scale, file[f"{name}_scales"])


def test_a_gpt_oss_file_computes_what_transformers_computes_with_it(gpt_oss):
    folder, config = gpt_oss
    model = qc.load_fp4(empty(config), folder).eval()
    dense = hf.AutoModelForCausalLM.from_pretrained(folder, quantization_config=hf.Mxfp4Config(dequantize=True)).eval()
    dense.set_experts_implementation("grouped_mm")
    tokens = torch.arange(3, 27)[None]
    with torch.no_grad():
        assert torch.equal(model(input_ids=tokens).logits, dense(input_ids=tokens).logits)


def test_a_gpt_oss_file_is_fine_tuned(gpt_oss):
    """LoRA beside the packed experts: in FP4 with gradients of the dequantized model, bit for bit, and the loss falls."""
    folder, config = gpt_oss
    dense = hf.AutoModelForCausalLM.from_pretrained(folder, quantization_config=hf.Mxfp4Config(dequantize=True))
    dense.set_experts_implementation("grouped_mm")
    tokens = torch.arange(3, 51).reshape(2, 24)
    losses, found = [], []
    for base in (qc.load_fp4(empty(config), folder), dense):
        torch.manual_seed(3)
        model = get_peft_model(
            base.requires_grad_(False), LoraConfig(r=8, target_modules=["q_proj", "v_proj", "o_proj"])
        )
        function, backend = compiled(model, recipe=qc.unrotated("quartet"))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        losses.append([])
        for step in range(4):
            torch.manual_seed(step)
            loss = function(input_ids=tokens, labels=tokens).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[-1].append(loss.item())
        rewritten = {
            site.name.rpartition("experts.")[2]: site.runs_in for site in sites(backend) if "experts" in site.name
        }
        assert rewritten == {"gate_up_proj": "fp4", "down_proj": "fp4"}
        found.append({name: p.detach() for name, p in model.named_parameters() if p.requires_grad})
    assert losses[0] == losses[1] and losses[0][-1] < losses[0][0] - 0.05
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("recipe", ["jetfire-fp4", "quartet", "nvfp4"])
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_compressed_tensors(tmp_path, recipe, device):
    """What was exported comes back: the same codes, so the same forward pass in the recipe that it was trained with."""
    torch.manual_seed(0)
    net = Net().bfloat16()
    qc.export(net, tmp_path / "served", format="compressed-tensors", inputs=(X[0].bfloat16(),), recipe=recipe)
    other = qc.load_fp4(Net(device).bfloat16(), tmp_path / "served")
    blocks = qc.quantize(net.up.weight, qc.recipe(recipe).fprop.b)
    assert torch.equal(other.up.weight_packed, blocks.codes)
    assert torch.equal(other.up.weight_scale, blocks.scales.view(torch.uint8))
    assert torch.equal(other.norm.weight, net.norm.weight) and isinstance(other.norm.weight, nn.Parameter)
    assert torch.equal(other.down.bias, net.down.bias)
    assert other.up.weight.dtype == torch.bfloat16


def test_a_rotated_file_trains_on_in_its_recipe(tmp_path):
    torch.manual_seed(0)
    net = Net()
    qc.export(net, tmp_path / "served", format="compressed-tensors", inputs=X, recipe="quartet")
    other = qc.load_fp4(Net(), tmp_path / "served")
    x = torch.randn(32, 64)
    net.requires_grad_(False)
    with torch.no_grad():  # biases and norms are bfloat16 in the file
        for name, parameter in net.named_parameters():
            if name not in ("up.weight", "down.weight"):
                parameter.copy_(parameter.bfloat16())
        assert torch.equal(compiled(other)[0](x), compiled(net)[0](x))


def test_shards(tmp_path, monkeypatch):
    """The parts of a weight in different files."""
    torch.manual_seed(0)
    qc.export(
        Net().bfloat16(),
        tmp_path / "whole",
        format="compressed-tensors",
        inputs=(X[0].bfloat16(),),
        recipe="jetfire-fp4",
    )
    tensors = load_file(tmp_path / "whole/model.safetensors")
    folder = tmp_path / "shards"
    folder.mkdir()
    names = sorted(tensors)
    where = {name: f"model-{index % 2}.safetensors" for index, name in enumerate(names)}
    assert where["up.weight_packed"] != where["up.weight_scale"]
    for file in set(where.values()):
        save_file({name: tensors[name] for name in names if where[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (folder / "config.json").write_text((tmp_path / "whole/config.json").read_text())
    a, b = (qc.load_fp4(Net("meta").bfloat16(), tmp_path / name) for name in ("whole", "shards"))
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def _without(name):
    def change(tensors, config):
        del tensors[name]

    return change


def _with(name, value):
    return lambda tensors, config: tensors.update({name: value})


def _configured(**settings):
    return lambda tensors, config: config["quantization_config"].update(settings)


@pytest.mark.parametrize(
    "change, expected",
    [
        (_without("norm.weight"), "The files lack 'norm.weight' and 0 more"),
        (_without("up.weight_scale"), "expected 'up.weight_scale' of shape .96, 2., got none"),
        (_with("extra", torch.zeros(3)), "tensor 'extra', which Net hasn't"),
        (_with("side.weight_packed", torch.zeros(3, dtype=torch.uint8)), "codes of 'side.weight', which Net hasn't"),
        (_with("norm.weight", torch.zeros(3)), "'norm.weight' has the shape .3,. in the files; the model has .64,."),
        (_with("up.weight_packed", torch.zeros(96, 16, dtype=torch.uint8)), "expected 'up.weight_packed' of shape .96, 32."),
        (_with("up.weight_scale", torch.full((96, 2), 255, dtype=torch.uint8)), "NaN among the scales of 'up.weight'"),
        (_configured(format="pack-quantized"), "in format 'pack-quantized'; expected gpt-oss' MXFP4, or compressed"),
        (_configured(quant_method="gptq"), "quantized by 'gptq'"),
        (
            _configured(transform_config={"config_groups": {"R": ROTATION}}),
            "rotated by 64; expected MXFP4 with none, or 32",
        ),
        (lambda tensors, config: config.clear(), "no quantization_config; expected that of gpt-oss"),
    ],
)  # fmt: skip
def test_refused(tmp_path, change, expected):
    qc.export(
        Net().bfloat16(),
        tmp_path / "served",
        format="compressed-tensors",
        inputs=(X[0].bfloat16(),),
        recipe="jetfire-fp4",
    )
    tensors, config = (
        load_file(tmp_path / "served/model.safetensors"),
        json.loads((tmp_path / "served/config.json").read_text()),
    )
    change(tensors, config)
    save_file(tensors, tmp_path / "served/model.safetensors")
    (tmp_path / "served/config.json").write_text(json.dumps(config))
    model = Net().bfloat16()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(qc.PackError, match=expected):
        qc.load_fp4(model, tmp_path / "served")
    if "NaN" not in expected:
        after = model.state_dict()
        assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_a_model_of_other_sizes(gpt_oss, tmp_path):
    folder, config = gpt_oss
    changed = hf.GptOssConfig(**{**config.to_dict(), "intermediate_size": 64})
    with pytest.raises(qc.PackError, match="down_proj' is .4, 64, 64. in the model; expected .*down_proj_blocks"):
        qc.load_fp4(empty(changed), folder)
    with torch.device("meta"):
        model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with pytest.raises(qc.PackError, match="buffer 'model.rotary_emb.*init_empty_weights"):
        qc.load_fp4(model, folder)
