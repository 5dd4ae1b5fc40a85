"""Activation checkpointing changes nothing: the same output, gradients and noise, bit for bit, as without it."""

from __future__ import annotations

import functools

import pytest
import torch
from captured import compiled, sites
from models import Attention, Block, gradients
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

aten = torch.ops.aten


def _policy(context, op, *args, **kwargs):
    """Keeps the products of half of the layers, recomputes everything else."""
    return (
        CheckpointPolicy.MUST_SAVE if op in (aten.mm.default, aten.addmm.default) else CheckpointPolicy.PREFER_RECOMPUTE
    )


def _every_second():
    """torchtitan's policy: of the products, every second one is kept."""
    count = {True: 0, False: 0}

    def policy(context, op, *args, **kwargs):
        if op not in (aten.mm.default, aten.addmm.default):
            return CheckpointPolicy.PREFER_RECOMPUTE
        count[context.is_recompute] += 1
        kept = count[context.is_recompute] % 2 == 0
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


SELECTIVE = functools.partial(create_selective_checkpoint_contexts, _policy)
KINDS = {
    "none": None,
    "non-reentrant": {"use_reentrant": False},
    "reentrant": {"use_reentrant": True},
    "selective": {"use_reentrant": False, "context_fn": SELECTIVE},
    "every second": {"use_reentrant": False, "context_fn": _every_second},
}


class Model(nn.Module):
    def __init__(self, kind: str, dropout: float = 0.0) -> None:
        super().__init__()
        self.kind = KINDS[kind]
        self.embed = nn.Linear(64, 64)
        self.layers = nn.ModuleList(nn.Sequential(Attention(), Block(dropout=dropout)) for _ in range(2))

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x) if self.kind is None else checkpoint(layer, x, **self.kind)
        return x


def trained(kind: str, backend: str, recipe: str, dropout: float = 0.0):
    torch.manual_seed(1)
    model, x = Model(kind, dropout), torch.randn(2, 24, 64)
    if backend == "captured":
        function, capture = compiled(model, recipe=recipe)
        return gradients(model, x, function=function), [s.rewritten for s in sites(capture)]
    torch._dynamo.reset()
    return gradients(model, x, function=torch.compile(model, backend="quartet", options={"recipe": recipe})), None


def assert_same(a, b):
    assert torch.equal(a[0], b[0])
    assert a[1].keys() == b[1].keys()
    for name in b[1]:
        assert torch.equal(a[1][name], b[1][name]), name


@pytest.mark.parametrize("kind", ["non-reentrant", "reentrant", "selective", "every second"])
def test_gradients_and_noise_are_those_without(kind):
    plain, rewritten = trained("none", "captured", "quartet")
    ours, also = trained(kind, "captured", "quartet")
    assert_same(ours, plain)
    assert sorted(also) == sorted(rewritten) and sum(also) == 13


@pytest.mark.parametrize(
    "kind",
    ["non-reentrant", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("selective", "every second"))],
)
def test_the_same_under_inductor(kind):
    assert_same(trained(kind, "inductor", "quartet")[0], trained("none", "inductor", "quartet")[0])


@pytest.mark.parametrize("kind", ["non-reentrant", "reentrant"])
def test_dropout_is_recomputed_with_the_same_mask(kind):
    """The random bits of dropout in a region are drawn again; ours, in the backward pass, must not move them."""
    plain, _ = trained(kind, "captured", "bf16", dropout=0.5)
    ours, _ = trained(kind, "captured", "exact", dropout=0.5)
    for name in plain[1]:
        torch.testing.assert_close(ours[1][name], plain[1][name], rtol=1e-3, atol=1e-4)
