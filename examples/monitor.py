"""What a run writes while it trains: its losses to TensorBoard, and how well it quantizes to TensorBoard and a file."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training import Trainer

MISSING = "--tensorboard needs the package tensorboard: pip install tensorboard, or leave the option out"


def has_tensorboard() -> bool:
    return find_spec("tensorboard") is not None


class Monitor:
    """Called after each step. folder: of TensorBoard's events, None for none."""

    def __init__(self, folder: Path | None) -> None:
        self.writer = None
        if folder:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(folder)

    def __call__(self, trainer: Trainer, loss: float) -> None:
        scalars = {"loss/train": loss}
        if trainer.history.validation and trainer.history.validation[-1][0] == trainer.step:
            scalars["loss/validation"] = trainer.history.validation[-1][1]
        if trainer.measures(trainer.step - 1):
            import quartet_compile as qc

            stats = qc.stats(trainer.model)
            trainer.folder.mkdir(parents=True, exist_ok=True)
            (trainer.folder / "stats.txt").write_text(f"Step {trainer.step}\n\n{stats}\n")
            scalars |= {f"quantization/{tag}": value for tag, value in stats.scalars().items()}
        if self.writer:
            for tag, value in scalars.items():
                self.writer.add_scalar(tag, value, trainer.step)
            self.writer.flush()
