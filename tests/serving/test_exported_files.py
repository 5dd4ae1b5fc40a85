"""Exports read by other code: transformers with compressed-tensors, and gguf; and what is refused, leaving nothing."""

from __future__ import annotations

import functools
import json
import math

import pytest
import torch
import transformers as hf
from compressed_tensors.transform import TransformConfig, apply_transform_config
from models import relative
from safetensors.torch import load_file
from tiny_llama import INPUTS, LLAMA, gpt_oss

import quartet_compile as qc
from quartet_compile.__main__ import main
from quartet_compile.serving import format
from quartet_compile.serving.shards import Shards

TOKENS = torch.arange(32).reshape(2, 16)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return hf.AutoModelForCausalLM.from_config(LLAMA, dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def reports(model):
    """The report of a recipe, captured once."""
    made = {}

    def report(recipe):
        if recipe not in made:
            made[recipe] = qc.explain(model, kwargs=INPUTS, recipe=recipe)
        return made[recipe]

    return report


def expected(model, report, quantizer):
    """The model with the weights that its FP4 forward pass computes with, by `qc.quantize`."""
    other = hf.AutoModelForCausalLM.from_config(LLAMA, dtype=torch.bfloat16)
    other.load_state_dict(model.state_dict())
    for site in report.sites:
        if site.rewritten:
            weight = other.get_parameter(f"{site.name}.weight")
            weight.data = qc.quantize(weight, quantizer).restore().bfloat16()
    return other


@torch.no_grad()
def assert_same(loaded, other):
    assert torch.equal(loaded(TOKENS).logits, other(TOKENS).logits)
    weights = loaded.state_dict()
    differ = [
        name for name, value in other.state_dict().items() if not torch.equal(value, weights[name].to(value.dtype))
    ]
    assert not differ


@pytest.mark.filterwarnings("ignore:quartet QC301", "ignore:You passed")
@pytest.mark.parametrize(
    "recipe, unrotated, quantizer",
    [
        ("jetfire-fp4", False, "mxfp4-rtn-2d"),
        ("quartet", True, "mxfp4-quest,rotation=0"),
    ],
)
def test_transformers_with_compressed_tensors(model, reports, tmp_path, recipe, unrotated, quantizer):
    report, folder = reports(recipe), tmp_path / "served"
    qc.export(model, folder, format="compressed-tensors", recipe=recipe, report=report, unrotated=unrotated)
    dense = hf.utils.quantization_config.CompressedTensorsConfig(dequantize=True)
    loaded = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=dense)
    assert_same(loaded, expected(model, report, quantizer))


@pytest.mark.filterwarnings("ignore:quartet QC301", "ignore:You passed")
def test_nvfp4_is_read_to_one_step_of_bfloat16(model, reports, tmp_path):
    """The format divides by the reciprocal of the tensor scale, which rounds: ties of bfloat16 may fall to either side."""
    report, folder = reports("quartet2"), tmp_path / "served"
    qc.export(model, folder, format="compressed-tensors", recipe="quartet2", report=report)
    dense = hf.utils.quantization_config.CompressedTensorsConfig(dequantize=True)
    how = dict(dtype=torch.bfloat16, quantization_config=dense)
    loaded = hf.AutoModelForCausalLM.from_pretrained(folder, **how).state_dict()
    file = load_file(folder / "model.safetensors")
    for name, value in expected(model, report, "nvfp4-rtn-4over6").state_dict().items():
        torch.testing.assert_close(loaded[name], value, rtol=2**-7, atol=0)
    blocks = qc.quantize(model.model.layers[0].mlp.up_proj.weight, "nvfp4-rtn-4over6")
    assert torch.equal(file["model.layers.0.mlp.up_proj.weight_packed"], blocks.codes)
    assert torch.equal(
        file["model.layers.0.mlp.up_proj.weight_scale"].view(torch.uint8), blocks.scales.view(torch.uint8)
    )


@pytest.mark.filterwarnings("ignore:quartet QC301")
def test_gguf(model, reports, tmp_path):
    gguf = pytest.importorskip("gguf")
    report = reports("jetfire-fp4")
    qc.export(model, tmp_path / "served", format="gguf", recipe="jetfire-fp4", report=report)
    read = {t.name: t for t in gguf.GGUFReader(tmp_path / "served/model.gguf").tensors}
    down = read["blk.0.ffn_down.weight"]
    values = torch.from_numpy(gguf.dequantize(down.data, down.tensor_type).copy())
    weight = model.model.layers[0].mlp.down_proj.weight
    assert down.tensor_type == gguf.GGMLQuantizationType.MXFP4
    assert torch.equal(values, qc.quantize(weight, "mxfp4-rtn-2d").restore())
    attention = model.model.layers[0].self_attn
    for part, weight, heads in (("q", attention.q_proj.weight, 2), ("k", attention.k_proj.weight, 1)):
        rows = [32 * head + row + half for head in range(heads) for row in range(16) for half in (0, 16)]
        tensor = read[f"blk.0.attn_{part}.weight"]
        values = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        assert torch.equal(values, qc.quantize(weight, "mxfp4-rtn-2d").restore()[rows]), part


