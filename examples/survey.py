"""Every architecture of the installed transformers, tiny and random, through one training step with and without us: is
every gradient right, which matmuls are rewritten, and does `explain` say so?

    python examples/survey.py                               all of them, into docs/survey.md; takes about an hour on one core
    python examples/survey.py --only llama t5 --out runs/two.jsonl --docs runs/two.md   two of them

Each architecture has a process of its own, with limits of time and memory. What is done is in the file of results, and is
not done again. Rewriting is checked under the recipe `exact`, which rounds nothing, on the graphs as they are, without
Inductor. A gradient is right if it differs from the untouched model's by no more than rounding does: see `tolerance`.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import json
import logging
import math
import multiprocessing
import pathlib
import platform
import re
import resource
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.pool import ThreadPool
from typing import Any

import tiny_models
import torch
import transformers

import quartet_compile as qc
from quartet_compile.api import parameter_names
from quartet_compile.capture import Capture
from quartet_compile.config import configure
from quartet_compile.report import Site

GIGABYTES = 12
ACTIVATIONS = re.compile(r"product of two activations|product of two parameters")
SAME, OTHER = "equal", "differs"


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    results = pathlib.Path(options.out)
    results.parent.mkdir(parents=True, exist_ok=True)
    done = read(results)
    wanted = options.only or list(tiny_models.architectures())
    missing = [name for name in wanted if name not in done][: options.limit]
    load()
    with open(results, "a") as file, ThreadPool(options.jobs) as pool:
        for result in pool.imap_unordered(lambda name: in_a_process(name, options.timeout), missing):
            done[result["name"]] = result
            file.write(json.dumps(result) + "\n")
            file.flush()
            print(line_of(result), flush=True)
    text = page([done[name] for name in wanted if name in done])
    pathlib.Path(options.docs).write_text(text)


def read(path: pathlib.Path) -> dict[str, dict]:
    """The results of a file, the last of each architecture."""
    if not path.exists():
        return {}
    return {result["name"]: result for result in map(json.loads, path.read_text().splitlines())}


# One architecture.


def load() -> None:
    """Load what every process that is forked from this one needs."""
    tiny_models.architectures()
    quiet()
    torch.set_num_threads(1)
    layer = torch.nn.Linear(64, 64)
    compiled_gradients(layer, {"input": torch.randn(32, 64)}, "exact")


def in_a_process(name: str, seconds: float) -> dict:
    """`survey(name)` in a process forked from this one, which has torch and transformers loaded, under limits."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_worker, args=(name, theirs))
    start = time.monotonic()
    process.start()
    theirs.close()
    result = {"name": name, "stage": "built"}
    with contextlib.suppress(EOFError):  # the process is gone
        while ours.poll(max(0.0, seconds - (time.monotonic() - start))):
            result = ours.recv()
            if result.get("finished"):
                break
    if not result.get("finished"):
        gone = not process.is_alive() or ours.poll(0)
        result["error"] = f"the process died after {result['stage']}" if gone else f"more than {seconds:.0f} s"
    process.kill()
    process.join()
    return {**result, "seconds": round(time.monotonic() - start, 1)}


def _worker(name: str, connection: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (GIGABYTES << 30, GIGABYTES << 30))
    torch.set_num_threads(1)
    quiet()
    result: dict[str, Any] = {}
    for result in survey(name):
        connection.send(result)
    connection.send({**result, "finished": True})


