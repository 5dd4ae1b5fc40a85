"""Small models that the tests share."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Block(nn.Module):
    """A residual MLP with dropout; `up` has a bias, `down` has none."""

    def __init__(self, width: int = 64, hidden: int = 96, dropout: float = 0.0) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.dropout(self.down(torch.relu(self.up(x))))


class Attention(nn.Module):
    """Causal self-attention with separate q, k, v projections of one input."""

    def __init__(self, width: int = 64, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).flatten(2))


class Net(nn.Module):
    """Blocks and a parameter used by `@`. break_graph: leave the compiled region between blocks."""

    def __init__(
        self,
        blocks: int = 2,
        dropout: float = 0.0,
        checkpointing: bool = False,
        break_graph: bool = False,
        hidden: int = 96,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(hidden=hidden, dropout=dropout) for _ in range(blocks))
        self.out = nn.Parameter(torch.randn(64, 40) / 8)
        self.checkpointing, self.break_graph = checkpointing, break_graph

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.checkpointing else layer(x)
            if self.break_graph:
                torch._dynamo.graph_break()
        return x @ self.out


class MetaExperts(nn.Module):
    """Four experts without memory: a grouped product of rows sorted by expert."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(4, 128, 192, device="meta", dtype=torch.bfloat16))

    def forward(self, x: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        return torch._grouped_mm(x, self.w, ends)


def gradients(model: nn.Module, x: torch.Tensor, seed: int = 0, function: object = None) -> tuple[torch.Tensor, dict]:
    """Output and gradients of `sum(y^2)` by parameter name, with torch's generator seeded before the forward."""
    model.zero_grad()
    torch.manual_seed(seed)
    y = (model if function is None else function)(x)
    (y.float() ** 2).sum().backward()
    return y.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative Frobenius distance of a to b."""
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


class LinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w.t()

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        return dy @ w, dy.t() @ x


class Unequal(LinearFunction):
    """A backward whose two matmuls read different gradients."""

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        return (2 * dy) @ w, dy.t() @ x


class ByFunction(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.w, self.v = nn.Parameter(torch.randn(64, 64) / 8), nn.Parameter(torch.randn(64, 64) / 8)

    def forward(self, x):
        x = self.function.apply(x.flatten(0, -2), self.w)
        return self.function.apply(torch.relu(x), self.v)
