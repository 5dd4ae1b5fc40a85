"""A language model in Megatron's layout, with sequence parallelism: what the ranks of test_sequence_parallel.py run.

The embedding, the output head and the loss are parallel over the vocabulary. Between the blocks each rank has a part of
every sequence, which is gathered before the column-parallel linears.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
from captured import compiled as captured
from captured import sites
from models import Attention
from sharded import cosine, whole_gradients, worst
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)

WORDS, WIDTH, LENGTH = 96, 128, 32


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.attention_norm = Attention(WIDTH, heads=4), nn.RMSNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 128), nn.ReLU(), nn.Linear(128, WIDTH, bias=False))
        self.mlp_norm = nn.RMSNorm(WIDTH)

    def forward(self, x):
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.layers = nn.Embedding(WORDS, WIDTH), nn.ModuleList(Layer() for _ in range(2))
        self.norm, self.head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def parallel(model: Language, mesh: Any) -> Language:
    """The model in parts, over all ranks of the mesh."""
    whole, part = Replicate(), Shard(1)
    gathered = PrepareModuleInput(input_layouts=(part,), desired_input_layouts=(whole,))
    plan = {
        "embedding": RowwiseParallel(input_layouts=whole, output_layouts=part),
        "norm": SequenceParallel(),
        "head": ColwiseParallel(input_layouts=part, output_layouts=Shard(-1), use_local_output=False),
    }
    for index, layer in enumerate(model.layers):
        layer.attention.heads //= mesh.size()
        mine = {
            "attention": gathered,
            "mlp": gathered,
            "attention_norm": SequenceParallel(),
            "mlp_norm": SequenceParallel(),
        }
        mine |= {f"attention.{name}_proj": ColwiseParallel() for name in "qkv"} | {"mlp.0": ColwiseParallel()}
        mine |= {name: RowwiseParallel(output_layouts=part) for name in ("attention.o_proj", "mlp.2")}
        plan |= {f"layers.{index}.{name}": kind for name, kind in mine.items()}
    return parallelize_module(model, mesh, plan)


def step(function: Any, model: nn.Module, tokens: torch.Tensor) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss, and whole gradients, with the noise of a fixed seed."""
    model.zero_grad()
    torch.manual_seed(0)
    with loss_parallel():
        loss = nn.functional.cross_entropy(function(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
    return loss.item(), whole_gradients(model)


def two() -> dict[str, Any]:
    """Under `exact` against one process, and under `quartet`."""
    torch.manual_seed(1)
    reference = Language()
    tokens = torch.randint(WORDS, (2, LENGTH + 1), generator=torch.Generator().manual_seed(5))
    loss, plain = step(reference, reference, tokens)
    mesh, found = init_device_mesh("cpu", (dist.get_world_size(),)), {"loss": loss}
    for recipe in ("exact", "quartet"):
        model = parallel(copy.deepcopy(reference), mesh)
        function, backend = captured(model, recipe=recipe)
        ours, gradients = step(function, model, tokens)
        found[recipe] = {
            "loss": ours,
            "worst": worst(gradients, plain),
            "cosine": cosine(gradients, plain),
            "norm": model.layers[0].mlp_norm.weight.grad.full_tensor().tolist(),
            "rewritten": sorted({site.name for site in sites(backend) if site.rewritten}),
        }
    return found
