"""torch's own product of quantized operands on the GPU, where it is a choice, beside our template: both within accumulation
error of float64. It has run on no GPU so far."""

from __future__ import annotations

import generated_ops
import pytest
import torch
from compiled_ops import ON_GPU, accumulation_error, assert_within, gpu, run_compiled

from quartet_compile.kernels.architectures import LIBRARY_VARIABLE, architecture
from quartet_compile.kernels.library import IN_ROWS, LIBRARY_PRODUCTS
from quartet_compile.kernels.numerics import reference
from quartet_compile.kernels.quantizer import quantizer

pytestmark = gpu
quartet = torch.ops.quartet
BF16 = torch.bfloat16
SHAPES = ((257, 128, 1024), (33, 80, 96), (128, 96, 544))
"""M, N, K."""

OPERANDS = {
    "mxfp4": ("mxfp4", "mxfp4", 1.0),
    "nvfp4": ("nvfp4", "nvfp4", 16 / 9),
    "mxfp8": ("mxfp8", "mxfp8", 1.0),
    "mxfp4 in FP8": ("mxfp4", IN_ROWS, 16 / 9),
    "mxfp4 beyond FP8": ("mxfp4_wide", IN_ROWS, 16 / 9),
}
"""What makes them, the entry of `LIBRARY_PRODUCTS`, and the factor."""


def assert_product(result, a, b, factor, codes):
    """Within accumulation error, and two roundings."""
    x, y = (reference.decode(blocks, quantizer("mxfp4-quest")).double() for blocks in (a, b))
    exact, magnitudes = factor * (x @ y.t()), factor * (x.abs() @ y.abs().t())
    added = accumulation_error(codes, x.shape[1]) * magnitudes
    assert_within(result, exact, added + torch.finfo(BF16).eps * (exact.abs() + added))


@pytest.fixture
def on_this_gpu():
    return architecture(torch.cuda.get_device_capability()) if ON_GPU else "a trial on the CPU"


@pytest.mark.parametrize("use", ["always", "never"])
@pytest.mark.parametrize("case", OPERANDS)
def test_scaled_mm(monkeypatch, on_this_gpu, case, use):
    made_by, entry, factor = OPERANDS[case]
    if ON_GPU and on_this_gpu not in LIBRARY_PRODUCTS[entry].architectures:
        pytest.skip(f"torch's library has no product of {entry} on {on_this_gpu}")
    monkeypatch.setenv(LIBRARY_VARIABLE, use)
    make = getattr(generated_ops, made_by)
    pairs = [(make(m, k, 1), make(n, k, 2)) for m, n, k in SHAPES]
    number_format = pairs[0][0].format
    results, codes = run_compiled(
        lambda *x: quartet.scaled_mm(*x[:3], number_format, *x[3:], number_format, factor, BF16),
        [(*a[:3], *b[:3]) for a, b in pairs],
        [],
        dynamic=False,
    )
    if ON_GPU:
        assert all(("extern_kernels.quartet_library_mm" in code) == (use == "always") for code in codes)
    for result, (a, b) in zip(results, pairs, strict=True):
        assert_product(result, a, b, factor, codes)


def test_inductor_measures_both(monkeypatch):
    """Whichever is faster: the product is right."""
    monkeypatch.setenv(LIBRARY_VARIABLE, "measured")
    a, b = generated_ops.nvfp4(256, 512, 1), generated_ops.nvfp4(128, 512, 2)

    def product(*x):
        return quartet.scaled_mm(*x[:3], "nvfp4", *x[3:], "nvfp4", 1.0, BF16)

    with torch._inductor.config.patch(max_autotune=True):
        (result,), codes = run_compiled(product, [(*a[:3], *b[:3])], [], dynamic=False)
    assert_product(result, a, b, 1.0, codes)
