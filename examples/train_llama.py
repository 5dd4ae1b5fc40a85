"""Trains a Llama-style decoder from scratch on real text, in full precision or in 4-bit floating point.

    python examples/train_llama.py --compare --size demo      # what `make demo` runs: both, with a table at the end
    python examples/train_llama.py --size 30M --device cuda --dtype bfloat16 --data my_texts/
    python examples/train_llama.py --size 30M --device cuda --dtype bfloat16 --data my_texts/ --resume

The text is the Python standard library's source, read as bytes, unless --data names other files or folders.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import figures
import text
import torch
from checkpoint import CheckpointError
from llama import SIZES
from monitor import MISSING, Monitor, has_tensorboard
from progress import StopRequest
from training import DTYPES, Diverged, Settings, Stopped, Trainer

BACKENDS = ("quartet", "inductor", "eager")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--size", choices=SIZES, default="demo")
    p.add_argument("--backend", choices=BACKENDS, default="quartet", help="what compiles the model (default: quartet)")
    p.add_argument("--recipe", help="a Quartet recipe by name (default: the backend's own)")
    p.add_argument(
        "--schedule", nargs="+", type=switch, default=[], metavar="STEP:RECIPE", help="recipes from these steps on"
    )
    p.add_argument("--compare", action="store_true", help="train twice from one seed: --baseline, then --backend")
    p.add_argument("--baseline", choices=BACKENDS, default="inductor", help="the first run of --compare")
    p.add_argument("--data", nargs="+", default=[], metavar="PATH", help="text files or folders")
    p.add_argument("--out", type=Path, metavar="DIR", help="default: runs/SIZE-BACKEND, or runs/SIZE with --compare")
    p.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    p.add_argument("--steps", type=positive, help="default by size")
    p.add_argument("--batch", type=positive, help="sequences a step (default by size)")
    p.add_argument("--accumulate", type=positive, default=1, help="split each step's batch into so many (default: 1)")
    p.add_argument("--seq", type=positive, help="tokens in a sequence (default by size)")
    p.add_argument("--lr", type=float, help="peak learning rate (default by size)")
    p.add_argument("--warmup", type=float, default=0.1, help="share of the steps with rising rate (default: 0.1)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--tensorboard", type=Path, metavar="DIR", help="write the losses, and statistics, to TensorBoard")
    p.add_argument("--stats-every", type=positive, metavar="N", help="measure how well each Nth step quantizes")
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    p.add_argument("--dtype", choices=DTYPES, default="float32", help="bfloat16 trains under autocast")
    p.add_argument("--eval-every", type=positive, help="steps between validations and checkpoints (default by size)")
    p.add_argument("--eval-batches", type=positive, default=16, help="batches of a validation (default: 16)")
    return p


def positive(value: str) -> int:
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return number


def switch(value: str) -> tuple[int, str]:
    step, _, recipe = value.partition(":")
    if not (step.isdigit() and recipe):
        raise argparse.ArgumentTypeError(f"{value!r} is no step and recipe, as 100:bf16")
    return int(step), recipe


def settings_of(args: argparse.Namespace, backend: str) -> Settings:
    size = SIZES[args.size]
    return Settings(
        size=args.size,
        backend=backend,
        recipe=args.recipe if backend == "quartet" else None,
        schedule=tuple(args.schedule) if backend == "quartet" else (),
        steps=args.steps or size.steps,
        batch=args.batch or size.batch,
        accumulate=args.accumulate,
        seq=args.seq or size.seq,
        lr=size.lr if args.lr is None else args.lr,
        warmup=args.warmup,
        seed=args.seed,
        device=args.device,
        dtype=args.dtype,
        eval_every=args.eval_every or size.eval_every,
        eval_batches=args.eval_batches,
        stats_every=(args.stats_every or 0) if backend == "quartet" else 0,
    )


def runs_of(args: argparse.Namespace) -> dict[str, tuple[Settings, Path]]:
    """Settings and folder of each run, by the name it has in the table."""
    if not args.compare:
        folder = args.out or Path("runs", f"{args.size}-{args.backend}")
        return {args.backend: (settings_of(args, args.backend), folder)}
    folder = args.out or Path("runs", args.size)
    names = {f"full precision ({args.dtype})": args.baseline, args.backend: args.backend}
    return {
        name: (settings_of(args, backend), folder / name.partition(" (")[0].replace(" ", "-"))
        for name, backend in names.items()
    }


def check(args: argparse.Namespace, p: argparse.ArgumentParser) -> None:
    """What argparse can't see; ends with the usage line and the reason."""
    settings = settings_of(args, args.backend)
    if settings.batch % settings.accumulate:
        p.error(f"--accumulate {settings.accumulate} doesn't divide the batch of {settings.batch} sequences")
    if not settings.lr > 0:
        p.error(f"--lr {settings.lr} is not a positive number")
    if not 0 <= settings.warmup < 1:
        p.error(f"--warmup {settings.warmup} is a share of the steps: give a number from 0 up to 1")
    given = {"--recipe": [args.recipe] if args.recipe else [], "--schedule": [recipe for _, recipe in args.schedule]}
    for option, recipes in given.items():
        if recipes and args.backend != "quartet":
            p.error(f"{option} {' '.join(recipes)} needs --backend quartet, not {args.backend}")
        for recipe in recipes:
            import quartet_compile as qc

            try:
                qc.recipe(recipe)
            except qc.RecipeError as error:
                p.error(f"{option}: {error}")
    if args.stats_every and args.backend != "quartet":
        p.error(f"--stats-every {args.stats_every} needs --backend quartet, not {args.backend}")
    if args.tensorboard and not has_tensorboard():
        p.error(MISSING)
    if args.device == "cuda" and not torch.cuda.is_available():
        why = "sees no GPU" if torch.version.cuda else "is built for CPUs only"
        p.error(f"--device cuda: this PyTorch ({torch.__version__}) {why}; leave it out to train on the CPU")
    if args.resume and not any((folder / "checkpoint.pt").exists() for _, folder in runs_of(args).values()):
        folders = " or ".join(str(folder) for _, folder in runs_of(args).values())
        p.error(f"--resume: there is no checkpoint.pt in {folders}; leave it out to start, or name the run with --out")


