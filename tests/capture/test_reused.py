"""Blocks between graph breaks share one graph: `explain` lists the matmuls of each, and an export writes the weights of
each."""

from __future__ import annotations

import pytest
import torch
from captured import decisions
from models import Block, Net
from torch import nn

import quartet_compile as qc
from quartet_compile.capture.reused import Reused
from quartet_compile.report.report import Cached, Gathered, GraphReport, Site

X = torch.randn(2, 16, 64)


def blocks(*numbers):
    return {f"layers.{number}.{part}" for number in numbers for part in ("up", "down")}


class Reads(Net):
    """What a call reads of its values is seen in a real call only."""

    def forward(self, x):
        if x.sum().item() > 1e9:
            return x
        return super().forward(x)


@pytest.mark.parametrize("kind", [Net, Reads])
@pytest.mark.parametrize("gradients", [True, False])
def test_each_block_is_listed_once(kind, gradients):
    model = kind(blocks=4, break_graph=True)
    with torch.set_grad_enabled(gradients):
        report = qc.explain(model, X)
    names = [site.name for site in report.sites if site.rewritten]
    assert sorted(names) == sorted(blocks(0, 1, 2, 3))
    assert "up (x4)" in str(report) and "layers.0-3" in str(report)


def test_a_rule_for_the_block_that_was_captured_is_that_of_all():
    """The first block's input has no gradient, so its graph is its own; those behind it have that of the second."""
    report = qc.explain(Net(blocks=4, break_graph=True), X, exclude=["layers.1"])
    kept = {name for name, done in decisions(report).items() if not done and name.startswith("layers.")}
    assert kept == blocks(1, 2, 3) and report.rules["excluded by 'layers.1'"] == 6


def test_an_export_has_the_codes_of_each():
    model = Net(blocks=3, break_graph=True)
    names = {name for name, _ in qc.export_state(model, inputs=(X,), recipe="quartet", unrotated=True)}
    assert {f"{name}.weight_packed" for name in blocks(0, 1, 2)} <= names


class Towers(nn.Module):
    """One function for two parts of other names; and twice for one of them."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.ModuleList([Block(), Block()]), nn.ModuleList([Block()])

    def forward(self, x):
        for block in (*self.encoder, *self.decoder, *self.encoder):
            torch._dynamo.graph_break()
            x = block(x)
        return x


def test_parts_of_any_name_are_told_apart():
    with torch.no_grad():
        found = qc.explain(Towers(), X)
    parts = ("encoder.0", "encoder.1", "decoder.0")
    assert [site.name for site in found.sites] == [f"{part}.{name}" for part in parts for name in ("up", "down")]


def test_what_is_kept_and_gathered_is_listed_for_each():
    report = qc.explain(Net(blocks=3, break_graph=True), X, weight_cache=True)
    assert {item.matmul for item in report.cached} == blocks(0, 1, 2)


def site(name):
    return Site(name=name, shape=(1, 2, 3), dtype="float32", rewritten=True, reason="", gemms={})


def test_names_follow_the_parameters():
    kept = Cached(matmul="a.up", operand="W", quantizer="mxfp4-quest", size=1)
    sent = Gathered(matmul="a.up", operand="W", shape=(1,), ranks=2, bytes_before=2, bytes_after=1)
    named = ("a.up", "a.attention", "a.w", "shared", "other.a")
    graphs = [GraphReport(sites=(), training=True)]
    graphs.append(GraphReport(sites=tuple(map(site, named)), training=True, cached=(kept,), gathered=(sent,)))
    reused = Reused(graphs, 1, {0: "a.up.weight", 1: "a.w", 3: "shared.weight"})
    reused.ran({0: "a.up.weight"})
    reused.ran({0: "b.c.up.weight", 1: "lone"})
    reused.ran({0: "b.c.up.weight", 1: "lone", 3: "shared.weight"})
    _, graph = graphs
    assert [item.name for item in graph.sites[5:]] == ["b.c.up", "b.c.attention", "lone", "shared", "other.a"]
    assert [item.matmul for item in (*graph.cached, *graph.gathered)] == ["a.up", "b.c.up"] * 2
