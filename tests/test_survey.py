"""A sample of the survey of architectures: gradients under `exact`, and what `explain` says, equal those of the run."""

from __future__ import annotations

import json
import os
import time

import pytest
import torch

pytest.importorskip("transformers")
import survey  # noqa: E402
import survey_page  # noqa: E402
import survey_step  # noqa: E402
import tiny_models  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

QUICK = ("gpt_neox", "llama", "llava", "opt", "vit")
SAMPLE = (
    "albert", "audio_spectrogram_transformer", "bart", "beit", "bert", "bloom", "clip", "codegen", "deberta", "deepseek_v3",
    "dinov2", "distilbert", "electra", "falcon", "gemma2", "gpt2", "gpt_neox", "gpt_oss", "granite", "hubert", "idefics3",
    "mamba", "mistral", "mixtral", "mpnet", "olmo2", "paligemma", "pegasus", "phi3", "qwen2_moe", "qwen3", "roberta",
    "segformer", "siglip", "switch_transformers", "t5", "videomae", "wav2vec2", "whisper", "xglm",
)  # fmt: skip


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SAMPLE)])
def test_an_architecture(name):
    *_, result = survey_step.stages(name)
    assert result["stage"] == "explained", result
    assert result["gradients"] != survey_step.OTHER, result
    assert survey_page.coverage(result).rewritten > 0
    assert result["explain"] == "agrees"


def test_the_sample_has_forty():
    assert len({*SAMPLE}) == 40 and {*SAMPLE, *QUICK} <= tiny_models.architectures().keys()


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
