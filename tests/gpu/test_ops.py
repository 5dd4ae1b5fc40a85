"""Every op on the GPU, as Inductor compiles it, against the reference on the CPU: codes, scales and masks bit for bit."""

from __future__ import annotations

import pytest
import torch
from compiled_ops import (  # noqa: F401  (a fixture)
    DEVICE,
    HAS_FP4,
    ON_GPU,
    assert_grouped,
    assert_within,
    float32_reductions,
    gpu,
    product_bound,
    run_compiled,
)
from cpu_cases import assert_same, awkward
from products import random_blocks

from quartet_compile.kernels.numerics import philox, reference
from quartet_compile.kernels.numerics.reference import Blocks
from quartet_compile.kernels.quantizer import Quantizer, padded, quantizer

pytestmark = gpu
quartet = torch.ops.quartet

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
SHAPES = ((257, 544), (33, 100), (1000, 31))  # the first is the one that is compiled for
STREAM = philox.WGRAD_X
SEEDS = torch.tensor([[0x123456789ABCDEF, -77], [5, 2**63 - 1], [-1, 0]])

every_quantizer = pytest.mark.parametrize("name", ["mxfp4-quest", "mxfp4-rtn", "mxfp4-sr"])
every_dtype = pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)


def quantize_op(name: str, transpose: bool, mask: bool):
    def quantize(x, seed, sign_seed):
        return quartet.quantize(x, name, transpose, mask, STREAM, seed, sign_seed)

    return quantize


def quantize_template(transpose: bool) -> str:
    return "quantize_transposed" if transpose else "quantize"


def pair_op(rows: str, columns: str):
    def quantize_pair(dy, seed, sign_seed):
        return quartet.quantize_pair(dy, rows, columns, seed, sign_seed)

    return quantize_pair


def assert_quantized(
    result, x, name: str, seeds, *, transpose: bool = False, mask: bool = False, stream=STREAM
) -> None:
    wanted = reference.quantize(
        x, quantizer(name), transpose=transpose, mask=mask, stream=stream, seed=seeds[0], sign_seed=seeds[1]
    )
    assert_same(Blocks(*result, wanted.format), wanted)


def assert_pair(result, dy, rows: str, columns: str, seeds) -> None:
    wanted = reference.quantize_pair(dy, quantizer(rows), quantizer(columns), seed=seeds[0], sign_seed=seeds[1])
    for got, blocks in zip((result[:3], result[3:]), wanted, strict=True):
        assert_same(Blocks(*got, blocks.mask, blocks.format), blocks)


def operands(dtype: torch.dtype, shapes=SHAPES) -> list[torch.Tensor]:
    """Matrices with a row for everything that has a rule of its own, and ones of normal values."""
    return [awkward(*shape, dtype) for shape in shapes] + [torch.randn(shape).to(dtype) for shape in shapes]


def views() -> list[torch.Tensor]:
    """bf16 matrices in strides other than contiguous; the last two are of stride 0, as the gradient of a sum is."""
    x = awkward(130, 200, BF16)
    return [x.t(), x[:, 7:139], x[3::2], x[4].expand(40, 200), x[:, :1].expand(130, 70)]


@every_quantizer
@pytest.mark.parametrize("transpose", [False, True], ids=["plain", "transposed"])
@every_dtype
def test_quantize(name, transpose, dtype):
    mask = name != "mxfp4-sr"
    cases = [(x, *seeds) for x in operands(dtype) for seeds in SEEDS]
    results, codes = run_compiled(quantize_op(name, transpose, mask), cases, [quantize_template(transpose)])
    assert len(codes) <= 2  # sizes are arguments of the kernel
    for result, (x, *seeds) in zip(results, cases, strict=True):
        assert_quantized(result, x, name, seeds, transpose=transpose, mask=mask)


@pytest.mark.parametrize("transpose", [False, True], ids=["plain", "transposed"])
def test_quantize_one_row_or_column(transpose):
    cases = [(awkward(*shape, BF16), *SEEDS[0]) for shape in ((1, 32), (1, 1000), (200, 1))]
    results, _ = run_compiled(quantize_op("mxfp4-quest", transpose, True), cases, [quantize_template(transpose)])
    for result, (x, *seeds) in zip(results, cases, strict=True):
        assert_quantized(result, x, "mxfp4-quest", seeds, transpose=transpose, mask=True)


@pytest.mark.parametrize("transpose", [False, True], ids=["plain", "transposed"])
def test_quantize_any_strides(transpose):
    cases = [(x, *SEEDS[0]) for x in views()]
    results, _ = run_compiled(quantize_op("mxfp4-sr", transpose, False), cases, [quantize_template(transpose)])
    for result, (x, *seeds) in zip(results, cases, strict=True):
        assert_quantized(result, x, "mxfp4-sr", seeds, transpose=transpose)


def test_quantize_static_sizes():
    """As a training step compiles it: the sizes are constants, here ones that fill no tile."""
    x = awkward(129, 1000, BF16)
    (result,), _ = run_compiled(quantize_op("mxfp4-quest", False, True), [(x, None, None)], ["quantize"], dynamic=False)
    assert_quantized(result, x, "mxfp4-quest", (None, None), mask=True)


