"""QUARTET_GPU_PRODUCTS: how GPUs without FP4 multiply; and QUARTET_GPU_LIBRARY: when torch's library does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import quartet_compile as qc
from quartet_compile.backend import graph_inputs, graph_uuid
from quartet_compile.config.options import configure
from quartet_compile.errors import QuartetError
from quartet_compile.kernels.architectures import LIBRARY_VARIABLE, VARIABLE, library_use, product_format


@pytest.mark.parametrize(
    ("read", "variable", "default", "other", "wrong", "message"),
    [
        (product_format, VARIABLE, "fp8", "bf16", "int8", "QUARTET_GPU_PRODUCTS is 'int8'; expected 'fp8' or 'bf16'"),
        (
            library_use, LIBRARY_VARIABLE, "measured", "always", "yes",
            "QUARTET_GPU_LIBRARY is 'yes'; expected 'measured', 'never' or 'always'",
        ),
    ],
)  # fmt: skip
def test_the_default_and_what_may_be_said(monkeypatch, read, variable, default, other, wrong, message):
    monkeypatch.delenv(variable, raising=False)
    assert read() == default
    monkeypatch.setenv(variable, other)
    assert read() == other
    monkeypatch.setenv(variable, wrong)
    with pytest.raises(QuartetError, match=message):
        read()


@pytest.mark.parametrize(
    ("variable", "default", "other"), [(VARIABLE, "fp8", "bf16"), (LIBRARY_VARIABLE, "never", "always")]
)
def test_another_choice_is_another_entry_of_inductors_cache(monkeypatch, variable, default, other):
    graph = torch.fx.symbolic_trace(nn.Linear(64, 64))
    config, inputs = configure({}), graph_inputs(graph, {})
    monkeypatch.setenv(variable, default)
    one = graph_uuid(graph, config, inputs)
    assert graph_uuid(graph, config, inputs) == one
    monkeypatch.setenv(variable, other)
    assert graph_uuid(graph, config, inputs) != one


@pytest.mark.parametrize(("chosen", "ours", "library"), [("fp8", {"scaled_mm_fp8"}, 0), ("bf16", set(), 1)])
def test_what_multiplies_on_hopper(monkeypatch, chosen, ours, library):
    pytest.importorskip("triton")
    monkeypatch.setenv(VARIABLE, chosen)
    with torch.no_grad():
        artifact = qc.cross_compile(nn.Linear(64, 64, bias=False), torch.randn(8, 64), target="sm_90")
    assert {kernel.op for kernel in artifact.kernels} & {"scaled_mm_fp8", "scaled_mm"} == ours
    assert sum(call.name.startswith("aten.mm") for call in artifact.library_calls) == library
