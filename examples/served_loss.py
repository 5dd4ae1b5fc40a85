"""The validation loss of a trained model, as it was trained and as each server would compute it.

python examples/train_llama.py --size demo --out runs/demo/quartet
python examples/served_loss.py runs/demo/quartet
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import checkpoint
import text
import torch
from torch import Tensor, nn
from training import Settings, Trainer

import quartet_compile as qc
from quartet_compile.config.served import SERVED


def forwards(model: nn.Module, recipe: str) -> dict[str, Callable[..., Tensor] | qc.RecipeError]:
    """What computes the loss, by what is said of it; or why a model of this recipe can't be served so."""
    made: dict[str, Callable[..., Tensor] | qc.RecipeError] = {
        f"as trained, {recipe}": torch.compile(model, backend="quartet", dynamic=False, options={"recipe": recipe}),
        "high precision": torch.compile(model, backend="inductor", dynamic=False),
    }
    for name, what in SERVED.items():
        options = {"recipe": recipe, "eval": name}
        try:
            made[f"`{name}`: {what}"] = torch.compile(model, backend="quartet", dynamic=False, options=options)
        except qc.RecipeError as error:
            made[f"`{name}`: {what}"] = error
    return made


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of a run of train_llama.py")
    parser.add_argument("--data", nargs="+", default=[], metavar="PATH", help="as in training")
    parser.add_argument("--eval-batches", type=int, default=64, help="batches of the validation (default: 64)")
    given = parser.parse_args(argv)
    try:
        saved = checkpoint.read(given.folder / "checkpoint.pt")["settings"]
        corpus = text.load(given.data)
    except (checkpoint.CheckpointError, text.DataError) as error:
        parser.error(str(error))
    settings = dataclasses.replace(Settings(**saved), eval_batches=given.eval_batches)
    trainer = Trainer(settings, corpus, given.folder, "served")
    for changed in trainer.restore():
        if not changed.startswith("eval_batches"):
            print(f"changed: {changed}", file=sys.stderr)
    recipe = settings.recipe or "quartet"
    trained = None
    print("| forward | validation loss | against training's |\n|-|-|-|")
    for name, forward in forwards(trainer.model, recipe).items():
        if isinstance(forward, qc.RecipeError):
            print(f"| {name} | {forward} | |")
            continue
        torch._dynamo.reset()  # they share the model's code, and must not share its compilations
        trainer.forward = forward
        loss = trainer.evaluate()
        trained = loss if trained is None else trained
        print(f"| {name} | {loss:.4f} | {loss - trained:+.4f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
