"""What can't be exported says so, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import resource

import pytest
import safetensors
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations

import quartet_compile as qc
from quartet_compile.serving import source
from quartet_compile.serving.shards import Shards

X = (torch.zeros(64, 64),)
_ABSMAX = qc.quantizer("mxfp4-rtn,rotation=0,random_signs=False")
SHRINKS = qc.Recipe(name="shrinks", fprop=qc.Gemm(a=_ABSMAX, b=_ABSMAX), dgrad=None, wgrad=None)


class Net(nn.Module):
    def __init__(self, hidden=96):
        super().__init__()
        self.up, self.down = nn.Linear(64, hidden, bias=False), nn.Linear(hidden, 64, bias=False)

    def forward(self, x):
        return self.down(self.up(x).relu())


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture(scope="module")
def report():
    return qc.explain(Net(), *X, recipe="jetfire-fp4")


def refused(model, parent, match, **how):
    """An export into `parent` raises, and nothing is there that wasn't."""
    before = sorted(path.name for path in parent.iterdir())
    with pytest.raises(qc.ExportError, match=match):
        qc.export(model, parent / "served", **{"format": "bf16", "inputs": X, **how})
    assert sorted(path.name for path in parent.iterdir()) == before


@pytest.mark.parametrize(
    "how, match",
    [
        (dict(format="ggu"), "Unknown format 'ggu'"),
        (dict(format="compressed-tensors", recipe="mxfp8"), "holds mxfp4 and nvfp4; the weights of recipe 'mxfp8'"),
        (dict(format="compressed-tensors", recipe=SHRINKS), "divided by shrink=0.75 when they are read"),
        (
            dict(format="fp-quant", recipe="jetfire-fp4"),
            "rotated by 0, and a file in format 'fp-quant' has rotation 32",
        ),
        (dict(format="gguf", recipe="quartet"), "rotated by 32, and a file in format 'gguf' has rotation none"),
        (dict(format="gguf", recipe="quartet2"), "'gguf' holds mxfp4; .* are nvfp4"),
        (dict(format="gguf", recipe="jetfire-fp4"), "knows models of type llama, .*; this one is None"),
        (dict(format="gpt-oss", recipe="jetfire-fp4"), "holds models of type 'gpt_oss'; this one is None"),
        (dict(recipe="exact"), "rounds nothing"),
        (dict(recipe="bf16"), "No matmul of this model computes its forward pass in FP4"),
        (dict(inputs=()), r"depends on how it runs. Give inputs of training, as inputs=\(tokens,\)"),
    ],
    ids=lambda value: "-".join(map(str, value.values()))[:40] if isinstance(value, dict) else "",
)
def test_formats_and_recipes(net, tmp_path, how, match):
    refused(net, tmp_path, match, **how)


def test_a_report_of_other_options(net, report, tmp_path):
    refused(net, tmp_path, "runs in recipe 'jetfire-fp4', and the options have 'quartet'", report=report)


def test_rows_that_do_not_fill_a_group(tmp_path):
    match = "'down.weight' has rows of 40; expected a multiple of 32, as format 'compressed-tensors' has no padding"
    refused(Net(hidden=40), tmp_path, match, format="compressed-tensors", recipe="jetfire-fp4")


def test_a_weight_that_is_computed(net, tmp_path):
    parametrizations.weight_norm(net.up)
    refused(net, tmp_path, "its weight is no tensor of the state dict of Net", recipe="jetfire-fp4")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_nan(net, report, tmp_path, value):
    net.down.weight.data[3, 5] = value
    match = "'down.weight' has a NaN or an infinity, in 1 of its groups"
    refused(net, tmp_path, match, recipe="jetfire-fp4", report=report)


def test_no_model(tmp_path):
    refused(7, tmp_path, "got a int; expected a Module, compiled or not, or the path")


