"""The callbacks under the trainers that they are for."""

from __future__ import annotations

import json
import pathlib

import pytest
import torch
from torch import nn

import quartet_compile as qc

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


class Model(nn.Module):
    """Two products and a loss, as transformers' trainer takes a model."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        out = self.down(self.up(x).relu())
        return {"loss": (out - labels).square().mean(), "logits": out}


ROWS = [{"x": torch.randn(64), "labels": torch.randn(64)} for _ in range(128)]


def test_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")

    def train(recipe, steps, resume=None, schedule=None):
        model = Model()
        model.compile(backend="quartet", options={"recipe": recipe, "stats": True})
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path), max_steps=steps, per_device_train_batch_size=32, save_steps=2, logging_steps=100,
            report_to=[], disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        trainer = transformers.Trainer(model=model, args=arguments, train_dataset=ROWS)
        trainer.add_callback(qc.callbacks.HuggingFace(trainer, every=2, schedule=schedule))
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
    transformers, lightning = pytest.importorskip("transformers"), pytest.importorskip("lightning")
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from lightning.pytorch.loggers import TensorBoardLogger

    def steps_of(folder):
        (file,) = folder.rglob("events.out.tfevents.*")
        found = events.EventAccumulator(str(file)).Reload()
        return {
            tag.removeprefix("train/"): [event.step for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]
        }

    model = Model()
    model.compile(backend="quartet", options={"stats": True})
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "hf"), max_steps=2, per_device_train_batch_size=32, save_strategy="no", logging_steps=100,
        report_to=["tensorboard"], disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=ROWS)
    trainer.add_callback(qc.callbacks.HuggingFace(trainer, every=2, schedule={1: "quartet-rtn"}))
    trainer.train()
    found = steps_of(tmp_path / "hf")
    assert found["quartet/matmuls"] == [1] == found["quartet/switches"]
    assert found["quartet/down/dgrad/dX/cosine"] == [2]

    class Training(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = Model()

        def configure_model(self):
            self.model.compile(backend="quartet", options={"stats": True})

        def training_step(self, batch, index):
            return self.model(**batch)["loss"]

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    trainer = lightning.Trainer(
        max_steps=2, logger=TensorBoardLogger(tmp_path / "pl"), default_root_dir=tmp_path, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        callbacks=[qc.callbacks.Lightning(every=2)],
    )  # fmt: skip
    trainer.fit(Training(), torch.utils.data.DataLoader(ROWS, batch_size=32))
    found = steps_of(tmp_path / "pl")
    assert found["quartet/matmuls"] and found["quartet/down/fprop/X/error"]


def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning")
    from lightning.pytorch.loggers import CSVLogger

    class Training(lightning.LightningModule):
        def __init__(self, recipe):
            super().__init__()
            self.model, self.recipe = Model(), recipe

        def configure_model(self):
            self.model.compile(backend="quartet", options={"recipe": self.recipe, "stats": True})

        def training_step(self, batch, index):
            return self.model(**batch)["loss"]

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    def train(recipe, steps, resume=None):
        trainer = lightning.Trainer(
            max_steps=steps, logger=CSVLogger(tmp_path), default_root_dir=tmp_path, accelerator="cpu",
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
            callbacks=[qc.callbacks.Lightning(every=2)],
        )  # fmt: skip
        trainer.fit(Training(recipe), torch.utils.data.DataLoader(ROWS, batch_size=32), ckpt_path=resume)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        return pathlib.Path(trainer.logger.log_dir, "metrics.csv").read_text()

    head = train("quartet", 2).splitlines()[0].split(",")
    assert {"quartet/matmuls", "quartet/down/fprop/X/error", "quartet/up/wgrad/dW/cosine"} <= set(head)
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)["quartet_compile"]
    assert kept["recipe"][0][1]["name"] == "quartet"
    with pytest.warns(qc.QuartetWarning, match="QC401.*recipe was quartet, now quartet-rtn"):
        train("quartet-rtn", 3, resume=tmp_path / "last.ckpt")
