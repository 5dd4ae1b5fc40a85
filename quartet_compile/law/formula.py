"""The scaling law of low-precision training: the loss of N parameters trained on D tokens, by formula.

`L(N, D) = (A / (N effN)^alpha + B / (D effD)^beta)^gamma + E` (arXiv 2505.14669, section 4.1): a forward pass in low
precision acts as fewer parameters, a backward pass in low precision as fewer tokens.
"""

from __future__ import annotations

import dataclasses
from types import ModuleType

from .. import optional
from ..errors import QuartetError

COEFFICIENTS = ("A", "alpha", "B", "beta", "E", "gamma")


class LawError(QuartetError):
    """Runs, a recipe or a budget that the scaling law can't be fitted to or asked about."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Law:
    """The six coefficients. Loss is in nats a token; A, alpha are of N; B, beta of D; E is the loss at infinite N and D."""

    A: float
    alpha: float
    B: float
    beta: float
    E: float
    gamma: float

    def predict(self, parameters: float, tokens: float, *, eff_n: float = 1.0, eff_d: float = 1.0) -> float:
        """The loss in nats a token.

        parameters: non-embedding parameters (activated ones a token, if they are not all).
        tokens: training tokens.
        eff_n, eff_d: the recipe's efficiencies, 1 in full precision.
        """
        for name, value in {"parameters": parameters, "tokens": tokens, "eff_n": eff_n, "eff_d": eff_d}.items():
            if not 0 < value < float("inf"):
                raise LawError(
                    f"predict got {name}={value!r}; expected a positive number: give {name} as a plain count."
                )
        of_model = self.A / (parameters * eff_n) ** self.alpha
        of_data = self.B / (tokens * eff_d) ** self.beta
        return float((of_model + of_data) ** self.gamma + self.E)


PUBLISHED = Law(A=152374.8, alpha=0.588576, B=525458.9, beta=0.544039, E=1.348141, gamma=0.273929)
"""The fit of arXiv 2505.14669 (1.52e5, .589, 5.25e5, .544, 1.35, .274), from the logged runs' notebook."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Efficiency:
    """What a recipe keeps of parameters (`eff_n`, by its forward pass) and of tokens (`eff_d`, by its backward pass).

    runs: how many runs they were fitted on. separable: whether runs with only one of the passes in low precision were
    among them. An efficiency of a pass in full precision is 1 by definition.
    """

    fprop: str
    backward: str
    eff_n: float
    eff_d: float
    runs: int
    separable: bool

    @property
    def recipe(self) -> str:
        """`fprop:backward`, as the paper writes it."""
        return f"{self.fprop}:{self.backward}"


def needed(module: str, what: str) -> ModuleType:
    """An optional module, imported when `what` first needs it."""
    return optional.needed(module, what, LawError, "law")
