"""Which precision is best for a budget: the regions of arXiv 2505.14669, section 4.2.

A budget is what FP8 forward and backward could do, or bf16: N parameters on D tokens. A faster forward pass buys a larger
model, for training and serving alike; what is left of the time buys tokens. With a forward speedup sf and a backward
speedup sb over it, a step is `st = 1 / ((1/3) / sf + (2/3) / sb)` times as fast, and a candidate's loss is
`L(N sf, D st / sf)`. FP8 counts as lossless, as bf16 is; FP4 has the recipe's efficiencies.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Sequence

from ..errors import suggest
from .formula import Efficiency, Law, LawError
from .table import read_table

AGAINST = ("FP8", "bf16")
"""What FP4 is compared with."""

LOWEST_RATIO, HIGHEST_RATIO = 1.0, 1e5
STEPS = 500
"""Tokens a parameter at which the best candidate is looked up, evenly in their logarithm; borders are then bisected."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speedup:
    """FP4 over FP8, or over bf16, `forward` and `backward` GEMMs with their quantization, at a number of parameters."""

    forward: float
    backward: float
    parameters: float = 1.0

    def __post_init__(self) -> None:
        for name in ("forward", "backward", "parameters"):
            if not 0 < getattr(self, name) < math.inf:
                raise LawError(
                    f"Speedup has {name}={getattr(self, name)!r}; expected a positive number: "
                    "the time without FP4 divided by the time in FP4."
                )


SPEEDUPS: dict[str, tuple[Speedup, ...]] = {
    "bit-operations": (Speedup(forward=2.0, backward=2.0),),
    "bit-operations/bf16": (Speedup(forward=4.0, backward=4.0),),
    "rtx5090": (
        Speedup(parameters=0.8e9, forward=1.94, backward=0.71),
        Speedup(parameters=6.5e9, forward=2.14, backward=1.00),
        Speedup(parameters=52e9, forward=2.14, backward=1.38),
    ),
}
"""`bit-operations`: time is proportional to the bits of the operands, over FP8; `bit-operations/bf16`: over bf16. `rtx5090`:
linear layers of one block, published with arXiv 2505.14669 (batch 64 x 512, Quartet's MXFP4 kernels against FP8); not
measured by this project."""


def candidates(against: str = "FP8") -> tuple[str, ...]:
    """What may be the best, `forward:backward`: `against` or FP4 in either. Raises `LawError` for another `against`."""
    if against not in AGAINST:
        raise LawError(f"FP4 is compared with {against!r}{suggest(against, AGAINST)}; expected {' or '.join(AGAINST)}.")
    return (f"{against}:{against}", f"FP4:{against}", f"{against}:FP4", "FP4:FP4")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Region:
    """Where one candidate is the best: from `low` up to `high` tokens a parameter."""

    candidate: str
    low: float
    high: float


def speedup_at(speedups: Sequence[Speedup], parameters: float) -> Speedup:
    """Between two model sizes linear in log parameters; beyond the first and last as there."""
    ordered = sorted(speedups, key=lambda each: each.parameters)
    if not ordered:
        raise LawError("There are no speedups; expected at least one. Give a Speedup, or a name of SPEEDUPS.")
    for left, right in itertools.pairwise(ordered):
        if left.parameters <= parameters < right.parameters:
            t = math.log(parameters / left.parameters) / math.log(right.parameters / left.parameters)
            return Speedup(
                forward=left.forward + t * (right.forward - left.forward),
                backward=left.backward + t * (right.backward - left.backward),
                parameters=parameters,
            )
    return ordered[0] if parameters < ordered[0].parameters else ordered[-1]


def losses(
    law: Law,
    fp4: Efficiency,
    parameters: float,
    tokens: float,
    speedups: Sequence[Speedup] = SPEEDUPS["bit-operations"],
    against: str = "FP8",
) -> dict[str, float]:
    """The loss of each of `candidates(against)` within the budget of `parameters` and `tokens` without FP4."""
    here = speedup_at(speedups, parameters)
    found = {}
    for candidate in candidates(against):
        fprop, backward = candidate.split(":")
        sf = here.forward if fprop == "FP4" else 1.0
        sb = here.backward if backward == "FP4" else 1.0
        st = 1 / (1 / 3 / sf + 2 / 3 / sb)
        eff_n, eff_d = fp4.eff_n if fprop == "FP4" else 1.0, fp4.eff_d if backward == "FP4" else 1.0
        found[candidate] = law.predict(parameters * sf, tokens * st / sf, eff_n=eff_n, eff_d=eff_d)
    return found


def best(
    law: Law,
    fp4: Efficiency,
    parameters: float,
    tokens: float,
    speedups: Sequence[Speedup] = SPEEDUPS["bit-operations"],
    against: str = "FP8",
) -> str:
    """The candidate with the lowest loss; of equal ones, the first of `candidates(against)`."""
    found = losses(law, fp4, parameters, tokens, speedups, against)
    return min(found, key=found.__getitem__)


def regions(
    law: Law,
    fp4: Efficiency,
    parameters: float,
    speedups: Sequence[Speedup] = SPEEDUPS["bit-operations"],
    *,
    against: str = "FP8",
    low: float = LOWEST_RATIO,
    high: float = HIGHEST_RATIO,
) -> list[Region]:
    """The best candidate by tokens a parameter, from `low` to `high`, at one number of parameters.

    A region narrower than a step (2.3 % by default) may be missed.
    """
    if not 0 < low < high:
        raise LawError(f"regions got low={low!r}, high={high!r} tokens a parameter; expected 0 < low < high.")

    def winner(ratio: float) -> str:
        return best(law, fp4, parameters, parameters * ratio, speedups, against)

    found: list[Region] = []
    start, previous, here = low, low, winner(low)
    for i in range(1, STEPS + 1):
        ratio = low * (high / low) ** (i / STEPS)
        if winner(ratio) != here:
            border, above = previous, ratio
            while above / border > 1 + 1e-6:
                middle = math.sqrt(border * above)
                border, above = (middle, above) if winner(middle) == here else (border, middle)
            found.append(Region(candidate=here, low=start, high=above))
            start, here = above, winner(ratio)
        previous = ratio
    return [*found, Region(candidate=here, low=start, high=high)]


def read_speedups(path: str | os.PathLike[str]) -> tuple[Speedup, ...]:
    """Measured speedups from a CSV file: `parameters,forward,backward`, one model size a row."""
    return tuple(Speedup(**row) for row in read_table(path, numbers=("parameters", "forward", "backward")))
