"""Lightning Fabric, diffusers' DiT, and the optimizers of torchao and bitsandbytes, in loops of one's own."""

from __future__ import annotations

import contextlib
import importlib

import pytest
import torch
from models import Net
from runs import check, train
from torch import nn

import quartet_compile as qc

X = torch.randn(4, 16, 64, generator=torch.Generator().manual_seed(5))
TARGET = torch.randn(4, 16, 40, generator=torch.Generator().manual_seed(6))


def net():
    torch.manual_seed(1)
    return Net(blocks=2)


@pytest.mark.parametrize("way", ["before setup", "enable"])
def test_fabric(way):
    fabric_module = pytest.importorskip("lightning.fabric")

    def run(compiled):
        fabric, inner = fabric_module.Fabric(accelerator="cpu", devices=1), net()
        model, optimizer = fabric.setup(compiled(inner), torch.optim.AdamW(inner.parameters(), lr=1e-2))
        return train(model, lambda: nn.functional.mse_loss(model(X), TARGET), optimizer, backward=fabric.backward)

    plain = run(torch.compile)
    with qc.enable() if way == "enable" else contextlib.nullcontext():
        ours = run(torch.compile if way == "enable" else lambda model: torch.compile(model, backend="quartet"))
    check(ours, plain)
    assert ours.rewritten == {"out", *(f"layers.{layer}.{part}" for layer in (0, 1) for part in ("up", "down"))}


@pytest.mark.parametrize("way", ["by name", "enable"])
def test_repeated_blocks_of_a_dit(way):
    diffusers = pytest.importorskip("diffusers")
    sizes = dict(num_attention_heads=2, attention_head_dim=32, in_channels=4, num_layers=2, sample_size=8, patch_size=2)

    def run(enabled, **how):
        torch.manual_seed(1)
        model = diffusers.DiTTransformer2DModel(num_embeds_ada_norm=10, **sizes)
        images, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
        with enabled(model):
            model.compile_repeated_blocks(**how)
        steps, labels = torch.tensor([3, 7]), torch.tensor([0, 1])

        def loss():
            made = model(images, timestep=steps, class_labels=labels).sample
            return nn.functional.mse_loss(made[:, :4], noise)

        return train(model, loss, torch.optim.AdamW(model.parameters(), lr=3e-3), steps=30)

    plain = run(lambda model: contextlib.nullcontext())
    if way == "by name":
        ours = run(lambda model: contextlib.nullcontext(), backend="quartet")
        prefixes = [""]
    else:
        ours = run(lambda model: qc.enable(model, exclude=["transformer_blocks.1.ff"]))
        prefixes = ["transformer_blocks.0.", "transformer_blocks.1."]
    check(ours, plain)
    linears = ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2"]
    expected = {prefix + name for prefix in prefixes for name in linears}
    assert ours.rewritten == {name for name in expected if not name.startswith("transformer_blocks.1.ff")}


OPTIMIZERS = {
    "torchao AdamW8bit": ("torchao.optim", "AdamW8bit", {}),
    "torchao AdamW4bit": ("torchao.optim", "AdamW4bit", {}),
    "torchao AdamWFp8": ("torchao.optim", "AdamWFp8", {}),
    "torchao _AdamW, bf16 rounded stochastically": ("torchao.optim", "_AdamW", {"bf16_stochastic_round": True}),
    "bitsandbytes AdamW8bit": ("bitsandbytes.optim", "AdamW8bit", {}),
}


@pytest.mark.parametrize("case", OPTIMIZERS)
def test_an_optimizer(case):
    path, name, options = OPTIMIZERS[case]
    pytest.importorskip(path.partition(".")[0])
    kind = getattr(importlib.import_module(path), name)

    def run(compiled):
        torch.manual_seed(1)
        inner = nn.Sequential(*(nn.Linear(256, 256) for _ in range(2)))
        inner = inner.bfloat16() if options else inner
        x, target = torch.randn(64, 256, dtype=inner[0].weight.dtype), torch.randn(64, 256)
        model = compiled(inner)
        optimizer = kind(inner.parameters(), lr=3e-3, **options)
        return train(inner, lambda: nn.functional.mse_loss(model(x).float(), target), optimizer)

    ours = run(lambda model: torch.compile(model, backend="quartet"))
    check(ours, run(lambda model: model))
    assert ours.rewritten == {"0", "1"}
