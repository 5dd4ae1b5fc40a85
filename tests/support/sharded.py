"""What each rank of test_distributed.py runs; returns figures for the test to judge."""

from __future__ import annotations

import contextlib
import copy
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint_module
from captured import compiled as captured
from captured import sites
from models import Attention, Block, Net, gradients, relative
from module_swap import BackwardSeeds, QuartetLinear
from rounding import share_of_rounding
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import quartet_compile as qc
from quartet_compile import _compat
from quartet_compile.capture.capture import Capture, compile_plainly
from quartet_compile.config.options import configure


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


def whole_gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: _compat.whole(p.grad).clone() for name, p in model.named_parameters() if p.grad is not None}


def batch(seed: int = 5) -> torch.Tensor:
    """All ranks' sequences, the same everywhere."""
    return torch.randn(2 * dist.get_world_size(), 24, 64, generator=torch.Generator().manual_seed(seed))


def worst(ours: dict, plain: dict) -> float:
    assert ours.keys() == plain.keys(), plain.keys() ^ ours.keys()
    return max(relative(ours[name], plain[name]) for name in plain)


def of_rounding(ours: dict, reference: nn.Module, x: torch.Tensor, scale: float) -> float:
    """The furthest whole gradient from that of one process, over what rounding may move it."""
    scaled = {name: scale * gradient for name, gradient in ours.items()}
    return share_of_rounding(scaled, lambda: gradients(reference, x)[1])[0]


def cosine(ours: dict, plain: dict) -> float:
    a, b = (torch.cat([grads[name].flatten() for name in plain]) for grads in (ours, plain))
    return nn.functional.cosine_similarity(a, b, dim=0).item()


