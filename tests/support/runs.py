"""A run of a client's trainer with and without our backend: what the tests of tests/clients ask of both."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from quartet_compile.process import process
from quartet_compile.report.report import Site


@contextlib.contextmanager
def reported() -> Iterator[list[Site]]:
    """The matmuls of all training graphs that are compiled inside; filled at the end."""
    torch._dynamo.reset()
    before, process.reports, sites = process.reports, {}, []
    try:
        yield sites
        graphs = [graph for reports in process.reports.values() for graph in reports if graph.training]
        sites += [site for graph in graphs for site in graph.sites]
    finally:
        process.reports = before


@dataclasses.dataclass
class Run:
    """losses of each step; the first step's gradients, by place in the optimizer; the matmuls of the graphs."""

    losses: list[float]
    gradients: dict[str, torch.Tensor]
    sites: list[Site]

    @property
    def rewritten(self) -> set[str]:
        return {site.name for site in self.sites if site.rewritten}

    @property
    def falls(self) -> bool:
        return self.losses[-1] < 0.85 * self.losses[0]


@contextlib.contextmanager
def observed() -> Iterator[Run]:
    """A run of a trainer: its first step's gradients as its optimizer gets them; its losses are the caller's to add."""
    run = Run([], {}, [])

    def first(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        run.gradients = run.gradients or {str(index): whole(p.grad) for index, p in enumerate(parameters)}

    torch.manual_seed(0)
    hook = register_optimizer_step_pre_hook(first)
    try:
        with reported() as run.sites:
            yield run
    finally:
        hook.remove()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A copy, of a DTensor as a whole."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()


def train(
    model: nn.Module,
    loss_of: Callable[[], torch.Tensor],
    optimizer: torch.optim.Optimizer | None = None,
    steps: int = 20,
    backward: Callable[[torch.Tensor], object] = torch.Tensor.backward,
) -> Run:
    """A loop of the client's own parts; `loss_of` runs the model on a batch that is always the same."""
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-3)
    with observed() as run:
        for _ in range(steps):
            loss = loss_of()
            optimizer.zero_grad()
            backward(loss)
            optimizer.step()
            run.losses.append(loss.item())
    return run


def cosine(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Of all gradients together."""
    assert one.keys() == other.keys(), one.keys() ^ other.keys()
    a, b = (torch.cat([grads[name].flatten().float() for name in one]) for grads in (one, other))
    return nn.functional.cosine_similarity(a, b, dim=0).item()


def check(ours: Run, plain: Run) -> None:
    """FP4 is in the graphs, the loss falls, and the gradients are others that point the same way."""
    assert ours.rewritten and ours.falls, (sorted(ours.rewritten), ours.losses)
    assert not plain.sites and plain.falls, plain.losses
    assert 0.8 < cosine(ours.gradients, plain.gradients) < 0.9999
