"""The same seed is the same training, bit for bit: again, resumed from a checkpoint, and in a mode that replays."""

from __future__ import annotations

import io

import pytest
import torch
from models import Attention, Block, relative
from rounding import assert_rounding, step
from torch import nn


class Training:
    """A model with dropout, its optimizer and the generator of its data, on a path: the pass alone, or all of Inductor."""

    def __init__(self, path: str) -> None:
        torch.manual_seed(3)
        self.model = nn.Sequential(Attention(), Block(dropout=0.2), nn.LayerNorm(64), nn.Linear(64, 40))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.data = torch.Generator().manual_seed(7)
        torch._dynamo.reset()
        if path == "captured":
            from captured import compiled

            self.step, _ = compiled(self.model)
        else:
            self.step = torch.compile(self.model, backend="quartet")

    def run(self, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            x = torch.randn(2, 24, 64, generator=self.data)
            self.optimizer.zero_grad()
            loss = (self.step(x) - x[..., :40]).square().mean()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
        return losses

    def save(self) -> bytes:
        buffer = io.BytesIO()
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save({**state, "data": self.data.get_state(), "rng": torch.get_rng_state()}, buffer)
        return buffer.getvalue()

    def load(self, saved: bytes) -> None:
        state = torch.load(io.BytesIO(saved))
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.data.set_state(state["data"])
        torch.set_rng_state(state["rng"])


@pytest.mark.parametrize("path", ["captured", "inductor"])
def test_50_steps_are_bitwise_the_same_and_so_is_a_resumed_run(path):
    first = Training(path)
    torch.manual_seed(11)
    losses = first.run(25)
    saved = first.save()
    losses += first.run(25)
    assert losses[-1] < losses[0]

    again = Training(path)
    torch.manual_seed(11)
    assert again.run(50) == losses
    resumed = Training(path)
    torch.manual_seed(99)
    resumed.load(saved)
    assert resumed.run(25) == losses[25:]
    for run in (again, resumed):
        for name, value in first.model.state_dict().items():
            assert torch.equal(run.model.state_dict()[name], value), name

    other = Training(path)
    torch.manual_seed(12)
    assert other.run(2)[1] != losses[1]


@pytest.mark.parametrize(
    "mode", ["reduce-overhead", pytest.param("max-autotune-no-cudagraphs", marks=pytest.mark.slow)]
)
def test_a_mode_changes_nothing(mode):
    torch.manual_seed(1)
    model, x = nn.Sequential(Block(), Block()), torch.randn(48, 64)
    found = []
    for options in ({}, {"mode": mode}):
        torch._dynamo.reset()
        found.append(step(model, x, torch.compile(model, backend="quartet", **options)))
    expected, ours = found
    assert torch.equal(ours["output"], expected["output"]) and relative(expected["output"], model(x)) > 1e-3  # in FP4
    assert_rounding(ours, lambda: step(model, x), expected)
