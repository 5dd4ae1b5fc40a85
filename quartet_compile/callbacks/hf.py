"""The callback for transformers' `Trainer`."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback

from ..config.listed import RecipeOption
from ..origin import provenance
from .run import Run

_KEY = "quartet_compile"
"""Of the provenance in a checkpoint's trainer_state.json, among the states of callbacks."""


class HuggingFace(TrainerCallback):
    """Logs how a model is quantized, and keeps its provenance in the checkpoints:
    `trainer.add_callback(qc.callbacks.HuggingFace(trainer, every=100))`.

    trainer: whose `log` is used, so that the numbers go to what `report_to` says. every: steps between statistics, for a
    model compiled with `stats=True`; None for none. schedule: recipes by the number of steps done, as
    `{9000: "mxfp4-bwd"}`; a resumed run starts with that of its step.

    After the first step the report is in `output_dir/quartet_report.txt`. A run that resumes with another recipe than its
    checkpoint was trained with warns (QC401). Raises `OptionError` when training begins: for a model that
    `backend="quartet"` doesn't compile, or without `stats=True` where `every` is given.
    """

    def __init__(
        self, trainer: Any, *, every: int | None = None, schedule: Mapping[int, RecipeOption] | None = None
    ) -> None:
        self._trainer = weakref.ref(trainer)
        self._run = Run(every, schedule)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        """Called by the trainer."""
        kept = state.stateful_callbacks.get(_KEY) if state.global_step else None
        self._run.start(model, state.global_step, kept and kept["attributes"])

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        """Called by the trainer."""
        self._log(self._run.before_step(model, state.global_step))
        state.stateful_callbacks[_KEY] = {"args": {}, "attributes": provenance(model)}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        """Called by the trainer."""
        self._log(self._run.after_step(model, state.global_step, args.output_dir))

    def _log(self, scalars: dict[str, float]) -> None:
        trainer = self._trainer()
        if scalars and trainer is not None:
            trainer.log(scalars)
