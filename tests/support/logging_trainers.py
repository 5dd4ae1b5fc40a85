"""Trainers of other people's, of a small model, as the tests of callbacks run them."""

from __future__ import annotations

from typing import Any

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


ROWS = [{"x": torch.randn(64), "labels": torch.randn(64)} for _ in range(128)]


def transformers_trainer(folder: Any, recipe: str, schedule: dict[int, str] | None = None, **arguments: Any) -> Any:
    """transformers' trainer with our callback, every two steps. arguments: of `TrainingArguments`."""
    import transformers

    model = Model()
    model.compile(backend="quartet", options={"recipe": recipe, "stats": True})
    how = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=32,
        logging_steps=100,
        disable_tqdm=True,
        use_cpu=True,
        **arguments,
    )
    trainer = transformers.Trainer(model=model, args=how, train_dataset=ROWS)
    trainer.add_callback(qc.callbacks.HuggingFace(trainer, every=2, schedule=schedule))
    return trainer


def lightning_fit(folder: Any, logger: Any, recipe: str, steps: int, resume: Any = None) -> Any:
    """Lightning's trainer after so many steps with our callback, every two steps."""
    import lightning

    class Training(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = Model()

        def configure_model(self):
            self.model.compile(backend="quartet", options={"recipe": recipe, "stats": True})

        def training_step(self, batch, index):
            return self.model(**batch)["loss"]

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    trainer = lightning.Trainer(
        max_steps=steps, logger=logger, default_root_dir=folder, accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, callbacks=[qc.callbacks.Lightning(every=2)],
    )  # fmt: skip
    trainer.fit(Training(), torch.utils.data.DataLoader(ROWS, batch_size=32), ckpt_path=resume)
    return trainer
