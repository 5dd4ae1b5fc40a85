"""The second stage of the fit: a recipe's efficiencies, with the six coefficients frozen.

Forward and backward precision act apart. Runs with only the forward pass in low precision give effN, runs with only the
backward pass give effD, and runs with both give both. The three kinds can be fitted as one (`separable=True`: one pair
that must explain all of them), which determines the pair best: on full runs alone a smaller effN and a larger effD
trade off against each other, since both enter one loss.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .formula import Efficiency, Law, LawError, needed
from .runs import Run, precisions
from .solve import BASELINE, SCALES

if TYPE_CHECKING:
    from numpy import ndarray

STARTS = tuple(itertools.product((0.0, -0.5, -2.0), repeat=2))
"""Logarithms of effN and effD: each 1, .61 and .14."""

LOWEST, HIGHEST = 1e-6, 1e3
"""Efficiencies are looked for between these; one at an edge is not determined by its runs."""


def efficiency(
    runs: Iterable[Run], law: Law, recipe: str, *, baseline: str = BASELINE, separable: bool = True
) -> Efficiency:
    """effN and effD of `recipe` (`fprop:backward`, or a name: see `precisions`).

    separable: also use the runs that have only one of the recipe's two passes in low precision.
    """
    runs = tuple(runs)
    fprop, backward = precisions(recipe, runs, baseline=baseline)
    chosen = runs_of(runs, fprop, backward, baseline=baseline, separable=separable)
    return _fit(chosen, law, fprop, backward, baseline, STARTS)


def efficiencies(runs: Iterable[Run], law: Law, recipe: str, *, baseline: str = BASELINE) -> list[Efficiency]:
    """By the recipe's own runs, where there are enough, and by these together with forward-only and backward-only runs."""
    runs = tuple(runs)
    fprop, backward = precisions(recipe, runs, baseline=baseline)
    own = runs_of(runs, fprop, backward, baseline=baseline, separable=False)
    every = runs_of(runs, fprop, backward, baseline=baseline, separable=True)
    chosen = [own, every] if len(every) > len(own) else [own]
    return [
        _fit(some, law, fprop, backward, baseline, STARTS)
        for some in chosen
        if some is chosen[-1] or not _lacking(some, fprop, backward, baseline)
    ]


def refit(found: Efficiency, runs: Sequence[Run], law: Law, *, baseline: str) -> Efficiency:
    """The same pair on other runs, from where it was: what a resample needs."""
    near = [math.log(found.eff_n), math.log(found.eff_d)]
    return _fit(runs, law, found.fprop, found.backward, baseline, [near])


def runs_of(runs: Iterable[Run], fprop: str, backward: str, *, baseline: str, separable: bool) -> tuple[Run, ...]:
    """The runs in exactly this pair of precisions; with `separable`, also with one of them and the baseline's."""
    pairs = {(fprop, backward)} | ({(fprop, baseline), (baseline, backward)} if separable else set())
    return tuple(run for run in runs if (run.fprop, run.backward) in pairs - {(baseline, baseline)})


def _lacking(runs: Sequence[Run], fprop: str, backward: str, baseline: str) -> str:
    """What keeps the runs from determining the pair's efficiencies, or an empty string."""
    unknown = {"effN": fprop != baseline, "effD": backward != baseline}
    seen = {"effN": any(r.fprop != baseline for r in runs), "effD": any(r.backward != baseline for r in runs)}
    distinct = {(run.parameters, run.tokens, run.recipe) for run in runs}
    if not any(unknown.values()):
        return f"it is the baseline {baseline!r} itself, whose efficiencies are 1"
    missing = [name for name, is_unknown in unknown.items() if is_unknown and not seen[name]]
    if missing:
        return f"no run has the pass in low precision that gives {' and '.join(missing)}"
    if len(distinct) < sum(unknown.values()):
        return f"{len(distinct)} run can't give {' and '.join(unknown)}"
    return ""


def _fit(
    runs: Sequence[Run], law: Law, fprop: str, backward: str, baseline: str, starts: Iterable[Sequence[float]]
) -> Efficiency:
    lacking = _lacking(runs, fprop, backward, baseline)
    if lacking:
        raise LawError(
            f"Recipe '{fprop}:{backward}' has {len(runs)} runs: {lacking}; expected at least as many different runs as "
            "unknown efficiencies. Add runs, or choose another recipe or baseline."
        )
    np: Any = needed("numpy", "Fitting efficiencies")
    least_squares = needed("scipy.optimize", "Fitting efficiencies").least_squares
    log_n, log_d, log_loss = np.log([[run.parameters, run.tokens, run.loss] for run in runs]).T
    low = np.array([[run.fprop != baseline, run.backward != baseline] for run in runs], float)
    slopes = np.array([law.alpha, law.beta]) * low
    at_one = np.log([law.A, law.B]) - [law.alpha, law.beta] * np.stack([log_n, log_d], 1)
    unknown = np.array([fprop != baseline, backward != baseline])
    edges = np.log([LOWEST, HIGHEST])

    def parts(x: ndarray) -> tuple[ndarray, ndarray, ndarray]:
        terms = at_one - slopes * np.where(unknown, x, 0.0)
        both = np.logaddexp(*terms.T)
        return terms, both, np.exp(law.gamma * both)

    def residuals(x: ndarray) -> ndarray:
        left: ndarray = np.log(parts(x)[2] + law.E) - log_loss
        return left

    def jacobian(x: ndarray) -> ndarray:
        terms, both, power = parts(x)
        slope: ndarray = -(law.gamma * power / (power + law.E))[:, None] * np.exp(terms - both[:, None]) * slopes
        return slope

    best: Any = None
    for start in starts:
        x = np.clip(start, *edges)
        for scale in SCALES:
            result = least_squares(residuals, x, jacobian, bounds=tuple(edges), loss="huber", f_scale=scale)
            x = result.x
        best = result if best is None or result.cost < best.cost else best
    eff_n, eff_d = map(float, np.where(unknown, np.exp(best.x), 1.0))
    separable = any((run.fprop, run.backward) != (fprop, backward) for run in runs)
    return Efficiency(fprop=fprop, backward=backward, eff_n=eff_n, eff_d=eff_d, runs=len(runs), separable=separable)