def quiet() -> None:
    """Models warn of what their tiny sizes can't do."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    for logger in ("torch._dynamo", "torch.fx", "torch._inductor"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)


def survey(name: str) -> Iterable[dict]:
    """What is known of an architecture after each stage: a dict, which grows."""
    result: dict[str, Any] = {"name": name, "stage": "start"}
    try:
        model, inputs = tiny_models.tiny_model(name)
    except tiny_models.CannotBuild as error:
        yield {**result, "stage": "not built", "error": str(error)}
        return
    result |= {"stage": "built", "class": type(model).__name__, "inputs": {k: list(v.shape) for k, v in inputs.items()}}
    yield result
    try:
        state = {key: value.clone() for key, value in model.state_dict().items()}
        plain = gradients(model, model, inputs)
    except Exception as error:  # whatever the model's code raises
        yield {**result, "stage": "not trained", "error": said(error)}
        return
    result |= {"stage": "trained"}
    yield result
    try:
        model.load_state_dict(state)
        backend, ours = compiled_gradients(model, inputs, "exact")
    except Exception as error:  # whatever Dynamo, AOTAutograd or the pass raise
        result |= {"error": said(error), "without us": _compiles_without_us(model, inputs)}
        yield {**result, "stage": "not compiled"}
        return
    sites = [site for graph in backend.graphs for site in graph.sites]
    result |= {"stage": "compiled", "graphs": len(backend.graphs), "sites": [brief(site) for site in sites]}
    yield result
    result |= compare(plain, ours, sites)
    if result["gradients"] == OTHER:  # is it the model, torch, or us?
        model.load_state_dict(state)
        _, torchs = compiled_gradients(model, inputs, "bf16")
        result["without us"] = compare(plain, torchs, sites)["error of gradients"]
        model.load_state_dict(state)
        result["float32"] = _own_rounding(model, inputs, plain)
        if result["error of gradients"] <= 4 * max(result["without us"], result["float32"]):
            result["gradients"] = "as float32 itself"
    yield {**result, "stage": "compared"}
    model.load_state_dict(state)
    yield {**result, **explained(model, inputs, sites), "stage": "explained"}


def gradients(model: torch.nn.Module, function: Callable, inputs: dict) -> dict[str, torch.Tensor]:
    """Gradients of a fixed random projection of everything that the model puts out, by parameter; the outputs too."""
    model.zero_grad()
    tiny_models.seed(7)
    outputs = tiny_models.floats(function(**inputs))
    loss = sum(project(output) for output in outputs)
    loss.backward()
    found = {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}
    return {**found, "loss": loss.detach()}


def project(output: torch.Tensor) -> torch.Tensor:
    """A scalar that depends on every element in its own way; a norm's output has the same sum whatever its input is."""
    weights = torch.cos(torch.arange(output.numel(), dtype=torch.float64)).to(output.real.dtype).view(output.shape)
    product = output * weights
    return (product.real if product.is_complex() else product).sum()


def compiled_gradients(model: torch.nn.Module, inputs: dict, recipe: str) -> tuple[Capture, dict[str, torch.Tensor]]:
    """The same through our pass, without Inductor, by the names that `qc.quartet` gives."""
    torch._dynamo.reset()
    backend = Capture(configure({"recipe": recipe}), parameter_names(model), text=False)
    function = torch.compile(model, backend=backend, dynamic=False)
    return backend, gradients(model, function, inputs)


def tolerance(sites: Sequence[Site]) -> float:
    """How far rounding to float32 moves a gradient, relative to it: sums of K products err by about eps sqrt(K), and the
    errors of all products in a row add up as they come, at random."""
    longest = max([site.shape[2] for site in sites if isinstance(site.shape[2], int)], default=64)
    return 16 * torch.finfo(torch.float32).eps * math.sqrt(longest * (1 + len(sites)))


def compare(plain: dict[str, torch.Tensor], ours: dict[str, torch.Tensor], sites: Sequence[Site]) -> dict[str, Any]:
    """Whether each gradient is the same. One that is zero but for rounding, as of a key's bias, is measured by the
    largest."""
    missing = sorted(plain.keys() ^ ours.keys())
    largest = max((value.norm().item() for value in plain.values()), default=0.0)
    worst, where = 0.0, ""
    for name in plain.keys() & ours.keys():
        a, b = ours[name].double(), plain[name].double()
        if not torch.equal(a.isfinite(), b.isfinite()):
            return {"gradients": OTHER, "error of gradients": math.inf, "worst": name, "missing": missing}
        a, b = a.nan_to_num(0, 0, 0), b.nan_to_num(0, 0, 0)
        error = ((a - b).norm() / max(b.norm().item(), 0.01 * largest, 1e-30)).item()
        if error > worst:
            worst, where = error, name
    wrong = missing or worst > tolerance(sites)
    return {"gradients": OTHER if wrong else SAME, "error of gradients": worst, "worst": where, "missing": missing}


def _own_rounding(model: torch.nn.Module, inputs: dict, plain: dict[str, torch.Tensor]) -> float:
    """How far the untouched model's gradients are from those in float64; 0 where it can't run in float64."""
    try:
        wide = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
        exact = gradients(model.double(), model, wide)
    except Exception:  # whatever a model's code raises in float64
        return 0.0
    finally:
        model.float()
    return compare(exact, plain, ())["error of gradients"]


def _compiles_without_us(model: torch.nn.Module, inputs: dict) -> str:
    try:
        torch._dynamo.reset()
        gradients(model, torch.compile(model, backend="aot_eager", dynamic=False), inputs)
    except Exception as error:  # whatever torch raises
        return f"fails too: {said(error)}"
    return "compiles"


