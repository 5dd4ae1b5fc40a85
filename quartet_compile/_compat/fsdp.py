"""FSDP2: its records of parameters, and what it gathers instead of them.

FSDP2 asks the local part of a parameter for two functions, `fsdp_pre_all_gather` and `fsdp_post_all_gather`: what to gather,
and what to make of it. Here its record of the parameter answers for the part, which stays an ordinary tensor: so do the
state dict, the optimizer and checkpoints.
"""

from __future__ import annotations

import functools
from typing import Any, Protocol

import torch

from .distributed import fsdp_groups, fsdp_state, is_fully_sharded
from .installed import private

_PARAMETER = "torch.distributed.fsdp._fully_shard._fsdp_param:FSDPParam"
_SHARDED = "torch.distributed.fsdp._fully_shard._fsdp_common:FSDPMeshInfo"


class Parcel(Protocol):
    """What goes over the wire instead of a parameter. Two are equal if they send the same."""

    def sent(self, part: torch.Tensor, group: Any) -> tuple[torch.Tensor, ...]:
        """Made of a rank's part, in the dtype that FSDP2 would gather. group: of the ranks that have the other parts."""

    def received(self, gathered: tuple[torch.Tensor, ...], size: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        """The parameter, of this size and dtype, from what all ranks sent; it must share their memory."""


def fsdp_parameters(model: torch.nn.Module) -> dict[tuple[torch.nn.Module, str], Any]:
    """FSDP2's record of each parameter of a model, by the module and its name there; of a shared one, each of its places."""
    found: dict[tuple[torch.nn.Module, str], Any] = {}
    for module in model.modules():
        for group in fsdp_groups(module):
            for record in group.fsdp_params:
                info = record._module_info
                shared = zip(info.shared_modules, info.shared_param_names, strict=True)
                found |= dict.fromkeys([(info.module, info.param_name), *shared], record)
    return found


def fsdp_boxes(model: torch.nn.Module) -> list[dict | list]:
    """What FSDP2 remembers of a model: the attributes of its objects, and the dicts and lists among them."""
    objects: dict[int, Any] = {}
    for module in filter(is_fully_sharded, model.modules()):
        state = fsdp_state(module)
        groups = fsdp_groups(module)
        contexts = [
            state._state_ctx,
            state._comm_ctx,
            *(group.comm_ctx for group in groups if hasattr(group, "comm_ctx")),
        ]
        records = [record for group in groups for record in group.fsdp_params]
        objects |= {id(each): each for each in (state, *contexts, *groups, *records)}
    boxes = [vars(each) for each in objects.values()]
    return [*boxes, *(value for box in boxes for value in box.values() if type(value) in (dict, list))]


def fsdp_ranks(model: torch.nn.Module) -> set[int]:
    """The ranks with which FSDP2 shards or replicates parameters of a model."""
    meshes = {id(record.mesh_info): record.mesh_info.mesh for record in fsdp_parameters(model).values()}
    return {each for mesh in meshes.values() for each in mesh.mesh.flatten().tolist()}


def why_no_parcel(record: Any) -> str:
    """Why FSDP2 has to gather a parameter as it is; empty if it hasn't."""
    mesh, after = record.mesh_info, record.post_forward_mesh_info
    if not isinstance(mesh, private(_SHARDED)) or mesh.shard_mesh_size == 1:
        return "each rank has all of it"
    if record._module_info.shared_modules:
        return "it is tied to another parameter"
    if record.is_dtensor:
        return "tensor parallelism shards it too"
    if record.fsdp_placement.dim != 0:
        return f"its dimension {record.fsdp_placement.dim} is sharded; expected its rows"
    if record.offload_to_cpu:
        return "it is offloaded to the CPU"
    if after is not None and after.shard_mesh_size != mesh.shard_mesh_size:
        return "reshard_after_forward is a number"
    return ""


def shard_ranks(record: Any) -> int:
    """Over how many ranks a parameter is sharded, from which it is gathered."""
    mesh = record.mesh_info
    size: int = mesh.shard_mesh_size if isinstance(mesh, private(_SHARDED)) else 1
    return size


def gathered_dtype(record: Any) -> torch.dtype:
    """The dtype in which FSDP2 gathers a parameter."""
    dtype: torch.dtype = record.mp_policy.param_dtype or record.sharded_param.dtype
    return dtype


def was_gathered(record: Any) -> bool:
    """Whether a parameter was gathered before, so that what is gathered of it can't change any more."""
    return hasattr(record, "_unsharded_param")


def parcel_of(record: Any) -> Parcel | None:
    """What is gathered instead of a parameter; None of one that is gathered as it is."""
    return record._quartet_part.parcel if isinstance(record, _sending()) else None


def send_parcel(record: Any, parcel: Parcel) -> None:
    """Gather something else instead of a parameter from now on."""
    record._quartet_part = _Part(record, parcel)
    record.__class__ = _sending()
    record._init_extensions()


class _Part:
    """What FSDP2 takes for a rank's part of a parameter when it gathers."""

    def __init__(self, record: Any, parcel: Parcel) -> None:
        self._record, self.parcel = record, parcel

    def size(self) -> torch.Size:
        """With the rows that the last ranks are short of, which are sent too."""
        size: torch.Size = self._record.padded_sharded_param_size
        return size

    def fsdp_pre_all_gather(
        self, mesh: Any, outer_size: Any, outer_stride: Any, module: Any, mp_policy: Any
    ) -> tuple[tuple[torch.Tensor, ...], None]:
        part = self._record._sharded_param_data.view(self.size())
        return self.parcel.sent(part.to(gathered_dtype(self._record)), mesh.get_group()), None

    def fsdp_post_all_gather(
        self, gathered: tuple[torch.Tensor, ...], metadata: None, dtype: torch.dtype, *, out: Any = None
    ) -> tuple[torch.Tensor, tuple[()]] | None:
        if out is not None:  # it shares the memory of what was gathered
            return None
        return self.parcel.received(gathered, self._record._orig_size, dtype), ()


@functools.cache
def _sending() -> type:
    class Sending(private(_PARAMETER)):  # type: ignore[misc]
        @property
        def _sharded_local_tensor(self) -> Any:
            return self._quartet_part

    return Sending
