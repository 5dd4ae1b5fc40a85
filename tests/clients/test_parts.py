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


def dit():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(1)
    sizes = dict(num_attention_heads=2, attention_head_dim=32, in_channels=4, num_layers=2, sample_size=8, patch_size=2)
    model = diffusers.DiTTransformer2DModel(num_embeds_ada_norm=10, **sizes)
    images, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    return model, noise, (images,), dict(timestep=torch.tensor([3, 7]), class_labels=torch.tensor([0, 1]))


def flux():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(1)
    sizes = dict(patch_size=1, in_channels=4, num_layers=1, num_single_layers=2, attention_head_dim=32)
    widths = dict(num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(8, 12, 12))
    model = diffusers.FluxTransformer2DModel(**sizes, **widths)
    image, noise, text = torch.randn(2, 16, 4), torch.randn(2, 16, 4), torch.randn(2, 8, 32)
    given = dict(hidden_states=image, encoder_hidden_states=text, pooled_projections=torch.randn(2, 32))
    places = dict(img_ids=torch.zeros(16, 3), txt_ids=torch.zeros(8, 3), timestep=torch.tensor([0.3, 0.7]))
    return model, noise, (), {**given, **places}


def diffusion(made, enabled, compile_model):
    """A run of a denoiser that `compile_model` compiles inside of `enabled(model)`."""
    model, noise, given, by_keyword = made()
    with enabled(model):
        function = compile_model(model)

    def loss():
        return nn.functional.mse_loss(function(*given, **by_keyword).sample[:, : noise.shape[1]], noise)

    return train(model, loss, torch.optim.AdamW(model.parameters(), lr=3e-3), steps=30)


def nothing(model):
    return contextlib.nullcontext()


def repeated_blocks(model):
    model.compile_repeated_blocks()
    return model


def test_a_dit():
    ours = diffusion(dit, nothing, lambda model: torch.compile(model, backend="quartet-rtn"))
    check(ours, diffusion(dit, nothing, torch.compile))
    linears = ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2"]
    assert ours.rewritten >= {f"transformer_blocks.{block}.{name}" for block in (0, 1) for name in linears}


def test_repeated_blocks_of_flux_have_full_names():
    def enabled(model):
        return qc.enable(model, exclude=["single_transformer_blocks.1.proj_mlp"])

    ours = diffusion(flux, enabled, repeated_blocks)
    check(ours, diffusion(flux, nothing, repeated_blocks))
    assert {"transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.proj_mlp"} <= ours.rewritten
    assert "single_transformer_blocks.1.proj_out" in ours.rewritten
    assert "single_transformer_blocks.1.proj_mlp" not in ours.rewritten


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
