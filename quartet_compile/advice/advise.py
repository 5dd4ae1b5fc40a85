"""`advise`: should this model be trained in FP4 on that machine, and how?"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .. import law
from ..callables import modules_of, uncompiled
from ..compiled import compiled_by_us
from ..config.presets import recipe as find_recipe
from ..config.recipe import Recipe
from ..cross.artifact import Artifact, Kernel, LibraryCall
from ..cross.cross_compile import CrossCompileError, cross_compile
from ..errors import OptionError
from ..machines.targets import Target, find_target
from ..passes.plan import HEADS
from ..progress import Progress, teller
from ..report.report import Site
from .advice import Advice, Choice
from .measure import measure as measure_steps
from .memory import memory_of
from .times import rows_of

RECIPES = ("quartet", "quartet2", "mxfp8")
"""Those that are compared unless told otherwise: one of each number format."""

RESAMPLES = 100


def advise(
    model: Callable[..., Any],
    *inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    target: str | Target | None = None,
    tokens: float | None = None,
    gpus: int = 1,
    recipes: Sequence[str] | None = None,
    measure: bool = False,
    steps: int = 10,
    progress: Progress = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    scope: str = "all",
) -> Advice:
    """Whether to train `model(*inputs, **kwargs)` in FP4: each matmul's predicted time in each recipe and in bf16, what
    pays, the options that follow, memory, the loss gap that the scaling law predicts, and a verdict, which may be no.

    model, inputs: as for `cross_compile`, on the CPU or without values (meta), with a batch as in training; a bf16 model,
    since bf16 is what it is compared with. target: as there; by default the GPU that is here, else "sm_100". tokens: of the
    whole training; without it there is no loss gap. gpus: how many share the tokens, in data parallel. recipes: those to
    compare; of a model that `backend="quartet"` compiles, its own is the only one. include, exclude, scope: the options.
    measure: also train copies of the model for a few steps here, `steps` after two of warm-up. progress: as of
    `cross_compile`; each recipe is compiled for the target, which takes a minute or more.

    Raises what `cross_compile` raises, and `OptionError` for numbers that can't be.
    """
    for name, value in (("tokens", tokens), ("gpus", gpus), ("steps", steps)):
        if value is not None and not (isinstance(value, (int, float)) and 0 < value < float("inf")):
            raise OptionError(f"advise got {name}={value!r}; expected a positive number, as {name}=8.")
    chosen, tell = find_target(_here() if target is None else target), teller(progress)
    options = {"include": include, "exclude": exclude, "scope": scope}
    options = {name: value for name, value in options.items() if value not in ((), [], "all")}
    compared, given = _compared(model, recipes)
    modules = modules_of(uncompiled(model))
    parameters = {id(parameter): parameter.numel() for module in modules for parameter in module.parameters()}
    law_parameters = sum(parameters.values()) - _outside(modules)
    choices: list[Choice] = []
    sites: list[Site] = []
    for name, recipe in compared:
        tell(f"recipe {name}")
        how: dict[str, Any] = {**options, **({} if given else {"recipe": name})}
        try:
            artifact = cross_compile(model, *inputs, kwargs=kwargs, target=chosen, progress=progress, **how)
            failure = ""
        except CrossCompileError as error:
            artifact, failure = error.artifact, " ".join(str(error).splitlines()[:2])
            if not _runs(artifact):
                choices.append(Choice(recipe=name, failure=failure))
                continue
        sites = sites or artifact.report.sites
        choice = _choice(name, recipe, artifact, modules, law_parameters, tokens)
        choices.append(dataclasses.replace(choice, failure=failure))
    advice = Advice(
        model=_name(model), target=chosen, gpus=int(gpus), tokens=tokens, tokens_a_step=_rows_of(sites),
        parameters=sum(parameters.values()), law_parameters=law_parameters, choices=tuple(choices),
    )  # fmt: skip
    if not measure:
        return advice
    original, best = uncompiled(model), advice.best
    if not isinstance(original, nn.Module) or best is None or given:
        why = "it needs a Module that isn't compiled yet, with a matmul that can be quantized."
        return dataclasses.replace(advice, not_measured=why)
    taken = measure_steps(original, inputs, kwargs or {}, best.recipe, options, int(steps), tell)
    return dataclasses.replace(advice, measured=tuple(taken))


def _runs(artifact: Artifact) -> bool:
    """Whether no kernel has another fault than registers that spill, which slows it down."""
    return all(len(kernel.failures) <= bool(kernel.stack_bytes) for kernel in artifact.kernels)


def _here() -> str:
    """The target that this machine's GPU is, or else sm_100."""
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        return f"sm_{major}{minor}"
    return "sm_100"


