"""Compiled training in FP4 on the GPU: a small Llama, its gradients against the eager reference ops on the same GPU."""

from __future__ import annotations

import math

import captured
import pytest
import torch
import torch._dynamo
import torch._inductor.config
from compiled_ops import DEVICE, ON_GPU, assert_templates, gpu
from gpu_training import SIZE, batch, cosine, llama, loss_and_gradients
from models import Net, gradients, relative
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code

pytestmark = gpu

TEMPLATES = ("quantize", "quantize_pair", "requantize", "scaled_mm")
DTYPES = [None, torch.bfloat16]
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "autocast-bfloat16"])


def with_code(run):
    """The result of `run()`, and the code generated in it; every graph of a training step is rewritten to templates."""
    with torch._inductor.config.patch(force_disable_caches=True):  # code that a cache gives back isn't seen
        result, codes = run_and_get_code(run)
    for code in codes:
        assert_templates(code, ())
    for name in TEMPLATES:
        assert any(_has_template(code, name) for code in codes), name
    return result, codes


def _has_template(code: str, name: str) -> bool:
    try:
        assert_templates(code, (name,))
    except AssertionError:
        return False
    return True


@by_dtype
def test_gradients_are_those_of_the_eager_reference(dtype):
    """The same seeds, so the same noise: what differs is the order of sums, and codes that it flips."""
    model, data = llama(), batch()
    compiled = torch.compile(model, backend="quartet", dynamic=False)
    (loss, ours), _ = with_code(lambda: loss_and_gradients(model, compiled, *data, dtype=dtype, seed=3))
    eager, backend = captured.compiled(model)
    wanted_loss, wanted = loss_and_gradients(model, eager, *data, dtype=dtype, seed=3)
    assert sum(site.rewritten for site in captured.sites(backend)) == 7 * SIZE.layers
    assert loss.item() == pytest.approx(wanted_loss.item(), rel=2e-3)
    # bf16 autocast: Inductor keeps float32 between fused operations where eager code rounds, which flips more codes
    assert cosine(ours, wanted) > (0.99 if dtype is None else 0.95)


@pytest.fixture
def deterministic():
    """Every sum in one order. Without it an embedding's gradient, and attention's, add by atomics on a GPU."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = before


@pytest.mark.usefixtures("deterministic")
@by_dtype
def test_training_learns_and_a_seed_gives_the_same_run(dtype):
    torch._dynamo.reset()
    model, data = llama(), batch()
    compiled = torch.compile(model, backend="quartet", dynamic=False)
    start = {name: value.clone() for name, value in model.state_dict().items()}

    def run(seed: int, steps: int) -> tuple[list[float], dict[str, torch.Tensor]]:
        model.load_state_dict(start)
        optimizer = torch.optim.AdamW(model.parameters(), lr=SIZE.lr)
        torch.manual_seed(seed)
        losses = []
        for _ in range(steps):
            loss, _ = loss_and_gradients(model, compiled, *data, dtype=dtype)
            optimizer.step()
            losses.append(loss.item())
        return losses, {name: value.clone() for name, value in model.state_dict().items()}

    losses, weights = run(5, 20)
    again, same = run(5, 20)
    other, _ = run(6, 3)
    assert all(map(math.isfinite, losses))
    assert losses[0] == pytest.approx(math.log(256), abs=0.3)
    assert losses[-1] < losses[0] - 0.5
    assert losses == again
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert losses[0] == other[0]  # the noise is in backward
    assert losses[1:3] != other[1:]


@pytest.fixture
def plain_attention():
    """Attention as matmuls and a softmax, which add in one order."""
    before = [f() for f in (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.mem_efficient_sdp_enabled,
                            torch.backends.cuda.cudnn_sdp_enabled)]  # fmt: skip
    switches = (torch.backends.cuda.enable_flash_sdp, torch.backends.cuda.enable_mem_efficient_sdp,
                torch.backends.cuda.enable_cudnn_sdp)  # fmt: skip
    for switch in switches:
        switch(False)
    yield
    for switch, value in zip(switches, before, strict=True):
        switch(value)


@pytest.mark.usefixtures("plain_attention")
@pytest.mark.skipif(not ON_GPU, reason="CUDA graphs need CUDA")
def test_noise_changes_at_each_replay_of_a_cuda_graph_and_follows_the_seed():
    """The embedding is frozen, since its gradient adds by atomics, and nothing else differs between replays."""
    torch._dynamo.reset()
    counters.clear()
    model, data = llama(), batch()
    model.embed_tokens.requires_grad_(False)
    compiled = torch.compile(model, backend="quartet", mode="reduce-overhead", dynamic=False)

    def steps(count: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        torch.manual_seed(seed)
        made = []
        for _ in range(count):
            torch.compiler.cudagraph_mark_step_begin()
            made.append(loss_and_gradients(model, compiled, *data))
        return made

    steps(4, 0)  # warm-up and capture
    launched = _graph_launches(lambda: steps(1, 0))
    assert launched, "nothing was replayed from a CUDA graph"
    assert counters["inductor"]["cudagraph_skips"] == 0
    first, again, other = steps(3, 1), steps(3, 1), steps(3, 2)
    for (loss, grads), (same_loss, same_grads) in zip(first, again, strict=True):
        assert torch.equal(loss, same_loss)
        assert torch.equal(grads, same_grads)
    gradients_ = [grads for _, grads in first] + [other[0][1]]
    assert all(torch.equal(loss, first[0][0]) for loss, _ in first), "the forward pass has no noise"
    for i, a in enumerate(gradients_):
        for b in gradients_[:i]:
            assert not torch.equal(a, b)
            assert cosine(a, b) > 0.5  # other noise, the same gradient below it


def _graph_launches(run) -> int:
    """How many CUDA graphs `run()` launches."""
    launches, replay = [], torch.cuda.CUDAGraph.replay
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: launches.append(graph) or replay(graph))
        run()
    return len(launches)


def test_dynamic_lengths():
    """One compiled graph for every length, also ones that fill no group of 32."""
    model = llama()
    lengths = (96, 40, 128, 77)
    compiled = torch.compile(model, backend="quartet", dynamic=True)

    def run():
        return [loss_and_gradients(model, compiled, *batch(length), seed=length) for length in lengths]

    results, codes = with_code(run)
    assert len(codes) <= 4, f"{len(codes)} graphs; a forward and a backward one serve every length"
    for length, (loss, ours) in zip(lengths, results, strict=True):
        eager, _ = captured.compiled(model)
        wanted_loss, wanted = loss_and_gradients(model, eager, *batch(length), seed=length)
        assert loss.item() == pytest.approx(wanted_loss.item(), rel=2e-3)
        assert cosine(ours, wanted) > 0.99, length


@pytest.mark.usefixtures("deterministic")
def test_a_checkpointed_block_gives_the_same_gradients():
    """Forward codes are quantized again in backward, to the same bits."""
    results = []
    x = torch.randn(4, 50, 64, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    for checkpointing in (False, True):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = Net(checkpointing=checkpointing).to(DEVICE)
        results.append(gradients(model, x, function=torch.compile(model, backend="quartet", dynamic=False)))
    (y, plain), (y_again, checkpointed) = results
    assert torch.equal(y, y_again)
    assert plain.keys() == checkpointed.keys()
    different = {name: relative(plain[name], checkpointed[name]) for name in plain
                 if not torch.equal(plain[name], checkpointed[name])}  # fmt: skip
    assert not different
