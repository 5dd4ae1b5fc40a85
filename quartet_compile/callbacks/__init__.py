"""Callbacks for other people's trainers: the report, statistics each few steps, a schedule of recipes, and provenance.

    trainer.add_callback(qc.callbacks.HuggingFace(trainer, every=100))              # transformers' Trainer, TRL's
    lightning.Trainer(callbacks=[qc.callbacks.Lightning(every=100)])                # lightning, pytorch_lightning
    qc.callbacks.graph_trainer(recipe="quartet")                                    # a pass pipeline of torchtitan's

What they log goes to the loggers that the trainer is configured with: TensorBoard, wandb, a file. The trainer's package
is imported when its callback is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .graph_trainer import graph_trainer
    from .hf import HuggingFace
    from .on_lightning import Lightning

__all__ = ["HuggingFace", "Lightning", "graph_trainer"]


def __getattr__(name: str) -> Any:
    if name == "HuggingFace":
        from .hf import HuggingFace

        return HuggingFace
    if name == "Lightning":
        from .on_lightning import Lightning

        return Lightning
    if name == "graph_trainer":
        from .graph_trainer import graph_trainer

        globals()[name] = graph_trainer  # instead of the module
        return graph_trainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
