"""What holds of every program, of which hypothesis draws some: under the recipe `exact`, which rewrites everything and
rounds nothing, the output and each gradient are those of plain autograd, up to the order of float32 sums.

The programs are the same in every run, so that a test that passes once passes again; more of them:
`HYPOTHESIS_EXAMPLES=500 pytest tests/passes/test_properties.py`.
"""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F
from accumulation import bound
from captured import compiled, sites
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from rounding import assert_rounding
from torch import nn

EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES", "0"))

# How x [B, S, K] and w [N, K] may be written as a product; each gives [B, S, N], or its elements in another order.
SPELLINGS = {
    "mm": lambda x, w: torch.mm(x.flatten(0, 1), w.t()),
    "mm, w on the left": lambda x, w: torch.mm(w, x.flatten(0, 1).t()),
    "addmm": lambda x, w: torch.addmm(w[:, 0].detach(), x.flatten(0, 1), w.t()),
    "linear": F.linear,
    "matmul, 2-D": lambda x, w: x.reshape(-1, x.shape[2]) @ w.mT,
    "matmul, 3-D": lambda x, w: x @ w.t(),
    "matmul, w on the left": lambda x, w: w @ x.transpose(1, 2),
    "einsum": lambda x, w: torch.einsum("bsk,nk->bsn", x, w),
    "einsum, transposed": lambda x, w: torch.einsum("nk,bsk->nsb", w, x),
    "bmm": lambda x, w: torch.bmm(x, w.t().expand(len(x), -1, -1)),
}

# How a leaf is laid out, and how it is read as a matrix, or as a batch of them.
MATRICES = {
    "plain": (lambda *s: torch.randn(s), lambda w: w),
    "transposed": (lambda *s: torch.randn(*s[:-2], s[-1], s[-2]), lambda w: w.transpose(-1, -2)),
    "sliced": (lambda *s: torch.randn(*s[:-1], s[-1] + 3), lambda w: w[..., :-3]),
    "flat": (lambda *s: torch.randn(s).flatten(0, -2).contiguous(), None),
    "cast": (lambda *s: torch.randn(s, dtype=torch.float64), lambda w: w.float()),
    "expanded": (lambda *s: torch.randn(1, *s[1:]), None),
}


def leaf(layout: str, *shape: int) -> tuple[nn.Parameter, object]:
    """A parameter, and the function that reads it in this shape."""
    make, read = MATRICES[layout]
    if layout == "flat":
        read = lambda w: w.view(shape)  # noqa: E731
    elif layout == "expanded":
        read = lambda w: w.expand(shape)  # noqa: E731
    return nn.Parameter(make(*shape)), read


def programs(examples: int, **drawn: st.SearchStrategy):
    """Decorates a test of drawn programs. Each compiles, so one that fails is shown as it is, instead of being shrunk."""
    fixed = dict(derandomize=True, deadline=None, database=None, phases=(Phase.generate,))
    same = settings(max_examples=EXAMPLES or examples, **fixed)
    return lambda test: same(given(**drawn)(test))


