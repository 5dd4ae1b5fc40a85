"""The callbacks under the trainers that they are for."""

from __future__ import annotations

import json
import pathlib

import pytest
import torch
from logging_trainers import lightning_fit, transformers_trainer

import quartet_compile as qc

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def test_transformers(tmp_path):
    pytest.importorskip("transformers")

    def train(recipe, steps, resume=None, schedule=None):
        trainer = transformers_trainer(tmp_path, recipe, schedule, max_steps=steps, save_steps=2, report_to=[])
        trainer.train(resume_from_checkpoint=resume)
        return trainer.state.log_history

    logged = train("quartet", 2)
    assert any("quartet/matmuls" in entry for entry in logged if entry["step"] == 1)
    assert any("quartet/down/dgrad/dX/cosine" in entry for entry in logged if entry["step"] == 2)
    assert "matmul with a parameter" in (tmp_path / "quartet_report.txt").read_text()
    state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    kept = state["stateful_callbacks"]["quartet_compile"]["attributes"]
    assert kept["recipe"][0][1]["name"] == "quartet" and kept["quartet_compile"] == qc.__version__
    with pytest.warns(qc.QuartetWarning, match="QC401.*recipe was quartet, now quartet-rtn"):
        logged = train("quartet-rtn", 4, resume=str(tmp_path / "checkpoint-2"), schedule={3: "bf16"})
    assert [entry["step"] for entry in logged if "quartet/switches" in entry] == [3]


@pytest.mark.slow
def test_transformers_and_lightning_write_to_tensorboard(tmp_path):
    """Both give their trainer's own logger what they log."""
    pytest.importorskip("transformers"), pytest.importorskip("lightning")
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from lightning.pytorch.loggers import TensorBoardLogger

    def steps_of(folder):
        (file,) = folder.rglob("events.out.tfevents.*")
        found = events.EventAccumulator(str(file)).Reload()
        return {
            tag.removeprefix("train/"): [event.step for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]
        }

    trainer = transformers_trainer(
        tmp_path / "hf", "quartet", {1: "quartet-rtn"}, max_steps=2, save_strategy="no", report_to=["tensorboard"]
    )
    trainer.train()
    found = steps_of(tmp_path / "hf")
    assert found["quartet/matmuls"] == [1] == found["quartet/switches"]
    assert found["quartet/down/dgrad/dX/cosine"] == [2]

    lightning_fit(tmp_path, TensorBoardLogger(tmp_path / "pl"), "quartet", 2)
    found = steps_of(tmp_path / "pl")
    assert found["quartet/matmuls"] and found["quartet/down/fprop/X/error"]


def test_lightning(tmp_path):
    pytest.importorskip("lightning")
    from lightning.pytorch.loggers import CSVLogger

    def train(recipe, steps, resume=None):
        trainer = lightning_fit(tmp_path, CSVLogger(tmp_path), recipe, steps, resume)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        return pathlib.Path(trainer.logger.log_dir, "metrics.csv").read_text()

    head = train("quartet", 2).splitlines()[0].split(",")
    assert {"quartet/matmuls", "quartet/down/fprop/X/error", "quartet/up/wgrad/dW/cosine"} <= set(head)
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)["quartet_compile"]
    assert kept["recipe"][0][1]["name"] == "quartet"
    with pytest.warns(qc.QuartetWarning, match="QC401.*recipe was quartet, now quartet-rtn"):
        train("quartet-rtn", 3, resume=tmp_path / "last.ckpt")
