"""torch's older `FullyShardedDataParallel`, which accelerate and Lightning may use, in a group of one: the pass alone."""

from __future__ import annotations

import pytest
import torch
from captured import compiled, sites
from models import Attention, Block, gradients
from rounding import assert_rounding, step
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's, that there is FSDP2

PARTS = ["0.k_proj", "0.o_proj", "0.q_proj", "0.v_proj", "1.down", "1.up", "2"]


@pytest.fixture(autouse=True)
def _one_process(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(Attention(), Block(), nn.Linear(64, 64))


def sharded(model: nn.Module, **how: object) -> nn.Module:
    return FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"), **how)


def whole_step(model: nn.Module, x: torch.Tensor, function: object) -> dict[str, torch.Tensor]:
    """The output, and the gradients by the names of the model inside."""
    y, _ = gradients(model, x, function=function)
    with FullyShardedDataParallel.summon_full_params(model, with_grads=True):
        found = {name.replace("_orig_mod.", ""): p.grad.clone() for name, p in model.named_parameters()}
    return {"output": y, **found}


@pytest.mark.parametrize("way", ["inside", "outside"])
def test_every_weight_is_in_fp4_and_the_gradients_are_those_of_one_process(way):
    """Compiled inside of FSDP1, names are full; around it, its hooks break the graph at each block, where names start."""
    model, x = net(), torch.randn(2, 24, 64)
    policy = ModuleWrapPolicy({Attention, Block})
    if way == "inside":
        function, backend = compiled(net(), recipe="exact")
        parallel = function = sharded(function)
    else:
        parallel = sharded(net(), auto_wrap_policy=policy)
        function, backend = compiled(parallel, recipe="exact")
    ours = whole_step(parallel, x, function)
    assert_rounding(ours, lambda: step(model, x))
    names = sorted(site.name for site in sites(backend) if site.rewritten)
    assert names == (PARTS if way == "inside" else sorted(name.rpartition(".")[2] for name in PARTS[:-1]))


def test_evaluation_and_mixed_precision_are_in_fp4_too():
    function, backend = compiled(net())
    parallel = sharded(function, mixed_precision=MixedPrecision(param_dtype=torch.bfloat16))
    with torch.no_grad():
        evaluated = parallel(torch.randn(2, 24, 64))
    assert evaluated.dtype == torch.bfloat16
    assert sorted(site.name for site in sites(backend) if site.rewritten) == PARTS


def test_a_view_of_a_parameter_that_is_an_input_is_no_weight():
    """Latents are a parameter of FSDP1's too, and reach a block that is compiled by itself as its input."""

    class Latents(nn.Module):
        def __init__(self, part) -> None:
            super().__init__()
            self.latents, self.part = nn.Parameter(torch.randn(1, 24, 64)), part

        def forward(self, x):
            return self.part(self.latents.expand(2, -1, -1)) + x

    function, backend = compiled(Block())
    sharded(Latents(function))(torch.randn(2, 24, 64)).sum().backward()
    assert sorted(site.name for site in sites(backend) if site.rewritten) == ["down", "up"]
