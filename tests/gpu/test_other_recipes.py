"""Every quantizer, product and recipe but plain MXFP4's (test_ops.py, test_training.py) on the GPU, as Inductor compiles it:
the quantizers bit for bit the reference on the CPU, the products within accumulation error of float64."""

from __future__ import annotations

import itertools

import captured
import generated_ops
import pytest
import torch
import torch._dynamo
from block_cases import CASES
from compiled_ops import HAS_FP4, assert_grouped, assert_within, float32_reductions, gpu, run_compiled  # noqa: F401  (a fixture)
from generated_ops import expected_templates
from gpu_training import batch, cosine, llama, loss_and_gradients

from quartet_compile.kernels.numerics import reference
from quartet_compile.kernels.quantizer import quantizer

pytestmark = gpu
quartet = torch.ops.quartet

FORMS = ["nvfp4", "mxfp8"]

BF16, FP32 = torch.bfloat16, torch.float32


@pytest.mark.parametrize("case", CASES)
def test_bits(case):
    op, arguments, x, _ = CASES[case]
    call, inputs, expected = getattr(generated_ops, op)(*arguments, generated_ops.operand(*x))
    (result,), _ = run_compiled(call, [inputs], expected_templates(op, arguments), dynamic=False)
    for got, want in zip(map(generated_ops.raw, result), map(generated_ops.raw, expected), strict=True):
        assert torch.equal(got, want)


@pytest.mark.usefixtures("float32_reductions")
@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
@pytest.mark.parametrize("made_by", [*FORMS, "mixed"])
def test_scaled_mm(made_by, dtype):
    """Exact products, sums in float32 (each addition off by 2^-23 of all that is summed, as tensor cores truncate), then at
    most two roundings to `dtype`."""
    alpha, make = 16 / 9, getattr(generated_ops, made_by)
    pairs = [(make(m, k, 1), make(n, k, 2)) for m, n, k in ((257, 128, 1024), (33, 72, 96), (128, 96, 544))]
    native = made_by != "mixed" and HAS_FP4
    formats = [blocks.format for blocks in pairs[0]]
    results, _ = run_compiled(
        lambda *x: quartet.scaled_mm(*x[:3], *formats[:1], *x[3:], *formats[1:], alpha, dtype),
        [(*a[:3], *b[:3]) for a, b in pairs],
        ["scaled_mm"] if native else [],
    )
    for result, (a, b) in zip(results, pairs, strict=True):
        x, y = (reference.decode(blocks, quantizer("mxfp4-quest")).double() for blocks in (a, b))
        exact, magnitudes = alpha * (x @ y.t()), alpha * (x.abs() @ y.abs().t())
        added = (x.shape[1] + 8) * 2.0**-23 * magnitudes
        assert result.dtype == dtype
        assert_within(result, exact, added + torch.finfo(dtype).eps * (exact.abs() + added))


@pytest.mark.parametrize("gemm", ["fprop", "dgrad", "wgrad"])
@pytest.mark.parametrize("made_by", FORMS)
def test_scaled_grouped_mm(made_by, gemm):
    seeds = itertools.count()
    assert_grouped(gemm, lambda *shape: getattr(generated_ops, made_by)(*shape, next(seeds)))


@pytest.mark.parametrize("recipe", ["quartet2", "nvfp4-4over6", "tetrajet2", "mxfp4-bwd", "mxfp8", "jetfire-fp4"])
def test_gradients_are_those_of_the_eager_reference(recipe):
    """The same seeds, so the same noise: what differs is the order of sums, and codes that it flips."""
    torch._dynamo.reset()
    model, data = llama(), batch()
    compiled = torch.compile(model, backend="quartet", dynamic=False, options={"recipe": recipe})
    loss, ours = loss_and_gradients(model, compiled, *data, seed=3)
    eager, backend = captured.compiled(model, recipe=recipe)
    wanted_loss, wanted = loss_and_gradients(model, eager, *data, seed=3)
    assert any(site.rewritten for site in captured.sites(backend))
    assert loss.item() == pytest.approx(wanted_loss.item(), rel=2e-3)
    assert cosine(ours, wanted) > 0.99
