"""Backends by name: the presets, what `register_backend` adds, and accelerate's list of them."""

from __future__ import annotations

import copy
import importlib.metadata
import pickle
import subprocess
import sys

import pytest
import torch
from models import Block

import quartet_compile as qc
from quartet_compile.backend import NamedBackend, name_of_preset, named_backend
from quartet_compile.config.presets import PRESETS
from quartet_compile.process import process

X = torch.randn(2, 16, 64)
ENTRY_POINTS = importlib.metadata.entry_points(group="torch_dynamo_backends")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(process, "seen", {})


def decisions(graphs):
    return [{site.name: (site.recipe if site.rewritten else None) for site in graph.sites} for graph in graphs]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_a_backend(preset, graphs):
    name = name_of_preset(preset)
    assert isinstance(ENTRY_POINTS[name].load(), NamedBackend)
    torch.compile(Block(), backend=name)(X)
    torch.compile(Block(), backend="quartet", options={"recipe": preset})(X)
    by_name, by_option = decisions(graphs)
    assert by_name == by_option


def test_no_backend_is_of_a_preset_that_there_is_not():
    ours = {point.name for point in ENTRY_POINTS if point.value.startswith("quartet_compile")}
    assert ours == {name_of_preset(preset) for preset in PRESETS}


def test_options_of_a_call_go_before_those_of_the_name(graphs):
    torch.compile(Block(), backend="quartet-rtn", options={"exclude": ["up"]})(X)
    torch.compile(Block(), backend="quartet-rtn", options={"recipe": "quartet2"})(X)
    assert decisions(graphs) == [{"up": None, "down": "quartet-rtn"}, {"up": "quartet2", "down": "quartet2"}]


def test_a_registered_name(graphs):
    qc.register_backend("mine", recipe="nvfp4", exclude=["down"])
    qc.register_backend("mine", recipe="nvfp4", exclude=["down"])
    compiled = torch.compile(Block(), backend="mine")
    compiled(X)
    assert qc.set_recipe(compiled, "quartet").name == "nvfp4"
    compiled(X)
    assert decisions(graphs) == [{"up": "nvfp4", "down": None}, {"up": "quartet", "down": None}]
    assert named_backend("mine") is pickle.loads(pickle.dumps(copy.deepcopy(named_backend("mine"))))


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("inductor", {}, "'inductor' is taken by torch or another package"),
        ("quartet-rtn", {}, "'quartet-rtn' is taken by a preset recipe"),
        ("taken", {"recipe": "quartet2"}, "'taken' is taken with the options {'recipe': 'nvfp4'}"),
        ("Mine", {}, "got the name 'Mine'; expected lower-case letters"),
        ("", {}, "got the name ''"),
        (None, {}, "got the name None"),
        ("new", {"recipes": "nvfp4"}, "Unknown option 'recipes'"),
    ],
)
def test_a_name_that_can_not_be(name, options, message):
    qc.register_backend("taken", recipe="nvfp4")
    with pytest.raises(qc.OptionError, match=message):
        qc.register_backend(name, **options)
    assert name == "taken" or name not in process.backends


def test_a_pickle_of_a_name_that_is_not_registered_says_so():
    with pytest.raises(qc.OptionError, match=r"Unknown backend 'quartet-rtm' \(did you mean 'quartet-rtn'\?\)"):
        named_backend("quartet-rtm")


ACCELERATE = """
import sys
{first}
assert {imported} is ("accelerate" in sys.modules)
{second}
import inspect, pickle
from accelerate.utils import DynamoBackend, TorchDynamoPlugin
quartet_compile.register_backend("mine", recipe="nvfp4")
for name in ("quartet", "quartet-rtn", "mine"):
    assert TorchDynamoPlugin(backend=name).to_kwargs()["backend"] == name
backend = DynamoBackend("QUARTET")
assert backend is DynamoBackend("QUARTET") and pickle.loads(pickle.dumps(backend)) is backend
assert "QUARTET2" in DynamoBackend and "NOTHING" not in DynamoBackend
assert "class DynamoBackend" in inspect.getsource(DynamoBackend)
"""


@pytest.mark.parametrize("order", [("quartet_compile", "accelerate"), ("accelerate", "quartet_compile")], ids="-".join)
def test_accelerate_takes_our_names_whichever_is_imported_first(order):
    pytest.importorskip("accelerate")
    first, second = (f"import {name}" for name in order)
    code = ACCELERATE.format(first=first, second=second, imported=order[0] == "accelerate")
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
