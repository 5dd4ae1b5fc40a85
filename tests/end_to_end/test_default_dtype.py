"""`torch.set_default_dtype` and `torch.set_default_device` are the user's: they change no bit of what runs here."""

from __future__ import annotations

import contextlib
import functools

import pytest
import torch
from captured import compiled, sites
from cpu_cases import ROUNDING, SEED, SIGN_SEED, STREAM, built_for, calm
from models import Block, gradients

from quartet_compile import recipes
from quartet_compile.kernels import cpu
from quartet_compile.kernels.cpu import decoded
from quartet_compile.kernels.cpu.toolchain import supported_isas
from quartet_compile.kernels.numerics import reference
from quartet_compile.kernels.quantizer import QUANTIZERS, Quantizer
from quartet_compile.kernels.stats import _BACKENDS, of_gradient, of_operand

OTHERS = (torch.bfloat16, torch.float64)


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def slow(names: list[str]) -> list:
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


BEST, *LESSER = supported_isas()


@pytest.fixture(scope="module", params=["reference", BEST, *slow(LESSER[:-1]), *LESSER[-1:]])
def backend(request):
    """`"reference"`, or the instruction set that the CPU kernels were built for."""
    with contextlib.nullcontext() if request.param == "reference" else built_for(request.param):
        yield request.param


@pytest.fixture(scope="module", params=[BEST, *slow(LESSER)])
def isa(request):
    with built_for(request.param):
        yield request.param


every_quantizer = pytest.mark.parametrize("name", [*ROUNDING, "exact-fixed", "exact-random"])


@functools.cache
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return calm(70, 300), calm(300, 70)


def quantizer_of(name: str) -> Quantizer:
    return ROUNDING.get(name) or QUANTIZERS[name]


def products_of(backend: str, name: str) -> list[torch.Tensor]:
    """Everything that a backend makes of two matrices: codes, scales, products, values and statistics."""
    spec, (x, w), run = quantizer_of(name), inputs(), reference if backend == "reference" else cpu
    seeds = dict(stream=STREAM, seed=SEED, sign_seed=SIGN_SEED)
    a, b = run.quantize(x, spec, mask=True, **seeds), run.quantize(w, spec, transpose=True, **seeds)
    again = run.requantize(a, spec, spec, **seeds)
    pair = run.quantize_pair(x, spec, spec, seed=SEED, sign_seed=SIGN_SEED)
    product = run.scaled_mm(a, b, -16 / 9, torch.float32)
    padded = a.codes.shape[1] * (2 if a.codes.dtype == torch.uint8 else 1)
    values = x.new_full((70, padded), 0.3)
    found = [t for made in (a, b, again, *pair) for t in made.tensors]
    found += [product, run.unrotate(values, a.mask, spec.rotation, 299)]
    if spec.group_rows > 1:
        found += run.transposed(a, spec).tensors
    decode = reference.decode(a, spec) if run is reference else decoded.decode(a, spec.shrink)
    how = dict(transpose=False, stream=STREAM, sign_seed=SIGN_SEED)
    which = _BACKENDS["CPU" if run is cpu else "CUDA"]
    for matrix in (x, x[:0]):
        part = run.quantize(matrix, spec, **seeds)
        found += of_operand(matrix, part, spec, backend=which, **how)
        found.append(of_gradient(matrix, matrix.roll(1)))
    return [t for t in (*found, decode) if t is not None]


@functools.cache
def under_float32(backend: str, name: str) -> list[torch.Tensor]:
    return products_of(backend, name)


def assert_equal_bits(actual: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    for i, (a, b) in enumerate(zip(actual, wanted, strict=True)):
        assert (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device), i
        a, b = (t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
        assert torch.equal(a, b), i


@every_quantizer
def test_no_op_depends_on_the_default_dtype(backend, name):
    for dtype in OTHERS:
        with default_dtype(dtype):
            assert_equal_bits(products_of(backend, name), under_float32(backend, name))


@pytest.mark.parametrize("name", ["mxfp4-quest", "mxfp4-eden", "nvfp4-eden", "nvfp4-rtn-2d", "mxfp8", "exact-random"])
def test_no_op_depends_on_the_default_device(backend, name):
    """What is made without a device would have no values here."""
    wanted = under_float32(backend, name)
    with torch.device("meta"):
        found = products_of(backend, name)
    assert_equal_bits(found, wanted)


@functools.cache
def model() -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(1)
    return torch.nn.Sequential(Block(), Block()), torch.randn(50, 64)


@functools.cache
def trained_under_float32(recipe: str, isa: str) -> list[torch.Tensor]:
    return trained(recipe)


def trained(recipe: str) -> list[torch.Tensor]:
    """Output and gradients, by the rewritten graphs as they are."""
    net, x = model()
    function, backend = compiled(net, recipe=recipe)
    y, g = gradients(net, x, function=function)
    assert all(site.rewritten for site in sites(backend)) is (recipe != "bf16")
    return [y, *g.values()]


@pytest.mark.parametrize("recipe", recipes())
def test_no_gradient_depends_on_the_default_dtype(recipe, isa):
    wanted = trained_under_float32(recipe, isa)
    for dtype in OTHERS:
        with default_dtype(dtype):
            assert_equal_bits(trained(recipe), wanted)
