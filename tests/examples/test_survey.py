"""A sample of the survey of architectures: gradients under `exact`, and what `explain` says, equal those of the run."""

from __future__ import annotations

import json
import os
import time

import pytest
import torch

pytest.importorskip("transformers")
import survey
import survey_page
import survey_step

pytestmark = pytest.mark.filterwarnings("ignore")

QUICK = ("bert", "gpt_neox", "llama", "opt", "vit")
COVERAGE = {
    "albert": (14, 15), "bart": (32, 33), "beit": (13, 14), "bert": (13, 14), "bit": (10, 18), "bloom": (8, 9),
    "clip": (0, 14), "codegen": (8, 9), "convnext": (9, 17), "deberta": (9, 10), "dinov2": (13, 14),
    "distilbert": (13, 14), "electra": (13, 14), "falcon": (8, 9), "focalnet": (18, 33), "gemma2": (14, 15),
    "gpt2": (8, 9), "gpt_neox": (8, 9), "gpt_oss": (12, 15), "granite": (14, 15), "llama": (14, 15),
    "llava": (29, 30), "mistral": (14, 15), "mixtral": (12, 15), "olmo2": (14, 15), "opt": (12, 13),
    "paligemma": (28, 29), "phi3": (8, 9), "qwen2_moe": (18, 23), "qwen3": (14, 15), "regnet": (10, 26),
    "resnet": (2, 17), "roberta": (13, 14), "segformer": (8, 19), "siglip": (13, 14), "switch_transformers": (26, 41),
    "t5": (32, 33), "textnet": (4, 41), "vit": (13, 14), "xglm": (12, 13),
}  # fmt: skip
"""Of the matmuls with a weight in each architecture's graphs, how many are rewritten, and how many there are."""


def through(name, stage):
    """What is known of an architecture after a stage, or after the one at which it ended."""
    for result in survey_step.stages(name):
        if result["stage"] == stage:
            break
    return result


def check(result, name):
    assert "gradients" in result, result
    assert result["gradients"] in (survey_step.SAME, survey_step.CHAOTIC, survey_step.TORCHS), result
    found = survey_page.coverage({"sites": result["sites"]})
    assert (found.rewritten, found.weights) == COVERAGE[name]


@pytest.mark.parametrize("name", QUICK)
def test_an_architecture(name):
    result = through(name, "explained")
    check(result, name)
    assert result["explain"] == "agrees"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in COVERAGE if name not in QUICK])
def test_an_architecture_of_the_sample(name):
    check(through(name, "compared"), name)


def test_a_gradient_that_differs_or_lacks_is_seen():
    plain = {"a": torch.ones(64), "b": torch.zeros(64)}
    assert survey_step.compare(plain, plain, ())["gradients"] == survey_step.SAME
    off = {**plain, "a": torch.ones(64) + 1e-3}
    assert survey_step.compare(plain, off, ())["gradients"] == survey_step.OTHER
    assert survey_step.compare(plain, off, ())["worst"] == "a"
    assert survey_step.compare(plain, {"a": plain["a"]}, ())["missing"] == ["b"]
    assert survey_step.compare(plain, {**plain, "b": plain["b"] * float("nan")}, ())["gradients"] == survey_step.OTHER


def test_results_go_on_from_a_file_and_make_a_page(tmp_path, monkeypatch, capsys):
    site = {"name": "up", "shape": [32, 64, 64], "rewritten": True, "reason": "matmul with a parameter"}
    kept = {"name": "head", "shape": [32, 8, 64], "rewritten": False, "reason": "N is 8, below the group of 32"}
    ran = {"name": "one", "stage": "explained", "class": "One", "sites": [site, kept], "gradients": "equal"}
    ran |= {"error of gradients": 0.0, "explain": "agrees", "eager": [], "seconds": 1.0}
    results = tmp_path / "results.jsonl"
    results.write_text(json.dumps(ran) + "\n")
    failed = {"name": "two", "stage": "not built", "error": "TypeError: | no", "seconds": 1.0}
    monkeypatch.setattr(survey, "in_a_process", lambda name, seconds: failed)
    monkeypatch.setattr(survey, "load", lambda: None)
    survey.main(["--only", "one", "two", "--out", str(results), "--docs", str(tmp_path / "page.md")])
    page = (tmp_path / "page.md").read_text()
    assert "| one | One | 1 of 2 | 89 % | 0 | 0 | agrees | 1 N is .., below the group of .. |" in page
    assert "| N is .., below the group of .. | 1 | 1 |" in page
    assert "| two | TypeError: no |" in page
    assert [json.loads(line)["name"] for line in results.read_text().splitlines()] == ["one", "two"]
    assert "two  not built" in capsys.readouterr().out


def test_an_architecture_that_kills_its_process_is_a_result(monkeypatch):
    def dies(name):
        yield {"name": name, "stage": "built"}
        os._exit(1)

    monkeypatch.setattr(survey, "stages", dies)
    assert survey.in_a_process("one", 30)["error"] == "the process died after built"


def test_an_architecture_that_hangs_is_ended(monkeypatch):
    def hangs(name):
        yield {"name": name, "stage": "trained"}
        time.sleep(60)

    monkeypatch.setattr(survey, "stages", hangs)
    result = survey.in_a_process("one", 1)
    assert (result["stage"], result["error"]) == ("trained", "more than 1 s")
