"""The command `law`: fit the scaling law, predict a loss, find the best precision for a budget.

    python -m quartet_compile law fit --runs runs.csv --baseline float32 --plot fit.png
    python -m quartet_compile law predict --parameters 8B --tokens 15T --recipe quartet
    python -m quartet_compile law regions --speedups rtx5090 --plot regions.png

Without `--runs`, all three use the published runs of arXiv 2505.14669, and the last two its coefficients.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Sequence

from .. import law
from ..errors import suggest
from ..tables import aligned, ruled
from .budgets import speedup_at
from .efficiencies import HIGHEST, LOWEST
from .solve import LARGEST

SUFFIXES = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
MAP_SIZES = (1e7, 1e8, 1e9, 1e10, 1e11, 1e12)


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `law` to the commands of `python -m quartet_compile`."""
    text = "the scaling law of low-precision training: fit it, predict a loss, find the best precision for a budget"
    parent = commands.add_parser("law", help=text, description=text[0].upper() + text[1:] + ".")
    parts = parent.add_subparsers(dest="part", required=True, metavar="PART")
    for name, run, text in (
        ("fit", run_fit, "the coefficients of a table of runs, and the efficiencies of its recipes"),
        ("predict", run_predict, "the loss of a model and a number of tokens, in full precision and with a recipe"),
        ("regions", run_regions, "which of FP8 and FP4, forward and backward, is best, by tokens a parameter"),
    ):
        part = parts.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        part.set_defaults(run=run)
        part.add_argument(
            "--runs", metavar="FILE.csv", help="parameters,tokens,fprop,backward,loss; default: the published runs"
        )
        part.add_argument("--baseline", default="bf16", help="the name of full precision in the table (default: bf16)")
        part.add_argument("--json", action="store_true", help="machine-readable output")
        if name == "predict":
            part.add_argument("--parameters", type=count, required=True, help="outside embedding and head, as 8B")
            part.add_argument("--tokens", type=count, required=True, help="of training, as 15T")
        else:
            part.add_argument("--plot", metavar="FILE.png", type=pathlib.Path, help="also write a picture")
        if name == "fit":
            part.add_argument("--recipe", action="append", help="default: every one in the table; repeatable")
            part.add_argument(
                "--resamples", type=whole, default=100, help="for the intervals (default: 100; 0: without intervals)"
            )
            part.add_argument("--seed", type=whole, default=0, help="of the resamples (default: 0)")
        else:
            default = "quartet" if name == "regions" else None
            part.add_argument("--recipe", default=default, help="a name, or fprop:backward as in the table")
        if name == "regions":
            known = ", ".join(law.SPEEDUPS)
            part.add_argument(
                "--against", choices=law.AGAINST, default="FP8",
                help="what is used without FP4; the picture has both where --speedups isn't given (default: FP8)",
            )  # fmt: skip
            part.add_argument(
                "--speedups", metavar="WHICH",
                help=f"of FP4 over that: one of {known}; FORWARD/BACKWARD, as 2.1/1.2; or a CSV file with the columns "
                "parameters,forward,backward (default: by bit operations)",
            )  # fmt: skip


def count(text: str) -> float:
    """A number as `30482560`, `3e7` or `8B`."""
    scale = SUFFIXES.get(text[-1:].upper(), 1.0)
    try:
        number = float(text[:-1] if scale != 1.0 else text) * scale
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number, as 30482560, 3e7, 8B or 15T")
    return number


def whole(text: str) -> int:
    """A number as `0` or `200`."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, as 0 or 200")
    return int(text)


def run_fit(options: argparse.Namespace) -> str:
    """The coefficients beside the published ones, and a row for each fit of a recipe's efficiencies."""
    runs = law.read_runs(options.runs or law.SHIPPED)
    found = law.fit(runs, options.recipe, baseline=options.baseline, resamples=options.resamples, seed=options.seed)
    if options.plot:
        law.plot_fit(found, runs, options.plot)
    if options.json:
        return json.dumps({**dataclasses.asdict(found), "source": options.runs or "published"}, indent=1)
    between = f"{100 * found.level:g} % interval"
    rows = [["", "fitted", *([between] if found.intervals else []), "published"]]
    for name in law.COEFFICIENTS:
        rows.append(
            [name, _coefficient(found.law, name), *_interval(found, name), _short(getattr(law.PUBLISHED, name))]
        )
    lines = [
        "L(N, D) = (A / (N effN)^alpha + B / (D effD)^beta)^gamma + E, on "
        f"{found.runs} runs of {found.baseline}:{found.baseline}; residual {100 * found.rms:.2f} % (root mean square)",
        "",
        *ruled(aligned(rows)),
    ]
    rows = _efficiency_rows(found, between)
    lines += ["", *ruled(aligned(rows))] if found.efficiencies else []
    if any(each.separable for each in found.efficiencies):
        lines += ["", "+: together with the runs that have only one of the two passes in low precision"]
    if any(line.endswith(" *") or " *  " in line for line in lines):
        lines += ["", "*: at the edge of what is looked for: these runs don't determine it"]
    return "\n".join([*lines, *([f"\nwritten: {options.plot}"] if options.plot else [])])


