"""What a callback logs reaches Weights & Biases, offline."""

from __future__ import annotations

import pytest
from logging_trainers import transformers_trainer


def test_transformers_writes_to_an_offline_run(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    trainer = transformers_trainer(tmp_path / "out", "quartet", max_steps=2, save_strategy="no", report_to=["wandb"])
    trainer.train()
    wandb.finish()
    (log,) = tmp_path.rglob("offline-run-*/*.wandb")
    written = log.read_bytes()
    for name in (b"quartet/matmuls", b"quartet/down/dgrad/dX/cosine"):
        assert name in written
