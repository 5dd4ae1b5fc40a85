"""What each rank of test_distributed.py runs; returns figures for the test to judge."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
from captured import compiled as captured
from captured import sites
from models import Attention, Block, gradients, relative
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.checkpoint import checkpoint

from quartet_compile.capture import Capture
from quartet_compile.config import configure


class Layer(nn.Module):
    def __init__(self, checkpointed: bool = False) -> None:
        super().__init__()
        self.attention, self.mlp, self.checkpointed = Attention(), Block(), checkpointed

    def forward(self, x):
        if self.checkpointed:
            return checkpoint(self._run, x, use_reentrant=False)
        return self._run(x)

    def _run(self, x):
        return self.mlp(self.attention(x))


class Model(nn.Module):
    def __init__(self, checkpointed: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 64)
        self.layers = nn.ModuleList(Layer(checkpointed) for _ in range(2))

    def forward(self, x):
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        return self.last(x)


def model_of(checkpointed: bool = False) -> nn.Module:
    torch.manual_seed(1)
    return Model(checkpointed)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: whole(p.grad).clone() for name, p in model.named_parameters() if p.grad is not None}


def batch(seed: int = 5) -> torch.Tensor:
    """All ranks' sequences, the same everywhere."""
    return torch.randn(2 * dist.get_world_size(), 24, 64, generator=torch.Generator().manual_seed(seed))


def worst(ours: dict, plain: dict, scale: float = 1.0) -> float:
    assert ours.keys() == plain.keys(), plain.keys() ^ ours.keys()
    return max(relative(scale * ours[name], plain[name]) for name in plain)


def cosine(ours: dict, plain: dict) -> float:
    a, b = (torch.cat([grads[name].flatten() for name in plain]) for grads in (ours, plain))
    return nn.functional.cosine_similarity(a, b, dim=0).item()


def fsdp(recipe: str, per_block: bool, checkpointed: bool, inductor: bool, bf16: bool = False) -> dict[str, Any]:
    """FSDP2 against the whole batch on one process: the worst gradient, and what is left of names and states."""
    x, world, rank = batch(), dist.get_world_size(), dist.get_rank()
    reference = model_of()
    _, plain = gradients(reference, x)
    model = model_of(checkpointed=checkpointed)
    before = {name: (value.shape, value.dtype) for name, value in model.state_dict().items()}
    mesh = init_device_mesh("cpu", (world,))
    options = {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16)} if bf16 else {}
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    torch._dynamo.reset()
    backend = Capture(configure({"recipe": recipe}), text=False)
    chosen = {"backend": "quartet", "options": {"recipe": recipe}} if inductor else {"backend": backend}
    if per_block:
        for layer in model.layers:
            layer.compile(**chosen)
        function = model
    else:
        function = torch.compile(model, **chosen)
    model.zero_grad()
    torch.manual_seed(0)
    y = function(x[2 * rank : 2 * rank + 2])
    (y.float() ** 2).sum().backward()
    ours = whole_gradients(model)
    after = {name: (value.shape, value.dtype) for name, value in model.state_dict().items()}
    return {
        "worst": worst(ours, plain, world),
        "cosine": cosine(ours, plain),
        "names": sorted({site.name for site in sites(backend) if site.rewritten}),
        "state unchanged": after == before,
        "reasons": sorted({f"{s.name}: {s.reason}" for s in sites(backend) if not s.rewritten}),
    }


def tensor_parallel(recipe: str, inductor: bool, data: int = 1) -> dict[str, Any]:
    """Megatron's layout by DTensor, with a replicated linear before it; with `data` > 1, FSDP2 over it."""
    world = dist.get_world_size()
    mesh = init_device_mesh("cpu", (data, world // data), mesh_dim_names=("data", "model"))
    x, replica = batch(), mesh.get_local_rank("data")
    mine = x.chunk(data)[replica]
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(64, 64), Block(), Block())
    reference = copy.deepcopy(model)
    _, plain = gradients(reference, x)
    plan = {
        f"{index}.{name}": kind
        for index in "12"
        for name, kind in (("up", ColwiseParallel()), ("down", RowwiseParallel()))
    }
    parallelize_module(model, mesh["model"], plan)
    if data > 1:
        for layer in model:
            fully_shard(layer, mesh=mesh["data"])
        fully_shard(model, mesh=mesh["data"])
    if inductor:
        function, backend = torch.compile(model, backend="quartet", options={"recipe": recipe}), None
    else:
        function, backend = captured(model, recipe=recipe)
    model.zero_grad()
    torch.manual_seed(0)
    y = function(mine)
    (whole(y).float() ** 2).sum().backward()
    ours = whole_gradients(model)
    local = model[0].weight.grad
    local = local.to_local() if isinstance(local, DTensor) else local
    return {
        "worst": worst(ours, plain, data),
        "cosine": cosine(ours, plain),
        "kept": [] if backend is None else sorted({f"{s.name}: {s.reason}" for s in sites(backend) if not s.rewritten}),
        "rewritten": [] if backend is None else sorted({site.name for site in sites(backend) if site.rewritten}),
        "replicated gradient": local.flatten()[:64].tolist(),
        "coordinates": list(mesh.get_coordinate()),
    }
