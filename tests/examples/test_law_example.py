"""The example that trains a ladder of small models and fits the scaling law: its table, its plan, and what stops it.

Training is replaced by a known law, or runs uncompiled for two steps.
"""

from __future__ import annotations

import csv
import sys
from unittest import mock

import fit_law
import llama
import pytest
import training
from training import Diverged, Stopped

import quartet_compile as qc
from quartet_compile import law

TRUE = law.Law(A=2e3, alpha=0.5, B=4e3, beta=0.5, E=1.2, gamma=0.5)


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(30):
        (folder / f"{i}.txt").write_text("the quick brown fox jumps over the lazy dog\n" * (i + 5))
    return folder


@pytest.fixture(autouse=True)
def _sizes():
    """`main` adds its ladder to the sizes; other tests must not see it."""
    with mock.patch.dict(llama.SIZES):
        yield


@pytest.fixture
def trained(monkeypatch):
    """Makes `train` a law with effN .7 and effD .8 for recipes; returns the settings it was called with."""
    calls = []

    def train(settings, corpus, folder, label, stop):
        calls.append(settings)
        parameters = fit_law.parameters_of(fit_law.LADDER[settings.size])
        passes = {"eff_n": 0.7, "eff_d": 0.8} if settings.recipe else {}
        return TRUE.predict(parameters, settings.steps * settings.tokens_a_step, **passes)

    monkeypatch.setattr(fit_law, "train", train)
    return calls


def run(data, out, *arguments):
    return fit_law.main(["--data", str(data), "--out", str(out), *arguments])


def rows(out):
    with open(out / "runs.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_whole_way(data, tmp_path, trained, capsys, monkeypatch):
    monkeypatch.setattr(fit_law, "RESAMPLES", 2)
    assert run(data, tmp_path) == 0
    assert len(trained) == len(rows(tmp_path)) == 24
    out = capsys.readouterr().out
    assert "on 12 runs of float32:float32" in out
    assert "95 % interval" in out
    assert "badly determined" in out
    assert (tmp_path / "law.png").read_bytes()[:4] == b"\x89PNG"
    found = law.efficiency(law.read_runs(tmp_path / "runs.csv"), TRUE, "quartet", baseline="float32")
    assert (found.eff_n, found.eff_d) == pytest.approx((0.7, 0.8), rel=1e-4)


def test_quick_has_no_intervals_and_says_so(data, tmp_path, trained, capsys):
    assert run(data, tmp_path, "--quick") == 0
    out = capsys.readouterr().out
    assert len(trained) == 16
    assert "No intervals: they need 9 runs in full precision, and there are 8." in out


def test_what_the_table_has_is_not_trained_again(data, tmp_path, trained, capsys):
    run(data, tmp_path, "--quick")
    before = rows(tmp_path)
    with open(tmp_path / "runs.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, fit_law.COLUMNS)
        writer.writeheader()
        writer.writerows(before[:3] + before[4:])
    trained.clear()
    capsys.readouterr()
    assert run(data, tmp_path, "--quick", "--recipe", "quartet", "mxfp4-bwd") == 0
    assert [settings.recipe for settings in trained].count("quartet") == 1
    assert len(trained) == 1 + 8
    assert capsys.readouterr().out.count("already") == 15
    added = [row for row in rows(tmp_path) if row["backward"] == "mxfp4-bwd"]
    assert {row["fprop"] for row in added} == {"float32"}  # that recipe leaves the forward pass alone


def test_runs_on_another_text_are_not_mixed(data, tmp_path, trained, capsys):
    run(data, tmp_path, "--quick")
    (data / "more.txt").write_text("something else\n" * 50)
    with pytest.raises(SystemExit) as caught:
        run(data, tmp_path, "--quick")
    assert caught.value.code == 2
    assert "runs.csv, row 2 was trained on the text" in capsys.readouterr().err


def test_a_run_that_diverges_is_left_out(data, tmp_path, trained, capsys, monkeypatch):
    original = fit_law.train

    def train(settings, *rest):
        if settings.recipe and settings.steps == 120:
            raise Diverged("the loss is nan")
        return original(settings, *rest)

    monkeypatch.setattr(fit_law, "train", train)
    assert run(data, tmp_path, "--quick") == 0
    assert capsys.readouterr().out.count("left out. the loss is nan") == 2
    assert len(rows(tmp_path)) == 14


def test_a_stop_keeps_what_is_finished(data, tmp_path, trained, capsys, monkeypatch):
    original = fit_law.train

    def train(settings, *rest):
        if len(trained) == 3:
            raise Stopped("4/16: stopped after step 1")
        return original(settings, *rest)

    monkeypatch.setattr(fit_law, "train", train)
    assert run(data, tmp_path, "--quick") == 130
    assert "the same command goes on with the next run" in capsys.readouterr().err
    assert len(rows(tmp_path)) == 3


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--recipe", "quarted"], "did you mean 'quartet'?"),
        (["--data", "nowhere"], "no such file or folder"),
        (["--device", "cuda"], "this PyTorch sees no GPU"),
    ],
)
def test_what_is_wrong_is_said_before_any_training(data, tmp_path, trained, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as caught:
        run(data, tmp_path, *arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert not trained


@pytest.mark.parametrize("name", fit_law.LADDER)
def test_parameters_are_counted_without_embedding_and_head(name):
    size = fit_law.LADDER[name]
    model = llama.Llama(size)
    inner = sum(p.numel() for name, p in model.named_parameters() if not name.startswith(("embed_tokens", "lm_head")))
    assert fit_law.parameters_of(size) == inner


def test_the_names_of_the_passes():
    assert fit_law.precisions_of(None, "float32") == ("float32", "float32")
    assert fit_law.precisions_of("quartet", "float32") == ("quartet", "quartet")
    assert fit_law.precisions_of("mxfp4-bwd", "bfloat16") == ("bfloat16", "mxfp4-bwd")
    assert qc.recipe("mxfp4-bwd").fprop is None


def test_a_run_is_trained(data, tmp_path, monkeypatch):
    """Two real steps, uncompiled; the checkpoint is gone, and the lines are in the log."""
    monkeypatch.setattr(training, "compiled", lambda model, backend, recipe: model)
    plan = fit_law.Plan(sizes=("law-1",), steps=(2,), batch=2, seq=32)
    args = fit_law.parser().parse_args(["--data", str(data)])
    llama.SIZES.update(fit_law.LADDER)
    corpus = fit_law.text.load([data])
    table = fit_law.collect(args, plan, corpus, tmp_path, fit_law.StopRequest())
    first, second = law.read_runs(table)
    assert (first.recipe, second.recipe) == ("float32:float32", "quartet:quartet")
    assert first.tokens == 128 and 4 < first.loss < 6
    assert not (tmp_path / "checkpoint.pt").exists()
    assert "step 2/2" in (tmp_path / "train.log").read_text()


@pytest.mark.slow
def test_quick_for_real(data, tmp_path, monkeypatch):
    monkeypatch.setattr(fit_law, "QUICK", fit_law.Plan(sizes=("law-1", "law-2"), steps=(2, 4, 6, 8), batch=4, seq=32))
    assert run(data, tmp_path, "--quick") == 0
    assert {row["path"] for row in rows(tmp_path)} == {"CPU, Inductor", "CPU, Inductor + Quartet CPU kernels"}
    assert "matplotlib" in sys.modules