def _compared(model: Any, recipes: Sequence[str] | None) -> tuple[list[tuple[str, Recipe]], bool]:
    """The recipes to compare, and whether they are the model's own."""
    compiled = compiled_by_us(model)
    if compiled is not None:
        rules = compiled.config.policy.recipe
        own = rules.name
        if recipes is not None and list(recipes) != [own]:
            raise OptionError(
                f"The model is compiled with the recipe {own!r}, and recipes={list(recipes)!r} are asked for. Leave them "
                "out, or give the original model, from before it was compiled."
            )
        return [(own, next((recipe for _, recipe in rules if recipe.rewrites), find_recipe("bf16")))], True
    if recipes is not None and (isinstance(recipes, str) or not recipes):
        raise OptionError(f"recipes={recipes!r}: expected a list of names, as ['quartet', 'mxfp8'].")
    return [(name, find_recipe(name)) for name in recipes or RECIPES], False


def _choice(
    name: str,
    recipe: Recipe,
    artifact: Artifact,
    modules: Sequence[nn.Module],
    parameters: int,
    tokens: float | None,
) -> Choice:
    rows, sites = rows_of(artifact), artifact.report.sites
    full, realistic, unknown = _step(artifact)
    whole = artifact.quantized
    bf16, bf16_realistic = full, realistic
    if whole is not None:
        bf16 += whole.bf16_seconds - whole.seconds.full
        bf16_realistic += whole.bf16_seconds - whole.seconds.realistic
    found, why, same_time = None, "", None
    if tokens is not None and rows:
        found, why = _gap(name, parameters, tokens)
        if found is not None:
            same_time = law.PUBLISHED.predict(parameters, tokens * realistic / bf16_realistic)
    return Choice(
        recipe=name, rows=tuple(rows), step_seconds=full, step_bf16_seconds=bf16, realistic_seconds=realistic,
        realistic_bf16_seconds=bf16_realistic, unknown=unknown, memory=memory_of(modules, sites, recipe),
        kept=tuple((site.name, site.reason) for site in sites if not site.rewritten and "dgrad" in site.gemms),
        gap=found, no_gap=why, same_time=same_time,
    )  # fmt: skip


def _step(artifact: Artifact) -> tuple[float, float, int]:
    """Predicted seconds of all kernels and calls, the same at the realistic rate, and how many calls have none."""
    full = realistic = 0.0
    unknown = 0
    items: list[Kernel | LibraryCall] = [*artifact.kernels, *artifact.library_calls]
    for item in items:
        if item.predicted_seconds is None:
            unknown += sum(item.launches.values())
            continue
        full += item.predicted_seconds
        own = item.realistic_seconds if isinstance(item, Kernel) else None
        realistic += own or item.predicted_seconds
    return full, realistic, unknown


def _gap(recipe: str, parameters: int, tokens: float) -> tuple[law.Gap | None, str]:
    """What the published runs say of a recipe, or why they say nothing."""
    try:
        found = law.gap(law.read_runs(), recipe, parameters, tokens, law=law.PUBLISHED, resamples=RESAMPLES)
    except law.LawError as error:
        return None, str(error)
    return found, ""


def _outside(modules: Sequence[nn.Module]) -> int:
    """The parameters of embeddings, and of heads by their name or as tied ones."""
    found: dict[int, int] = {}
    for root in modules:
        for name, module in root.named_modules():
            if isinstance(module, nn.Embedding) or name.rpartition(".")[2] in HEADS:
                found |= {id(parameter): parameter.numel() for parameter in module.parameters()}
    return sum(found.values())


def _rows_of(sites: Sequence[Site]) -> int | None:
    """The number of rows that most matmuls have: the tokens of a step."""
    counts = Counter(site.shape[0] for site in sites if site.rewritten and isinstance(site.shape[0], int))
    return int(counts.most_common(1)[0][0]) if counts else None


def _name(model: Any) -> str:
    original = uncompiled(model)
    return type(original).__name__ if isinstance(original, nn.Module) else getattr(original, "__name__", "the function")