def _efficiency_rows(found: law.Fit, between: str) -> list[list[str]]:
    widths = [between] if found.intervals else []
    rows = [["fprop:backward", "runs", "effN", *widths, "effD", *widths]]
    for each in found.efficiencies:
        cells = [
            cell
            for which in ("eff_n", "eff_d")
            for cell in (_efficiency(getattr(each, which)), *_interval(found, law.interval_key(each, which)))
        ]
        rows.append([each.recipe, f"{each.runs}{' +' if each.separable else ''}", *cells])
    return rows


def run_predict(options: argparse.Namespace) -> str:
    """Losses in nats a token; with a recipe, also what it costs."""
    runs, fitted = _law(options)
    budget = {"parameters": options.parameters, "tokens": options.tokens}
    loss = fitted.predict(**budget)
    found = {**budget, "law": dataclasses.asdict(fitted), "loss": loss}
    lines = [f"{options.baseline}: {loss:.4f} nats a token"]
    if options.recipe:
        each = law.efficiency(runs, fitted, options.recipe, baseline=options.baseline)
        recipe_loss = fitted.predict(**budget, eff_n=each.eff_n, eff_d=each.eff_d)
        found |= {"recipe": dataclasses.asdict(each), "recipe_loss": recipe_loss}
        lines.append(
            f"{options.recipe}: {recipe_loss:.4f} nats a token, {recipe_loss - loss:+.4f}; as {each.eff_n:.3g} of the "
            f"parameters and {each.eff_d:.3g} of the tokens (from {each.runs} runs of {_kinds(each)})"
        )
    return json.dumps(found, indent=1) if options.json else "\n".join(lines)


def run_regions(options: argparse.Namespace) -> str:
    """The best candidate by tokens a parameter, a row a number of parameters."""
    other, given = options.against, options.speedups
    default = "bit-operations" if other == "FP8" else "bit-operations/bf16"
    speedups = parse_speedups(given or default)
    runs, fitted = _law(options)
    each = law.efficiency(runs, fitted, options.recipe, baseline=options.baseline)
    found = {size: law.regions(fitted, each, size, speedups, against=other) for size in MAP_SIZES}
    if options.plot:
        title = f"What gives the lowest loss in the same time, by the scaling law? FP4 is the recipe {options.recipe}"
        law.plot_regions(fitted, each, options.plot, {other: speedups} if given else None, title=title)
    if options.json:
        regions = [
            {"parameters": size, "regions": [dataclasses.asdict(region) for region in some]}
            for size, some in found.items()
        ]
        return json.dumps(
            {"recipe": dataclasses.asdict(each), "law": dataclasses.asdict(fitted), "sizes": regions}, indent=1
        )
    rows = [["parameters", f"FP4 over {other}", "best forward:backward, from tokens a parameter"]]
    for size, some in found.items():
        here = speedup_at(speedups, size)
        borders = "; ".join(f"{region.candidate} from {region.low:,.0f}" for region in some)
        rows.append([f"{size:.0e}".replace("e+", "e"), f"{here.forward:.2f} / {here.backward:.2f}", borders])
    head = (
        f"FP4 is {options.recipe}: effN {each.eff_n:.3g}, effD {each.eff_d:.3g}, from {each.runs} runs of {_kinds(each)}. "
        f"{other} is lossless. A budget is what {other}:{other} can do."
    )
    return "\n".join([head, "", *ruled(aligned(rows)), *([f"\nwritten: {options.plot}"] if options.plot else [])])


def parse_speedups(text: str) -> tuple[law.Speedup, ...]:
    """A name of `SPEEDUPS`, `FORWARD/BACKWARD`, or a CSV file."""
    if text in law.SPEEDUPS:
        return law.SPEEDUPS[text]
    forward, separator, backward = text.partition("/")
    if separator and not text.endswith(".csv"):
        try:
            return (law.Speedup(forward=float(forward), backward=float(backward)),)
        except ValueError as error:
            if isinstance(error, law.LawError):
                raise
    if pathlib.Path(text).suffix == ".csv":
        return law.read_speedups(text)
    raise law.LawError(
        f"--speedups is {text!r}{suggest(text, law.SPEEDUPS)}; expected one of {', '.join(law.SPEEDUPS)}, two numbers as "
        "2.1/1.2, or a file.csv."
    )


def _law(options: argparse.Namespace) -> tuple[Sequence[law.Run], law.Law]:
    """The published runs and law, or the runs of a file and the law fitted to them."""
    runs = law.read_runs(options.runs or law.SHIPPED)
    return runs, law.fit_law(runs, baseline=options.baseline) if options.runs else law.PUBLISHED


def _kinds(each: law.Efficiency) -> str:
    return f"{each.recipe}, forward-only and backward-only" if each.separable else each.recipe


def _short(value: float) -> str:
    return f"{value:.4g}" if 1e-3 <= value < 1e4 else f"{value:.3e}".replace("e+0", "e").replace("e+", "e")


def _coefficient(found: law.Law, name: str) -> str:
    value = getattr(found, name)
    at_edge = name not in ("A", "B") and (value < 1e-3 or (name != "E" and value > 0.999 * LARGEST))
    return f"{_short(value)}{' *' if at_edge else ''}"


def _efficiency(value: float) -> str:
    inside = LOWEST * 1.01 < value < HIGHEST * 0.99
    return f"{value:.3g}{'' if inside else ' *'}"


def _interval(found: law.Fit, key: str) -> list[str]:
    if not found.intervals:
        return []
    low, high = found.intervals[key]
    return ["" if low == high else f"{_short(low)} to {_short(high)}"]
