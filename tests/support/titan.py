"""What each rank of tests/clients/test_torchtitan.py runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch._inductor.utils as inductor_utils
import torch.distributed as dist
import torch.utils._runtime_estimation as runtime_estimation
from models import relative
from runs import Run, cosine, train
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.attention import SDPBackend

import quartet_compile as qc

torch._utils._get_available_device_type = lambda: "cpu"  # torchtitan takes "cuda" where there is no accelerator

VOCABULARY, LENGTH = 2048, 64


def model_of(name: str, parallelism: Any) -> tuple[nn.Module, Any]:
    """A small model of torchtitan's, which knows how its parts are sharded; and its function that parallelizes and
    compiles."""
    from torchtitan.models.common.attention import ScaledDotProductAttention

    if name == "llama3":
        from torchtitan.models import llama3 as module

        spec = module.model_registry("debugmodel", attn_backend="varlen")
    else:
        from torchtitan.models import qwen3 as module

        spec = module.model_registry("debugmodel_moe", attn_backend="varlen")
        spec.model.layers = few_experts(module, spec.model.dim)
    config = spec.model
    config.layers = config.layers[:2]
    for layer in config.layers:
        layer.attention.inner_attention = ScaledDotProductAttention.Config()
    config.update_from_config(config=SimpleNamespace(parallelism=parallelism))
    with torch.device("meta"):
        model = config.build()
    return model, spec.parallelize_fn


def few_experts(module: Any, dim: int) -> list[Any]:
    """Layers of qwen3's with 8 experts: the 64 of its "debugmodel_moe" take minutes a step on a CPU."""
    rope = module.CosSinRoPE.Config(dim=64, max_seq_len=4096, theta=1e6)
    heads = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 64, "fuse_qkv": True, "attn_backend": "varlen", "rope": rope}
    experts = {"num_experts": 8, "top_k": 2, "moe_hidden_dim": 128, "moe_comm_backend": "standard"}
    return module._build_qwen3_moe_layers(n_layers=2, dim=dim, **heads, **experts)


def local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def trained(
    name: str,
    enabled: dict[str, Any] | None,
    weights: list[torch.Tensor],
    *,
    shard: int = 1,
    tensor: int = 1,
    checkpointing: bool = False,
    steps: int = 8,
) -> Run:
    """weights: what to start from, each rank's own parts; where it is empty, torchtitan's, which then are in it."""
    from torchtitan.config import CompileConfig, ParallelismConfig, TrainingConfig
    from torchtitan.distributed import ParallelDims
    from torchtitan.distributed.activation_checkpoint import FullAC

    world = dist.get_world_size()
    parallelism = ParallelismConfig(
        data_parallel_shard_degree=shard, tensor_parallel_degree=tensor, spmd_backend="partial_dtensor"
    )
    dims = ParallelDims.from_config(parallelism, world)
    dims.build_mesh()
    model, parallelize = model_of(name, parallelism)
    qc.disable()
    if enabled is not None:
        qc.enable(model, **enabled)
    model = parallelize(
        model,
        parallel_dims=dims,
        training=TrainingConfig(mixed_precision_param="float32", seq_len=LENGTH),
        parallelism=parallelism,
        compile_config=CompileConfig(enable=True, components=["model"]),
        ac_config=FullAC.Config() if checkpointing else None,
        dump_folder="",
    )
    model.to_empty(device="cpu")
    torch.manual_seed(1)
    with torch.no_grad():
        model.init_states(buffer_device=torch.device("cpu"))
        parts = [local(parameter) for parameter in model.parameters()]
        for part, weight in zip(parts, weights, strict=False):
            part.copy_(weight)
        weights[:] = [part.clone() for part in parts]
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other reduction that torchtitan asks for
    tokens = torch.randint(VOCABULARY, (4, LENGTH), generator=torch.Generator().manual_seed(5))
    mine = tokens.chunk(shard)[dist.get_rank() // tensor]  # tensor parallelism is the inner dimension of the mesh

    def loss() -> torch.Tensor:
        logits = model(mine)
        logits = logits.full_tensor() if hasattr(logits, "full_tensor") else logits
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), mine[:, 1:].flatten())

    return train(model, loss, steps=steps)


def run(name: str, how: dict[str, Any]) -> dict[str, Any]:
    """Under `enable` with the whole model, against torchtitan's own compilation by Inductor. worst: of the gradients under
    `exact`, relative."""
    weights: list[torch.Tensor] = []
    plain = trained(name, None, weights, **how)
    ours = trained(name, {"exclude": ["layers.1.attention.wo"]}, weights, **how)
    exact = trained(name, {"recipe": "exact"}, weights, steps=1, **how).gradients
    return {
        "falls": ours.falls,
        "plain falls": plain.falls,
        "losses": [ours.losses, plain.losses],
        "plain": len(plain.sites),
        "cosine": cosine(ours.gradients, plain.gradients),
        "worst": max(relative(exact[key], plain.gradients[key]) for key in plain.gradients),
        "rewritten": sorted(ours.rewritten),
        "kept": sorted({f"{site.name}: {site.reason}" for site in ours.sites if not site.rewritten}),
    }


