"""What the survey says: a line an architecture while it runs, and the page for docs/."""

from __future__ import annotations

import collections
import dataclasses
import math
import platform
import re
from collections.abc import Callable, Sequence

import tiny_models
import torch
import transformers
from survey_step import OTHER, RANDOM, SAME

ACTIVATIONS = re.compile(r"product of two activations|product of two parameters")


@dataclasses.dataclass
class Coverage:
    """Matmuls, and those with a weight: how many, how many of them rewritten, and their multiply-adds."""

    matmuls: int = 0
    weights: int = 0
    rewritten: int = 0
    all_flops: float = 0.0
    done_flops: float = 0.0

    def add(self, site: dict) -> None:
        self.matmuls += 1
        if ACTIVATIONS.search(site["reason"]):
            return
        self.weights += 1
        self.rewritten += site["rewritten"]
        sizes = [size for size in site["shape"] if isinstance(size, int)]
        flops = math.prod(sizes) if len(sizes) == 3 else 0
        found = re.search(r"with (\d+) matrices", site["reason"])
        flops *= int(found.group(1)) if found else 1
        self.all_flops += flops
        self.done_flops += flops * site["rewritten"]

    @property
    def share(self) -> str:
        """Of the multiply-adds with weights of known size."""
        return f"{100 * self.done_flops / self.all_flops:.0f} %" if self.all_flops else "-"


def coverage(result: dict) -> Coverage:
    """Over the graphs and what runs eagerly."""
    total = Coverage()
    for site in (*result.get("sites", ()), *result.get("eager", ())):
        total.add(site)
    return total


def line_of(result: dict) -> str:
    """One architecture in one line."""
    cover = coverage(result)
    parts = [result["name"], result["stage"], f"{result['seconds']} s", result.get("gradients", "")]
    parts += [f"{cover.rewritten}/{cover.weights}", str(result.get("explain", ""))[:160], result.get("error", "")[:160]]
    return "  ".join(part for part in parts if part)


def summary(results: Sequence[dict]) -> list[str]:
    """How many build, compile, are right and are explained, as rows of a table."""
    ran = [result for result in results if "gradients" in result]
    kinds = collections.Counter(result["gradients"] for result in ran)
    return [
        f"| asked for | {len(results)} |",
        f"| build and train | {sum(map(_trains, results))} |",
        f"| stopped at the limit of time | {sum(_late(r) and 'gradients' not in r for r in results)} |",
        f"| compile | {len(ran)} |",
        *(f"| gradients: {kind} | {count} |" for kind, count in sorted(kinds.items())),
        f"| `explain` works | {sum(not _raised(result) for result in ran)} |",
        f"| `explain` agrees with the run | {sum(result.get('explain') == 'agrees' for result in ran)} |",
        f"| run a matmul eagerly, after a graph break | {sum(bool(result.get('eager')) for result in ran)} |",
    ]


def _trains(result: dict) -> bool:
    return result["stage"] not in ("not built", "not trained")


def _late(result: dict) -> bool:
    return result.get("error", "").startswith("more than ")


def _raised(result: dict) -> bool:
    """Whether `explain` raised, or the process ended before it."""
    return re.match(r"\w+: ", result.get("explain", "none: ")) is not None


def page(results: Sequence[dict]) -> str:
    """The page for docs/."""
    ran = [result for result in results if "gradients" in result]
    built = [result for result in results if _trains(result)]
    lines = [
        "# A survey of architectures",
        "",
        "Architectures of transformers, tiny and random, by `python examples/survey.py`: one",
        "training step under the recipe `exact`, which rewrites and rounds nothing, against the untouched model; and"
        " `explain` against",
        "the graphs that ran. Path: the capture backend on a CPU: the rewritten graphs op by op in the reference and CPU",
        "kernels, no Inductor.",
        "",
        f"Python {platform.python_version()}, torch {torch.__version__.partition('+')[0]}, transformers"
        f" {transformers.__version__}. {len(results)} of its {len(tiny_models.architectures())} architectures were tried.",
        "",
        "| | architectures |",
        "|-|-|",
        *summary(results),
        "",
        *_reasons(ran),
        "",
        "## Architecture by architecture",
        "",
        "Weights: matmuls with a weight, rewritten of all. Share: of their multiply-adds, those rewritten; tiny sizes make"
        " more of",
        "them too narrow than real ones. Error: the largest relative difference of a gradient. Eagerly: matmuls outside of"
        " graphs.",
        "",
        "| architecture | class | weights | share | error | eagerly | explain | kept |",
        "|-|-|-|-|-|-|-|-|",
        *(_row(result) for result in ran),
        "",
        *_failures("Those that train and don't compile", built, lambda r: "gradients" not in r and not _late(r)),
        *_failures(
            "Those that were stopped at the limit of time", results, lambda r: "gradients" not in r and _late(r)
        ),
        *_failures("Those that did not build or train here", results, lambda r: r not in built and not _late(r)),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _reasons(results: Sequence[dict]) -> list[str]:
    counts: dict[str, list[str]] = {}
    for result in results:
        for site in (*result.get("sites", ()), *result.get("eager", ())):
            counts.setdefault(generic(site["reason"]), []).append(result["name"])
    rows = sorted(counts.items(), key=lambda item: -len(item[1]))
    head = ["## Reasons", "", "Numbers and names are replaced by `..`.", "", "| | matmuls | architectures |", "|-|-|-|"]
    return [*head, *(f"| {reason} | {len(names)} | {len(set(names))} |" for reason, names in rows)]


def generic(reason: str) -> str:
    """A reason without what differs from matmul to matmul."""
    return re.sub(r"'[^']*'|\b\d+\b(?! of)", "..", reason).replace("|", "/")


def _row(result: dict) -> str:
    cover = coverage(result)
    explain = _explain(result)
    error = f"{result['error of gradients']:.0e}" if result["error of gradients"] else "0"
    error = f"**{error}**" if result["gradients"] in (OTHER, RANDOM) else error
    error = error if result["gradients"] == SAME else f"{error} ({result['gradients']})"
    cells = (result["name"], result["class"], f"{cover.rewritten} of {cover.weights}", cover.share, error)
    return "| " + " | ".join([*cells, str(len(result.get("eager", ()))), explain, _kept(result)]) + " |"


def _explain(result: dict) -> str:
    if result.get("explain") == "agrees":
        return "agrees"
    return "**fails**" if _raised(result) else "**differs**"


def _kept(result: dict) -> str:
    """The reasons of matmuls with a weight that are kept, each with its count."""
    sites = (*result.get("sites", ()), *result.get("eager", ()))
    kept = [site["reason"] for site in sites if not site["rewritten"] and not ACTIVATIONS.search(site["reason"])]
    return "; ".join(f"{count} {reason[:50]}" for reason, count in collections.Counter(map(generic, kept)).items())


def _failures(title: str, results: Sequence[dict], chosen: Callable[[dict], bool]) -> list[str]:
    rows = [result for result in results if chosen(result)]
    lines = [f"| {result['name']} | {_cell(result.get('error', result['stage']))} |" for result in rows]
    return [f"## {title}", "", "| architecture | error |", "|-|-|", *lines, ""] if rows else []


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"[|<>]", " ", text))[:150]