def explained(model: torch.nn.Module, inputs: dict, sites: Sequence[Site]) -> dict[str, Any]:
    """Whether `explain` works, and lists the matmuls of the run's graphs; those that it says run eagerly."""
    torch._dynamo.reset()
    try:
        tiny_models.seed(7)
        report = qc.explain(positional(model, inputs), *inputs.values(), recipe="exact")
    except Exception as error:  # a fault, whatever it is
        return {"explain": said(error)}
    ran = collections.Counter(map(key, sites))
    told = collections.Counter(key(site) for graph in report.graphs for site in graph.sites)
    only_ran, only_told = ran - told, told - ran
    differs = [f"ran, not explained: {k}" for k in only_ran] + [f"explained, did not run: {k}" for k in only_told]
    return {
        "explain": "; ".join(differs[:4]) or "agrees",
        "eager": [brief(site) for site in report.eager_sites],
        "breaks": list(report.eager),
    }


def positional(model: torch.nn.Module, inputs: dict) -> Callable:
    """The model as a function of the values of `inputs`, in their order."""

    def call(*tensors: torch.Tensor) -> Any:
        return model(**dict(zip(inputs, tensors, strict=True)))

    return call


def key(site: Site) -> tuple:
    """What `explain` and a run must agree on."""
    return site.name, tuple(site.shape), site.rewritten, site.reason


def brief(site: Site) -> dict:
    return {name: getattr(site, name) for name in ("name", "shape", "rewritten", "reason")}


def said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()[:400]}"


# What it says.


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


def page(results: Sequence[dict]) -> str:
    """The page for docs/."""
    ran = [result for result in results if "gradients" in result]
    same = [result for result in ran if result["gradients"] != OTHER]
    agreeing = [result for result in ran if result.get("explain") == "agrees"]
    built = [result for result in results if result["stage"] not in ("not built", "not trained")]
    lines = [
        "# A survey of architectures",
        "",
        "Every architecture of transformers of which a tiny random configuration builds and trains, by"
        " `python examples/survey.py`: one",
        "training step under the recipe `exact`, which rewrites and rounds nothing, against the untouched model; and"
        " `explain` against",
        "the graphs that ran. No Inductor, on a CPU.",
        "",
        f"Python {platform.python_version()}, torch {torch.__version__.partition('+')[0]}, transformers"
        f" {transformers.__version__}. {len(results)} architectures, {len(built)} of which build and train.",
        "",
        "| | architectures |",
        "|-|-|",
        f"| build and train | {len(built)} |",
        f"| compile | {len(ran)} |",
        f"| every gradient as without us | {len(same)} |",
        f"| `explain` agrees with the run | {len(agreeing)} |",
        f"| run a matmul with a weight eagerly, after a graph break | {sum(map(_runs_eagerly, ran))} |",
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
        "| architecture | class | weights | share | error | eagerly | explain |",
        "|-|-|-|-|-|-|-|",
        *(_row(result) for result in ran),
        "",
        *_failures("Those that train and don't compile", built, lambda result: "gradients" not in result),
        *_failures("Those that did not build or train here", results, lambda result: result not in built),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _runs_eagerly(result: dict) -> bool:
    return bool(result.get("eager"))


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
    explain = "agrees" if result.get("explain") == "agrees" else "**differs**"
    error = f"{result['error of gradients']:.0e}" if result["error of gradients"] else "0"
    error = f"**{error}**" if result["gradients"] == OTHER else error
    cells = (result["name"], result["class"], f"{cover.rewritten} of {cover.weights}", cover.share, error)
    return "| " + " | ".join([*cells, str(len(result.get("eager", ()))), explain]) + " |"


def _failures(title: str, results: Sequence[dict], chosen: Callable[[dict], bool]) -> list[str]:
    rows = [result for result in results if chosen(result)]
    lines = [f"| {result['name']} | {_cell(result.get('error', result['stage']))} |" for result in rows]
    return [f"## {title}", "", "| architecture | error |", "|-|-|", *lines, ""] if rows else []


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"[|<>]", " ", text))[:150]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="folders of transformers/models")
    parser.add_argument("--limit", type=int, help="at most so many that have no result yet")
    parser.add_argument("--timeout", type=float, default=90, help="the most seconds that one architecture may take")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--out", default="runs/survey.jsonl", help="the file of results, to go on from")
    parser.add_argument("--docs", default="docs/survey.md", help="the page")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
