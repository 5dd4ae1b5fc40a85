"""What the ranks of test_gathered_codes.py run: models whose weights or activations are gathered,
with `wire="quantized"` and without."""

from __future__ import annotations

import json
import pathlib
import tempfile
from typing import Any

import torch
import torch.distributed as dist
from captured import compiled as captured
from sequence_parallel import LENGTH, WORDS, Language, parallel, step
from sharded import recorded
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor
from torch.utils.checkpoint import checkpoint

from quartet_compile import _compat
from quartet_compile import backend as backend_module
from quartet_compile.passes import backward as backward_module
from quartet_compile.process import process

SIZES = {"unsigned char": 1, "c10::BFloat16": 2, "float": 4}
"""Bytes of an element, by the profiler's name of a type."""


class Blocks(nn.Module):
    """Two residual MLPs. width, hidden: their sizes. also_read: what the gather brings is read in high precision too."""

    def __init__(self, width: int = 96, hidden: int = 101, checkpointed: bool = False, also_read: bool = False) -> None:
        super().__init__()
        self.ups = nn.ModuleList(nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.downs = nn.ModuleList(nn.Linear(hidden, width, bias=False) for _ in range(2))
        self.checkpointed, self.also_read = checkpointed, also_read

    def block(self, index: int, x: torch.Tensor) -> torch.Tensor:
        weight = self.ups[index].weight
        y = x + self.downs[index](torch.relu(nn.functional.linear(x, weight)))
        return y * weight.mean() if self.also_read else y

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for index in range(2):
            x = checkpoint(self.block, index, x, use_reentrant=False) if self.checkpointed else self.block(index, x)
        return x


def sharded(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Each parameter sharded by its rows over all ranks, and gathered where it is read, in `dtype`: FSDP by DTensor."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("data",))

    def read(name: str) -> property:
        def gathered(self: nn.Module) -> torch.Tensor:
            part = self._parameters[name]
            whole_of = part.redistribute(placements=[Replicate()], forward_dtype=dtype)
            return whole_of.to_local(grad_placements=[Partial("avg")])

        return property(gathered)

    for module in list(model.modules()):
        names = [name for name, parameter in module._parameters.items() if parameter is not None]
        for name in names:
            part = distribute_tensor(module._parameters[name].detach(), mesh, [Shard(0)])
            module._parameters[name] = nn.Parameter(part)
        if names:
            module.__class__ = type(
                f"Sharded{type(module).__name__}", (type(module),), {name: read(name) for name in names}
            )
    return model


def gathered_bytes(
    profile: torch.profiler.profile, op: str = "_c10d_functional::all_gather_into_tensor", place: int = 0
) -> int:
    """What this rank gave to all gathers. op: what the profiler calls one. place: which argument is the part."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "trace.json")
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    calls = [e["args"] for e in events if e.get("name", "").startswith(op)]
    return sum(SIZES[call["Input type"][place]] * torch.Size(call["Input Dims"][place]).numel() for call in calls)


def compared(models: Any, run: Any, **options: Any) -> dict[str, Any]:
    """`run(function, model)` gives tensors; what differs with `wire="quantized"`, and what was sent. models: makes one."""
    results, found = [], {}
    for wire in ("high", "quantized"):
        model = models()
        function, backend = captured(model, wire=wire, **options)
        run(function, model)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
            results.append(run(function, model))
        found[wire] = gathered_bytes(profile)
        gathered = [item for graph in backend.graphs for item in graph.gathered]
    found["equal"] = all(map(torch.equal, *results))
    found["sent"] = [f"{item.operand} of {item.matmul}" for item in gathered if not item.reason]
    found["kept"] = {f"{item.operand} of {item.matmul}": item.reason for item in gathered if item.reason}
    found["bytes"] = [sum(item.bytes_before for item in gathered), sum(item.bytes_after for item in gathered)]
    return found


def mine() -> torch.Tensor:
    return torch.randn(2, 24, 96, generator=torch.Generator().manual_seed(dist.get_rank()))


def trained(function: Any, model: nn.Module) -> list[torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(0)
    y = function(mine())
    y.float().square().sum().backward()
    return [y.detach(), *(p.grad.to_local() for p in model.parameters() if p.grad is not None)]


def blocks(dtype: torch.dtype | None = None, **how: Any) -> nn.Module:
    torch.manual_seed(1)
    return sharded(Blocks(**how), dtype)


class Autocast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.inner = sharded(Blocks())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.inner(x)


def language() -> nn.Module:
    torch.manual_seed(1)
    return parallel(Language(), init_device_mesh("cpu", (dist.get_world_size(),)))


def language_trained(function: Any, model: nn.Module) -> list[torch.Tensor]:
    tokens = torch.randint(WORDS, (2, LENGTH + 1), generator=torch.Generator().manual_seed(5))
    loss, gradients = step(function, model, tokens)
    return [torch.tensor(loss), *gradients.values()]


def of_world() -> dict[str, Any]:
    """What any number of processes has to show."""
    return {
        "bf16": compared(lambda: blocks(torch.bfloat16, hidden=128), trained),
        "odd sizes": compared(blocks, trained),
        "nvfp4": compared(lambda: blocks(torch.bfloat16), trained, recipe="quartet2"),
        "sequence parallel": compared(language, language_trained),
    }


def two() -> dict[str, Any]:
    """And what two show."""
    return {
        **of_world(),
        "checkpointed": compared(lambda: blocks(torch.bfloat16, checkpointed=True), trained),
        "autocast": compared(Autocast, trained),
        "also read": compared(lambda: blocks(also_read=True), trained),
    }


def uuids() -> dict[str, list[str]]:
    """Under which uuid a rank compiles weights of 102 and of 101 rows."""
    found: dict[str, list[str]] = {"even": [], "odd": []}
    original = backend_module.graph_uuid
    for name, hidden in (("even", 102), ("odd", 101)):

        def kept(*arguments: Any, name: str = name) -> str:
            found[name].append(original(*arguments))
            return found[name][-1]

        backend_module.graph_uuid = kept
        with recorded():
            torch.compile(blocks(hidden=hidden), backend="quartet")(mine())
    return found


def drawn_alike() -> dict[str, list[int]]:
    """How many process groups draw the same in each graph, where ranks have tokens of their own and under tensor
    parallelism."""
    found: dict[str, list[int]] = {"data": [], "tensor": []}
    original = backward_module.drawn_alike
    for name, models, run in (("data", blocks, trained), ("tensor", language, language_trained)):

        def kept(work: Any, name: str = name) -> Any:
            groups = original(work)
            found[name].append(len(groups))
            return groups

        backward_module.drawn_alike = kept
        model = models()
        run(captured(model)[0], model)
    return found


def by_inductor() -> dict[str, Any]:
    """The same through Inductor, with a step without gradients."""
    results = []
    for wire in ("high", "quantized"):
        torch._dynamo.reset()
        process.reports = {}
        model = blocks(torch.bfloat16)
        function = torch.compile(model, backend="quartet", options={"wire": wire})
        result = trained(function, model)
        with torch.no_grad():
            result.append(_compat.whole(function(mine())))
        results.append(result)
    graphs = [graph for reports in process.reports.values() for graph in reports]
    return {
        "equal": all(map(torch.equal, *results)),
        "sent": [len([item for item in graph.gathered if not item.reason]) for graph in graphs],
    }
