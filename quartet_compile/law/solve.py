"""The first stage of the fit: the six coefficients of the scaling law, on runs in full precision.

Least squares of `log L - log Lhat` with a Huber loss (`f_scale = 1e-4`), as in arXiv 2505.14669, from its grid of
starts. That scale is far below the residuals (root mean square 1.4e-3 on the shipped runs), so the cost is nearly a sum
of absolute values: of the 486 starts only 46 reach the optimum directly. So the scale comes down in steps from 1e-2,
from the most promising starts; what is minimised last is the published cost.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from .formula import COEFFICIENTS, Law, LawError, needed
from .runs import Run

SCALES = (1e-2, 1e-3, 1e-4)
"""Huber's `f_scale`, from the first to the published one."""

LOG_STARTS, EXPONENT_STARTS, FLOOR_STARTS = (0.0, 5.0, 10.0), (0.0, 0.5, 1.0), (0.0, 0.5)
RANKED, REFINED = 64, 6
"""Of the 486 starts, those that get a few steps, and of these, those that are followed to the end."""

LARGEST = 5.0
"""Exponents are looked for from 0 to this, E from 0 to the lowest loss. Runs that lead to an edge don't determine it."""

BASELINE = "bf16"


def baseline_runs(runs: Iterable[Run], baseline: str) -> tuple[Run, ...]:
    """The runs with both passes in full precision, if they can determine six coefficients."""
    own = tuple(run for run in runs if run.fprop == run.backward == baseline)
    distinct = {(run.parameters, run.tokens) for run in own}
    sizes, budgets = ({pair[i] for pair in distinct} for i in (0, 1))
    if len(distinct) <= len(COEFFICIENTS) or len(sizes) < 2 or len(budgets) < 2:
        raise LawError(
            f"{len(distinct)} different runs of {baseline}:{baseline} with {len(sizes)} sizes and {len(budgets)} numbers of "
            f"tokens can't determine {len(COEFFICIENTS)} coefficients; expected at least {len(COEFFICIENTS) + 1} with 2 of "
            "each. Add runs in full precision, or name their precision as the baseline."
        )
    return own


def fit_law(runs: Iterable[Run], *, baseline: str = BASELINE) -> Law:
    """The six coefficients on the runs of the baseline."""
    problem = Problem(baseline_runs(runs, baseline))
    ranked = sorted(problem.starts(), key=lambda start: problem.cost(start, SCALES[0]))[:RANKED]
    tried = sorted((problem.solve(start, SCALES[:1], 15) for start in ranked), key=lambda result: result.cost)
    best = min((problem.solve(result.x, SCALES, 600) for result in tried[:REFINED]), key=lambda result: result.cost)
    return problem.to_law(best.x)


def refit_law(runs: Iterable[Run], near: Law, *, baseline: str = BASELINE) -> Law:
    """The same on other runs, only from the law that is known already: what a resample needs."""
    problem = Problem(baseline_runs(runs, baseline))
    return problem.to_law(problem.solve(problem.from_law(near), SCALES, 200).x)


class Problem:
    """The residuals of some runs as a function of (a, alpha, b, beta, E, gamma).

    `A / N^alpha = exp(a - alpha (log N - mean log N))`, the same with b: centred, the coefficients hardly depend on
    each other's value, and a step of the solver goes further (11 s for all starts, 175 s otherwise).
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.np = needed("numpy", "Fitting the scaling law")
        self.least_squares = needed("scipy.optimize", "Fitting the scaling law").least_squares
        self.huber = needed("scipy.special", "Fitting the scaling law").huber
        logs = self.np.log([[run.parameters, run.tokens, run.loss] for run in runs])
        self.middle = logs.mean(0)
        self.n, self.d = logs[:, 0] - self.middle[0], logs[:, 1] - self.middle[1]
        self.log_loss = logs[:, 2]
        lowest = float(self.np.exp(self.log_loss.min()))
        self.bounds = ([-50.0, 0.0, -50.0, 0.0, 0.0, 0.0], [50.0, LARGEST, 50.0, LARGEST, lowest, LARGEST])

    def starts(self) -> list[Any]:
        """The published grid: a, b in {0, 5, 10}, alpha, beta, gamma in {0, .5, 1}, E in {0, .5}."""
        n0, d0, _ = self.middle
        grid = itertools.product(
            LOG_STARTS, EXPONENT_STARTS, LOG_STARTS, EXPONENT_STARTS, FLOOR_STARTS, EXPONENT_STARTS
        )
        points = [[a - alpha * n0, alpha, b - beta * d0, beta, e, gamma] for a, alpha, b, beta, e, gamma in grid]
        return list(self.np.clip(points, *self.bounds))

    def from_law(self, law: Law) -> Any:
        """The point of a law."""
        np, (n0, d0, _) = self.np, self.middle
        a, b = np.log(law.A) - law.alpha * n0, np.log(law.B) - law.beta * d0
        return np.array([a, law.alpha, b, law.beta, law.E, law.gamma])

    def to_law(self, x: Any) -> Law:
        """The law at a point."""
        (a, alpha, b, beta, e, gamma), (n0, d0, _) = map(float, x), map(float, self.middle)
        A, B = (float(self.np.exp(log)) for log in (a + alpha * n0, b + beta * d0))
        return Law(A=A, alpha=alpha, B=B, beta=beta, E=e, gamma=gamma)

    def _parts(self, x: Any) -> tuple[Any, ...]:
        """log of the term of N, of that of D, of their sum; and the predicted loss without E."""
        a, alpha, b, beta, _, gamma = x
        of_model, of_data = a - alpha * self.n, b - beta * self.d
        both = self.np.logaddexp(of_model, of_data)
        return of_model, of_data, both, self.np.exp(self.np.clip(gamma * both, -300, 300))

    def residuals(self, x: Any) -> Any:
        """log Lhat - log L of each run."""
        return self.np.log(self._parts(x)[3] + x[4]) - self.log_loss

    def jacobian(self, x: Any) -> Any:
        """Derivatives of the residuals: [runs, 6]."""
        np = self.np
        of_model, of_data, both, power = self._parts(x)
        share = power / (power + x[4])
        model, data = share * x[5] * np.exp(of_model - both), share * x[5] * np.exp(of_data - both)
        return np.stack([model, -model * self.n, data, -data * self.d, 1 / (power + x[4]), share * both], 1)

    def cost(self, x: Any, scale: float) -> float:
        """Huber's loss, as `least_squares` has it."""
        return float(self.huber(scale, self.residuals(x)).sum())

    def solve(self, x: Any, scales: Sequence[float], evaluations: int) -> Any:
        """The optimum near `x`: with each scale from the optimum of the one before."""
        for scale in scales:
            result = self.least_squares(
                self.residuals, self.np.clip(x, *self.bounds), self.jacobian, self.bounds, loss="huber", f_scale=scale,
                x_scale="jac", max_nfev=evaluations, ftol=1e-11, xtol=1e-11, gtol=1e-11,
            )  # fmt: skip
            x = result.x
        return result
