"""What the ranks of test_layouts.py run: HSDP, pipeline stages, checkpoints over other numbers of ranks, the first line."""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint_module
from models import gradients
from sharded import backward, batch, cosine, model_of, recorded, worst
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

import quartet_compile as qc
from quartet_compile import _compat
from quartet_compile.capture.capture import compile_plainly


def in_fp4(step: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """What a training step gives, and of the graphs that this rank compiles in it: the matmuls whose GEMMs are all in FP4,
    and how many FP4 products run in a later one, forward and backward."""
    with recorded() as reports:
        for _ in range(2):  # the call after a compilation is watched, which the profiler counts too
            step()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            result = step()
    sites = [site for graph in reports for site in graph.sites if site.runs_in == "fp4"]
    ran = sum(event.count for event in profile.key_averages() if event.key == "quartet::scaled_mm")
    return result, {"fp4": sorted({site.name for site in sites}), "products": ran}


def hsdp(recipe: str) -> dict[str, Any]:
    """Two replicas of two shards each, by regions, against the whole batch on one process."""
    rank, world, x = dist.get_rank(), dist.get_world_size(), batch()
    reference = model_of()
    plain = gradients(reference, x)[1]
    model = copy.deepcopy(reference)
    mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("replicate", "shard"))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)

    qc.quartet(model, regions=["layers.*"], recipe=recipe)
    ours, compiled = in_fp4(lambda: backward(model, model, x[2 * rank : 2 * rank + 2]))
    ours = {name: world * gradient for name, gradient in ours.items()}  # FSDP2 takes the mean over ranks
    return {
        **compiled,
        "worst": worst(ours, plain),
        "cosine": cosine(ours, plain),
        "state": list(model.state_dict()) == list(reference.state_dict()),
    }


class Stage(nn.Module):
    """A half of the model, whose parts keep their names."""

    def __init__(self, model: nn.Module, index: int) -> None:
        super().__init__()
        if index:
            self.last = model.last
        else:
            self.first = model.first
        self.layers = nn.ModuleDict({str(index): model.layers[index]})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x) if hasattr(self, "first") else x
        for layer in self.layers.values():
            x = layer(x)
        return self.last(x) if hasattr(self, "last") else x


def pipeline(recipe: str) -> dict[str, Any]:
    """A stage a rank and two microbatches, against one process."""
    rank, x = dist.get_rank(), batch()
    reference = model_of()
    plain = gradients(reference, x)[1]
    stage = Stage(copy.deepcopy(reference), rank)

    stage.compile(backend="quartet", options={"recipe": recipe})
    schedule = ScheduleGPipe(
        PipelineStage(stage, rank, dist.get_world_size(), torch.device("cpu")),
        n_microbatches=2,
        loss_fn=lambda y, target: y.square().sum(),
        scale_grads=False,
    )

    def step() -> None:
        stage.zero_grad()
        torch.manual_seed(0)
        schedule.step(*[x] * (rank == 0), **{"target": x} if rank else {})

    _, compiled = in_fp4(step)
    ours = {name: parameter.grad for name, parameter in stage.named_parameters()}
    plain = {name: plain[name] for name in ours}
    return {**compiled, "worst": worst(ours, plain), "cosine": cosine(ours, plain)}


def resharded(source: str, target: str) -> dict[str, Any]:
    """On any number of ranks: load a checkpoint if there is one, take a step in FP4, save. Gives hashes of the whole state,
    as it was loaded and as it is saved, and what was in FP4."""
    rank, model = dist.get_rank(), model_of()
    names = list(model.state_dict())
    if dist.get_world_size() > 1:
        for layer in model.layers:
            fully_shard(layer)
        fully_shard(model)
    if source:
        state = model.state_dict()
        checkpoint_module.load(state, checkpoint_id=source)
        model.load_state_dict(state)
    loaded = _hash(model)

    qc.quartet(model, regions=["layers.*"])
    _, compiled = in_fp4(lambda: backward(model, model, batch()[2 * rank : 2 * rank + 2]))
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    assert list(model.state_dict()) == names
    checkpoint_module.save(model.state_dict(), checkpoint_id=target)
    return {**compiled, "loaded": loaded, "saved": _hash(model)}


def _hash(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(_compat.whole(tensor).detach().numpy().tobytes())
    return digest.hexdigest()


def lines() -> list[str]:
    """What this rank says at its first compilation."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("quartet_compile.summary")
    logger.setLevel("INFO")
    logger.addHandler(handler)
    _compat.compile_fx = lambda gm, inputs, config_patches: compile_plainly(
        gm, inputs, config_patches["joint_custom_pre_pass"]
    )
    model = torch.compile(model_of(), backend="quartet")
    model(batch())
    return said
