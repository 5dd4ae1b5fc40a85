"""What the ranks of test_gathered_weights.py run: models that FSDP2 shards, with `wire="quantized"` and without."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint_module
from sharded import recorded
from told import told
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint
from wired import gathered_bytes

import quartet_compile as qc

BF16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
GATHER = "c10d::_allgather_base_"
"""What the profiler calls FSDP2's gathers at the process group."""


class Block(nn.Module):
    def __init__(self, width: int, hidden: int, checkpointed: bool) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)
        self.checkpointed = checkpointed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.checkpointed:
            return x + checkpoint(self._run, x, use_reentrant=False)
        return x + self._run(x)

    def _run(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x)))


class Blocks(nn.Module):
    def __init__(self, width: int = 96, hidden: int = 128, checkpointed: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(width, hidden, checkpointed) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Experts(nn.Module):
    """A linear and two matrices that a batched product reads, and how transformers says which way they lie."""

    is_transposed = False

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 64, 96) / 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.bmm(x.reshape(2, -1, 96), self.weight.mT)


def sharded(model: nn.Module, **how: Any) -> nn.Module:
    for layer in getattr(model, "layers", ()):
        fully_shard(layer, **how)
    return fully_shard(model, **how)


def sharded_as_a_whole(model: nn.Module, **how: Any) -> nn.Module:
    return fully_shard(model, **how)


def mine(step: int = 0) -> torch.Tensor:
    return torch.randn(2, 24, 96, generator=torch.Generator().manual_seed(100 * step + dist.get_rank()))


def trained(model: Any, steps: int = 2) -> list[torch.Tensor]:
    """Outputs, local gradients and weights of steps of SGD, then of an evaluation."""
    found, optimizer = [], torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    for step in range(steps):
        torch.manual_seed(step)
        y = model(mine(step))
        y.float().square().mean().backward()
        found += [y.detach(), *(p.grad.to_local().clone() for p in model.parameters())]
        optimizer.step()
        optimizer.zero_grad()
    found += [p.to_local().detach().clone() for p in model.parameters()]
    with torch.no_grad():
        found.append(model(mine(9)))
    return found


def accumulated(model: Any) -> list[torch.Tensor]:
    """Gradients of three microbatches, of which the last is reduced."""
    torch.manual_seed(0)
    for step in range(3):
        model.set_requires_gradient_sync(step == 2)
        model(mine(step)).float().square().mean().backward()
    return [p.grad.to_local().clone() for p in model.parameters()]


def by_quartet(model: nn.Module, wire: str, **options: Any) -> Any:
    return qc.quartet(model, wire=wire, **options)


def by_enable(model: nn.Module, wire: str, **options: Any) -> Any:
    """As a trainer that compiles blocks itself."""
    with qc.enable(model, **options):
        for layer in model.layers:
            layer.compile()
    return qc.gather_codes(model, **options) if wire == "quantized" else model


def compared(
    make: Callable[[], nn.Module],
    run: Callable[[Any], list[torch.Tensor]] = trained,
    inductor: bool = False,
    how: Callable[[], dict[str, Any]] = dict,
    shard: Callable[..., nn.Module] = sharded,
    way: Callable[..., Any] = by_quartet,
    **options: Any,
) -> dict[str, Any]:
    """What differs with `wire="quantized"`, and what was sent."""
    results, found, states = [], {}, []
    for wire in ("high", "quantized"):
        torch.manual_seed(1)
        model = shard(make(), **how())
        with recorded(inductor) as reports:
            function = way(model, wire, **options)
            with torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True
            ) as profile:
                results.append(run(function))
        found[wire] = gathered_bytes(profile, GATHER, 1)
        saved = io.BytesIO()
        torch.save(model.state_dict(), saved)
        states.append(saved.getvalue())
    found["equal"] = all(map(torch.equal, *results)) and len(results[0]) == len(results[1])
    found["state unchanged"] = states[0] == states[1]
    found["rewritten"] = sorted({site.name for graph in reports for site in graph.sites if site.rewritten})
    return found


def bf16() -> dict[str, Any]:
    return {"mp_policy": BF16}


def in_bf16() -> dict[str, Any]:
    """What any number of processes has to show."""
    return {**compared(Blocks, how=bf16), "explained": explained()}


