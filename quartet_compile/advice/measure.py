"""A few training steps on this machine: in FP4, and with plain Inductor in float32 and in bf16."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..errors import OptionError
from ..frontend.api import quartet

WARM_UP = 2
RATE = 1e-3
"""Of AdamW."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """seconds: the median of a step, forward, backward and AdamW, once compiled. loss: after the steps, all on one batch
    from one start. peak_bytes: of the GPU's memory; None on a CPU."""

    name: str
    steps: int
    seconds: float
    loss: float
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
    ways: dict[str, tuple[Callable[[nn.Module], Any], bool]] = {
        "float32, plain Inductor": (torch.compile, False),
        "bf16 autocast, plain Inductor": (torch.compile, True),
        recipe: (lambda copied: quartet(copied, recipe=recipe, **options), parameters[0].is_cuda),
    }
    found = []
    for name, (compile_, autocast) in ways.items():
        tell(f"measuring {steps} steps: {name}")
        found.append(_train(name, copy.deepcopy(model), compile_, autocast, inputs, kwargs, steps))
    return found


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
    times, loss = [], torch.tensor(float("nan"))
    with _seeded(device):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        for _ in range(WARM_UP + steps):
            start = time.perf_counter()
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                loss = _loss(compiled(*inputs, **kwargs))
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
