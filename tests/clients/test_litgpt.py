"""litgpt's `pretrain`, which calls `torch.compile(model)` itself, inside of `qc.enable()`."""

from __future__ import annotations

import contextlib
import csv
import dataclasses

import pytest
import torch
from runs import check, observed
from torch.utils.data import DataLoader

import quartet_compile as qc

litgpt = pytest.importorskip("litgpt")
data = pytest.importorskip("litgpt.data")


@dataclasses.dataclass
class Tokens(data.DataModule):
    """The same rows of random tokens in each step."""

    def connect(self, tokenizer=None, batch_size=1, max_seq_length=None):
        self.batch_size = batch_size

    def train_dataloader(self):
        rows = torch.randint(128, (4, 33), generator=torch.Generator().manual_seed(5))
        return DataLoader(rows, batch_size=self.batch_size)

    val_dataloader = train_dataloader


def run(folder, enabled):
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.pretrain import setup

    sizes = dict(n_layer=2, n_head=2, n_embd=64, block_size=32, vocab_size=128, padded_vocab_size=128)
    with observed() as made, enabled:
        setup(
            "pythia-14m",
            model_config=litgpt.Config(name="pythia-14m", **sizes),
            out_dir=folder,
            precision="32-true",
            data=Tokens(),
            train=TrainArgs(
                save_interval=None,
                log_interval=1,
                global_batch_size=4,
                micro_batch_size=4,
                max_tokens=20 * 4 * 32,
                max_norm=1.0,
                min_lr=3e-3,
                lr_warmup_steps=0,
                tie_embeddings=False,
                max_seq_length=32,
            ),
            eval=EvalArgs(interval=1000, max_iters=1, initial_validation=False, final_validation=False),
            optimizer={"class_path": "torch.optim.AdamW", "init_args": {"lr": 3e-3}},
            devices=1,
            logger_name="csv",
        )
    (metrics,) = folder.rglob("metrics.csv")
    made.losses += [float(row["loss"]) for row in csv.DictReader(metrics.open()) if row["loss"]]
    return made


def test_pretrain(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["litgpt", "pretrain", "pythia-14m"])  # it keeps its arguments with the weights
    ours = run(tmp_path / "ours", qc.enable(exclude=["transformer.h.1.mlp"]))
    check(ours, run(tmp_path / "plain", contextlib.nullcontext()))
    parts = {f"transformer.h.0.{part}" for part in ("attn.qkv", "attn.proj", "mlp.fc", "mlp.proj")}
    assert ours.rewritten == parts | {"transformer.h.1.attn.qkv", "transformer.h.1.attn.proj"}
