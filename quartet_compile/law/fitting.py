"""Both stages of the fit, and bootstrap intervals of everything they give."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from .efficiencies import efficiencies, efficiency, refit, runs_of
from .formula import COEFFICIENTS, Efficiency, Law, LawError, needed
from .runs import Run
from .solve import BASELINE, Problem, baseline_runs, fit_law, refit_law

ATTEMPTS = 50
"""Draws for one resample before the runs count as too few; with 9 runs one in 5 has the 7 different ones it needs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """A law with the efficiencies of recipes, and what they were fitted on.

    rms: root mean square of `log L - log Lhat` over the baseline's runs: about the relative error of the loss.
    intervals: (low, high) by coefficient, and by `fprop:backward eff_n` or `... eff_d` (see `interval_key`); empty
        without resamples.
    """

    law: Law
    baseline: str
    runs: int
    rms: float
    efficiencies: tuple[Efficiency, ...]
    intervals: Mapping[str, tuple[float, float]]
    resamples: int
    level: float


def fit(
    runs: Sequence[Run],
    recipes: Iterable[str] | None = None,
    *,
    baseline: str = BASELINE,
    resamples: int = 0,
    seed: int = 0,
    level: float = 0.95,
) -> Fit:
    """The law on the baseline's runs, and the efficiencies of `recipes` (default: of every one in the table).

    resamples: how many times the runs are drawn again with replacement and fitted for the intervals. Both stages are,
        so an efficiency's interval includes what is unknown of the law. The same seed gives the same intervals.
    level: the share of the resamples within an interval.
    """
    if not 0 < level < 1 or resamples < 0:
        raise LawError(
            f"fit got level={level!r}, resamples={resamples!r}; expected a level between 0 and 1, as 0.95, and a count."
        )
    runs = tuple(runs)
    law, own = fit_law(runs, baseline=baseline), baseline_runs(runs, baseline)
    wanted = recipes_of(runs, baseline) if recipes is None else tuple(recipes)
    found = tuple(each for name in wanted for each in efficiencies(runs, law, name, baseline=baseline))
    problem = Problem(own)
    rms = float((problem.residuals(problem.from_law(law)) ** 2).mean() ** 0.5)
    intervals = _bootstrap(runs, law, found, baseline, resamples, seed, level) if resamples else {}
    return Fit(
        law=law, baseline=baseline, runs=len(own), rms=rms, efficiencies=found, intervals=intervals,
        resamples=resamples, level=level,
    )  # fmt: skip


def recipes_of(runs: Iterable[Run], baseline: str) -> tuple[str, ...]:
    """Every `fprop:backward` among the runs but the baseline's, in order of appearance."""
    return tuple(dict.fromkeys(run.recipe for run in runs if run.recipe != f"{baseline}:{baseline}"))


def interval_key(found: Efficiency, which: str) -> str:
    """Where `Fit.intervals` has the interval of `eff_n` or `eff_d`: `mxfp4-quest:mxfp4-sr (60 runs) eff_n`."""
    return f"{found.recipe} ({found.runs} runs) {which}"


def _bootstrap(
    runs: Sequence[Run], law: Law, found: Sequence[Efficiency], baseline: str, resamples: int, seed: int, level: float
) -> dict[str, tuple[float, float]]:
    drawn: dict[str, list[float]] = {}
    for again, others in _again(runs, law, found, baseline, resamples, seed):
        for name in COEFFICIENTS:
            drawn.setdefault(name, []).append(getattr(again, name))
        for each, new in zip(found, others, strict=True):
            for which in ("eff_n", "eff_d"):
                drawn.setdefault(interval_key(each, which), []).append(getattr(new, which))
    return {name: _percentiles(values, level) for name, values in drawn.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gap:
    """What a recipe costs at a budget, in nats a token, with its interval. extrapolated: whether its parameters
    or its tokens lie outside of those that the law was fitted on."""

    efficiency: Efficiency
    loss: float
    gap: float
    interval: tuple[float, float]
    level: float
    extrapolated: bool


def gap(
    runs: Sequence[Run],
    recipe: str,
    parameters: float,
    tokens: float,
    *,
    law: Law | None = None,
    baseline: str = BASELINE,
    resamples: int = 100,
    seed: int = 0,
    level: float = 0.95,
) -> Gap:
    """The predicted loss in full precision, and how much more it is with a recipe, over runs drawn again for the interval.

    parameters, tokens: as in `Law.predict`. law: fitted to these runs before; default: fit it. The interval is of both
    stages: in each resample the law and the recipe's efficiencies are fitted anew. Raises `LawError` for a recipe that
    these runs say nothing about.
    """
    runs = tuple(runs)
    law = fit_law(runs, baseline=baseline) if law is None else law
    found = efficiency(runs, law, recipe, baseline=baseline)

    def of(each: Law, pair: Efficiency) -> float:
        low = each.predict(parameters, tokens, eff_n=pair.eff_n, eff_d=pair.eff_d)
        return low - each.predict(parameters, tokens)

    again = [of(each, pair) for each, (pair,) in _again(runs, law, (found,), baseline, resamples, seed)]
    return Gap(
        efficiency=found,
        loss=law.predict(parameters, tokens),
        gap=of(law, found),
        interval=_percentiles(again, level),
        level=level,
        extrapolated=not (
            min(run.parameters for run in runs) <= parameters <= max(run.parameters for run in runs)
            and min(run.tokens for run in runs) <= tokens <= max(run.tokens for run in runs)
        ),
    )


def _again(
    runs: Sequence[Run], law: Law, found: Sequence[Efficiency], baseline: str, resamples: int, seed: int
) -> Iterator[tuple[Law, list[Efficiency]]]:
    """The law and the efficiencies of resamples of whole runs, each recipe's drawn apart, so that none loses a kind of run
    that it needs."""
    np = needed("numpy", "Bootstrapping")
    generator = np.random.default_rng(seed)
    own = baseline_runs(runs, baseline)
    for _ in range(resamples):
        again = refit_law(_resample(own, generator, baseline), law, baseline=baseline)
        others = []
        for each in found:
            chosen = runs_of(runs, each.fprop, each.backward, baseline=baseline, separable=each.separable)
            parts = [[run for run in chosen if run.recipe == name] for name in recipes_of(chosen, baseline)]
            drawn = [run for part in parts for run in _draw(part, generator)]
            others.append(refit(each, drawn, again, baseline=baseline))
        yield again, others


def _percentiles(values: Sequence[float], level: float) -> tuple[float, float]:
    np = needed("numpy", "Bootstrapping")
    low, high = (1 - level) / 2, (1 + level) / 2
    return float(np.quantile(values, low)), float(np.quantile(values, high))


def _draw(runs: Sequence[Run], generator: Any) -> list[Run]:
    """As many of the runs, with replacement; two different ones at least, where there are two, for two unknowns."""
    while True:
        drawn = [runs[i] for i in generator.integers(len(runs), size=len(runs))]
        if len(runs) == 1 or len(set(drawn)) > 1:
            return drawn


def _resample(runs: Sequence[Run], generator: Any, baseline: str) -> list[Run]:
    """Draws until the runs can determine six coefficients."""
    for _ in range(ATTEMPTS):
        drawn = _draw(runs, generator)
        try:
            baseline_runs(drawn, baseline)
        except LawError:
            continue
        return drawn
    raise LawError(
        f"{len(runs)} runs of {baseline}:{baseline} are too few to be drawn again for intervals: of {ATTEMPTS} draws none "
        f"could determine {len(COEFFICIENTS)} coefficients; expected 9 runs or more. Add runs, or ask for no resamples."
    )
