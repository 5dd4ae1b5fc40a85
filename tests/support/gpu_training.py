"""A small Llama that the tests of tests/gpu train, and how its gradients are compared."""

from __future__ import annotations

import contextlib

import torch
import torch._dynamo
import torch._inductor.config
from compiled_ops import DEVICE
from llama import Llama, Size

SIZE = Size(layers=2, width=256, heads=4, lr=2e-3, batch=4, seq=128)


def llama() -> Llama:
    torch.manual_seed(0)
    return Llama(SIZE).to(DEVICE)


def batch(length: int = SIZE.seq, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and targets, drawn on the CPU by a generator of their own."""
    drawn = torch.randint(256, (2, SIZE.batch, length), generator=torch.Generator().manual_seed(seed))
    return tuple(drawn.to(DEVICE))


def autocast(dtype: torch.dtype | None):
    return torch.autocast(DEVICE.type, dtype) if dtype else contextlib.nullcontext()


def loss_and_gradients(model, function, tokens, targets, *, dtype=None, seed=None):
    """The loss and one float32 vector of all gradients, copies of both."""
    model.zero_grad(set_to_none=True)
    if seed is not None:
        torch.manual_seed(seed)
    with autocast(dtype):
        loss = function(tokens, targets)
    loss.backward()
    grads = [p.grad.detach().float().flatten() for p in model.parameters() if p.grad is not None]
    return loss.detach().clone(), torch.cat(grads)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.double(), b.double()
    return (a @ b / (a.norm() * b.norm())).item()
