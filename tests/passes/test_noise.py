"""Why ranks with tokens of their own draw their own noise (docs/scale.md)."""

from __future__ import annotations

import torch
from captured import compiled
from torch import nn


def test_equal_seeds_leave_noise_that_batches_have_in_common():
    """Correlation of the noise of two batches' gradients, over 12 seeds."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 128))
    function, _ = compiled(model, recipe="quartet2")
    batches = [torch.randn(256, 128) + 0.5 for _ in range(2)]
    targets = [torch.randn(256, 128) for _ in range(2)]

    def noise(batch):
        found = []
        for seed in range(12):
            model.zero_grad()
            torch.manual_seed(seed)
            nn.functional.mse_loss(function(batches[batch]), targets[batch]).backward()
            found.append(model[0].weight.grad.flatten().clone())
        return torch.stack(found) - torch.stack(found).mean(0)

    first, second = noise(0), noise(1)

    def correlation(a, b):
        return ((a * b).sum() / (a.norm() * b.norm())).item()

    assert correlation(first, second) > 0.1
    assert abs(correlation(first, second.roll(1, 0))) < 0.03
