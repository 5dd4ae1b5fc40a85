"""Quartet by module swap, the way libraries without a compiler pass do it: each `nn.Linear` becomes a module that calls
an `autograd.Function` made of the PyTorch reference (`quartet_compile.kernels.reference`).

It is the slow baseline of `bench_step.py`, and the independent model that the tests compare compiled training with: with
the same generator state it gives the same random bits.
"""

from __future__ import annotations

import torch
from torch import nn

from quartet_compile import Recipe
from quartet_compile.kernels import philox, reference
from quartet_compile.names import matches


class BackwardSeeds:
    """The seeds of one backward pass: drawn from torch's generator when the first is asked for."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._drawn: torch.Tensor | None = None

    def reset(self) -> None:
        """Forget the seeds; call it before each forward."""
        self._drawn = None

    def __getitem__(self, index: int) -> torch.Tensor:
        if self._drawn is None:
            self._drawn = torch.randint(0, 2**63 - 1, (self.count,), dtype=torch.int64)
        return self._drawn[index]


class QuartetFunction(torch.autograd.Function):
    """`y = x w^T` with all three GEMMs quantized (arXiv 2505.14669, algorithm 1)."""

    @staticmethod
    def forward(ctx, x, w, recipe: Recipe, seeds: BackwardSeeds, site: int, first_of_x: int):
        """x: [M, K], w: [N, K]; site: its seed; first_of_x: the first site that shares x, for the signs of wgrad."""
        xq = reference.quantize(x, recipe.fprop.a, mask=True)
        wq = reference.quantize(w, recipe.fprop.b, mask=True)
        ctx.save_for_backward(*xq, *wq)
        ctx.recipe, ctx.seeds, ctx.site, ctx.first_of_x, ctx.columns = recipe, seeds, site, first_of_x, x.shape[1]
        return reference.scaled_mm(xq, wq, recipe.fprop.gain, x.dtype)

    @staticmethod
    def backward(ctx, dy):
        recipe, columns = ctx.recipe, ctx.columns
        xq, wq = reference.Blocks(*ctx.saved_tensors[:4]), reference.Blocks(*ctx.saved_tensors[4:])
        rotation, dx, dw = recipe.fprop.a.rotation, None, None
        if ctx.needs_input_grad[0]:
            product = _product(recipe.dgrad, dy, False, wq, recipe.fprop.b, ctx.seeds[ctx.site], ctx.seeds[ctx.site], 1)
            dx = reference.unrotate(product, xq.mask, rotation, columns)
        if ctx.needs_input_grad[1]:
            signs = ctx.seeds[ctx.first_of_x]
            product = _product(recipe.wgrad, dy, True, xq, recipe.fprop.a, ctx.seeds[ctx.site], signs, 2)
            dw = reference.unrotate(product, wq.mask, rotation, columns)
        return dx, dw, None, None, None, None


def _product(gemm, dy, transpose, source, source_quantizer, seed, sign_seed, number):
    """GEMM `number` (1 dgrad, 2 wgrad): dY, or its transpose, times the transpose of a saved operand."""
    signs = philox.signs(sign_seed, 2 * number, 32)
    source_seed = seed if number == 1 else sign_seed
    a = reference.quantize(dy, gemm.a, transpose=transpose, stream=2 * number, seed=seed, signs=signs)
    b = reference.requantize(source, source_quantizer, gemm.b, stream=2 * number + 1, seed=source_seed, signs=signs)
    return reference.scaled_mm(a, b, gemm.gain, dy.dtype)


class QuartetLinear(nn.Module):
    """A linear layer that runs `QuartetFunction`; shares the parameters of the layer that it replaces."""

    def __init__(self, linear: nn.Linear, recipe: Recipe, seeds: BackwardSeeds, site: int, first_of_x: int) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.recipe, self.seeds, self.site, self.first_of_x = recipe, seeds, site, first_of_x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = QuartetFunction.apply(x.flatten(0, -2), self.weight, self.recipe, self.seeds, self.site, self.first_of_x)
        y = y.unflatten(0, x.shape[:-1])
        return y if self.bias is None else y + self.bias


def swap_linears(
    model: nn.Module,
    recipe: Recipe,
    exclude: tuple[str, ...] = ("lm_head",),
    share: tuple[str, ...] = ("q_proj|k_proj|v_proj", "gate_proj|up_proj"),
) -> BackwardSeeds:
    """Replace every linear layer of a model in place, numbered in module order, which must be the order of the forward.

    share: leaf names, separated by `|`, of neighbours that read the same x. Returns the seeds, to reset at each step.
    """
    linears = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    groups = {leaf: position for position, names in enumerate(share) for leaf in names.split("|")}
    seeds = BackwardSeeds(len(linears))
    first: dict[tuple[str, int], int] = {}
    for index, (name, linear) in enumerate(linears):
        if any(matches(pattern, [name]) for pattern in exclude):
            continue
        parent, _, leaf = name.rpartition(".")
        key = (parent, groups[leaf]) if leaf in groups else (name, -1)
        first.setdefault(key, index)
        setattr(model.get_submodule(parent), leaf, QuartetLinear(linear, recipe, seeds, index, first[key]))
    return seeds