def test_quantize_nothing():
    for shape in ((0, 32), (40, 0)):
        x = torch.empty(shape)
        (result,), _ = run_compiled_call(quantize_op("mxfp4-quest", False, True), x)
        assert_quantized(result, x, "mxfp4-quest", (None, None), mask=True)


def run_compiled_call(function, x):
    """Without elements there is no kernel to launch: the op itself is called."""
    result = torch.compile(function, fullgraph=True, dynamic=False)(x.to(DEVICE), None, None)
    return [tuple(part.cpu() for part in result)], None


def test_quantize_what_is_computed_before():
    """A pointwise producer, exact in bf16 and so the same whether or not it is rounded between, joins the template."""

    def function(x):
        return quartet.quantize(torch.relu(x) * -2, "mxfp4-quest", False, True, STREAM, None, None)

    cases = [(torch.randn(shape).to(BF16),) for shape in SHAPES]
    results, codes = run_compiled(function, cases, ["quantize"])
    for result, (x,) in zip(results, cases, strict=True):
        assert_quantized(result, torch.relu(x) * -2, "mxfp4-quest", (None, None), mask=True)
    if ON_GPU:
        assert all(code.count("async_compile.triton(") == 1 for code in codes), "the producer has a kernel of its own"


@every_dtype
def test_quantize_pair(dtype):
    cases = [(x, *seeds) for x in operands(dtype) for seeds in SEEDS]
    results, _ = run_compiled(pair_op("mxfp4-sr", "mxfp4-sr"), cases, ["quantize_pair"])
    for result, (x, *seeds) in zip(results, cases, strict=True):
        assert_pair(result, x, "mxfp4-sr", "mxfp4-sr", seeds)


@pytest.mark.parametrize("rows, columns", [("mxfp4-rtn", "mxfp4-sr"), ("mxfp4-sr", "mxfp4-quest")])
def test_quantize_pair_of_two_kinds(rows, columns):
    cases = [(x, *SEEDS[1]) for x in operands(BF16)]
    results, _ = run_compiled(pair_op(rows, columns), cases, ["quantize_pair"])
    for result, (x, *seeds) in zip(results, cases, strict=True):
        assert_pair(result, x, rows, columns, seeds)


def test_quantize_pair_any_strides():
    cases = [(x, *SEEDS[0]) for x in (*views(), awkward(1, 96, BF16))]
    results, _ = run_compiled(pair_op("mxfp4-sr", "mxfp4-sr"), cases, ["quantize_pair"])
    for result, (x, *seeds) in zip(results, cases, strict=True):
        assert_pair(result, x, "mxfp4-sr", "mxfp4-sr", seeds)


def sources() -> list[Blocks]:
    """Random codes under every scale, the subnormal, the overflowing and the NaN ones among them."""
    generator, made = torch.Generator().manual_seed(1), []
    for rows, groups in ((257, 17), (31, 3), (64, 8)):
        codes = torch.randint(0, 256, (rows, groups * 16), generator=generator, dtype=torch.uint8)
        near = torch.randint(118, 130, (rows, groups), generator=generator, dtype=torch.uint8)
        extreme = torch.arange(rows * groups).reshape(rows, groups).to(torch.uint8)
        for scales in (near, extreme, extreme % 3, torch.where(extreme % 16 == 0, extreme, near)):
            made.append(Blocks(codes, scales, torch.empty(0), None, "mxfp4"))
    return made


@pytest.mark.parametrize(
    "source, name", [("mxfp4-quest", "mxfp4-sr"), ("mxfp4-rtn", "mxfp4-sr"), ("mxfp4-quest", "mxfp4-rtn")]
)
def test_requantize(source, name):
    def requantize(codes, scales, tensor_scale, seed, sign_seed):
        return quartet.requantize(codes, scales, tensor_scale, source, name, STREAM, seed, sign_seed)

    cases = [(*blocks[:3], *SEEDS[0]) for blocks in sources()]
    results, _ = run_compiled(requantize, cases, ["requantize"])
    for result, (codes, scales, tensor_scale, seed, sign_seed) in zip(results, cases, strict=True):
        before = Blocks(codes, scales, tensor_scale, None, "mxfp4")
        seeds = dict(seed=seed, sign_seed=sign_seed)
        wanted = reference.requantize(before, quantizer(source), quantizer(name), stream=STREAM, **seeds)
        assert_same(Blocks(*result, wanted.mask, wanted.format), wanted)


def factors() -> list[tuple[Blocks, Blocks]]:
    """Pairs `a: [M, K]`, `b: [N, K]`; the second has a NaN group on either side, the last has rows whose scales lie too far
    apart for FP8 with one scale a row."""
    torch.manual_seed(3)
    pairs = [(random_blocks(m, k), random_blocks(n, k)) for m, n, k in ((257, 128, 1024), (33, 65, 96), (128, 96, 544))]
    pairs[1][0].scales[5, 1] = 255
    pairs[1][1].scales[40, 0] = 255
    pairs.append((random_blocks(130, 128, 90, 140), random_blocks(70, 128)))
    return pairs


