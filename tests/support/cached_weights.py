"""Training with and without the weight cache, beside each other; and what each rank of its FSDP2 test runs."""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from models import Block
from torch import nn
from torch.distributed.fsdp import fully_shard

from quartet_compile import _compat
from quartet_compile.capture.capture import compile_plainly
from quartet_compile.kernels import cpu
from quartet_compile.kernels.numerics import philox


@contextlib.contextmanager
def counted() -> Iterator[list[tuple[int, ...]]]:
    """The shapes of the weights that the CPU really quantizes for the forward pass, in order."""
    shapes: list[tuple[int, ...]] = []
    plain = cpu.quantize

    def quantize(x: torch.Tensor, quantizer: Any, **how: Any) -> Any:
        if how["stream"] == philox.FPROP_W:
            shapes.append(tuple(x.shape))
        return plain(x, quantizer, **how)

    cpu.quantize = quantize
    try:
        yield shapes
    finally:
        cpu.quantize = plain


class Twins:
    """Two equal models, compiled with and without the cache, and an optimizer for each. counts: how many weights each has
    quantized since the last look."""

    def __init__(self, model: nn.Module, compile: Callable = torch.compile, lr: float = 0.1, **options: Any) -> None:
        self.models = [model, copy.deepcopy(model)]
        self.functions = [
            compile(each, backend="quartet", options={**options, "weight_cache": cached})
            for each, cached in zip(self.models, (True, False), strict=True)
        ]
        self.optimizers = [torch.optim.AdamW(each.parameters(), lr=lr, foreach=True) for each in self.models]

    def run(self, x: torch.Tensor, seed: int = 0) -> list[int]:
        """A microbatch of both. Asserts that outputs and gradients are the same bits; returns how many weights each has
        quantized."""
        found, counts = [], []
        for function, model in zip(self.functions, self.models, strict=True):
            torch.manual_seed(seed)
            with counted() as shapes:
                y = function(x)
                if y.requires_grad:
                    y.float().square().mean().backward()
            found.append([y, *(p.grad for p in model.parameters() if p.grad is not None)])
            counts.append(len(shapes))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        return counts

    def both(self, change: Callable, *what: Any) -> None:
        """The same change of both: of a model, its optimizer and its compiled function."""
        for each in zip(self.models, self.optimizers, self.functions, strict=True):
            change(*each, *what)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, function: Callable) -> None:
    optimizer.step()
    optimizer.zero_grad()


def fsdp(by_inductor: bool) -> dict[str, Any]:
    """Two steps of two microbatches of blocks that are gathered for each of them, with the cache and without."""
    if not by_inductor:
        _compat.compile_fx = lambda gm, inputs, patches: compile_plainly(gm, inputs, patches["joint_custom_pre_pass"])
    found: dict[str, Any] = {"counts": [], "digests": []}
    for cached in (True, False):
        torch._dynamo.reset()
        torch.manual_seed(1)
        model = nn.Sequential(Block(), Block())
        for block in model:
            block.compile(backend="quartet", options={"weight_cache": cached})
            fully_shard(block)
        fully_shard(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        counts, digest = [], hashlib.sha256()
        for number in range(4):
            torch.manual_seed(number)
            with counted() as shapes:
                y = model(torch.randn(4, 16, 64))
                y.square().mean().backward()
            counts.append(len(shapes))
            digest.update(y.detach().numpy().tobytes())
            for p in model.parameters():
                digest.update(p.grad.to_local().numpy().tobytes())
            if number % 2:
                optimizer.step()
                optimizer.zero_grad()
        found["counts"].append(counts)
        found["digests"].append(digest.hexdigest())
    return found