def explained() -> dict[str, Any]:
    """What `explain` says of what is gathered, before codes are asked for and after, and whether training is the same as
    without having asked it."""
    excluded, results = ["layers.1.up"], []
    for asks in (False, True):
        torch.manual_seed(1)
        model = sharded(Blocks(), **bf16())
        with recorded():
            if asks:
                before = qc.explain(model, mine(), wire="quantized", exclude=excluded)
                plain = qc.explain(model, mine()).gathered
            qc.quartet(model, wire="quantized", exclude=excluded)
            if asks:
                report = qc.explain(model, mine())
            results.append(trained(model))
    return {
        "plain": len(plain),
        "same": before.gathered == report.gathered,
        "equal": all(map(torch.equal, *results)),
        "sent": [f"{item.operand} of {item.matmul}" for item in report.gathered if not item.reason],
        "kept": {item.matmul: item.reason for item in report.gathered if item.reason},
        "bytes": [(item.bytes_before, item.bytes_after) for item in report.gathered if not item.reason],
        "ranks": sorted({item.ranks for item in report.gathered}),
        "rewritten": sorted(site.name for site in report.sites if site.rewritten),
        "text": str(report),
    }


def replicas() -> dict[str, Any]:
    size = dist.get_world_size() // 2
    return {"mesh": init_device_mesh("cpu", (2, size), mesh_dim_names=("replicate", "shard")), "mp_policy": BF16}


def four() -> dict[str, Any]:
    return {
        "odd sizes": compared(lambda: Blocks(hidden=101)),
        "replicas": compared(Blocks, how=replicas),
        "by Inductor": compared(lambda: Blocks(checkpointed=True), how=bf16, inductor=True),
    }


def two() -> dict[str, Any]:
    return {
        "odd sizes": compared(lambda: Blocks(hidden=101)),
        "checkpointed": compared(lambda: Blocks(checkpointed=True), how=bf16),
        "stays gathered": compared(Blocks, how=lambda: {**bf16(), "reshard_after_forward": False}),
        "as a whole": compared(Blocks, how=bf16, shard=sharded_as_a_whole),
        "enabled": compared(Blocks, how=bf16, way=by_enable),
        "accumulated": compared(Blocks, accumulated, how=bf16),
        "matrices": compared(Batched, how=bf16),
        "no mask": compared(Blocks, how=bf16, recipe=qc.unrotated("quartet")),
        "nvfp4": compared(Blocks, how=bf16, recipe="quartet2"),
        "nvfp4, odd sizes": compared(lambda: Blocks(hidden=101), recipe="tetrajet2"),
        "excluded": compared(Blocks, how=bf16, exclude=["layers.1"]),
        "originals": compared(Blocks, how=bf16, recipe="mxfp8"),
        "by Inductor": compared(Blocks, how=bf16, inductor=True),
        "resumed": resumed(),
    }


class Batched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Experts()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[0](x)


def resumed() -> bool:
    """Whether a distributed checkpoint of the one is what the other takes up."""
    model, other = (sharded(Blocks(), **bf16()) for _ in range(2))
    with recorded():
        qc.quartet(model, wire="quantized")
        trained(model)
    with tempfile.TemporaryDirectory() as folder:
        folders = [folder]
        dist.broadcast_object_list(folders)
        checkpoint_module.save(model.state_dict(), checkpoint_id=folders[0])
        state = other.state_dict()
        checkpoint_module.load(state, checkpoint_id=folders[0])
        other.load_state_dict(state)
        dist.barrier()
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a.to_local(), b.to_local()) for a, b in pairs)


def errors() -> dict[str, str]:
    """What a user is told who reads a weight of which codes are gathered."""
    model = qc.gather_codes(sharded(Blocks(), **bf16()))
    found = {"eager": told(lambda: model(mine()))}
    with recorded():
        few = qc.quartet(sharded(Blocks(), **bf16()), wire="quantized")
        found["few rows"] = told(lambda: few(mine()[0, :8]))
        cast = qc.quartet(sharded(Blocks()), wire="quantized")
        with torch.autocast("cpu", torch.bfloat16):
            found["cast"] = told(lambda: cast(mine()))
        other = qc.gather_codes(sharded(Blocks(), **bf16()))
        qc.quartet(other, recipe="quartet2")
        found["other recipe"] = told(lambda: other(mine()))
    found["twice"] = told(lambda: qc.gather_codes(other, recipe=qc.unrotated("quartet")))
    found["not sharded"] = told(lambda: qc.gather_codes(Blocks()))
    ran = sharded(Blocks())
    ran(mine())
    found["late"] = told(lambda: qc.gather_codes(ran))
    return found