def graph_trained(steps: int = 6, **options: Any) -> dict[str, Any]:
    """Steps of GraphTrainer's: SimpleFSDP over all ranks, torchtitan's passes with its bucketing, without ours, with ours,
    and with codes over the wire. The step is traced and run as its `Trainer` does."""
    from torchtitan.config import ParallelismConfig
    from torchtitan.experiments.graph_trainer import make_fx_tracer, passes
    from torchtitan.experiments.graph_trainer.configs import GraphTrainerCompileConfig
    from torchtitan.experiments.graph_trainer.simple_fsdp import data_parallel
    from torchtitan.experiments.graph_trainer.trainer import make_fwd_bwd_step

    from quartet_compile.callbacks import graph_trainer

    for room in (inductor_utils, runtime_estimation):  # the bucketing asks how fast the GPU's memory is
        room.get_gpu_dram_gbps = lambda: 1000.0
    ways = {
        "plain": passes.construct_default_graph_passes,
        "ours": graph_trainer("tested", **options),
        "codes": graph_trainer("tested, codes", wire="quantized", **options),
    }
    tokens = torch.randint(VOCABULARY, (2, LENGTH + 1), generator=torch.Generator().manual_seed(dist.get_rank()))
    found: dict[str, Any] = {}

    def loss_of(logits: torch.Tensor, labels: torch.Tensor, global_valid_tokens: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten()) / global_valid_tokens

    for name, make in ways.items():
        parallelism = ParallelismConfig(data_parallel_shard_degree=dist.get_world_size())
        model, spec = graph_model(parallelism)
        mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("fsdp",))
        model = data_parallel(model, mesh, mode="fully_shard")
        compiled = GraphTrainerCompileConfig(disable_passes=["cudagraph_pass"])
        config = SimpleNamespace(model_spec=spec, parallelism=parallelism, compile=compiled, loss=None)
        inputs = (tokens[:, :-1], tokens[:, 1:], torch.tensor(1.0), {})
        traced = make_fx_tracer.minimal_fx_tracer(make_fwd_bwd_step(model, loss_of), module=model)(*inputs)
        if name != "plain":
            make.learn(SimpleNamespace(model_parts=[model]))
        traced.gm = passes.apply_graph_passes(
            traced.gm, traced.example_inputs, make(traced, config), compile_config=compiled
        )
        parameters = list(model.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=3e-3)
        losses, gradients = [], []
        for _ in range(steps):
            loss, *grads = make_fx_tracer.run_traced(traced, module=model)(*inputs)
            for parameter, gradient in zip(parameters, grads, strict=True):
                parameter.grad = gradient
            losses.append(loss.item())
            gradients.append(torch.cat([local(gradient).flatten() for gradient in grads]))
            optimizer.step()
        ops = [str(node.target) for node in traced.gm.graph.nodes]
        found[name] = {
            "losses": losses,
            "first": gradients[0],
            "products": sum("quartet.scaled_mm" in op for op in ops),
            "gathers": sum("all_gather_into_tensor" in op for op in ops),
        }
    first = [found[name].pop("first") for name in ways][:2]
    found["cosine"] = nn.functional.cosine_similarity(*first, dim=0).item()
    sites = [site for graph in ways["ours"].graphs for site in graph.sites]
    found["names"] = sorted({site.name for site in sites if site.rewritten})
    return found


def graph_model(parallelism: Any) -> tuple[nn.Module, Any]:
    """A small llama of GraphTrainer's with weights of its own, and what it is made of."""
    from torchtitan.experiments.graph_trainer.llama3 import model_registry
    from torchtitan.models.common.attention import ScaledDotProductAttention

    spec = model_registry("debugmodel", attn_backend="varlen")
    spec.model.layers = spec.model.layers[:2]
    for layer in spec.model.layers:
        layer.attention.inner_attention = ScaledDotProductAttention.Config()
    spec.model.update_from_config(config=SimpleNamespace(parallelism=parallelism))
    with torch.device("meta"):
        model = spec.model.build()
    model.to_empty(device="cpu")
    torch.manual_seed(1)
    with torch.no_grad():
        model.init_states(buffer_device=torch.device("cpu"))
    for module in model.modules():
        if isinstance(module, ScaledDotProductAttention):
            module.sdpa_backends = [
                SDPBackend.MATH
            ]  # a CPU's other one draws random numbers, which may not be recomputed
    return model, spec
