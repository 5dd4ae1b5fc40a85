"""Quartet by module swap, the way libraries without a compiler pass do it: each `nn.Linear` becomes a module that calls
an `autograd.Function` made of the PyTorch reference (`quartet_compile.kernels.numerics.reference`).

It is the slow baseline of `bench_step.py`, and the independent model that the tests compare compiled training with: with
the same generator state it gives the same random bits.
"""

from __future__ import annotations

import torch
from torch import nn

from quartet_compile import Gemm, Recipe
from quartet_compile.config.names import matches
from quartet_compile.kernels.numerics import reference


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
    """`y = x w^T` with the GEMMs of any recipe quantized, each as `quartet_compile.Recipe` says."""

    @staticmethod
    def forward(ctx, x, w, recipe: Recipe, seeds: BackwardSeeds, site: int, first_of_x: int):
        """x: [M, K], w: [N, K]; site: its seed; first_of_x: the first site that shares x, for the signs of wgrad."""
        ctx.recipe, ctx.seeds, ctx.site, ctx.first_of_x = recipe, seeds, site, first_of_x
        ctx.save_for_backward(x, w)
        if recipe.fprop is None:
            return x @ w.t()
        ctx.xq = reference.quantize(x, recipe.fprop.a, mask=recipe.trust_mask)
        ctx.wq = reference.quantize(w, recipe.fprop.b, mask=recipe.trust_mask)
        return _multiply(recipe.fprop, ctx.xq, ctx.wq, x.dtype)

    @staticmethod
    def backward(ctx, dy):
        recipe, (x, w) = ctx.recipe, ctx.saved_tensors
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = dy @ w if recipe.dgrad is None else _gradient(ctx, "dgrad", dy, w, x)
        if ctx.needs_input_grad[1]:
            dw = dy.t() @ x if recipe.wgrad is None else _gradient(ctx, "wgrad", dy, x, w)
        return dx, dw, None, None, None, None


def _gradient(ctx, role: str, dy: torch.Tensor, second: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    """dX, or dW: dY or its transpose times the transpose of `second`; the gradient of `of`."""
    recipe, number, wgrad = ctx.recipe, ("fprop", "dgrad", "wgrad").index(role), role == "wgrad"
    gemm, source = getattr(recipe, role), recipe.source(role)
    seed = ctx.seeds[ctx.site] if gemm.a.seeded or gemm.b.seeded else None
    shared = ctx.seeds[ctx.first_of_x] if wgrad and seed is not None else seed
    options = {"seed": shared, "sign_seed": shared, "stream": 2 * number + 1}
    a = reference.quantize(dy, gemm.a, transpose=wgrad, stream=2 * number, seed=seed, sign_seed=shared)
    if source == "original":
        b = reference.quantize(second, gemm.b, transpose=True, **options)
        return _multiply(gemm, a, b, dy.dtype)
    codes, before = (ctx.xq, recipe.fprop.a) if wgrad else (ctx.wq, recipe.fprop.b)
    b = (
        reference.transposed(codes, before)
        if source == "codes"
        else reference.requantize(codes, before, gemm.b, **options)
    )
    mask = (ctx.wq if wgrad else ctx.xq).mask if recipe.trust_mask else None
    return reference.unrotate(_multiply(gemm, a, b, dy.dtype), mask, recipe.fprop.a.rotation, of.shape[1])


def _multiply(gemm: Gemm, a: reference.Blocks, b: reference.Blocks, dtype: torch.dtype) -> torch.Tensor:
    output = dtype if gemm.output == "same" else getattr(torch, gemm.output)
    return reference.scaled_mm(a, b, gemm.gain, output).to(dtype)


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
