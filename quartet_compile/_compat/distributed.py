"""Distributed training: sharded modules and tensors, and process groups."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterable
from typing import Any

import torch

from .installed import private


def is_flat_view(tensor: torch.Tensor) -> bool:
    """Whether a tensor is what FSDP1 (`FullyShardedDataParallel`) has in the place of a parameter while a module runs: a
    view of the gathered flat one, without being a Parameter."""
    found: bool = getattr(tensor._base, "_is_flat_param", False)
    return found


def is_fully_sharded(module: torch.nn.Module) -> bool:
    """Whether FSDP2's `fully_shard` was given this module."""
    available = torch.distributed.is_available()
    return available and isinstance(module, private("torch.distributed.fsdp:FSDPModule"))


def fsdp_state(module: torch.nn.Module) -> Any:
    """What FSDP2 knows of a module that `fully_shard` was given."""
    state: Any = module._get_fsdp_state  # a Module's attributes are tensors and modules to mypy
    return state()


def fsdp_groups(module: torch.nn.Module) -> list[Any]:
    """The groups of parameters that FSDP2 gathers together around a module; of one that it doesn't know, none."""
    if not is_fully_sharded(module):
        return []
    state = fsdp_state(module)
    if hasattr(state, "_fsdp_param_groups"):  # newer ones: of several meshes
        return list(state._fsdp_param_groups)
    return [] if state._fsdp_param_group is None else [state._fsdp_param_group]


def sharded_name(module: torch.nn.Module) -> str | None:
    """The name of a module in the model that FSDP2 sharded, None if it doesn't know; it does from the first call of the
    outermost module that `fully_shard` was given."""
    if not is_fully_sharded(module):
        return None
    names = {id(inner): name for name, inner in module.named_modules()}
    for part in (part for group in fsdp_groups(module) for part in group.fsdp_params):
        inside = f"{names[id(part._module_info.module)]}.{part._module_info.param_name}".strip(".")
        if part._param_fqn is not None and part._param_fqn.endswith(f".{inside}"):
            name: str = part._param_fqn.removesuffix(f".{inside}")
            return name
    return None


def rank() -> int:
    """This process's in the default process group; 0 without one."""
    return torch.distributed.get_rank() if _is_distributed() else 0


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def is_distributed_tensor(value: Any) -> bool:
    """Whether a value is a DTensor."""
    return torch.distributed.is_available() and isinstance(value, private("torch.distributed.tensor:DTensor"))


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a DTensor, which all of its ranks must ask for; another tensor as it is."""
    distributed: Any = tensor
    return distributed.full_tensor() if is_distributed_tensor(tensor) else tensor


def from_first_rank(value: Any) -> Any:
    """What rank 0 of the default process group gave, on every rank; all of them must call."""
    held = [value]
    torch.distributed.broadcast_object_list(held, src=0)
    return held[0]


def default_store() -> Any:
    """The store of the default process group; None without other ranks."""
    if not _is_distributed() or world_size() == 1 or torch.distributed.get_backend() == "fake":
        return None
    return private("torch.distributed.distributed_c10d:_get_default_store")()


def world_size() -> int:
    """How many processes the default process group has."""
    return torch.distributed.get_world_size()


def patience() -> float:
    """How long a rank waits for another one to say something, in seconds: half of what its collectives do."""
    half: float = default_store().timeout.total_seconds() / 2
    return half


def say_to_ranks(key: str, text: str) -> dict[int, str]:
    """Say a text under a key to all ranks of the default process group; what each rank has said there so far. It waits for
    none: a rank that has said nothing yet isn't in it. Nothing of others without a process group."""
    store = default_store()
    if store is None:
        return {}
    store.set(f"{key}/{rank()}", text)
    return {each: store.get(f"{key}/{each}").decode() for each in range(world_size()) if store.check([f"{key}/{each}"])}


def hear_ranks(key: str, ranks: Iterable[int]) -> dict[int, str]:
    """What ranks say under a key; waits for them with `patience`. One that has said nothing by then isn't in it."""
    store, ranks = default_store(), sorted(ranks)
    with contextlib.suppress(RuntimeError):  # the store's, of a key that isn't there in time
        store.wait([f"{key}/{each}" for each in ranks], datetime.timedelta(seconds=patience()))
    return {each: store.get(f"{key}/{each}").decode() for each in ranks if store.check([f"{key}/{each}"])}


def count(key: str, more: int) -> int | None:
    """Add to a number that all ranks share, in one piece. Gives the sum; None where the store is gone, as at the end of
    the process that holds it."""
    with contextlib.suppress(RuntimeError):
        total: int = default_store().add(key, more)
        return total
    return None


def write(key: str, text: str) -> None:
    """Write a text that all ranks can read."""
    with contextlib.suppress(RuntimeError):
        default_store().set(key, text)


def read(key: str) -> str | None:
    """Such a text, which another rank is about to write; None if it doesn't."""
    store = default_store()
    with contextlib.suppress(RuntimeError):
        store.wait([key], datetime.timedelta(seconds=_ABOUT))
        text: str = store.get(key).decode()
        return text
    return None


_ABOUT = 10
"""Seconds in which a rank writes what it is about to."""


def replica_ranks() -> list[int]:
    """The ranks with a replica of the model whose forward pass DDP runs; none outside of such a pass."""
    if not torch.distributed.is_available():
        return []
    replica = private("torch.nn.parallel:DistributedDataParallel")._get_active_ddp_module()
    return torch.distributed.get_process_group_ranks(replica.process_group) if replica is not None else []


def group_ranks(name: str) -> list[int]:
    """The global ranks of a process group, by its name."""
    group = private("torch.distributed.distributed_c10d:_resolve_process_group")(name)
    return torch.distributed.get_process_group_ranks(group)


def mesh_groups(value: Any) -> tuple[str, ...]:
    """The names of the process groups over which a DTensor is distributed, one for each dimension of its mesh; none of
    another value."""
    if not is_distributed_tensor(value):
        return ()
    mesh = value.device_mesh
    return tuple(mesh.get_group(dim).group_name for dim in range(mesh.ndim))