def test_an_existing_folder_is_left_alone(tmp_path):
    """It is refused before anything is asked of the model, which here is none."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "mine").write_text("kept")
    refused(7, tmp_path, "exists already")
    assert (tmp_path / "served" / "mine").read_text() == "kept"


def test_a_file_where_a_folder_should_be(net, report, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(qc.ExportError, match="can't be made"):
        qc.export(net, tmp_path / "file" / "served", format="bf16", recipe="jetfire-fp4", report=report)


@contextlib.contextmanager
def files_up_to(size):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


NO_SPACE = "can't be written .* bytes are free there"


@pytest.mark.parametrize("room", [100, 9000])
def test_no_space(net, report, tmp_path, room):
    """The limit on the size of a file is met at the start of a tensor, and inside of it."""
    with files_up_to(room):
        refused(net, tmp_path, NO_SPACE, recipe="jetfire-fp4", report=report)


def test_no_space_for_the_header(net, report, tmp_path, monkeypatch):
    """All tensors are written, and the limit is met inside of the header."""
    close = Shards.close

    def limited(self):
        self._file.flush()
        with files_up_to(100):
            close(self)

    monkeypatch.setattr(Shards, "close", limited)
    refused(net, tmp_path, NO_SPACE, recipe="jetfire-fp4", report=report)


def test_a_failure_at_the_end_closes_the_file(net, report, tmp_path, monkeypatch):
    files = []

    def fails(self):
        files.append(self._file)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Shards, "close", fails)
    refused(net, tmp_path, NO_SPACE, recipe="jetfire-fp4", report=report)
    assert [file.closed for file in files] == [True]


def test_what_can_not_be_written_is_abandoned_without_an_error(tmp_path):
    shards = Shards(tmp_path, ["x"])
    shards.add("x", torch.zeros(64))
    with files_up_to(100):
        shards.abandon()


def test_an_interrupt_leaves_nothing(net, report, tmp_path, monkeypatch):
    def interrupted(self, name, tensor):
        raise KeyboardInterrupt

    monkeypatch.setattr(Shards, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        qc.export(net, tmp_path / "served", format="bf16", recipe="jetfire-fp4", report=report)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def checkpoint(net, tmp_path):
    """A folder with two shards and their index."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    where = {}
    for name, tensor in net.state_dict().items():
        save_file({name: tensor}, folder / f"{name}.safetensors")
        where[name] = f"{name}.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


def test_a_checkpoint_in_shards(net, checkpoint, report, tmp_path):
    made = qc.export(checkpoint, tmp_path / "served", format="bf16", of=Net(), recipe="jetfire-fp4", report=report)
    assert [each.became for each in made.tensors] == ["bfloat16 of mxfp4-rtn-2d"] * 2


def test_each_shard_is_opened_once_for_its_names(checkpoint, monkeypatch):
    opened = []

    def counted(path, **how):
        opened.append(path.name)
        return safetensors.safe_open(path, **how)

    monkeypatch.setattr(source, "_open", functools.partial(counted, framework="pt"))
    assert source.FolderSource(checkpoint).names == ["down.weight", "up.weight"]
    assert opened == ["down.weight.safetensors", "up.weight.safetensors"]


def _truncated(folder):
    path = folder / "up.weight.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _another_shape(folder):
    save_file({"up.weight": torch.zeros(128, 64)}, folder / "up.weight.safetensors")


def _another_name(folder):
    (folder / "model.safetensors.index.json").unlink()
    save_file({"model.up.weight": torch.zeros(96, 64)}, folder / "up.weight.safetensors")


def _a_name_twice(folder):
    (folder / "model.safetensors.index.json").unlink()
    save_file({"up.weight": torch.zeros(96, 64)}, folder / "more.safetensors")


def _unlisted(folder):
    save_file({"bias": torch.zeros(96)}, folder / "up.weight.safetensors")


def _pickles(folder):
    for path in folder.iterdir():
        path.unlink()
    torch.save({}, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    "spoil, match",
    [
        (lambda folder: (folder / "up.weight.safetensors").unlink(), "names files that aren't there: up.weight.safe"),
        (_unlisted, "lists 1 tensors that its files don't hold, as 'up.weight'"),
        (_truncated, "up.weight.safetensors' can't be read"),
        (_another_shape, r"'up.weight' has the shape \(128, 64\); expected \(96, 64\)"),
        (_another_name, "has no tensor 'up.weight', which the model computes with in FP4"),
        (_a_name_twice, "'up.weight' in more.safetensors and in up.weight.safetensors; expected each in one file"),
        (_pickles, r"has no \*.safetensors"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("{"), "index.json' can't be read"),
        (lambda folder: (folder / "config.json").write_text("[]"), "holds a list; expected an object"),
        (
            lambda folder: (folder / "config.json").write_text('{"quantization_config": {"quant_method": "fp8"}}'),
            r"quantized already \(by fp8\)",
        ),
    ],
    ids=["no shard", "no tensor", "truncated", "shape", "names", "twice", "pickles", "index", "config", "quantized"],
)
def test_checkpoints(checkpoint, report, tmp_path, spoil, match):
    spoil(checkpoint)
    refused(checkpoint, tmp_path, match, of=Net(), recipe="jetfire-fp4", report=report)


def test_a_checkpoint_that_is_not_there(tmp_path):
    refused(tmp_path / "checkpoint", tmp_path, "No folder")


def test_a_checkpoint_without_a_model(checkpoint, tmp_path):
    refused(checkpoint, tmp_path, r"has no config.json.*of=build\(\)")
    (checkpoint / "config.json").write_text('{"model_type": "unheard-of"}')
    refused(checkpoint, tmp_path, "is of no causal language model that transformers knows")
