"""`explain` and `graph_diff`: what the backend would do to a model, without compiling it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .api import parameter_names
from .capture import Capture, run_on_fakes
from .config import configure
from .errors import StrictError
from .names import matches
from .report import Report
from .sandbox import modules_of, uncompiled


def explain(model: Callable, *inputs: Any, **options: Any) -> Report:
    """Which matmuls of `model(*inputs)` run in FP4, and why the others don't.

    Captures the joint graphs on fake tensors: no arithmetic, no Inductor, no memory for activations; weights, random
    state and caches stay as they are. Gradients are taken into account as in a training step, unless called under
    `torch.no_grad()`. options: those of `torch.compile(..., backend="quartet", options=...)`.

    Raises `OptionError`, `RecipeError`, with `strict=True` `StrictError`, and `CaptureError` for code that can't be
    captured.
    """
    config = configure(options)
    policy = config.policy
    original = uncompiled(model)
    names = {key: name for module in modules_of(original) for key, name in parameter_names(module).items()}
    capture = Capture(config, names)
    breaks, eager_sites = run_on_fakes(original, inputs, capture)
    if breaks and policy.strict:
        raise StrictError(
            f"strict=True, and parts of the model run outside of compiled graphs: {'; '.join(breaks)}. "
            "Remove the graph breaks, or set strict=False."
        )
    recipes = {(policy.recipe if graph.training else policy.eval_recipe).name: None for graph in capture.graphs}
    return Report(
        recipe=", ".join(recipes) or policy.recipe.name,
        graphs=tuple(capture.graphs),
        unmatched=tuple(f"{option}={glob!r}" for option, glob in policy.patterns if not matches(glob, capture.seen)),
        eager=breaks,
        eager_sites=eager_sites,
    )


def graph_diff(model: Callable, *inputs: Any, **options: Any) -> str:
    """`explain(...).graph_diff()`: the joint graphs before and after as a unified diff, for snapshot tests."""
    return explain(model, *inputs, **options).graph_diff()
