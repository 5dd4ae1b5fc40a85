"""Train a small Llama on bytes under a Lightning `Trainer`, with its matrix products in FP4.

    python examples/train_lightning.py --steps 60 --precision bf16-mixed
    python examples/train_lightning.py --steps 80 --resume runs/lightning/last.ckpt    # goes on

The model is compiled in `configure_model`, in place, so that checkpoints are those of the untouched model.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import lightning
import text
import torch
from llama import Llama, Size

import quartet_compile as qc

SIZE = Size(layers=2, width=128, heads=2, lr=3e-3, batch=8, seq=64)


class Training(lightning.LightningModule):
    """A Llama with its loss; batches are tokens and targets, int64[batch, length]."""

    def __init__(self, size: Size, recipe: str) -> None:
        super().__init__()
        self.model, self.recipe, self.losses = Llama(size), recipe, []

    def configure_model(self) -> None:
        self.model.compile(backend="quartet", options={"recipe": self.recipe})

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        loss = self.model(*batch)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=SIZE.lr)


def main(argv: list[str] | None = None) -> dict:
    """Train; returns what is written to `--out`."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--recipe", default="quartet")
    p.add_argument("--steps", type=int, default=60)
    p.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true")
    p.add_argument("--accumulate", type=int, default=1)
    p.add_argument("--resume", type=Path, metavar="CHECKPOINT")
    p.add_argument("--out", type=Path, default=Path("runs/lightning"))
    args = p.parse_args(argv)

    lightning.seed_everything(0, verbose=False)
    training = Training(SIZE, args.recipe)
    batches = text.Batches(text.load(), batch=SIZE.batch, seq=SIZE.seq, seed=0)
    data = [batches.draw() for _ in range(args.steps * args.accumulate)]
    report = qc.explain(training.model, *data[0], recipe=args.recipe)
    print(report)
    trainer = lightning.Trainer(
        max_steps=args.steps, precision=args.precision, accumulate_grad_batches=args.accumulate, logger=False,
        default_root_dir=args.out, enable_progress_bar=False, enable_model_summary=False, accelerator="auto",
    )  # fmt: skip
    trainer.fit(training, torch.utils.data.DataLoader(data, batch_size=None), ckpt_path=args.resume)
    args.out.mkdir(parents=True, exist_ok=True)
    trainer.save_checkpoint(args.out / "last.ckpt")
    made = {"losses": training.losses, "rewritten": sum(site.rewritten for site in report.sites),
            "keys": sorted(training.state_dict())}  # fmt: skip
    (args.out / "figures.json").write_text(json.dumps(made))
    return made


if __name__ == "__main__":
    main()
