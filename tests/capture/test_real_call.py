"""Explaining code that reads values: by a real call, which leaves no trace; what not even that sees is named."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from captured import decisions, reasons
from models import Block
from torch import nn

import quartet_compile as qc
from quartet_compile.capture.capture import Capture
from quartet_compile.capture.eager import EAGER
from quartet_compile.config.options import configure

X = torch.randn(2, 16, 64)


class Reads(nn.Module):
    """Takes one of two ways by a value, and leaves a trace wherever a model can."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)
        self.norm = nn.BatchNorm1d(16)
        self.calls, self.tables = 0, {"zero": torch.zeros(3)}
        self.register_buffer("mean", torch.zeros(64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.tables["zero"].add_(1)
        self.tables["one"] = torch.ones(3)
        self.mean.add_(x.mean((0, 1)))
        y = torch.dropout(self.norm(self.first(x)), 0.5, True)
        if y.norm().item() >= 0:
            return self.second(y)
        return self.third(y)


def test_a_real_call_takes_the_way_that_the_values_say():
    report = qc.explain(Reads(), X)
    assert decisions(report) == {"first": True, "second": True}
    assert (report.captured, report.gap) == ("a real call", "")
    assert "Captured by a real call, since the code does not run without the tensors' values." in str(report)
    assert any("item()" in line for line in report.eager)


def test_fakes_are_enough_for_code_that_reads_no_value():
    report = qc.explain(Block(), X)
    assert (report.captured, report.gap) == ("fake tensors", "")
    assert "real call" not in str(report)


def test_a_real_call_sees_the_graphs_that_a_run_compiles():
    model = Reads()
    report = qc.explain(model, X)
    backend = Capture(configure({}), text=False)
    torch.compile(model, backend=backend, dynamic=False)(X)
    ran = [site for graph in backend.graphs for site in graph.sites]
    assert [site for graph in report.graphs for site in graph.sites] == ran
    assert all(graph.training for graph in report.graphs)


class ReadsAndMultiplies(nn.Module):
    """A product outside of every graph, behind a value that is read in a frame that Dynamo gives up."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.eager = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        assert y.norm().item() >= 0
        return self.without_graph(y)

    @torch.compiler.disable
    def without_graph(self, y: torch.Tensor) -> torch.Tensor:
        return self.eager(y)


def test_products_outside_of_graphs_are_listed():
    report = qc.explain(ReadsAndMultiplies(), X)
    assert report.captured == "a real call"
    assert reasons(report) == {"first": "matmul with a parameter", "eager": EAGER}
    assert [site.shape for site in report.eager_sites] == [(32, 64, 64)]


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_a_real_call_leaves_no_trace():
    model, x = Reads(), X.clone().requires_grad_()
    model.first.weight.grad = torch.ones(64, 64)
    gradient, table = model.first.weight.grad, model.tables["zero"]
    before, addresses = bits(model), {name: value.data_ptr() for name, value in model.state_dict().items()}
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    assert qc.explain(model, x).captured == "a real call"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert addresses == {name: value.data_ptr() for name, value in model.state_dict().items()}
    assert model.calls == 0 and list(model.tables) == ["zero"] and model.tables["zero"] is table
    assert torch.equal(table, torch.zeros(3)) and model.norm.num_batches_tracked == 0
    assert model.first.weight.grad is gradient and torch.equal(gradient, torch.ones(64, 64))
    assert x.grad is None and model.second.weight.grad is None
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1] and (np.random.get_state()[1] == generators[2]).all()


class Meddles(nn.Module):
    """Changes its input, its weight's memory, settings of torch and generators, then reads a value."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(64, 64)

    @torch.compiler.disable
    def meddle(self, x: torch.Tensor) -> float:
        x.mul_(2)
        self.body.weight.data = torch.zeros(64, 64)
        random.random(), np.random.rand()
        torch.set_grad_enabled(False)
        torch.set_float32_matmul_precision("medium")
        return x.sum().item()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        self.meddle(x)
        return y


def test_inputs_memory_and_settings_are_put_back():
    model, x = Meddles(), X[:1].clone().expand(2, 16, 64)
    weight, before = model.body.weight, model.body.weight.clone()
    address, value, python, numpy = weight.data_ptr(), x.clone(), random.getstate(), np.random.get_state()[1].copy()
    assert qc.explain(model, x.contiguous()).captured == "a real call"
    y = X.clone()
    assert qc.explain(model, y).captured == "a real call"
    assert torch.equal(y, X) and torch.equal(x, value)
    assert model.body.weight is weight and weight.data_ptr() == address and torch.equal(weight, before)
    assert torch.is_grad_enabled() and torch.get_float32_matmul_precision() == "highest"
    assert random.getstate() == python and (np.random.get_state()[1] == numpy).all()


@pytest.mark.parametrize("reads", [True, False])
def test_a_step_leaves_weights_gradients_and_moments(reads):
    model = Block()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)

    def step(x: torch.Tensor) -> float | torch.Tensor:
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss.item() if reads else loss

    def explained() -> None:
        report = qc.explain(step, X)
        assert decisions(report) == {"up": True, "down": True}
        assert report.captured == ("a real call" if reads else "fake tensors")

    def moments() -> dict[str, torch.Tensor]:
        state = optimizer.state_dict()["state"]
        return {f"{i} {name}": value.clone() for i, each in state.items() for name, value in each.items()}

    before = bits(model)
    explained()
    assert optimizer.state == {} and all(parameter.grad is None for parameter in model.parameters())
    step(X)
    held, gradients = moments(), {name: p.grad.clone() for name, p in model.named_parameters()}
    assert held and any(not torch.equal(value, before[name]) for name, value in bits(model).items())
    before = bits(model)
    explained()
    assert moments().keys() == held.keys() and all(torch.equal(value, held[name]) for name, value in moments().items())
    assert all(torch.equal(value, before[name]) for name, value in bits(model).items())
    assert all(torch.equal(p.grad, gradients[name]) for name, p in model.named_parameters())


def test_sparse_and_lazy_tensors_are_no_obstacle():
    class Sparse(Reads):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.eye(64).to_sparse())
            self.rows, self.lazy = torch.eye(64).to_sparse_csr(), nn.LazyLinear(3)

    assert qc.explain(Sparse(), X).captured == "a real call"


