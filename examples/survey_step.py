"""One architecture of the survey: a training step without us and with us under `exact`, compared, and `explain`."""

from __future__ import annotations

import collections
import logging
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tiny_models
import torch
import transformers

import quartet_compile as qc
from quartet_compile.capture.capture import Capture
from quartet_compile.config.names import parameter_names
from quartet_compile.config.options import configure
from quartet_compile.report.report import Site

SAME, OTHER, RANDOM = "equal", "differs", "differs in eager too"
CHAOTIC, TORCHS = "as float32 itself", "as compiled without us"
"""Gradients against the untouched model's. CHAOTIC: they differ by no more than float32's do from float64's; TORCHS: by no
more than those of the same graphs with nothing rewritten; RANDOM: two eager runs with one seed differ."""


def quiet() -> None:
    """Models warn of what their tiny sizes can't do."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    for logger in ("torch._dynamo", "torch.fx", "torch._inductor"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)


def stages(name: str) -> Iterable[dict]:
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
        if compare(plain, gradients(model, model, inputs), sites)["gradients"] == OTHER:
            result["gradients"] = RANDOM
        model.load_state_dict(state)
        result["float32"] = _own_rounding(model, inputs, plain)
        for label, figure in ((TORCHS, "without us"), (CHAOTIC, "float32")):
            if result["gradients"] != RANDOM and result["error of gradients"] <= 4 * result[figure]:
                result["gradients"] = label
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