def averaged(ours: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The mean over all ranks, by hand."""
    for gradient in ours.values():
        dist.all_reduce(gradient)
        gradient /= dist.get_world_size()
    return ours


def backward(function: Any, model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Whole gradients of one step, with the noise of a fixed seed."""
    model.zero_grad()
    torch.manual_seed(0)
    (_compat.whole(function(x)).float() ** 2).sum().backward()
    return whole_gradients(model)


def ddp(break_graph: bool) -> dict[str, Any]:
    """Under `exact` against the whole batch on one process; and each rank's first seed."""
    world, rank = dist.get_world_size(), dist.get_rank()
    torch.manual_seed(0)
    model, x = Net(blocks=2, break_graph=break_graph, hidden=4096), torch.randn(2 * world, 25, 64)
    reference = copy.deepcopy(model)
    replica = DistributedDataParallel(model, bucket_cap_mb=1)
    function = torch.compile(replica, backend="quartet", options={"recipe": "exact"})
    with recorded(inductor=True) as reports:
        _, ours = gradients(model, x[2 * rank : 2 * rank + 2], function=function)
    torch.manual_seed(0)
    seed = torch.ops.quartet.seed(1, torch.device("cpu"), []).item()
    return {"of rounding": of_rounding(ours, reference, x, world), "seed": seed, "names": _rewritten(reports)}


def ddp_noise() -> dict[str, Any]:
    """Under `quartet` against the same replicas without DDP, op by op, and their gradients averaged by hand."""
    rank, x = dist.get_rank(), batch()
    mine = x[2 * rank : 2 * rank + 2]
    model = model_of()
    local = backward(captured(model)[0], model, mine)
    expected = averaged({name: gradient.clone() for name, gradient in local.items()})
    replica = DistributedDataParallel(model)
    function, backend = captured(replica)
    ours = backward(function, model, mine)
    again = backward(function, model, mine)
    return {
        "worst": worst(ours, expected),
        "repeats": all(torch.equal(ours[name], again[name]) for name in ours),
        "names": sorted({site.name for site in sites(backend) if site.rewritten}),
    }


def fsdp_noise() -> dict[str, Any]:
    """Under `quartet` by `regions`, against the same without sharding; and a checkpoint that loads anywhere."""
    rank, x = dist.get_rank(), batch()
    mine = x[2 * rank : 2 * rank + 2]
    reference, model = model_of(), model_of(checkpointed=True)
    torch._dynamo.reset()
    expected = averaged(backward(_by_layers(reference), reference, mine))
    torch._dynamo.reset()
    for layer in model.layers:
        fully_shard(layer)
    fully_shard(model)
    function = _by_layers(model)
    ours = backward(function, model, mine)
    again = backward(function, model, mine)
    with tempfile.TemporaryDirectory() as folder:
        folders = [folder]
        dist.broadcast_object_list(folders)
        checkpoint_module.save(model.state_dict(), checkpoint_id=folders[0])
        untouched = model_of()
        nn.init.zeros_(untouched.first.weight)
        state = untouched.state_dict()
        checkpoint_module.load(state, checkpoint_id=folders[0])
        untouched.load_state_dict(state)
        dist.barrier()
    return {
        "worst": worst(ours, expected),
        "repeats": all(torch.equal(ours[name], again[name]) for name in ours),
        "loads": all(torch.equal(a, b) for a, b in zip(untouched.parameters(), model_of().parameters(), strict=True)),
    }


def _by_layers(model: nn.Module) -> nn.Module:
    """As `qc.quartet(model, regions=["layers.*"])`, without Inductor."""
    for layer in model.layers:
        layer.compile(backend=Capture(configure({}), text=False))
    return model


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
    chosen = {"backend": "quartet", "options": {"recipe": recipe}}
    with recorded(inductor) as reports:
        if per_block:
            for layer in model.layers:
                layer.compile(**chosen)
            function = model
        else:
            function = torch.compile(model, **chosen)
        ours = backward(function, model, x[2 * rank : 2 * rank + 2])
    after = {name: (value.shape, value.dtype) for name, value in model.state_dict().items()}
    return {
        "of rounding": of_rounding(ours, reference, x, world),
        "cosine": cosine(ours, plain),
        "names": _rewritten(reports),
        "state unchanged": after == before,
        "reasons": sorted({f"{s.name}: {s.reason}" for graph in reports for s in graph.sites if not s.rewritten}),
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
    ours = backward(function, model, mine)
    again = backward(function, model, mine)
    local = model[0].weight.grad
    local = local.to_local() if isinstance(local, DTensor) else local
    return {
        "of rounding": of_rounding(ours, reference, x, data),
        "cosine": cosine(ours, plain),
        "kept": [] if backend is None else sorted({f"{s.name}: {s.reason}" for s in sites(backend) if not s.rewritten}),
        "rewritten": [] if backend is None else sorted({site.name for site in sites(backend) if site.rewritten}),
        "repeats": all(torch.equal(ours[name], again[name]) for name in ours),
        "replicated gradient": local.flatten()[:64].tolist(),
        "coordinates": list(mesh.get_coordinate()),
    }


class _Summed(torch.autograd.Function):
    """The sum over ranks of what each made of its columns; the gradient is whole already."""

    @staticmethod
    def forward(ctx, partial):
        dist.all_reduce(partial := partial.clone())
        return partial

    @staticmethod
    def backward(ctx, dy):
        return dy


class _Spread(torch.autograd.Function):
    """A whole tensor for each rank's columns; the gradient is the sum over ranks."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, dx):
        dist.all_reduce(dx := dx.clone())
        return dx


def tensor_parallel_by_hand() -> dict[str, Any]:
    """Under `quartet` against an eager model sharded by hand, whose products are an `autograd.Function` of the reference."""
    world, rank, x = dist.get_world_size(), dist.get_rank(), batch()
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(64, 64), Block())
    linears = {name: copy.deepcopy(model.get_submodule(name)) for name in ("0", "1.up", "1.down")}
    for name, part in linears.items():
        dimension = {"1.up": 0, "1.down": 1}.get(name)
        if dimension is not None:
            part.weight = nn.Parameter(part.weight.detach().chunk(world, dimension)[rank].clone())
        if name == "1.up":
            part.bias = nn.Parameter(part.bias.detach().chunk(world)[rank].clone())
    seeds = BackwardSeeds(len(linears))
    first, up, down = (
        QuartetLinear(part, qc.recipe("quartet"), seeds, site, site) for site, part in enumerate(linears.values())
    )
    torch.manual_seed(0)
    h = first(x)
    (h + _Summed.apply(down(torch.relu(up(_Spread.apply(h)))))).square().sum().backward()
    expected = {f"{name}.{kind}": p.grad for name, part in linears.items() for kind, p in part.named_parameters()}

    mesh = init_device_mesh("cpu", (world,), mesh_dim_names=("model",))
    parallelize_module(model, mesh, {"1.up": ColwiseParallel(), "1.down": RowwiseParallel()})
    function, _ = captured(model)
    model.zero_grad()
    torch.manual_seed(0)
    function(x).square().sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    local = {name: g.to_local() if isinstance(g, DTensor) else g for name, g in grads.items()}
    return {"worst": worst(local, expected)}


def policy_by_full_names() -> dict[str, Any]:
    """What `exclude` keeps by full names where DDP splits the graph into buckets, and where FSDP2 and checkpoints wrap each
    layer and each is compiled by itself."""

    def decided(reports: list) -> dict[str, Any]:
        return {"sites": {s.name: s.rewritten for graph in reports for s in graph.sites}, "graphs": len(reports)}

    found = {}
    with recorded() as reports:
        replica = DistributedDataParallel(Net(blocks=3, hidden=4096), bucket_cap_mb=1)
        qc.quartet(replica, exclude=["layers.1", "out"])(batch())
    found["ddp"] = decided(reports)
    model = model_of()
    for index, layer in enumerate(model.layers):
        model.layers[index] = checkpoint_wrapper(layer)
        fully_shard(model.layers[index])
    fully_shard(model)
    with recorded() as reports:
        qc.quartet(model, regions=["layers.*"], exclude=["layers.1.attention.*", "layers.*.mlp.up"])
        model(batch()).square().sum().backward()
    found["fsdp"] = decided(reports)
    return found


class Encoders(nn.Module):
    """Blocks of torch's own class between two linears that the model's own forward calls."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 64)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(64, 2, 96, dropout=0.0, batch_first=True) for _ in range(2)
        )

    def forward(self, x):
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        return self.last(x)


def fsdp_ways() -> dict[str, Any]:
    """FSDP2 over blocks of torch's own class, under `exact` against one process: what each way of compiling has in graphs,
    and what it warns of."""
    world, rank, x = dist.get_world_size(), dist.get_rank(), batch()
    torch.manual_seed(1)
    reference = Encoders()
    ways = {
        "quartet": lambda model: qc.quartet(model, recipe="exact"),
        "regions": lambda model: qc.quartet(model, regions=["layers.*", "first", "last"], recipe="exact"),
        "by name": lambda model: torch.compile(model, backend="quartet", options={"recipe": "exact"}),
    }
    found = {}
    for name, way in ways.items():
        model = copy.deepcopy(reference)
        for layer in model.layers:
            fully_shard(layer)
        fully_shard(model)
        state = list(model.state_dict())
        with recorded() as reports, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            function = way(model)
            ours = backward(function, model, x[2 * rank : 2 * rank + 2])
        found[name] = {
            "of rounding": of_rounding(ours, reference, x, world),
            "rewritten": _rewritten(reports),
            "told": [str(w.message) for w in caught if "ran eagerly" in str(w.message)],
            "state unchanged": list(model.state_dict()) == state,
        }
    return found


def fsdp_enabled() -> dict[str, Any]:
    """Blocks that are compiled one by one inside of `enable`, then sharded, under `exact` against one process: their names
    where `enable` knows the model, and where FSDP2 alone does."""
    world, rank, x = dist.get_world_size(), dist.get_rank(), batch()
    reference = model_of()
    found = {}
    for name in ("model", "alone"):
        model = copy.deepcopy(reference)
        with qc.enable(*([model] if name == "model" else []), recipe="exact", exclude=["layers.1.mlp.up"]):
            for layer in model.layers:
                layer.compile()
        for layer in model.layers:
            fully_shard(layer)
        fully_shard(model)
        with recorded() as reports, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ours = backward(model, model, x[2 * rank : 2 * rank + 2])
        found[name] = {
            "of rounding": of_rounding(ours, reference, x, world),
            "sites": {site.name: site.rewritten for graph in reports for site in graph.sites},
            "told": [str(w.message) for w in caught if "compiled by itself" in str(w.message)],
        }
    return found


@contextlib.contextmanager
def recorded(inductor: bool = False) -> Iterator[list]:
    """Gives the reports of what is compiled inside, which fill. With Inductor only if it is asked for."""
    reports: list = []
    with_inductor = _compat.compile_fx

    def compile_fx(gm, inputs, config_patches):
        run = config_patches["joint_custom_pre_pass"]
        run.record = reports.append
        if inductor:
            return with_inductor(gm, inputs, config_patches=config_patches)
        return compile_plainly(gm, inputs, run)

    torch._dynamo.reset()
    _compat.compile_fx = compile_fx
    try:
        with torch._inductor.config.patch(fx_graph_cache=False):  # of a cached graph there is no report
            yield reports
    finally:
        _compat.compile_fx = with_inductor
        torch._dynamo.reset()


def _rewritten(reports: list) -> list[str]:
    return sorted({site.name for graph in reports for site in graph.sites if site.rewritten})


def noise() -> dict[str, Any]:
    """The seed of each rank of a mesh of two by two, shared along its dimension `model`."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))
    torch.manual_seed(0)
    seed = torch.ops.quartet.seed(1, torch.device("cpu"), [mesh.get_group("model").group_name])
    return {"seed": seed.item(), "coordinates": list(mesh.get_coordinate())}


def two() -> dict[str, Any]:
    """Everything on two processes, but what is slow."""
    return {
        "ddp": ddp(False),
        "ddp, graph break": ddp(True),
        "ddp, quartet": ddp_noise(),
        "fsdp": fsdp("exact", per_block=False, checkpointed=False, inductor=False),
        "fsdp, blocks": fsdp("exact", per_block=True, checkpointed=True, inductor=True),
        "fsdp, bf16": fsdp("quartet", per_block=True, checkpointed=False, inductor=False, bf16=True),
        "fsdp, quartet": fsdp_noise(),
        "tensor parallel": tensor_parallel("exact", inductor=False),
        "tensor parallel, quartet": tensor_parallel("quartet", inductor=False),
        "tensor parallel, by hand": tensor_parallel_by_hand(),
        "policy": policy_by_full_names(),
        "fsdp, ways": fsdp_ways(),
        "fsdp, enabled": fsdp_enabled(),
    }


def four() -> dict[str, Any]:
    """On four processes: the mesh of two by two, and FSDP2 of four."""
    return {
        "fsdp": fsdp("exact", per_block=True, checkpointed=True, inductor=False),
        "noise": noise(),
        "mesh": tensor_parallel("exact", inductor=False, data=2),
        "mesh, quartet": tensor_parallel("quartet", inductor=False, data=2),
    }