@pytest.mark.filterwarnings("ignore:quartet QC301", "ignore:MXFP4 inference")
def test_gpt_oss_by_transformers(tmp_path):
    """Its experts are `[E, K, N]` in the model and `[E, N, K]` in the file."""
    moe = gpt_oss()
    experts = moe.model.layers[0].mlp.experts
    qc.export(moe, tmp_path / "served", format="gpt-oss", recipe="jetfire-fp4")
    file = load_file(tmp_path / "served/model.safetensors")
    assert file["model.layers.0.mlp.experts.down_proj_blocks"].shape == (4, 64, 3, 16)
    dense = hf.Mxfp4Config(dequantize=True)
    loaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "served", quantization_config=dense)
    for site in ("gate_up_proj", "down_proj"):
        weight = getattr(experts, site)
        weight.data = qc.quantize(weight.transpose(1, 2), "mxfp4-rtn-2d").restore().transpose(1, 2).bfloat16()
    for site in ("q_proj", "k_proj", "v_proj", "o_proj"):
        weight = getattr(moe.model.layers[0].self_attn, site).weight
        weight.data = qc.quantize(weight, "mxfp4-rtn-2d").restore().bfloat16()
    loaded.set_experts_implementation("grouped_mm")
    assert_same(loaded, moe)


@pytest.mark.filterwarnings("ignore:quartet QC301")
def test_bf16(model, reports, tmp_path):
    report = reports("quartet")
    made = qc.export(model, tmp_path / "served", format="bf16", report=report)
    assert_same(hf.AutoModelForCausalLM.from_pretrained(tmp_path / "served"), expected(model, report, "mxfp4-quest"))
    became = {each.name: each.became for each in made.tensors}
    assert became["model.layers.0.mlp.down_proj.weight"] == "bfloat16 of mxfp4-quest"
    assert became["lm_head.weight"] == "bfloat16"


@pytest.mark.filterwarnings("ignore:quartet QC301")
def test_shards_by_transformers(model, reports, tmp_path, monkeypatch):
    monkeypatch.setattr(format, "Shards", functools.partial(Shards, shard_bytes=30_000))
    report, folder = reports("quartet"), tmp_path / "served"
    qc.export(model, folder, format="bf16", report=report)
    assert_same(hf.AutoModelForCausalLM.from_pretrained(folder), expected(model, report, "mxfp4-quest"))
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(files) > 1
    assert files == [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]


def test_shards_by_their_index(tmp_path):
    """Sizes that aren't multiples of 8 wait for the end of their shard, and count to it."""
    shapes = [(100,), (3,), (50, 2), (5,), (), (0, 4), (90,), (7,)]
    dtypes = [torch.float32, torch.uint8, torch.bfloat16, torch.float16]
    tensors = {f"t{i}": torch.arange(math.prod(s)).reshape(s).to(dtypes[i % 4]) for i, s in enumerate(shapes)}
    shards = Shards(tmp_path, tensors, shard_bytes=405)
    for name, tensor in tensors.items():
        shards.add(name, tensor)
    shards.close()
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = {file: load_file(tmp_path / file) for file in index["weight_map"].values()}
    assert len(files) == 3 and index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert {name for held in files.values() for name in held} == tensors.keys() == index["weight_map"].keys()
    for name, file in index["weight_map"].items():
        torch.testing.assert_close(files[file][name], tensors[name], rtol=0, atol=0)
    assert all(sum(tensor.nbytes for tensor in held.values()) <= 405 for held in files.values())


@pytest.mark.filterwarnings("ignore:quartet QC301")
def test_fp_quant_holds_our_codes(model, reports, tmp_path):
    qc.export(model, tmp_path / "served", format="fp-quant", report=reports("quartet"))
    tensors = load_file(tmp_path / "served/model.safetensors")
    blocks = qc.quantize(model.model.layers[0].mlp.up_proj.weight, "mxfp4-quest")
    assert torch.equal(tensors["model.layers.0.mlp.up_proj.qweight"], blocks.codes)
    assert torch.equal(tensors["model.layers.0.mlp.up_proj.scales"], blocks.scales)


def test_rotated_weights_warn(model, reports, tmp_path):
    with pytest.warns(UserWarning, match=r"transformers \(5.24\) ignores transform_config"):
        qc.export(model, tmp_path / "served", format="compressed-tensors", report=reports("quartet"))


@pytest.mark.filterwarnings("ignore:quartet QC301")
def test_a_checkpoint_in_shards_by_the_command_line(model, tmp_path, capsys):
    model.save_pretrained(tmp_path / "checkpoint", max_shard_size="30KB")
    arguments = [str(tmp_path / "checkpoint"), str(tmp_path / "served"), "--format", "bf16", "--recipe", "jetfire-fp4"]
    assert main(["export", *arguments]) == 0
    assert "7 of 12 tensors in FP4" in capsys.readouterr().out
    tensors = load_file(tmp_path / "served/model.safetensors")
    weight = model.model.layers[0].self_attn.q_proj.weight
    assert torch.equal(
        tensors["model.layers.0.self_attn.q_proj.weight"], qc.quantize(weight, "mxfp4-rtn-2d").restore().bfloat16()
    )


@pytest.mark.filterwarnings("ignore:quartet QC301", "ignore:You passed")
def test_a_rotated_file_needs_its_transform(model, reports, tmp_path):
    """transformers reads the weights bit for bit and not the transform, so it is wrong until compressed-tensors adds it."""
    folder, report = tmp_path / "served", reports("quartet")
    qc.export(model, folder, format="compressed-tensors", recipe="quartet", report=report)
    dense = hf.utils.quantization_config.CompressedTensorsConfig(dequantize=True)
    loaded = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=dense)
    weight = model.model.layers[0].mlp.up_proj.weight
    read = loaded.model.layers[0].mlp.up_proj.weight
    assert torch.equal(read, qc.quantize(weight, "mxfp4-quest").dequantize().bfloat16())
    right = expected(model, report, "mxfp4-quest")(TOKENS).logits
    assert relative(loaded(TOKENS).logits, right) > 0.5
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]["transform_config"]
    apply_transform_config(loaded, TransformConfig(**settings))
    assert relative(loaded(TOKENS).logits, right) < 0.02
