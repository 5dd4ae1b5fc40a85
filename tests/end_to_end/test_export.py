"""`torch.export`, and what is near to it: a compiled model exports as the model that it was, in high precision."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from models import Block
from rounding import assert_rounding
from torch import nn

import quartet_compile as qc


@pytest.fixture
def model():
    torch.manual_seed(1)
    return nn.Sequential(Block(), nn.Linear(64, 40)).eval()


def test_a_trained_model_exports_without_us(model):
    """Compilation leaves the model as it is: export sees plain matmuls."""
    x, plain = torch.randn(24, 64), copy.deepcopy(model)
    model.compile(backend="quartet", options={"recipe": "exact"})
    exported = torch.export.export(model, (x,))
    names = {node.target._schema.name for node in exported.graph.nodes if hasattr(node.target, "_schema")}
    assert any("linear" in name or "mm" in name for name in names) and not any("quartet" in name for name in names)
    with torch.no_grad():
        assert_rounding({"output": exported.module()(x)}, lambda: {"output": plain(x)})


def test_an_exported_program_runs_in_fp4(model):
    """The other way round: an exported inference program, saved and loaded, is a model like any other."""
    x = torch.randn(24, 64)
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(model, (x,)), buffer)
    buffer.seek(0)
    program = torch.export.load(buffer).module()
    report = qc.explain(program, x)
    assert [site.rewritten for site in report.sites] == [True, True, True]
    with torch.no_grad():
        torch._dynamo.reset()
        ours = torch.compile(program, backend="quartet")(x)
        theirs = torch.compile(copy.deepcopy(model), backend="quartet")(x)
        assert_rounding({"output": ours}, lambda: {"output": model(x)}, {"output": theirs})


def test_a_compiled_callable_is_no_module_to_export(model):
    """`torch.export` of what `qc.quartet` returns exports the original."""
    compiled = qc.quartet(model)
    exported = torch.export.export(compiled, (torch.randn(24, 64),))
    assert not any("quartet" in str(node.target) for node in exported.graph.nodes)