def test_everything_is_put_back_after_an_error_too():
    class Fails(Reads):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x)
            raise ValueError("no way on")
            return y

    model = Fails()
    before = bits(model)
    report = qc.explain(model, X)
    assert "ValueError: no way on" in report.gap and f"Not seen: {report.gap}" in str(report)
    assert list(decisions(report))[:1] == ["first"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_without_values_what_was_seen_is_returned_with_the_gap():
    with torch.device("meta"):
        model = Reads()
    report = qc.explain(model, X.to("meta"))
    assert list(decisions(report)) == ["first"]
    assert report.gap.startswith("what follows at ") and "`if y.norm().item() >= 0:`" in report.gap
    assert report.gap.endswith("a real call is impossible, since its tensors have no values")
    with pytest.raises(qc.StrictError, match="what follows at .* its tensors have no values"):
        qc.explain(model, X.to("meta"), strict=True)


# Keywords.


class Denoiser(nn.Module):
    """Takes its second input by keyword."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.body = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, *, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.body(x), timestep.cos()


T = torch.randn(2, 1, 1)


def test_keywords_name_the_inputs():
    report = qc.explain(Denoiser(), X, kwargs={"timestep": T})
    assert decisions(report) == {"body": True}
    assert "cos(timestep)" in report.graphs[0].before
    assert qc.graph_diff(Denoiser(), X, kwargs={"timestep": T}) == report.graph_diff() != ""
    assert decisions(qc.explain(Denoiser(), kwargs={"x": X, "timestep": T})) == {"body": True}


def test_a_real_call_with_keywords():
    class Conditioned(Reads):
        def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            return super().forward(x * scale)

    assert qc.explain(Conditioned(), X, kwargs={"scale": T}).captured == "a real call"


@pytest.mark.parametrize("function", [qc.explain, qc.graph_diff, qc.cross_compile])
def test_an_argument_of_the_model_given_as_an_option_says_where_it_goes(function):
    with pytest.raises(
        qc.OptionError, match=r"'timestep', which is an argument of the model: .*kwargs={'timestep': ...}"
    ):
        function(Denoiser(), X, timestep=T)
    with pytest.raises(qc.OptionError, match="Unknown option 'recip'.*did you mean 'recipe'"):
        function(Denoiser(), X, recip="exact")
    with pytest.raises(qc.OptionError, match=r"(?s)kwargs is .*expected the keyword arguments of the model"):
        function(Denoiser(), X, kwargs=[T])


def test_a_batch_in_place_of_an_input_says_how_to_pass_it():
    from collections import UserDict

    for batch in ({"x": X, "timestep": T}, UserDict(x=X, timestep=T)):
        with pytest.raises(qc.CaptureError, match=r"arguments of the model \(x, timestep\): pass it as kwargs"):
            qc.explain(Denoiser(), batch)
        assert decisions(qc.explain(Denoiser(), kwargs=batch)) == {"body": True}


def test_cross_compile_takes_keywords():
    pytest.importorskip("triton")
    model, x = Denoiser(256).bfloat16(), torch.randn(2, 128, 256, dtype=torch.bfloat16)
    artifact = qc.cross_compile(model, x, kwargs={"timestep": T})
    assert decisions(artifact.report) == {"body": True}
    assert any(kernel.op for kernel in artifact.kernels)
