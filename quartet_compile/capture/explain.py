"""`explain` and `graph_diff`: what the backend would do to a model, without compiling it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .. import _compat
from ..callables import modules_of
from ..config.listed import lists_options
from ..config.names import clean, matches
from ..config.options import OUTSIDE, Config
from ..errors import CompilerError, StrictError
from ..gathers.fsdp import gathered
from ..report.report import FAKES, REAL, Report, Site
from .call import Call, call_of
from .capture import Capture, Ran, capture_error, reason_of, try_on_fakes
from .real_call import try_for_real, why_impossible

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..config.listed import Options


@lists_options
def explain(
    model: Callable[..., Any], *inputs: Any, kwargs: Mapping[str, Any] | None = None, **options: Unpack[Options]
) -> Report:
    """Which matmuls of `model(*inputs, **kwargs)` run in FP4, and why the others don't.

    Captures the joint graphs on fake tensors: no arithmetic, no Inductor, no memory for activations; weights, random
    state and caches stay as they are. Where that fails, since the code reads a tensor's values, the call is run for real,
    once, without Inductor, and everything is put back: weights, buffers, gradients, inputs, attributes of modules, random
    state. The report says so, and where not even that sees all. Gradients are taken into account as in a training step,
    unless called under `torch.no_grad()`.

    kwargs: the keyword arguments of the model, as a batch of Hugging Face's. options: those of
    `torch.compile(..., backend="quartet", options=...)`.

    Raises `OptionError`, `RecipeError`, with `strict=True` `StrictError`, and `CaptureError` for code that fails.
    """
    call, config = call_of(model, inputs, kwargs, options)
    backend, ran, captured, gap = _captured(call, config)
    outside = [*([gap] if gap else []), *ran.breaks]
    if outside and config.policy.strict:
        raise StrictError(
            f"strict=True, and parts of the model run outside of compiled graphs: {'; '.join(outside)}. "
            "Remove the graph breaks, or set strict=False."
        )
    ran = dataclasses.replace(ran, eager_sites=_outside(ran, call, config))
    by_fsdp = tuple(item for module in modules_of(call.model) for item in gathered(module, config.policy))
    return report_of(backend, ran, captured=captured, gap=gap, by_fsdp=by_fsdp)


@lists_options
def graph_diff(
    model: Callable[..., Any], *inputs: Any, kwargs: Mapping[str, Any] | None = None, **options: Unpack[Options]
) -> str:
    """`explain(...).graph_diff()`: the joint graphs before and after as a unified diff, for snapshot tests."""
    return explain(model, *inputs, kwargs=kwargs, **options).graph_diff()


def _captured(call: Call, config: Config) -> tuple[Capture, Ran, str, str]:
    """The backend with what it saw, what ran, by which of the ways, and what it could not see."""
    on_fakes = Capture(config, call.parameter_names(), names_now=call.parameter_names)
    faked = try_on_fakes(call, on_fakes)
    if faked.error is None:
        return on_fakes, faked, FAKES, ""
    impossible = why_impossible(call)
    reads = isinstance(faked.error, _compat.ValueRead)
    if impossible and not reads:
        raise capture_error(call, faked.error, on_fakes.graphs) from faked.error
    if impossible:
        gap = f"what follows{reason_of(faked.error)}; a real call is impossible, since {impossible}"
        return on_fakes, faked, FAKES, gap
    for_real = Capture(config, call.parameter_names(), names_now=call.parameter_names)
    try:
        real = try_for_real(call, for_real)
    except CompilerError as error:  # the kernels that a real call runs
        gap = f"what follows{reason_of(faked.error)}; a real call is impossible: {error}"
        return on_fakes, faked, FAKES, gap
    if real.error is None:
        return for_real, real, REAL, ""
    if not reads:
        raise capture_error(call, faked.error, on_fakes.graphs) from faked.error
    return for_real, real, REAL, f"what follows{reason_of(real.error)}"


def _outside(ran: Ran, call: Call, config: Config) -> tuple[Site, ...]:
    """The eager matmuls; of those in modules that nothing compiles, that is the reason."""
    modules = {clean(name) for root in modules_of(call.model) for name, _ in root.named_modules()}
    return tuple(
        dataclasses.replace(site, reason=OUTSIDE)
        if site.name in modules and config.policy.leaves_out((site.name,))
        else site
        for site in ran.eager_sites
    )


def report_of(backend: Any, ran: Ran, **how: Any) -> Report:
    """The report of what a backend saw. how: the report's `captured`, `gap` and `by_fsdp`."""
    policy = backend.config.policy
    recipes = {(policy.recipe if graph.training else policy.eval_recipe).name: None for graph in backend.graphs}
    return Report(
        recipe=", ".join(recipes) or policy.recipe.name,
        graphs=tuple(backend.graphs),
        unmatched=tuple(f"{option}={glob!r}" for option, glob in policy.patterns if not matches(glob, backend.seen)),
        eager=ran.breaks,
        eager_sites=ran.eager_sites,
        **how,
    )
