"""Advice from artifacts that are made by hand: what pays, the options, the verdicts; and one that is compiled."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import nn

import quartet_compile as qc
from quartet_compile import law
from quartet_compile.__main__ import main
from quartet_compile.advice import advise as room
from quartet_compile.advice.memory import memory_of
from quartet_compile.advice.times import rows_of
from quartet_compile.cross.artifact import Artifact, Kernel
from quartet_compile.cross.matmuls import Matmul, Seconds
from quartet_compile.report.report import GraphReport, Report, Site

MILLI = 1e-3
GEMMS = {"fprop": "mxfp4-quest", "dgrad": "mxfp4-sr", "wgrad": "mxfp4-sr"}
M = 4096


class Model(nn.Module):
    """Two layers, an embedding and a head, without values."""

    def __init__(self) -> None:
        super().__init__()
        with torch.device("meta"):
            self.embedding = nn.Embedding(1000, 64, dtype=torch.bfloat16)
            blocks = (nn.ModuleDict({"up": linear(64, 256), "down": linear(256, 64)}) for _ in range(2))
            self.layers = nn.ModuleList(blocks)
            self.lm_head = linear(64, 1000)


def linear(k, n):
    return nn.Linear(k, n, bias=False, dtype=torch.bfloat16)


def site(name, n, k, **fields):
    given = dict(rewritten=True, reason="matmul with a parameter", gemms=GEMMS, recipe="quartet", runs_in="fp4")
    return Site(name=name, shape=(M, n, k), dtype="bfloat16", **{**given, **fields})


SITES = [site(f"layers.{i}.{name}", n, k) for i in range(2) for name, n, k in (("up", 256, 64), ("down", 64, 256))]
HEAD = site("lm_head", 1000, 64, rewritten=False, reason="output head", recipe="", runs_in="",
            gemms=dict.fromkeys(GEMMS, "high precision"))  # fmt: skip


def product(graph, m, n, k, calls, seconds, bf16):
    full = Seconds(full=seconds * MILLI, realistic=2 * seconds * MILLI)
    return Matmul(product=full, quantizing=Seconds(), bf16_seconds=bf16 * MILLI, graph=graph, number_format="mxfp4",
                  batch=1, m=m, n=n, k=k, calls=calls)  # fmt: skip


def artifact(up, down, sites=SITES, rest=1.0):
    """One whose products of `up` take so many milliseconds each, and those of `down`, where bf16 takes 1."""
    products = [
        product("forward 0", M, 256, 64, 2, 2 * up, 2), product("forward 0", M, 64, 256, 2, 2 * down, 2),
        product("backward 0", M, 64, 256, 2, 2 * up, 2), product("backward 0", 256, 64, M, 2, 2 * up, 2),
        product("backward 0", M, 256, 64, 2, 2 * down, 2), product("backward 0", 64, 256, M, 2, 2 * down, 2),
    ]  # fmt: skip
    used = sum(one.seconds.full for one in products)
    kernel = Kernel(name="all", source="", launches={"forward 0": 1}, predicted_seconds=used + rest * MILLI,
                    realistic_seconds=2 * used + rest * MILLI)  # fmt: skip
    report = Report(recipe="quartet", graphs=(GraphReport(sites=(*sites, HEAD), training=True),))
    return Artifact(target=qc.TARGETS["sm_100"], kernels=(kernel,), library_calls=(), modules=(),
                    matmuls=tuple(products), unfed=Seconds(), report=report)  # fmt: skip


@pytest.fixture
def compiles_to(monkeypatch):
    """Let cross compilation give these artifacts, a recipe each."""

    def give(**artifacts):
        def cross_compile(model, *inputs, recipe, **options):
            made = artifacts[recipe]
            if isinstance(made, Exception):
                raise made
            return made

        monkeypatch.setattr(room, "cross_compile", cross_compile)
        return qc.advise(Model(), recipes=list(artifacts), target="b200", **TOKENS)

    return give


TOKENS = {"tokens": 1e9, "gpus": 8}


def test_the_times_of_a_matmul_are_those_of_its_three_products():
    """wgrad of `up` and of `down` are one product and its transpose: they share an average."""
    up, down = rows_of(artifact(up=0.2, down=0.8))
    assert (up.name, up.names) == ("layers.0-1.up (x2)", ("layers.0.up", "layers.1.up"))
    assert up.bf16_seconds == pytest.approx(6 * MILLI) == down.bf16_seconds
    assert up.seconds.full == pytest.approx((2 * 0.2 + 2 * 0.2 + 2 * 0.5) * MILLI)
    assert down.seconds.realistic == pytest.approx(2 * (2 * 0.8 + 2 * 0.8 + 2 * 0.5) * MILLI)


def test_a_yes_with_its_options_and_what_does_not_pay_excluded(compiles_to, monkeypatch):
    monkeypatch.setattr(room, "_gap", lambda *given: (None, "not asked here"))
    advice = compiles_to(quartet=artifact(up=0.1, down=0.6))
    assert advice.answer == "yes" and advice.verdict.startswith("Yes: 'quartet' on one B200 is predicted to train at")
    assert advice.options == {"recipe": "quartet", "exclude": ["layers.*.down"]}
    assert advice.best.speedup == pytest.approx((1 + 12) / (1 + 6 * 0.1 + 6 * 0.6))
    text = str(advice)
    assert text.splitlines()[2] == (
        "model = quartet_compile.quartet(model, recipe='quartet', exclude=['layers.*.down'])"
    )
    assert "quartet keeps lm_head: output head." in text and "no loss gap: not asked here" in text


@pytest.mark.parametrize(
    "up, down, answer, words",
    [(0.97, 0.97, "no", "so nothing is won."), (0.55, 0.55, "measure", "it depends on what the kernels reach.")],
)
def test_a_no_and_a_perhaps(compiles_to, monkeypatch, up, down, answer, words):
    monkeypatch.setattr(room, "_gap", lambda *given: (None, ""))
    advice = compiles_to(quartet=artifact(up=up, down=down))
    assert advice.answer == answer and advice.verdict.endswith(words)
    assert (advice.options == {}) == (answer == "no")


def test_a_no_because_bf16_reaches_a_lower_loss_in_the_same_time(compiles_to, monkeypatch):
    pair = law.Efficiency(fprop="a", backward="b", eff_n=0.1, eff_d=0.1, runs=1, separable=False)
    gap = law.Gap(efficiency=pair, loss=10.0, gap=1.0, interval=(0.9, 1.1), level=0.95, extrapolated=True)
    monkeypatch.setattr(room, "_gap", lambda *given: (gap, ""))
    advice = compiles_to(quartet=artifact(up=0.1, down=0.1))
    assert "+1.000 nats a token from full precision (+0.900 to +1.100)" in advice.verdict
    assert advice.answer == "no" and advice.verdict.endswith("and bf16 reaches a lower loss in the same time.")
    assert "it is extrapolated" in str(advice)


def test_a_no_because_nothing_can_be_quantized(compiles_to):
    kept = [site(f"layers.{i}.up", 16, 16, rewritten=False, reason="too small", recipe="") for i in range(2)]
    assert compiles_to(quartet=artifact(up=1, down=1, sites=kept)).verdict == (
        "No: none of its matmuls can be quantized (too small; output head)."
    )
    made = artifact(1, 1)
    broken = dataclasses.replace(made.kernels[0], failures=("its body is empty: it writes nothing",))
    error = qc.CrossCompileError("2 failures in the kernels:\nmore", dataclasses.replace(made, kernels=(broken,)))
    assert "(2 failures in the kernels: more)" in compiles_to(quartet=error).verdict


def test_a_kernel_that_spills_is_a_note(compiles_to):
    made = artifact(up=0.1, down=0.1)
    slow = dataclasses.replace(
        made.kernels[0], stack_bytes=24, failures=("24 bytes of stack a thread: registers spill",)
    )
    error = qc.CrossCompileError("1 failures:\n  all: 24 bytes", dataclasses.replace(made, kernels=(slow,)))
    advice = compiles_to(quartet=error)
    assert len(advice.best.rows) == 2 and "quartet: 1 failures:   all: 24 bytes" in str(advice)


def test_the_gap_is_the_laws_with_an_interval_and_a_recipe_without_runs_says_so():
    pytest.importorskip("scipy")
    runs = law.read_runs()
    found = law.gap(runs, "quartet", 1e8, 1e10, law=law.PUBLISHED, resamples=20)
    pair = law.efficiency(runs, law.PUBLISHED, "quartet")
    low = law.PUBLISHED.predict(1e8, 1e10, eff_n=pair.eff_n, eff_d=pair.eff_d)
    assert found.gap == pytest.approx(low - law.PUBLISHED.predict(1e8, 1e10)) and not found.extrapolated
    assert found.interval[0] < found.gap < found.interval[1]
    gap, why = room._gap("quartet2", 10**8, 1e10)
    assert gap is None and "quartet2" in why


def test_parameters_of_embedding_and_head_are_not_the_laws(compiles_to, monkeypatch):
    monkeypatch.setattr(room, "_gap", lambda *given: (None, ""))
    advice = compiles_to(quartet=artifact(up=0.1, down=0.1))
    assert (advice.parameters, advice.law_parameters) == (4 * 64 * 256 + 2 * 64 * 1000, 4 * 64 * 256)
    assert advice.tokens_a_step == M


def test_memory_counts_what_is_saved_once_a_tensor():
    model, pair = Model(), [site("layers.0.q", 64, 64), site("layers.0.k", 64, 64)]
    found = memory_of([model], pair, qc.recipe("quartet"))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert (found.weights, found.gradients, found.moments) == (2 * count, 2 * count, 8 * count)
    assert found.operands_before == M * 64 * 2 and found.operands == round(M * 64 * (4.25 + 1) / 8)
    assert memory_of([model], pair, qc.recipe("bf16")).operands == found.operands_before


def test_json_and_a_page_have_it_all(compiles_to, monkeypatch):
    monkeypatch.setattr(room, "_gap", lambda *given: (None, ""))
    advice = compiles_to(quartet=artifact(up=0.1, down=0.6), mxfp8=artifact(up=0.5, down=0.6))
    data = json.loads(advice.to_json())
    assert data["answer"] == "yes" and data["options"]["recipe"] == "quartet"
    assert [row["pays"] for row in data["choices"][0]["rows"]] == [True, False]
    page = advice.to_html()
    assert page.startswith("<!doctype html>") and "src=" not in page and "http" not in page
    assert "layers.0-1.up (x2)" in page and "mxfp8" in page


@pytest.mark.parametrize(
    "given, message",
    [
        ({"tokens": 0}, "tokens=0; expected a positive number"),
        ({"gpus": -1}, "gpus=-1; expected"),
        ({"recipes": ["quarted"]}, "did you mean 'quartet'"),
        ({"recipes": "quartet"}, "expected a list of names"),
        ({"target": "b2000"}, "Unknown target 'b2000'"),
    ],
)
def test_what_is_asked_wrongly(given, message):
    with pytest.raises(qc.QuartetError, match=message):
        qc.advise(Model(), **given)


def test_a_compiled_model_has_its_own_recipe():
    compiled = qc.quartet(nn.Linear(64, 64), recipe="quartet2")
    assert room._compared(compiled, None) == ([("quartet2", qc.recipe("quartet2"))], True)
    with pytest.raises(qc.OptionError, match="compiled with the recipe 'quartet2'"):
        qc.advise(compiled, torch.randn(32, 64), recipes=["quartet"])


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(room, "_gap", lambda *given: (None, ""))
    monkeypatch.setattr(room, "cross_compile", lambda *inputs, **options: artifact(up=0.1, down=0.1))
    (tmp_path / "m.py").write_text("from torch import nn\ndef build():\n    return nn.Linear(64, 64)\n")
    page = tmp_path / "advice.html"
    command = ["advise", f"{tmp_path}/m.py:build", "--input", "32x64", "--recipes", "quartet", "--tokens", "1T"]
    assert main([*command, "--target", "b200", "--html", str(page)]) == 0
    assert (
        capsys.readouterr().out.startswith("Yes: 'quartet' on one B200") and "<h1>FP4 for Linear?" in page.read_text()
    )
    assert main([*command, "--html", f"{page}/x.html"]) == 2
    assert "can't be written: Not a directory" in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_is_compiled_for_the_target_and_trained_here():
    pytest.importorskip("triton")
    model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256))
    before = [parameter.clone() for parameter in model.parameters()]
    advice = qc.advise(model, torch.randn(512, 256), target="sm_100", recipes=["quartet"], measure=True, steps=2)
    (choice,) = advice.choices
    assert [row.name for row in choice.rows] == ["0", "2"] and choice.step_seconds > 0
    assert [one.name for one in advice.measured] == [
        "float32, plain Inductor", "float32, quartet", "bf16 autocast, plain Inductor", "bf16 autocast, quartet",
    ]  # fmt: skip
    assert all(one.seconds > 0 and one.saved_bytes > 0 for one in advice.measured)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert "Measured here: CPU: emulated in " in str(advice)
