"""Distributed training: sharded modules and tensors, and process groups."""

from __future__ import annotations

from typing import Any

import torch

from .installed import private


def is_fully_sharded(module: torch.nn.Module) -> bool:
    """Whether FSDP2's `fully_shard` was given this module."""
    available = torch.distributed.is_available()
    return available and isinstance(module, private("torch.distributed.fsdp:FSDPModule"))


def group_ranks(name: str) -> list[int]:
    """The global ranks of a process group, by its name."""
    group = private("torch.distributed.distributed_c10d:_resolve_process_group")(name)
    return torch.distributed.get_process_group_ranks(group)


def mesh_groups(value: Any) -> tuple[str, ...]:
    """The names of the process groups over which a DTensor is distributed, one for each dimension of its mesh; none of
    another value."""
    if not torch.distributed.is_available() or not isinstance(value, private("torch.distributed.tensor:DTensor")):
        return ()
    mesh = value.device_mesh
    return tuple(mesh.get_group(dim).group_name for dim in range(mesh.ndim))
