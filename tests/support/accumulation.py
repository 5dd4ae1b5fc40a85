"""How far apart two float32 sums of the same terms may be: the only tolerance that a product is tested with.

A float32 sum of `K` products, in any order, with or without FMA, is within `gamma_K * sum |a_k b_k|` of the real number,
`gamma_K = K u / (1 - K u)` with `u = 2^-24` (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). By
Cauchy and Schwarz that is at most `gamma_K |a| |b|`; squared and summed over the rows of `A: [M, K]` and `B: [N, K]`,

    || fl(A B^T) - A B^T ||_F <= gamma_K ||A||_F ||B||_F

which a sum that cancels doesn't escape, as it does from any multiple of `||A B^T||`. The right side stays as it is when
both operands are rotated; a rotation of size R adds log2(R) roundings and one for its factor to each operand, which count
as so many more terms. Two results are within twice the bound of each other.
"""

from __future__ import annotations

import torch

UNIT = 2.0**-24
ROTATIONS = 3 * (7 + 1)
"""Roundings of at most three rotations, of 128 or less: of both operands, and back."""


def gamma(terms: int) -> float:
    """Higham's gamma for so many roundings in float32."""
    return terms * UNIT / (1 - terms * UNIT)


def bound(a: torch.Tensor, b: torch.Tensor, terms: int) -> float:
    """How far two float32 products of `a` and `b` may be apart in the Frobenius norm, with so many terms in each sum."""
    return 2 * gamma(terms + ROTATIONS) * a.double().norm().item() * b.double().norm().item()


def assert_same_product(actual: torch.Tensor, expected: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """Two results of `a @ b^T`, `a: [M, K]`, `b: [N, K]`, that differ in nothing but the order of their sums."""
    assert actual.shape == expected.shape == (a.shape[0], b.shape[0]) and a.shape[1] == b.shape[1]
    distance, allowed = (actual.double() - expected.double()).norm().item(), bound(a, b, a.shape[1])
    assert distance <= allowed, f"{distance:.3g} apart; expected at most {allowed:.3g}"
