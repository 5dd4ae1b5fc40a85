"""The runner of the pipeline: what runs when, what is shown of it, and what a wrong request says."""

from __future__ import annotations

import pytest
import torch
from captured import compiled
from torch import nn

import quartet_compile as qc
from quartet_compile.passes import PIPELINE, pipeline
from quartet_compile.passes.joint import QuartetPass
from quartet_compile.passes.pipeline import Pass

X = torch.randn(64, 64)


@pytest.fixture
def checked(monkeypatch):
    """Whether each check of the spec is the last one of its graph."""
    checks = []
    plain = pipeline.verify

    def verify(work, finished=False):
        checks.append(finished)
        plain(work, finished)

    monkeypatch.setattr(pipeline, "verify", verify)
    return checks


@pytest.fixture
def ran(monkeypatch):
    """The passes of this process's graphs, with the seconds of each, as they run."""
    runs = []
    plain = QuartetPass._run

    def run(self, graph):
        plain(self, graph)
        runs.append(self.seconds)

    monkeypatch.setattr(QuartetPass, "_run", run)
    return runs


def train(**options):
    """A step of two linears."""
    model = nn.Sequential(nn.Linear(64, 96), nn.Linear(96, 64))
    function, _ = compiled(model, **options)
    function(X).sum().backward()


def test_what_looks_runs_before_what_changes():
    changes = [step.changes for step in PIPELINE]
    assert changes == sorted(changes)


def test_every_pass_is_timed_and_the_check_too(ran):
    train(stats=True)
    assert set(ran[0]) == {step.name for step in PIPELINE} | {"verify"}
    assert all(seconds > 0 for seconds in ran[0].values())


@pytest.mark.parametrize(
    "options, passes", [({}, 2), ({"stats": True}, 3), ({"recipe": "mxfp4-bwd"}, 1)], ids=["", "stats", "only backward"]
)
def test_the_graph_is_checked_after_each_pass_that_did_something(options, passes, checked):
    train(**options)
    assert checked == [False] * passes + [True]


def test_a_graph_with_nothing_to_rewrite_is_only_looked_at(ran):
    train(exclude=["*"])
    assert set(ran[0]) == {step.name for step in PIPELINE if not step.changes}


def test_the_graph_is_shown_after_each_pass_that_changes_it(monkeypatch, capsys):
    monkeypatch.setenv("QUARTET_DEBUG", "passes")
    train()
    shown = capsys.readouterr().err
    parts = shown.split("quartet: after ")[1:]
    assert [part.partition("\n")[0] for part in parts] == ["forward", "backward"]  # `stats` had nothing to do
    assert "bwd  " in parts[0] and "requantize" not in parts[0]  # the backward comes next
    assert "requantize[mxfp4-sr]" in parts[1]


def test_an_unknown_request_says_what_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("QUARTET_DEBUG", "pases")
    with pytest.raises(
        qc.OptionError, match="QUARTET_DEBUG has 'pases'; expected passes, weights.*did you mean 'passes'"
    ):
        pipeline.run([], None)


def test_a_pass_that_fails_once_is_run_again_without_the_site(monkeypatch):
    calls = []

    def fails_once(work):
        calls.append([site.index for site in work.chosen])
        if len(calls) == 1:
            work.build.working_on = 1
            raise IndexError("tuple index out of range")

    found = {}

    def look(work):
        found["work"] = work

    looking = [step for step in PIPELINE if not step.changes]
    steps = [*looking, Pass("look", look), Pass("fails", fails_once, changes=True)]
    run = pipeline.run
    monkeypatch.setattr("quartet_compile.passes.joint.run", lambda _, work: run(steps, work))
    monkeypatch.setattr(pipeline, "verify", lambda work, finished=False: None)
    with pytest.warns(UserWarning, match="bug of Quartet"):
        train()
    assert calls == [[0, 1], [0]]
    assert [decision.rewrite for decision in found["work"].decisions] == [True, False]
