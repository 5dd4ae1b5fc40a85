"""Trains small models of several sizes on several numbers of tokens, fits the scaling law to them, and draws it.

    python examples/fit_law.py                      # 24 runs, about 15 minutes of one core's time
    python examples/fit_law.py --quick              # 16 shorter ones: shows the way, the law means nothing
    python examples/fit_law.py --recipe quartet-rtn # more runs in the same runs.csv; what it has already is skipped

Every run is trained to its own end, with its own learning rate schedule. Losses are of bytes, not of tokens of a larger
vocabulary, and the models are hundreds of times smaller than the published ones: coefficients can't be compared with the
published ones, and with this few runs they are badly determined; their intervals say how badly.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import figures
import text
import torch
from llama import SIZES, Size
from progress import StopRequest
from training import DTYPES, Diverged, Settings, Stopped, Trainer

import quartet_compile as qc
from quartet_compile import law
from quartet_compile.__main__ import main as command

LADDER = {
    "law-1": Size(layers=1, width=64, heads=2, lr=4e-3),
    "law-2": Size(layers=4, width=64, heads=2, lr=4e-3),
    "law-3": Size(layers=4, width=128, heads=2, lr=3e-3),
}
"""66 thousand, 263 thousand and 1.05 million parameters outside embedding and head."""

COLUMNS = ("parameters", "tokens", "fprop", "backward", "loss", "seconds", "text", "path")
FEWEST_FOR_INTERVALS, RESAMPLES = 9, 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Which sizes are trained, for how many steps each."""

    sizes: tuple[str, ...]
    steps: tuple[int, ...]
    batch: int
    seq: int


DEFAULT = Plan(sizes=("law-1", "law-2", "law-3"), steps=(100, 200, 400, 800), batch=16, seq=128)
QUICK = Plan(sizes=("law-1", "law-2"), steps=(15, 30, 60, 120), batch=8, seq=64)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--quick", action="store_true", help="fewer and shorter runs, under two minutes")
    p.add_argument("--recipe", nargs="+", default=["quartet"], help="recipes beside full precision (default: quartet)")
    p.add_argument(
        "--data", nargs="+", default=[], metavar="PATH", help="text files or folders (default: Python's own)"
    )
    p.add_argument("--out", type=Path, metavar="DIR", help="default: runs/law, or runs/law-quick")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    p.add_argument("--dtype", choices=DTYPES, default="float32", help="full precision; bfloat16 trains under autocast")
    return p


def precisions_of(recipe: str | None, dtype: str) -> tuple[str, str]:
    """What the table calls the forward and the backward pass; a pass that the recipe leaves alone is in full precision."""
    if recipe is None:
        return dtype, dtype
    found = qc.recipe(recipe)
    return recipe if found.fprop else dtype, recipe if found.dgrad or found.wgrad else dtype


def runs_of(args: argparse.Namespace, plan: Plan) -> Iterator[tuple[str | None, Settings]]:
    """Recipe (None: full precision) and settings of each run, the cheap ones first."""
    for steps in plan.steps:
        for size in plan.sizes:
            for recipe in (None, *args.recipe):
                yield recipe, Settings(
                    size=size, backend="quartet" if recipe else "inductor", recipe=recipe, steps=steps, batch=plan.batch,
                    accumulate=1, seq=plan.seq, lr=SIZES[size].lr, warmup=0.1, seed=args.seed, device=args.device,
                    dtype=args.dtype, eval_every=steps, eval_batches=32,
                )  # fmt: skip


def finished(table: Path, fingerprint: str) -> set[tuple[int, int, str, str]]:
    """Parameters, tokens and precisions of the runs in the table; an error if they were trained on another text."""
    if not table.exists():
        return set()
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows, 2):
        if row.get("text") != fingerprint:
            raise text.DataError(
                f"{table}, row {number} was trained on the text {row.get('text')!r}, and this one is {fingerprint!r}; name "
                "another folder with --out, or the same --data"
            )
    return {(int(row["parameters"]), int(row["tokens"]), row["fprop"], row["backward"]) for row in rows}


