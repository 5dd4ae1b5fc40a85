"""`explain` and `graph_diff`: what the backend would do to a model, without compiling it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from .api import parameter_names
from .capture import Capture, run_on_fakes, uncompiled
from .config import configure
from .errors import StrictError
from .names import matches
from .report import Report


def explain(model: Callable, *inputs: Any, **options: Any) -> Report:
    """Which matmuls of `model(*inputs)` run in FP4, and why the others don't.

    Captures the joint graphs on fake tensors: no arithmetic, no Inductor, no memory for activations; weights, random
    state and caches stay as they are. Gradients are taken into account as in a training step, unless called under
    `torch.no_grad()`. options: those of `torch.compile(..., backend="quartet", options=...)`.

    Raises `OptionError`, `RecipeError`, with `strict=True` `StrictError`, and `CaptureError` for code that can't be
    captured.
    """
    config = configure(options)
    original = uncompiled(model)
    capture = Capture(config, parameter_names(original) if isinstance(original, nn.Module) else {})
    eager = run_on_fakes(original, inputs, capture)
    if eager and config.policy.strict:
        raise StrictError(f"strict=True, and parts of the model run outside compiled graphs: {'; '.join(eager)}.")
    unmatched = [f"{o}={p!r}" for o, p in config.policy.patterns if not matches(p, capture.seen)]
    return Report(
        recipe=config.policy.recipe.name, graphs=tuple(capture.graphs), unmatched=tuple(unmatched), eager=eager
    )


def graph_diff(model: Callable, *inputs: Any, **options: Any) -> str:
    """`explain(...).graph_diff()`: the joint graphs before and after as a unified diff, for snapshot tests."""
    return explain(model, *inputs, **options).graph_diff()
