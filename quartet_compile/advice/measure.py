"""A few training steps on this machine: in the recipe, and with plain Inductor in float32 and in bf16."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .. import _compat
from ..config.presets import recipe as find_recipe
from ..errors import OptionError
from ..frontend.api import quartet
from ..kernels.paths import path_of

WARM_UP = 2
RATE = 1e-3
"""Of AdamW."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """seconds: the median of a step, forward, backward and AdamW, once compiled. loss: after the steps, all on one batch
    from one start. saved_bytes: what autograd keeps between forward and backward. peak_bytes: of the GPU's memory; None on
    a CPU. path: what the products of the recipe ran on; empty of plain Inductor."""

    name: str
    steps: int
    seconds: float
    loss: float
    saved_bytes: int
    path: str
    peak_bytes: int | None


def measure(
    model: nn.Module,
    inputs: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    recipe: str,
    options: Mapping[str, Any],
    steps: int,
    tell: Callable[[str], object],
) -> list[Measured]:
    """Train copies of a model on these inputs; the model and torch's random state stay as they are.

    The loss is what the model returns as its loss, or the mean square of its (first) output. Raises `OptionError` for a
    model without values.
    """
    parameters = list(model.parameters())
    if not parameters or any(parameter.is_meta for parameter in parameters):
        raise OptionError(
            "measure=True trains the model, which has no values (meta) or no parameters; expected a Module on a real device."
        )

    def ours(copied: nn.Module) -> Any:
        return quartet(copied, recipe=recipe, **options)

    gemms = [gemm for _, gemm in find_recipe(recipe).gemms()]
    path = path_of(parameters[0].device, {(gemm.a.format, gemm.b.format, False) for gemm in gemms})
    ways: list[tuple[str, Callable[[nn.Module], Any], bool]] = []
    for autocast, name in ((False, _dtypes(parameters)), (True, "bf16 autocast")):
        ways += [(f"{name}, plain Inductor", torch.compile, autocast), (f"{name}, {recipe}", ours, autocast)]
    found = []
    for name, compile_, autocast in ways:
        tell(f"measuring {steps} steps: {name}")
        one = _train(name, copy.deepcopy(model), compile_, autocast, inputs, kwargs, steps)
        found.append(dataclasses.replace(one, path=path if compile_ is ours else ""))
    return found


def _dtypes(parameters: Sequence[nn.Parameter]) -> str:
    return " and ".join(dict.fromkeys(str(parameter.dtype).removeprefix("torch.") for parameter in parameters))


def _train(
    name: str,
    model: nn.Module,
    compile_: Callable[[nn.Module], Any],
    autocast: bool,
    inputs: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    steps: int,
) -> Measured:
    device = next(model.parameters()).device
    compiled, optimizer = compile_(model.train()), torch.optim.AdamW(model.parameters(), lr=RATE)
    times, loss, saved = [], torch.tensor(float("nan")), 0
    with _seeded(device):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        for _ in range(WARM_UP + steps):
            start = time.perf_counter()
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                loss = _loss(compiled(*inputs, **kwargs))
            saved = saved or _compat.saved_bytes(loss, model)
            loss.backward()
            optimizer.step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
    return Measured(
        name=name,
        steps=WARM_UP + steps,
        seconds=statistics.median(times[WARM_UP:]),
        loss=loss.item(),
        saved_bytes=saved,
        path="",
        peak_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    )


@contextlib.contextmanager
def _seeded(device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield


def _loss(output: Any) -> torch.Tensor:
    loss = getattr(output, "loss", output.get("loss") if isinstance(output, dict) else None)
    if isinstance(loss, torch.Tensor):
        return loss
    first = output if isinstance(output, torch.Tensor) else next(iter(getattr(output, "values", lambda: output)()))
    return first if first.dim() == 0 else first.float().square().mean()
