"""The line about a compiled model, and the warning where nothing of it is in FP4."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch
from models import Block, Net
from torch import nn

import quartet_compile as qc
from quartet_compile import _compat
from quartet_compile.capture.capture import compile_plainly
from quartet_compile.frontend import said
from quartet_compile.process import process
from quartet_compile.report.summary import counted, share

X = torch.randn(2, 16, 64)


@pytest.fixture
def lines(monkeypatch, caplog):
    """Compile without Inductor; gives a function for the lines so far."""
    torch._dynamo.reset()
    monkeypatch.setattr(process, "said", set())
    monkeypatch.setattr(process, "reports", {})
    monkeypatch.setattr(process, "seen", {})
    monkeypatch.setattr(_compat, "cache_dir", lambda: "/nowhere")

    def compile_fx(gm, inputs, config_patches):
        return compile_plainly(gm, inputs, config_patches["joint_custom_pre_pass"])

    monkeypatch.setattr(_compat, "compile_fx", compile_fx)
    monkeypatch.setattr("quartet_compile.frontend.said.path_of", lambda device, products: f"{device.type}: {products}")
    return lambda: [record.getMessage() for record in caplog.records if record.name == said.log.name]


END = "; compiling, which takes a while the first time"
MX = "cpu: {('mxfp4', 'mxfp4', False)}"


def test_one_line_a_model_while_it_compiles(lines):
    model = torch.compile(Net(), backend="quartet")
    for _ in range(2):
        model(X).sum().backward()
    model.eval()
    with torch.no_grad():
        model(X)
    assert lines() == [
        f"quartet: Net: 5 of 5 matmuls (100 % of FLOPs outside attention) in FP4, recipe quartet; {MX}{END}"
    ]


def test_the_share_counts_forward_and_backward(lines):
    qc.quartet(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 16)), recipe="quartet-rtn")(X)
    # the first has no gradient of its input: 2 products of 64x64; the second is too small, and has 3 of 64x16
    assert lines()[0].startswith(
        "quartet: Sequential: 1 of 2 matmuls (72 % of FLOPs outside attention) in FP4, recipe quar"
    )


def test_equal_blocks_say_it_once(lines):
    qc.quartet(Net(), regions=["layers.*"], exclude=["layers.0.*"])(X)
    assert [line.partition(" (")[0].partition(",")[0] for line in lines()] == [
        "quartet: Block: 0 of 2 matmuls in FP4",
        "quartet: Block: 2 of 2 matmuls",
    ]


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = Block(), nn.Linear(64, 16)

    def forward(self, x):
        x = self.first(x)
        torch._dynamo.graph_break()
        return self.second(x)


def test_all_graphs_of_a_model_are_in_the_last_line(lines):
    qc.quartet(Broken())(X)
    first, last = lines()
    assert "2 of 2 matmuls" in first and first.endswith(END)
    assert "2 of 3 matmuls" in last and not last.endswith(END)


class Fails(Broken):
    def forward(self, x):
        super().forward(x)
        torch._dynamo.graph_break()
        if self.training:
            raise ValueError("no")


def test_what_a_failed_call_compiled_is_counted_once(lines):
    model = Fails()
    compiled = qc.quartet(model)
    with pytest.raises(ValueError, match="no"):
        compiled(X)
    torch._dynamo.reset()
    model.eval()
    compiled(X)
    assert [line.partition(" (")[0] for line in lines()] == [
        "quartet: Fails: 2 of 2 matmuls",
        "quartet: Fails: 2 of 3 matmuls",
    ]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "model, x, reason",
    [
        (Net().double(), X.double(), "dtype float64; FP4 replaces float32, bfloat16 and float16 only (5 matmuls)"),
        (nn.Sequential(nn.Linear(16, 16)), X[..., :16], "K is 16, below the group of 32 (1 matmul)"),
    ],
    ids=["float64", "16 wide"],
)
def test_nothing_in_fp4_is_a_warning_with_the_reason(lines, strict, model, x, reason):
    compiled = torch.compile(model, backend="quartet", options={"strict": strict})
    with pytest.warns(UserWarning, match="matmuls in FP4") as caught:
        compiled(x)
    (warning,) = caught
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled(x)
    assert reason in str(warning.message) and warning.filename == __file__
    assert lines() == []


@pytest.mark.parametrize("options", [{"recipe": "bf16"}, {"exclude": ["*"]}], ids=str)
def test_nothing_in_fp4_as_asked_is_no_warning(lines, options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        qc.quartet(Net(), **options)(X)
    assert "0 of 5 matmuls in FP4" in lines()[0]


def test_what_has_no_weight_says_nothing(lines):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        qc.quartet(lambda x: (x @ x.mT).relu())(X.requires_grad_())
    assert lines() == []


def test_the_environment_and_the_logger_silence_the_line(lines, monkeypatch, caplog):
    monkeypatch.setenv("QUARTET_QUIET", "1")
    qc.quartet(Net())(X)
    monkeypatch.setenv("QUARTET_QUIET", "0")
    with caplog.at_level("WARNING", logger=said.log.name):
        qc.quartet(Net(), recipe="quartet-rtn")(X)
    assert lines() == []
    monkeypatch.setenv("QUARTET_QUIET", "yes")
    with pytest.raises(qc.OptionError, match="QUARTET_QUIET is 'yes'; expected 1"):
        qc.quartet(Net(), recipe="quartet2")(X)


def test_only_the_first_rank_says_it(lines, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr("quartet_compile._compat.default_store", lambda: None)  # there are no others to talk to
    qc.quartet(Net())(X)
    assert lines() == []


def test_dynamic_sizes():
    report = qc.explain(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 16)), torch.randn(32, 64))
    first, second = report.sites
    dynamic = [dataclasses.replace(site, shape=("s0", *site.shape[1:])) for site in (first, second)]
    assert share(dynamic) == share(report.sites)
    assert share([dynamic[0], second]) is None and "%" not in counted([dynamic[0], second])
