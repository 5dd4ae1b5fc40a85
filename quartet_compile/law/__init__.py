"""The scaling law of low-precision training: fit it to runs, predict losses, find the best precision for a budget.

    from quartet_compile import law

    fit = law.fit(law.read_runs("runs.csv"))        # without a file: the published runs
    fit.law.predict(8e9, 15e12)                     # loss in nats a token
    quartet = law.efficiency(law.read_runs(), law.PUBLISHED, "quartet")
    law.regions(law.PUBLISHED, quartet, 1e9)        # which precision is best, by tokens a parameter

`L(N, D) = (A / (N effN)^alpha + B / (D effD)^beta)^gamma + E` (arXiv 2505.14669); docs/law.md has what comes out.
Fits need scipy, pictures matplotlib; both are imported when they are first used.
"""

from .budgets import AGAINST, SPEEDUPS, Region, Speedup, best, candidates, losses, read_speedups, regions
from .efficiencies import efficiency
from .fitting import Fit, Gap, fit, gap, interval_key
from .formula import COEFFICIENTS, PUBLISHED, Efficiency, Law, LawError
from .plot import plot_fit, plot_regions
from .runs import SHIPPED, Run, read_runs
from .solve import fit_law

__all__ = [
    "AGAINST",
    "COEFFICIENTS",
    "PUBLISHED",
    "SHIPPED",
    "SPEEDUPS",
    "Efficiency",
    "Fit",
    "Gap",
    "Law",
    "LawError",
    "Region",
    "Run",
    "Speedup",
    "best",
    "candidates",
    "efficiency",
    "fit",
    "fit_law",
    "gap",
    "interval_key",
    "losses",
    "plot_fit",
    "plot_regions",
    "read_runs",
    "read_speedups",
    "regions",
]
