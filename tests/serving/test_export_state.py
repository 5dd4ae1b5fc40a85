"""`export_state`: the tensors of the file, in memory, of the weights as they are when they are read."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import quartet_compile as qc

X = (torch.zeros(64, 64),)


class Net(nn.Module):
    def __init__(self, bias=False):
        super().__init__()
        self.up, self.down = nn.Linear(64, 96, bias=bias), nn.Linear(96, 64, bias=bias)

    def forward(self, x):
        return self.down(self.up(x).relu())


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net(bias=True)


@pytest.mark.filterwarnings("ignore:quartet. exported as")
@pytest.mark.parametrize(
    "format, recipe", [("compressed-tensors", "quartet2"), ("fp-quant", "quartet"), ("bf16", "quartet")]
)
def test_the_tensors_are_those_of_the_file(net, tmp_path, format, recipe):
    state = qc.export_state(net, format=format, inputs=X, recipe=recipe)
    qc.export(net, tmp_path / "served", format=format, inputs=X, recipe=recipe)
    file, memory = load_file(tmp_path / "served/model.safetensors"), dict(state)
    assert memory.keys() == file.keys()
    differ = [
        name
        for name, tensor in memory.items()
        if tensor.dtype != file[name].dtype or not torch.equal(tensor.view(torch.uint8), file[name].view(torch.uint8))
    ]
    assert not differ


def test_each_iteration_reads_the_weights_of_now(net):
    state = qc.export_state(net, inputs=X, recipe="jetfire-fp4")
    before = dict(state)
    with torch.no_grad():
        net.up.weight.add_(torch.randn(96, 64))
    after = dict(state)
    blocks = qc.quantize(net.up.weight, "mxfp4-rtn-2d")
    assert not torch.equal(before["up.weight_packed"], after["up.weight_packed"])
    assert torch.equal(after["up.weight_packed"], blocks.codes)
    assert torch.equal(after["up.weight_scale"], blocks.scales)
    assert torch.equal(before["down.weight_packed"], after["down.weight_packed"])


def test_tensors_are_made_one_weight_at_a_time(net):
    """A NaN in the last layer is met after the first layer was given."""
    state = qc.export_state(net, inputs=X, recipe="jetfire-fp4")
    net.down.weight.data[0, 0] = torch.nan
    with pytest.raises(qc.ExportError, match=r"'down.weight' has a NaN or an infinity, in 1 of its groups"):
        dict(state)
    given = iter(state)
    assert [next(given)[0] for _ in range(3)] == ["up.weight_packed", "up.weight_scale", "up.bias"]


def test_a_compiled_model_has_the_options_of_its_training(net):
    compiled = qc.quartet(net, recipe="jetfire-fp4", exclude=["up"])
    state = qc.export_state(compiled, inputs=X)
    names = [name for name, _ in state]
    assert names == ["up.weight", "up.bias", "down.weight_packed", "down.weight_scale", "down.bias"]
    assert state.config["ignore"] == ["up"]
    with pytest.raises(qc.OptionError, match="the model is compiled with"):
        qc.export_state(compiled, inputs=X, recipe="quartet")


def test_unrotated_and_its_warning(net):
    assert "rotated" in qc.export_state(net, inputs=X, recipe="quartet").warnings[0]
    state = qc.export_state(net, inputs=X, recipe="quartet", unrotated=True)
    blocks = qc.quantize(net.up.weight, "mxfp4-quest,rotation=0")
    assert torch.equal(dict(state)["up.weight_packed"], blocks.codes)
    assert state.warnings == ()


@pytest.mark.parametrize(
    "how, match",
    [
        (dict(format="gguf", inputs=X), "'gguf' is a file, not tensors by name; expected one of compressed-tensors"),
        (dict(format="compresed-tensors", inputs=X), "did you mean 'compressed-tensors'"),
        (dict(recipe="bf16", inputs=X), "No matmul of this model computes its forward pass in FP4"),
        (dict(recipe="exact", inputs=X), "rounds nothing"),
        (dict(recipe="mxfp8", inputs=X), "holds mxfp4 and nvfp4"),
        (dict(), "depends on how it runs. Give inputs"),
    ],
    ids=["gguf", "typo", "bf16", "exact", "mxfp8", "no inputs"],
)
def test_what_is_refused(net, how, match):
    with pytest.raises(qc.ExportError, match=match):
        qc.export_state(net, **how)


def test_something_else_than_a_model_is_refused():
    with pytest.raises(qc.ExportError, match="got a str; expected a Module"):
        qc.export_state("checkpoint", inputs=X)
