"""A bug of ours: the site on which the pass fails stays as it was, the rest is rewritten, and nothing stops."""

from __future__ import annotations

import pytest
import torch
from captured import decisions, reasons
from models import Attention, Net
from rounding import assert_same_step
from torch import nn

import quartet_compile as qc
from quartet_compile.passes import match, others, pipeline, plan, stats
from quartet_compile.passes.graph import VerifyError
from quartet_compile.passes.products import form
from quartet_compile.passes.work import Work

X = torch.randn(2, 16, 64)
ALL = {"layers.0.up", "layers.0.down", "layers.1.up", "layers.1.down", "out"}


def of_site(index, plain):
    """A method of a form that fails for one site."""

    def method(self, *args):
        if self.site.index == index:
            raise IndexError("tuple index out of range")
        return plain(self, *args)

    return method


@pytest.fixture(params=["x", "fprop", "dy", "dw"])
def failing_form(request, monkeypatch):
    """Fails on the second site, `layers.0.down`, before or after others and parts of itself were rewritten."""
    monkeypatch.setattr(form.Form, request.param, of_site(1, getattr(form.Form, request.param)))


@pytest.fixture(params=["a node of a site", "a replaced node", "no node"])
def failing_check(request, monkeypatch):
    """Finds fault, once, with what was made for `layers.0.down`; or with nothing in particular."""
    calls = []

    def verify(work, finished=False):
        if not finished:
            return
        made, replaced = [n for n in work.graph.nodes if n.name.startswith("scaled_mm")], [*work.replaced]
        nodes = {"a node of a site": made[1], "a replaced node": replaced[3], "no node": None}
        calls.append(nodes)
        if len(calls) == 1:
            raise VerifyError("an illegal graph", nodes[request.param])

    monkeypatch.setattr(pipeline, "verify", verify)
    return request.param


def check(graphs, kept, message):
    """Trains under `exact`, with the gradients of the untouched model; the sites of `kept` have the reason."""
    model = Net()
    graphs.clear()
    function = torch.compile(model, backend="quartet", options={"recipe": "exact"})
    with pytest.warns(UserWarning, match=message) as warned:
        assert_same_step(model, X, function)
    (report,) = graphs
    assert {site.name for site in report.sites if site.rewritten} == ALL - kept
    assert all(message in site.reason for site in report.sites if site.name in kept)
    assert len([w for w in warned if "bug of Quartet Compile: please report it" in str(w.message)]) == len(kept)


def test_a_site_that_fails_is_kept_and_the_rest_is_rewritten(graphs, failing_form):
    check(graphs, {"layers.0.down"}, "IndexError: tuple index out of range")


def test_a_site_that_is_found_wrong_is_kept(graphs, failing_check):
    kept = ALL if failing_check == "no node" else {"layers.0.down"}
    check(graphs, kept, "VerifyError: an illegal graph")


def test_others_still_share_what_the_failing_site_would_have_made(graphs, monkeypatch):
    monkeypatch.setattr(form.Form, "fprop", of_site(0, form.Form.fprop))  # q makes X, which k and v share
    model = Attention()
    with pytest.warns(UserWarning, match="'q_proj' stays in high precision"):
        assert_same_step(model, X, torch.compile(model, backend="quartet", options={"recipe": "exact"}))
    assert [site.name for site in graphs[-1].sites if site.rewritten] == ["k_proj", "v_proj", "o_proj"]


def test_a_failure_leaves_the_graph_as_it_was(graphs, failing_form, monkeypatch):
    before, attempt = [], Work.attempt

    def listing(work):
        before.append("\n".join(f"{n.format_node()} {n.meta.get('seq_nr')}" for n in work.graph.nodes))
        work.graph.lint()
        return attempt(work)

    monkeypatch.setattr(Work, "attempt", listing)
    with pytest.warns(UserWarning, match="bug of Quartet"):
        torch.compile(Net(), backend="quartet")(X).sum().backward()
    assert len(before) == 2 and before[0] == before[1]


@pytest.mark.parametrize("module, function", [(match, "find_sites"), (plan, "decide"), (others, "find_others")])
def test_a_failure_before_anything_is_rewritten_leaves_the_graph_alone(graphs, module, function, monkeypatch):
    def fail(*_, **__):
        raise KeyError("seq_nr")

    monkeypatch.setattr(module, function, fail)
    model = Net()
    with pytest.warns(UserWarning, match="a graph stays in high precision: the pass failed on it .KeyError"):
        assert_same_step(model, X, torch.compile(model, backend="quartet"))
    assert graphs[0].sites == () and graphs[0].training


def test_statistics_that_fail_are_a_failure_of_all(graphs, monkeypatch):
    monkeypatch.setattr(stats, "_rows", lambda products: {})
    with pytest.warns(UserWarning, match="KeyError"):
        torch.compile(Net(), backend="quartet", options={"stats": True})(X).sum().backward()


def test_strict_raises_in_our_words(graphs, failing_form):
    with pytest.raises(qc.StrictError, match="'layers.0.down' stays in high precision: the pass failed.*strict=False"):
        torch.compile(Net(), backend="quartet", options={"strict": True})(X)


def test_explain_shows_it_and_blames_nobody_else(failing_form):
    with pytest.warns(UserWarning, match="bug of Quartet"):
        report = qc.explain(Net(), X)
    assert {name for name, done in decisions(report).items() if done} == ALL - {"layers.0.down"}
    assert "which is a bug of Quartet Compile" in reasons(report)["layers.0.down"]
    with pytest.raises(qc.StrictError, match="a bug of Quartet Compile"):
        qc.explain(Net(), X, strict=True)


def test_under_inductor(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(form.Form, "dw", of_site(1, form.Form.dw))
    model = nn.Sequential(nn.Linear(64, 96), nn.Linear(96, 64), nn.Linear(64, 32))
    with (
        pytest.warns(UserWarning, match="'1' stays in high precision"),
        torch._inductor.config.patch(fx_graph_cache=False),
    ):
        assert_same_step(model, X, torch.compile(model, backend="quartet", options={"recipe": "exact"}))