class OneProduct(nn.Module):
    """A product of an input [B, S, K] and a weight [N, K], however they are laid out."""

    def __init__(self, spelling: str, x: tuple, w: tuple) -> None:
        super().__init__()
        self.multiply = SPELLINGS[spelling]
        (self.leaf, self.read_x), (self.w, self.read_w) = x, w

    def operands(self, leaf: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.read_x(leaf), self.read_w(self.w)

    def forward(self, leaf: torch.Tensor) -> torch.Tensor:
        return self.multiply(*self.operands(leaf))


def step(function: object, model: OneProduct, dy: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """The output, and the gradients of the input and of the weight, for a gradient dY of the output."""
    leaf = model.leaf.detach().clone().requires_grad_()
    y = function(leaf)
    return y.detach(), *torch.autograd.grad(y, (leaf, model.w), torch.ones_like(y) if dy is None else dy)


@pytest.mark.parametrize("spelling", SPELLINGS)
@programs(
    3,
    batch=st.integers(1, 3),
    rows=st.integers(1, 40),
    k=st.integers(32, 80),
    n=st.integers(32, 80),
    x_layout=st.sampled_from(sorted(MATRICES)),
    w_layout=st.sampled_from(sorted({*MATRICES} - {"expanded"})),
    seed=st.integers(0, 99),
)
def test_a_product_has_the_gradients_of_plain_autograd(spelling, batch, rows, k, n, x_layout, w_layout, seed):
    torch.manual_seed(seed)
    model = OneProduct(spelling, leaf(x_layout, batch, rows, k), leaf(w_layout, n, k))
    function, backend = compiled(model, recipe="exact", include=["*"])
    x, w = (operand.detach() for operand in model.operands(model.leaf))
    dy = torch.randn_like(model(model.leaf).detach())
    expected, actual = step(model, model, dy), step(function, model, dy)
    (site,) = sites(backend)
    few = rows == 1 or (spelling == "bmm" and batch > 1 and rows < 16)  # of one row, torch may write no matmul for dW
    assert site.rewritten or few, site.reason
    # a sum has K, N or M terms, and one more for each copy of an expanded operand
    terms = {"y": (x, w, k), "dx": (dy, w, n * batch), "dw": (dy, x, rows * batch)}
    for (name, (a, b, count)), mine, theirs in zip(terms.items(), actual, expected, strict=True):
        apart = (mine.double() - theirs.double()).norm().item()
        assert apart <= bound(a, b, count), f"{name} is {apart:.3g} apart"


WIDTH = 32
STEPS = {
    "linear": lambda x, w, other: F.linear(x, w),
    "mm": lambda x, w, other: torch.mm(x, w),
    "w on the left": lambda x, w, other: torch.mm(w, x),
    "addmm": lambda x, w, other: torch.addmm(other, x, w.t(), beta=0.5),
    "computed weight": lambda x, w, other: F.linear(x, torch.tanh(w)),
    "a frozen weight": lambda x, w, other: F.linear(x, w.detach()),
    "a detached input": lambda x, w, other: F.linear(x.detach(), w),
    "two activations": lambda x, w, other: torch.mm(x, other) / WIDTH,
    "bmm": lambda x, w, other: torch.bmm(torch.stack([x, other]), w.expand(2, -1, -1)).sum(0),
    "einsum": lambda x, w, other: torch.einsum("sk,kn->sn", x, w),
    "transposed input": lambda x, w, other: F.linear(x.t(), w),
    "residual": lambda x, w, other: x + other,
    "no matmul": lambda x, w, other: torch.sin(x) * w,
}


class Program(nn.Module):
    """Steps over a growing list of values [32, 32], which share inputs and weights as they like. Returns a scalar of all."""

    def __init__(self, steps: list[tuple[str, int, int, int]]) -> None:
        super().__init__()
        self.steps = steps
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH**0.5) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = [x]
        for name, source, other, weight in self.steps:
            x, y = (values[index % len(values)] for index in (source, other))
            values.append(torch.tanh(STEPS[name](x, self.weights[weight], y)))
        return sum(value.square().sum() * (index + 1) for index, value in enumerate(values))


def gradients(function: object, model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    leaves = [x, *model.parameters()]
    found = torch.autograd.grad(function(x), leaves, allow_unused=True)
    return [
        torch.zeros_like(leaf) if gradient is None else gradient for leaf, gradient in zip(leaves, found, strict=True)
    ]


@programs(
    12,
    steps=st.lists(
        st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 9), st.integers(0, 9), st.integers(0, 2)),
        min_size=2,
        max_size=7,
    ),
    seed=st.integers(0, 99),
)
def test_a_program_never_has_wrong_gradients(steps, seed):
    """A gradient of the wrong matmul, sign, mask or operand is of another direction."""
    torch.manual_seed(seed)
    model, x = Program(steps), torch.randn(WIDTH, WIDTH)
    function, _ = compiled(model, recipe="exact", include=["*"])
    ours = dict(enumerate(gradients(function, model, x)))
    assert_rounding(ours, lambda: dict(enumerate(gradients(model, model, x))))
