"""How far each recipe's three products are from those in full precision: relative squared errors on Gaussian operands.

    python examples/recipe_errors.py [--size 512] [--seed 0] [--device cpu]

One linear layer with X, W and dY of size x size normal numbers, once. `bits` are those that are saved for backward, an
element of X and W together: codes, scales and mask, or the tensors themselves at 16.
"""

from __future__ import annotations

import argparse

import torch
from module_swap import BackwardSeeds, QuartetFunction

import quartet_compile as qc

HIGH_PRECISION_BITS = 16


def errors(recipe: qc.Recipe, x: torch.Tensor, w: torch.Tensor, dy: torch.Tensor) -> tuple[float, float, float]:
    """`|Y' - Y|^2 / |Y|^2`, and the same of dX and dW."""
    x, w = (t.clone().requires_grad_() for t in (x, w))
    y = QuartetFunction.apply(x, w, recipe, BackwardSeeds(1), 0, 0)
    made = (y, *torch.autograd.grad(y, (x, w), dy))
    exact = (x @ w.t(), dy @ w, dy.t() @ x)
    return tuple(((a - b).square().sum() / b.square().sum()).item() for a, b in zip(made, exact, strict=True))


def saved_bits(recipe: qc.Recipe) -> float:
    """Bits an element of X and W that stay from forward to backward, the mean of both."""
    if not recipe.rewrites:
        return HIGH_PRECISION_BITS
    bits = []
    for source, gemm, side in ((recipe.x_from, recipe.wgrad, "a"), (recipe.w_from, recipe.dgrad, "b")):
        if source == "original" or gemm is None or recipe.fprop is None:
            bits.append(HIGH_PRECISION_BITS)
        else:
            bits.append(getattr(recipe.fprop, side).bits + recipe.trust_mask)
    return sum(bits) / 2


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--size", type=int, default=512)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", default="cpu")
    args = p.parse_args(argv)
    torch.manual_seed(args.seed)
    x, w, dy = (torch.randn(args.size, args.size).to(args.device) for _ in range(3))
    print("| recipe | Y | dX | dW | bits saved |\n|-|-|-|-|-|")
    for name, recipe in qc.recipes().items():
        cells = (f"{error:.2e}" for error in errors(recipe, x, w, dy))
        print(f"| `{name}` | {' | '.join(cells)} | {saved_bits(recipe):.2f} |")


if __name__ == "__main__":
    main()