def train(settings: Settings, corpus: text.Corpus, folder: Path, label: str, stop: StopRequest) -> float:
    """The validation loss of one run in nats a byte; its lines go to `train.log`."""
    torch._dynamo.reset()  # the runs share the model's code, and must not share its compilations
    with open(folder / "train.log", "a") as log, contextlib.redirect_stdout(log):
        trainer = Trainer(settings, corpus, folder, label)
        trainer.run(stop)
    trainer.checkpoint.unlink()
    return trainer.history.validation[-1][1]


def parameters_of(size: Size) -> int:
    """Outside embedding and head, norms included."""
    block = 4 * size.width**2 + 3 * size.width * size.mlp_width + 2 * size.width
    return size.layers * block + size.width


def collect(args: argparse.Namespace, plan: Plan, corpus: text.Corpus, folder: Path, stop: StopRequest) -> Path:
    """Trains what is missing, a row of the table after each; returns the table."""
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "runs.csv"
    done = finished(table, corpus.fingerprint)
    planned = list(runs_of(args, plan))
    for number, (recipe, settings) in enumerate(planned, 1):
        fprop, backward = precisions_of(recipe, args.dtype)
        parameters, tokens = parameters_of(SIZES[settings.size]), settings.steps * settings.tokens_a_step
        budget = f"{parameters / 1e6:.3g}M parameters, {tokens / 1e6:.3g}M tokens"
        label = f"{number}/{len(planned)}: {budget}, {recipe or args.dtype}"
        if (parameters, tokens, fprop, backward) in done:
            print(f"{label}: in {table} already", flush=True)
            continue
        start = time.perf_counter()
        try:
            loss = train(settings, corpus, folder, label, stop)
        except Diverged as error:
            print(f"{label}: left out. {error}", flush=True)
            continue
        seconds = time.perf_counter() - start
        path = figures.path_of(settings.backend, settings.device)
        append(table, (parameters, tokens, fprop, backward, loss, round(seconds, 1), corpus.fingerprint, path))
        print(f"{label}: {loss:.4f} nats a byte, {seconds:.0f} s", flush=True)
    return table


def append(table: Path, row: Sequence[object]) -> None:
    """Adds a run to the table, under its header."""
    is_new = not table.exists()
    with open(table, "a", newline="") as file:
        csv.writer(file).writerows([COLUMNS, row] if is_new else [row])


def report(table: Path, baseline: str) -> int:
    """Prints the fit, writes its picture, and says what it is worth."""
    runs = law.read_runs(table)
    own = [run for run in runs if run.recipe == f"{baseline}:{baseline}"]
    resamples = str(RESAMPLES if len(own) >= FEWEST_FOR_INTERVALS else 0)
    print(flush=True)
    options = ["--runs", str(table), "--baseline", baseline, "--resamples", resamples]
    code = command(["law", "fit", *options, "--plot", str(table.with_name("law.png"))])
    if code == 0:
        print(
            f"\nSix coefficients from {len(own)} small runs are badly determined, and published ones are of another "
            "vocabulary and of models hundreds of times larger: don't extrapolate from these."
        )
        print("Each run is one seed, too: a recipe's gap that is below the residual above is noise.")
    if resamples == "0":
        print(f"No intervals: they need {FEWEST_FOR_INTERVALS} runs in full precision, and there are {len(own)}.")
    return code


def main(argv: Sequence[str] | None = None) -> int:
    p = parser()
    args = p.parse_args(argv)
    SIZES.update(LADDER)
    if args.device == "cuda" and not torch.cuda.is_available():
        p.error("--device cuda: this PyTorch sees no GPU; leave it out to train on the CPU")
    folder = args.out or Path("runs", "law-quick" if args.quick else "law")
    try:
        for recipe in args.recipe:
            qc.recipe(recipe)
        corpus = text.load(args.data)
        print(corpus)
        with StopRequest() as stop:
            table = collect(args, QUICK if args.quick else DEFAULT, corpus, folder, stop)
    except (text.DataError, qc.RecipeError) as error:
        p.error(str(error))
    except Stopped as error:
        print(f"\n{error}; the same command goes on with the next run", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print(f"\nquit; finished runs are in {folder / 'runs.csv'}", file=sys.stderr)
        return 130
    return report(table, args.dtype)


if __name__ == "__main__":
    sys.exit(main())