def train(
    name: str,
    settings: Settings,
    folder: Path,
    corpus: text.Corpus,
    *,
    resume: bool,
    stop: StopRequest,
    tensorboard: Path | None = None,
) -> dict:
    """One run from start, or checkpoint, to end; returns its figures. tensorboard: the folder of its events."""
    torch._dynamo.reset()  # the runs share the model's code, and must not share its compilations
    trainer = Trainer(settings, corpus, folder, name)
    if resume and trainer.checkpoint.exists():
        changed = trainer.restore()
        print(f"{name}: continues after step {trainer.step}" + (f"; changed: {', '.join(changed)}" if changed else ""))
    else:
        trainer.keep_previous()
    parameters = sum(p.numel() for p in trainer.model.parameters())
    print(
        f"{name}: {figures.path_of(settings.backend, settings.device)}, {parameters / 1e6:.2f}M parameters, "
        f"{settings.steps} steps of {settings.batch} x {settings.seq} tokens, {settings.dtype}",
        flush=True,
    )
    trainer.monitor = Monitor(tensorboard)
    in_fp4 = explain(trainer, name) if settings.backend == "quartet" else None
    trainer.run(stop)
    return {**figures.run_figures(trainer), "matmuls_in_fp4": in_fp4}


def explain(trainer: Trainer, name: str) -> str:
    """How many matmuls the backend rewrites; which ones, and why not the others, goes to `explain.txt`."""
    import quartet_compile as qc

    tokens = torch.zeros(trainer.data.batch, trainer.data.seq, dtype=torch.long, device=trainer.settings.device)
    recipe = {"recipe": trainer.settings.recipe} if trainer.settings.recipe else {}
    with trainer.autocast():
        report = qc.explain(trainer.model, tokens, tokens, **recipe)
    trainer.folder.mkdir(parents=True, exist_ok=True)
    file = trainer.folder / "explain.txt"
    file.write_text(f"{report}\n")
    in_fp4 = f"{sum(site.rewritten for site in report.sites)} of {len(report.sites)}"
    print(f"{name}: {in_fp4} matmuls in FP4; which, and why not the others: {file}", flush=True)
    return in_fp4


def main(argv: Sequence[str] | None = None) -> int:
    p = parser()
    args = p.parse_args(argv)
    check(args, p)
    results: dict[str, dict] = {}
    try:
        corpus = text.load(args.data)
        print(corpus)
        with StopRequest() as stop:
            for name, (settings, folder) in runs_of(args).items():
                events = args.tensorboard and args.tensorboard / settings.backend
                how = dict(resume=args.resume, stop=stop, tensorboard=events)
                results[name] = train(name, settings, folder, corpus, **how)
    except (text.DataError, CheckpointError) as error:
        p.error(str(error))
    except Diverged as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except Stopped as error:
        print(f"\n{error}; continue with the same command and --resume", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("\nquit; what was saved last is kept", file=sys.stderr)
        return 130
    folder = args.out or Path("runs", args.size if args.compare else f"{args.size}-{args.backend}")
    print(f"\n{figures.table(results)}\n")
    print("written:", *figures.write(results, dataclasses.asdict(settings_of(args, args.backend)), str(corpus), folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
