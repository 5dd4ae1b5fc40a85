"""A weight is written in the codes that its matmul reads, whatever lies between both; or not at all."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import quartet_compile as qc

X = torch.randn(4, 16, 64, generator=torch.Generator().manual_seed(1))
RECIPE = "jetfire-fp4"
ROWS = qc.unrotated("quartet")  # groups within one row


class Read(nn.Module):
    """A linear layer `a` beside one that reads its weight as `how` says."""

    def __init__(self, how, n=64):
        super().__init__()
        self.a, self.how = nn.Linear(64, n), how

    def forward(self, x):
        return self.how(x, self.a.weight)


class Part(nn.Module):
    """Reads a weight that is another module's; its own parameter called `weight` is no matrix."""

    def __init__(self, shared):
        super().__init__()
        self.weight, self.shared = nn.Parameter(torch.ones(64)), [shared]

    def forward(self, x):
        return F.linear(x * self.weight, self.shared[0])


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(96, 64) / 8)
        self.part = Part(self.w)

    def forward(self, x):
        return self.part(x)


class Stack(nn.Module):
    """Matrices of a stack, one by one."""

    def __init__(self):
        super().__init__()
        self.w, self.v = nn.Parameter(torch.randn(3, 96, 64) / 8), nn.Parameter(torch.randn(3, 96, 64) / 8)

    def forward(self, x):
        return sum(F.linear(x, self.w[i]) @ self.v[i] for i in range(3))


class Table(nn.Module):
    """An output head, defined before the embedding whose table it is."""

    def __init__(self):
        super().__init__()
        self.head, self.embedding = nn.Linear(64, 96, bias=False), nn.Embedding(96, 64)
        self.embedding.weight = self.head.weight

    def forward(self, x):
        return self.head(self.embedding(x.argmax(-1)))


def standardized(x, w):
    return F.linear(x, (w - w.mean(1, keepdim=True)) / w.std(1, keepdim=True))


def in_two_dtypes(x, w):
    with torch.autocast("cpu", torch.bfloat16):
        y = F.linear(x, w)
    return F.linear(y.float(), w)


@pytest.mark.parametrize(
    "model, match",
    [
        (Read(standardized), "'a' runs in FP4, and its weight is no tensor of the state dict"),
        (Read(lambda x, w: F.linear(x[..., :48], w[:, 16:])), "'a' runs in FP4, and its weight is no tensor"),
        (Read(lambda x, w: F.linear(x, w.t())), "'a' reads the nn.Linear weight 'a.weight' transposed"),
        (
            Read(lambda x, w: F.linear(F.linear(x, w), w.t()), 96),
            "'a' reads the nn.Linear weight 'a.weight' transposed",
        ),
        (Read(in_two_dtypes), "read by two matmuls in other codes: in bfloat16, its rows .*; in float32"),
        (Read(lambda x, w: F.linear(x, w[:64]), 96), "reads a part of 'a.weight', and 'mxfp4-.*' has a scale of more"),
        (Table(), "'head.weight' is read by a matmul in FP4, and as an embedding table"),
    ],
    ids=["standardized", "columns", "transposed", "both", "dtypes", "part", "table"],
)
def test_what_no_codes_of_the_parameter_are_is_refused(model, match):
    with pytest.raises(qc.ExportError, match=match):
        qc.export_state(model, inputs=(X,), format="bf16", recipe=RECIPE, include=["*"])


@pytest.mark.parametrize(
    "model, expected",
    [
        (Parts(), {"w": "rows"}),
        (Read(lambda x, w: F.linear(x, w[:64]) + F.linear(x, w[64:]), 128), {"a.weight": "rows"}),
        (Read(lambda x, w: torch.bmm(x, w.t().expand(4, 64, 96)), 96), {"a.weight": "rows"}),
        (Stack(), {"w": "rows", "v": "columns"}),
        (nn.MultiheadAttention(64, 2), {"in_proj_weight": "rows", "out_proj.weight": "rows"}),
    ],
    ids=["elsewhere", "parts", "expanded", "stack", "attention"],
)
def test_rows_are_written_wherever_they_are_read(model, expected):
    inputs = (X, 2 * X, 2 * X) if isinstance(model, nn.MultiheadAttention) else (X,)
    report = qc.explain(model, *inputs, recipe=ROWS)
    assert {site.weight: site.outputs.removeprefix("some ") for site in report.sites if site.rewritten} == expected
    written = dict(qc.export_state(model, report=report, format="bf16", recipe=ROWS))
    for name, weight in model.named_parameters():
        if name not in expected:
            assert torch.equal(written[name], weight.bfloat16())
            continue
        read = weight if expected[name] == "rows" else weight.transpose(-1, -2)
        codes = qc.quantize(read.detach(), ROWS.fprop.b).restore()
        assert torch.equal(written[name], (codes if expected[name] == "rows" else codes.transpose(-1, -2)).bfloat16())


def test_a_computed_weight_whose_forward_stays_in_high_precision_is_written_as_it_is():
    model = Read(standardized)
    model.b = nn.Linear(64, 64)
    model.how = lambda x, w: model.b(standardized(x, w))
    recipe = [("a", "mxfp4-bwd"), ("*", RECIPE)]
    written = dict(qc.export_state(model, inputs=(X,), format="bf16", recipe=recipe))
    assert torch.equal(written["a.weight"], model.a.weight.bfloat16())
