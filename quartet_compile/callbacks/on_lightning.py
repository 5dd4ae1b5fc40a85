"""The callback for Lightning, by either of its names: `lightning` or `pytorch_lightning`."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..config.listed import RecipeOption
from ..origin import provenance
from .run import Run

if TYPE_CHECKING or importlib.util.find_spec("lightning") is not None:
    from lightning.pytorch import Callback
else:
    from pytorch_lightning import Callback

_KEY = "quartet_compile"
"""Of the provenance in a checkpoint."""


class Lightning(Callback):
    """Logs how a model is quantized, and keeps its provenance in the checkpoints:
    `Trainer(callbacks=[qc.callbacks.Lightning(every=100)])`.

    every: steps between statistics, for a model compiled with `stats=True`; None for none. schedule: recipes by the number
    of steps done, as `{9000: "mxfp4-bwd"}`; a resumed run starts with that of its step. What is logged goes to the
    trainer's loggers.

    After the first step the report is in `default_root_dir/quartet_report.txt`. A run that resumes with another recipe than
    its checkpoint was trained with warns (QC401). Raises `OptionError` when training begins: for a module in which
    `backend="quartet"` compiles nothing, or without `stats=True` where `every` is given.
    """

    def __init__(self, *, every: int | None = None, schedule: Mapping[int, RecipeOption] | None = None) -> None:
        super().__init__()
        self._run = Run(every, schedule)
        self._before: Mapping[str, Any] | None = None

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Called by the trainer."""
        self._before = checkpoint.get(_KEY)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Called by the trainer."""
        checkpoint[_KEY] = provenance(pl_module)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Called by the trainer."""
        self._run.start(pl_module, trainer.global_step, self._before)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Called by the trainer."""
        self._log(trainer, self._run.before_step(pl_module, trainer.global_step))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Called by the trainer."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            scalars = self._run.after_step(pl_module, trainer.global_step, trainer.default_root_dir)
            self._log(trainer, scalars)

    def _log(self, trainer: Any, scalars: dict[str, float]) -> None:
        for logger in trainer.loggers if scalars else ():
            logger.log_metrics(scalars, step=trainer.global_step)
