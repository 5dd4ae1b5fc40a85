"""Which recipe has the lowest loss? Trains a small Llama under each, several seeds, and compares them seed by seed.

    python examples/search_recipes.py --out runs/search                      # every recipe below, seeds 0 1 2
    python examples/search_recipes.py --only quartet quartet-rtn --seeds 3 4
    python examples/search_recipes.py --table-only                           # the table of what has run

Runs of one seed share initialization, data and validation windows, so a recipe's gap is taken within each seed; the
spread is the standard deviation of that gap over seeds. A difference is called one only where it exceeds the spread and
has the same sign in every seed. Runs are kept in `runs.csv` in --out: a second call, or a second process, continues.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import text
import torch
from llama import SIZES
from training import Settings, Trainer

import quartet_compile as qc

BASELINE, AGAINST = "bf16", "quartet-rtn"
COLUMNS = ("recipe", "seed", "steps", "parameters", "tokens", "loss", "step_seconds", "saved_bytes")


def variant(name: str, *, forward: str = "", backward: str = "mxfp4-rtn", trust_mask: bool = True) -> qc.Recipe:
    """A `quartet` with fields of the forward quantizer changed, another backward quantizer, or no trust mask."""
    fprop, back = qc.quantizer(f"mxfp4-quest{forward}"), qc.quantizer(backward)
    gemm = qc.Gemm(a=back, b=back)
    return qc.Recipe(name=name, fprop=qc.Gemm(a=fprop, b=fprop), dgrad=gemm, wgrad=gemm, trust_mask=trust_mask)


NEAREST, ERROR = ",scale_rounding=nearest", ",scale_rounding=error"
UP = "mxfp4-rtn,scale_rounding=up,shrink=1.0"
VARIANTS = (
    variant("scale nearest", forward=NEAREST),
    variant("scale by error", forward=ERROR),
    variant("no mask", trust_mask=False),
    variant("scale nearest, no mask", forward=NEAREST, trust_mask=False),
    variant("scale by error, no mask", forward=ERROR, trust_mask=False),
    variant("Hadamard 16", forward=",rotation=16", backward="mxfp4-rtn,rotation=16"),
    variant("Hadamard 64", forward=",rotation=64", backward="mxfp4-rtn,rotation=64"),
    variant("Hadamard 128", forward=",rotation=128", backward="mxfp4-rtn,rotation=128"),
    variant("scale up in backward", backward=UP),
    variant("scale nearest in backward", backward="mxfp4-rtn,scale_rounding=nearest,shrink=1.0"),
    variant("scale nearest, up in backward", forward=NEAREST, backward=UP),
    variant("Hadamard 64, scale up in backward", forward=",rotation=64", backward=UP + ",rotation=64"),
    variant("SR, scale up in backward", backward="mxfp4-sr,scale_rounding=up,shrink=1.0"),
    variant("EDEN 128", backward="mxfp4-eden"),
    variant("scale by error, no mask, SR", forward=ERROR, backward="mxfp4-sr", trust_mask=False),
    variant("scale by error, no mask, EDEN 128", forward=ERROR, backward="mxfp4-eden", trust_mask=False),
    variant(
        "scale by error, no mask, Hadamard 128",
        forward=ERROR + ",rotation=128",
        backward="mxfp4-rtn,rotation=128",
        trust_mask=False,
    ),
)
RECIPES = {
    **{name: recipe for name, recipe in qc.recipes().items() if name != "exact"},
    **{recipe.name: recipe for recipe in VARIANTS},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gap:
    """A recipe against another one: the mean difference in loss over the seeds that both have, and its spread."""

    mean: float
    spread: float
    seeds: int
    same_sign: bool

    @property
    def clear(self) -> bool:
        """Whether it is a difference: beyond the spread, in the same direction in every seed, of three or more."""
        return self.seeds >= 3 and self.same_sign and abs(self.mean) > self.spread

    def __str__(self) -> str:
        return f"{self.mean:+.4f} ± {self.spread:.4f}"


def gap(losses: dict[str, dict[int, float]], recipe: str, against: str) -> Gap | None:
    """The gap of a recipe, from losses by recipe and seed; None if they share no seed."""
    mine, theirs = losses.get(recipe, {}), losses.get(against, {})
    differences = [mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())]
    if not differences:
        return None
    return Gap(
        mean=statistics.mean(differences),
        spread=statistics.stdev(differences) if len(differences) > 1 else float("nan"),
        seeds=len(differences),
        same_sign=len({difference > 0 for difference in differences}) == 1,
    )


def table(rows: Sequence[dict[str, str]]) -> str:
    """Recipes by their mean gap to full precision."""
    losses: dict[str, dict[int, float]] = {}
    for row in rows:
        losses.setdefault(row["recipe"], {})[int(row["seed"])] = float(row["loss"])
    gaps = {name: (gap(losses, name, BASELINE), gap(losses, name, AGAINST)) for name in losses}
    ranked = sorted(gaps, key=lambda name: gaps[name][0].mean if gaps[name][0] else float("inf"))
    lines = [("recipe", "seeds", "loss", f"gap to {BASELINE}", f"against {AGAINST}", "")]
    for name in ranked:
        to_baseline, to_other = gaps[name]
        verdict = ("lower" if to_other.mean < 0 else "higher") if to_other and to_other.clear else "no difference shown"
        same = name in (BASELINE, AGAINST)
        lines.append(
            (
                name,
                str(len(losses[name])),
                f"{statistics.mean(losses[name].values()):.4f}",
                "" if name == BASELINE else str(to_baseline or ""),
                "" if name == AGAINST else str(to_other or ""),
                "" if same else verdict,
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([shown[0], "-" * max(map(len, shown)), *shown[1:]])


def read(path: Path) -> list[dict[str, str]]:
    """The runs of a CSV; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append(path: Path, row: dict[str, object]) -> None:
    """Add one run, in one write, so that two processes can share a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if not file.tell():
            writer.writeheader()
        writer.writerow(row)


def train(recipe: qc.Recipe, seed: int, args: argparse.Namespace, corpus: text.Corpus) -> dict[str, object]:
    """One run; the loss is that of the validation windows at its end."""
    torch._dynamo.reset()
    size = SIZES[args.size]
    full = recipe.name == BASELINE
    settings = Settings(
        size=args.size, backend="inductor" if full else "quartet", recipe=None if full else recipe,
        steps=args.steps or size.steps, batch=size.batch, accumulate=1, seq=size.seq, lr=size.lr, warmup=0.1, seed=seed,
        device=args.device, dtype=args.dtype, eval_every=10**9, eval_batches=args.eval_batches,
    )  # fmt: skip
    trainer = Trainer(
        settings, corpus, args.out / "checkpoints" / f"{recipe.name}-{seed}", f"{recipe.name}, seed {seed}"
    )
    trainer.run()
    return {
        "recipe": recipe.name,
        "seed": seed,
        "steps": settings.steps,
        "parameters": sum(p.numel() for name, p in trainer.model.named_parameters() if "layers" in name),
        "tokens": settings.steps * settings.tokens_a_step,
        "loss": f"{trainer.history.validation[-1][1]:.6f}",
        "step_seconds": f"{statistics.median(trainer.history.step_seconds):.6f}",
        "saved_bytes": trainer.history.saved_bytes,
    }


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", nargs="+", choices=RECIPES, metavar="RECIPE", help=f"of: {', '.join(RECIPES)}")
    p.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    p.add_argument("--size", choices=SIZES, default="study")
    p.add_argument("--steps", type=int, help="default by size")
    p.add_argument("--eval-batches", type=int, default=64)
    p.add_argument("--device", default="cpu")
    p.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    p.add_argument("--data", nargs="+", default=[], metavar="PATH", help="text files or folders (default: the stdlib)")
    p.add_argument("--out", type=Path, default=Path("runs/search"))
    p.add_argument("--table-only", action="store_true")
    args = p.parse_args(argv)
    path = args.out / "runs.csv"
    if not args.table_only:
        corpus = text.load(args.data)
        for seed in args.seeds:
            for name in args.only or RECIPES:
                done = {(row["recipe"], int(row["seed"])) for row in read(path)}
                if (name, seed) not in done:
                    append(path, train(RECIPES[name], seed, args, corpus))
    print(table(read(path)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