@pytest.mark.usefixtures("float32_reductions")
@pytest.mark.parametrize("dtype, alpha", [(BF16, 1.0), (BF16, 16 / 9), (FP32, 16 / 9)], ids=str)
def test_scaled_mm(dtype, alpha):
    def scaled_mm(a, a_scales, a_tensor_scale, b, b_scales, b_tensor_scale):
        return quartet.scaled_mm(
            a, a_scales, a_tensor_scale, "mxfp4", b, b_scales, b_tensor_scale, "mxfp4", alpha, dtype
        )

    pairs = factors()
    results, codes = run_compiled(scaled_mm, [(*a[:3], *b[:3]) for a, b in pairs], ["scaled_mm"])
    for result, (a, b) in zip(results, pairs, strict=True):
        assert result.dtype == dtype
        assert_within(result, *product_bound(a, b, alpha, dtype, codes))


@pytest.mark.usefixtures("float32_reductions")
def test_scaled_mm_with_an_epilogue():
    """The product of a backward pass, whose mask and rotation are in its template where there is FP4."""
    alpha, dtype = 16 / 9, BF16

    def function(a, a_scales, a_tensor_scale, b, b_scales, b_tensor_scale, mask):
        operands = (a, a_scales, a_tensor_scale, "mxfp4", b, b_scales, b_tensor_scale, "mxfp4")
        return quartet.scaled_mm(*operands, alpha, dtype, mask, 32, b.shape[0] - 3)

    pairs = [(random_blocks(m, k), random_blocks(n, k)) for m, n, k in ((257, 128, 1024), (33, 96, 96))]
    masks = [torch.randint(0, 256, (len(a.codes), len(b.codes) // 8), dtype=torch.uint8) for a, b in pairs]
    cases = [(*a[:3], *b[:3], mask) for (a, b), mask in zip(pairs, masks, strict=True)]
    results, codes = run_compiled(function, cases, ["scaled_mm"] if HAS_FP4 else ["unrotate"])
    for result, (a, b), mask in zip(results, pairs, masks, strict=True):
        y, error = product_bound(a, b, alpha, dtype, codes)
        y, error = (torch.where(reference.unpack_bits(mask), value, 0.0) for value in (y, error))
        exact = reference.hadamard(y.unflatten(1, (-1, 32))).flatten(1)
        spread = (error + 8 * 2.0**-24 * y.abs()).unflatten(1, (-1, 32)).sum(-1, keepdim=True) / 32**0.5
        bound = spread.expand(-1, -1, 32).flatten(1)
        bound = bound + torch.finfo(dtype).eps * (exact.abs() + bound)
        assert_within(result, exact[:, :-3], bound[:, :-3])


@pytest.mark.parametrize("gemm", ["fprop", "dgrad", "wgrad"])
def test_scaled_grouped_mm(gemm):
    assert_grouped(gemm, random_blocks)


def ordered(x: torch.Tensor) -> torch.Tensor:
    """int64 that grow by one from each float to the next; both zeros are 0."""
    bits, least = (x.view(torch.int32), -(2**31)) if x.element_size() == 4 else (x.view(torch.int16), -(2**15))
    bits = bits.long()
    return torch.where(bits < 0, least - bits, bits)


@every_dtype
@pytest.mark.parametrize("masked", [True, False], ids=["mask", "no-mask"])
def test_unrotate(dtype, masked):
    """Within a unit in the last place; the butterflies are the reference's, so only the last rounding may differ."""
    generator = torch.Generator().manual_seed(2)

    def unrotate(x, mask, columns):
        return quartet.unrotate(x, mask, 32, columns)

    cases = []
    for rows, columns in SHAPES:
        x = awkward(rows, padded(columns, 32), dtype)
        mask = torch.randint(0, 256, (rows, x.shape[1] // 8), generator=generator, dtype=torch.uint8)
        cases.append((x, mask if masked else None, columns))
    results, _ = run_compiled(unrotate, cases, ["unrotate"])
    for result, (x, mask, columns) in zip(results, cases, strict=True):
        wanted = reference.unrotate(x, mask, 32, columns)
        assert (result.shape, result.dtype) == (wanted.shape, wanted.dtype)
        assert torch.equal(result.isnan(), wanted.isnan())
        distance = (ordered(result) - ordered(wanted)).abs()[~wanted.isnan()]
        assert distance.max() <= 1, f"{distance.max()} units in the last place"


def test_exact_formats_stay_calls():
    """What rounds nothing has no template: the op itself runs, on the GPU."""
    spec = Quantizer(elements="float32")
    x = torch.randn(33, 40)
    result = torch.compile(quantize_op(spec.name, False, True), fullgraph=True)(x.to(DEVICE), None, None)
    wanted = reference.quantize(x, spec, mask=True, stream=STREAM)
    torch.testing.assert_close(result[0].cpu(), wanted.codes)
    assert torch.equal(result[3].cpu(), wanted.mask)
