"""What a callback logs reaches Weights & Biases, offline."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import quartet_compile as qc


class Model(nn.Module):
    """Two products and a loss, as transformers' trainer takes a model."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        out = self.down(self.up(x).relu())
        return {"loss": (out - labels).square().mean(), "logits": out}


def test_transformers_writes_to_an_offline_run(tmp_path, monkeypatch):
    wandb, transformers = pytest.importorskip("wandb"), pytest.importorskip("transformers")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    rows = [{"x": torch.randn(64), "labels": torch.randn(64)} for _ in range(64)]
    model = Model()
    model.compile(backend="quartet", options={"stats": True})
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=32, save_strategy="no", logging_steps=100,
        report_to=["wandb"], disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.add_callback(qc.callbacks.HuggingFace(trainer, every=2))
    trainer.train()
    wandb.finish()
    (log,) = tmp_path.rglob("offline-run-*/*.wandb")
    written = log.read_bytes()
    for name in (b"quartet/matmuls", b"quartet/down/dgrad/dX/cosine"):
        assert name in written
