"""The report: complete, in the order of the model, readable; and explaining leaves no trace."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
from collections import OrderedDict

import explain_model
import pytest
import torch
from captured import decisions
from expecttest import assert_expected_inline
from models import Attention, Block, Net
from torch import nn

import quartet_compile as qc

ROOT = pathlib.Path(__file__).parents[2]
X = torch.randn(2, 16, 64)


class Decoder(nn.Module):
    """A small language model with everything that a report has a line for."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(80, 64)
        self.layers = nn.ModuleList([nn.ModuleDict({"self_attn": Attention(), "mlp": Block()})])
        self.lm_head = nn.Linear(64, 80, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer["mlp"](x + layer["self_attn"](x))
        return self.lm_head(x)


IDS = torch.zeros(2, 16, dtype=torch.long)


def test_a_report_reads_as_a_table():
    assert_expected_inline(
        str(qc.explain(Decoder(), IDS)),
        """\
6 of 8 matmuls (84 % of FLOPs outside attention) in FP4, in 1 graph (recipe 'quartet').
Rules, and how many matmuls and what share of these FLOPs each decided:
    6    84 %  matmul with a parameter
    1          attention: product of two activations
    1    15 %  output head by its name 'lm_head'; include=['*'] rewrites it too

matmul                      M   N   K  runs in  because
----------------------------------------------------------------------------------------------------------------
layers.0.self_attn.q_proj  32  64  64  fp4      matmul with a parameter
layers.0.self_attn.k_proj  32  64  64  fp4      matmul with a parameter
layers.0.self_attn.v_proj  32  64  64  fp4      matmul with a parameter
layers.0.self_attn                     float32  attention: product of two activations
layers.0.self_attn.o_proj  32  64  64  fp4      matmul with a parameter
layers.0.mlp.up            32  96  64  fp4      matmul with a parameter
layers.0.mlp.down          32  64  96  fp4      matmul with a parameter
lm_head                    32  80  64  float32  output head by its name 'lm_head'; include=['*'] rewrites it too

Each multiplies [M, K] by [K, N]; of a linear layer, M is the number of tokens.""",
    )


def test_a_report_of_graph_breaks_says_where_and_lists_what_runs_eagerly(monkeypatch):
    monkeypatch.chdir(ROOT)
    report = str(qc.explain(Net(break_graph=True), X))
    report = re.sub(r"(?<=models.py:)\d+", lambda digits: "N" * len(digits.group()), report)
    assert_expected_inline(
        report,
        """\
4 of 5 matmuls in FP4, in 2 graphs (recipe 'quartet').
Rules, and how many matmuls each decided:
    4  matmul with a parameter
    1  runs eagerly, outside of every graph
Graph break at tests/support/models.py:NN: Call to `torch._dynamo.graph_break()`

matmul                       M   N   K  runs in  because
-------------------------------------------------------------------------------------
layers.0-1.up (x2)          32  96  64  fp4      matmul with a parameter
layers.0-1.down (x2)        32  64  96  fp4      matmul with a parameter
tests/support/models.py:NN  32  40  64  float32  runs eagerly, outside of every graph

Each multiplies [M, K] by [K, N]; of a linear layer, M is the number of tokens.""",
    )


def test_what_a_graph_keeps_does_not_run_eagerly():
    report = qc.explain(Net(break_graph=True), X, recipe="bf16")
    assert [site.name for site in report.eager_sites] == [report.sites[-1].name]
    assert len(report.sites) == 5


def test_a_report_names_patterns_that_match_nothing():
    report = qc.explain(Block(), X, include=["up"], exclude=["nowhere.*", "down"])
    assert report.unmatched == ("exclude='nowhere.*'",)
    assert "Pattern exclude='nowhere.*' matches no module of these graphs." in str(report)


def test_a_report_of_a_model_without_matmuls():
    assert "0 of 0 matmuls in FP4" in str(qc.explain(nn.LayerNorm(64), X))


def test_a_site_says_which_quantizers_each_gemm_has():
    up, down = qc.explain(Block(), X, exclude=["down"]).sites
    assert (up.name, up.shape, up.dtype, up.rewritten) == ("up", (32, 96, 64), "float32", True)
    assert up.gemms == {"fprop": "mxfp4-quest", "dgrad": None, "wgrad": "mxfp4-sr"}
    assert (down.shape, down.rewritten, down.reason) == ((32, 64, 96), False, "excluded by 'down'")
    assert down.gemms == dict.fromkeys(("fprop", "dgrad", "wgrad"), "high precision")


class Products(nn.Module):
    """Every kind of reason to keep a product, and two that are rewritten."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.few = nn.Linear(64, 8), nn.Linear(16, 64)
        self.experts = nn.Parameter(torch.randn(2, 64, 64))
        self.conv = nn.Conv1d(16, 16, 1)
        self.a, self.b = nn.Parameter(torch.randn(64, 32)), nn.Parameter(torch.randn(32, 64))
        self.router, self.score = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(0, 1)
        y = flat @ flat.t() @ flat + flat @ (self.a @ self.b) + self.router(flat) + self.score(flat)
        y = y + self.few(flat[:, :16]) + self.narrow(flat).sum()
        return x @ self.experts + self.conv(x) + x @ x.transpose(1, 2) @ x + y.view_as(x)


def test_each_reason_is_specific():
    report = qc.explain(Products(), X)
    assert [site.name for site in report.sites if site.rewritten] == ["a + b", "experts"]
    assert [(site.name, site.reason) for site in report.sites] == [
        ("mm", "product of two activations"),
        ("mm_1", "product of two activations"),
        ("mm_2", "product of two parameters"),
        ("a + b", "matmul with a weight computed from 2 parameters"),
        ("router", "router by its name 'router'; include=['*'] rewrites it too"),
        ("score", "output head by its name 'score'; include=['*'] rewrites it too"),
        ("few", "K is 16, below the group of 32"),
        ("narrow", "N is 8, below the group of 32"),
        ("experts", "matmul with 2 matrices of a parameter"),
        ("conv", "K is 16, below the group of 32"),
        ("bmm", "product of two activations"),
        ("bmm", "product of two activations"),
    ]


def test_explain_under_no_grad_is_the_inference_graph():
    with torch.no_grad():
        report = qc.explain(Block(), X, eval="quartet-rtn")
    assert report.recipe == "quartet-rtn"
    assert [site.gemms["wgrad"] for site in report.sites] == [None, None]


@pytest.mark.parametrize("wrap", [torch.compile, qc.quartet, lambda m: m.forward, lambda m: lambda x: m(x)])
def test_what_can_be_explained(wrap):
    assert decisions(qc.explain(wrap(Block()), X)) == {"up": True, "down": True}


def test_inputs_are_called_by_the_names_of_the_arguments():
    def function(batch: dict, *rest: torch.Tensor) -> torch.Tensor:
        return batch["x"].sin() + rest[0].cos()

    (graph,) = qc.explain(function, {"x": X}, X.clone()).graphs
    assert "sin(batch['x'])" in graph.before
    assert "cos(input[1])" in graph.before


# Explaining leaves no trace.


class Stateful(nn.Module):
    """Counts its calls, keeps a table and its last output, draws random numbers and updates buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm = nn.Linear(64, 64), nn.BatchNorm1d(16)
        self.calls, self.last, self.tables = 0, None, {}
        self.register_buffer("mean", torch.zeros(64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.tables[x.shape[1]] = x * 2
        self.mean = 0.9 * self.mean + 0.1 * x.mean((0, 1))
        self.last = torch.dropout(self.norm(self.body(x)), 0.5, True)
        return self.last


def test_a_model_is_left_as_it_was():
    model = Stateful()
    model.body.weight.grad = torch.ones(64, 64)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    qc.explain(model, X)
    assert (model.calls, model.last, model.tables) == (0, None, {})
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert type(model.mean) is torch.Tensor
    assert torch.equal(model.body.weight.grad, torch.ones(64, 64)) and model.body.bias.grad is None
    assert torch.equal(torch.get_rng_state(), random)
    model(X)
    assert model.calls == 1 and list(model.tables) == [16]


def test_a_training_step_leaves_parameters_and_gradients():
    model = Block()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    state = {name: value.clone() for name, value in model.state_dict().items()}

    def step(x: torch.Tensor) -> torch.Tensor:
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    report = qc.explain(step, X)
    assert decisions(report) == {"up": True, "down": True}
    assert any("backward()" in line for line in report.eager)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_no_arithmetic_no_inductor_and_no_file(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))

    def refuse(*args, **kwargs):
        raise AssertionError("Inductor was called")

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", refuse)
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx_inner", refuse)
    with torch.device("meta"):
        model = nn.Linear(2**20, 2**20)
    report = qc.explain(model, torch.empty(2**20, 2**20, device="meta"))
    assert [site.shape for site in report.sites] == [(2**20, 2**20, 2**20)]
    assert os.listdir(tmp_path) == []


class Counts:
    """A Dynamo backend that keeps each graph's input shapes and computes nothing special."""

    def __init__(self) -> None:
        self.shapes = []

    def __call__(self, gm, inputs):
        values = [node.meta["example_value"] for node in gm.graph.nodes if node.op == "placeholder"]
        self.shapes.append([tuple(value.shape) for value in values if isinstance(value, torch.Tensor)])
        self.symbols = [value for value in values if not isinstance(value, torch.Tensor)]
        return gm


@pytest.mark.parametrize("break_graph", [False, True])
def test_a_later_compilation_knows_nothing_of_the_explained_shape(break_graph):
    torch._dynamo.reset()
    model, backend = Net(break_graph=break_graph), Counts()
    qc.explain(model, torch.randn(3, 7, 64))
    torch.compile(model, backend=backend)(X)
    assert backend.shapes and backend.symbols == []
    assert all(isinstance(size, int) for shapes in backend.shapes for shape in shapes for size in shape)


def test_what_dynamo_has_learnt_of_sizes_is_kept():
    torch._dynamo.reset()
    model, backend = Net(break_graph=True), Counts()
    function = torch.compile(model, backend=backend)
    function(torch.randn(2, 8, 64))
    function(torch.randn(2, 9, 64))
    assert backend.symbols
    compilations = len(backend.shapes)
    qc.explain(model, torch.randn(2, 10, 64))
    function(torch.randn(2, 11, 64))
    assert len(backend.shapes) == compilations


@pytest.mark.skipif(
    "isolate_recompiles" not in torch.compile.__kwdefaults__, reason="torch < 2.12 counts every compilation"
)
def test_explaining_uses_up_none_of_the_recompile_limit():
    torch._dynamo.reset()
    model, backend = Net(blocks=1, break_graph=True), Counts()
    with torch._dynamo.config.patch(recompile_limit=2):
        for length in (1, 2, 3):
            qc.explain(model, torch.randn(2, length, 64))
        function = torch.compile(model, backend=backend, dynamic=False)
        for length in (3, 4):
            function(torch.randn(2, length, 64))
    assert len(backend.shapes) == 2


# What can't be explained.


class Raises(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-1] != 64:
            raise ValueError(f"the last size must be 64, not {x.shape[-1]}")
        return self.body(x)


@pytest.mark.parametrize(
    "model, inputs, message",
    [
        (Raises(), (torch.randn(2, 63),), "ValueError: the last size must be 64, not 63"),
        (nn.Linear(64, 64), (torch.randn(2, 63),), r"RuntimeError\(.*63.*64"),
        (nn.Linear(64, 64), (), "missing 1 required positional argument: 'input'"),
    ],
)
def test_a_models_own_error_is_in_the_message(model, inputs, message):
    weight = next(model.parameters()).clone()
    with pytest.raises(qc.CaptureError, match=message):
        qc.explain(model, *inputs)
    assert torch.equal(next(model.parameters()), weight)


def test_strict_refuses_graph_breaks():
    with pytest.raises(qc.StrictError, match=r"models.py:\d+: .*graph_break.*Remove the graph breaks"):
        qc.explain(Net(break_graph=True), X, strict=True)


def test_names_of_a_sequential_are_in_order():
    model = nn.Sequential(OrderedDict((name, nn.Linear(64, 64)) for name in ("z", "a", "m")))
    assert list(decisions(qc.explain(model, X))) == ["z", "a", "m"]


def test_the_example_explains_a_llama(capsys):
    explain_model.main(["--device", "meta"])
    out = capsys.readouterr().out
    assert "14 of 19 matmuls (" in out  # on the meta device, attention is two batched products
    assert "7 x kept: excluded by 'layers.0'" in out and "7 x fp4: included by '*'" in out
    assert "+bwd  output.grad.q = quantize_pair[mxfp4-sr](output.grad, seed[0])" in out


MAX_POOL = """
import torch, quartet_compile as qc
model = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 4, 4), torch.nn.MaxPool2d(3, 2, 1))
print(qc.explain(model, torch.randn(2, 3, 32, 32)).captured)
"""


def test_max_pooling_in_a_process_that_has_not_loaded_inductor():
    done = subprocess.run(
        [sys.executable, "-c", MAX_POOL], capture_output=True, text=True, timeout=200, cwd=ROOT / "tests"
    )
    assert done.stdout == "fake tensors\n", done.stderr
