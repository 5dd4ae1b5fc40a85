"""What each rank of test_sharded_export.py runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from sharded import model_of
from told import told
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import quartet_compile as qc

X = (torch.zeros(2, 24, 64),)


def sharded(how: str) -> torch.nn.Module:
    model = model_of()
    if how == "fsdp":
        for layer in model.layers:
            fully_shard(layer)
        return fully_shard(model)
    if how == "tp":
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in model.layers:
            plan = {"mlp.up": ColwiseParallel(), "mlp.down": RowwiseParallel()}
            parallelize_module(layer, mesh, plan)
        return model
    assert how == "whole"
    return model


def state(how: str) -> dict[str, str]:
    return digests(qc.export_state(sharded(how), of=model_of(), inputs=X, recipe="jetfire-fp4"))


def digests(state: Iterable[tuple[str, torch.Tensor]]) -> dict[str, str]:
    """A digest of each tensor."""
    return {name: hashlib.sha256(t.view(torch.uint8).numpy().tobytes()).hexdigest() for name, t in state}


def layers() -> dict[str, str]:
    """Of a model of which FSDP2's blocks are compiled one by one."""
    model = sharded("fsdp")
    for layer in model.layers:
        layer.compile(backend="quartet", options={"recipe": "jetfire-fp4"})
    return digests(qc.export_state(model, inputs=X))


def files(model: torch.nn.Module, folder: str) -> int:
    options = dict(of=model_of(), format="compressed-tensors", inputs=X, recipe="jetfire-fp4")
    return len(qc.export(model, folder, **options).tensors)


def fsdp(folder: str) -> dict[str, Any]:
    """What exports give, and the errors of those that can't be; in one process, since each takes a while to start."""
    model = sharded("fsdp")
    made: dict[str, Any] = {"state": state("fsdp"), "tensors": files(model, f"{folder}/served")}
    made["hidden"] = told(lambda: qc.export_state(model, inputs=X, recipe="jetfire-fp4"))
    made["layers"] = layers()
    made["quantized"] = told(lambda: qc.quantize(model.layers[0].mlp.up.weight, "mxfp4-quest"))
    with torch.no_grad():
        model.last.weight.mul_(torch.nan)
    made["refused"] = told(lambda: files(model, f"{folder}/refused"))
    return made
