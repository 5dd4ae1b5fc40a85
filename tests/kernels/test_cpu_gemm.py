"""The CPU's FP4 GEMM against float64 arithmetic, which holds every product and every short sum exactly."""

import os
import subprocess
import sys

import pytest
import torch
from accumulation import assert_same_product
from products import blocks, decode, elements, random_blocks

from quartet_compile.errors import QuartetError
from quartet_compile.kernels.cpu import gemm, toolchain
from quartet_compile.kernels.cpu.gemm import scaled_mm
from quartet_compile.kernels.numerics import reference
from quartet_compile.kernels.numerics.reference import Blocks
from quartet_compile.kernels.quantizer import E2M1_VALUES, QUANTIZERS, quantizer

EPSILON = 2.0**-24
ONE, MINUS_THREE_HALVES = E2M1_VALUES.index(1.0), E2M1_VALUES.index(1.5) | 8
SPAN = 190  # kSpan in gemm_layout.h: beyond it, operands are decoded and multiplied by torch.mm


def one_hot(rows: int, groups: int, column: int, byte: int) -> Blocks:
    """1.0 in one column, in groups of one scale; the other groups are zeros, with scale byte 0."""
    codes, scales = torch.zeros(rows, 32 * groups), torch.zeros(rows, groups)
    codes[:, column], scales[:, column // 32] = ONE, byte
    return blocks(codes, scales)


def exact_mm(a: Blocks, b: Blocks) -> torch.Tensor:
    return decode(a) @ decode(b).t()


def test_every_pair_of_codes():
    every = blocks(torch.arange(16)[:, None].expand(16, 32), torch.full((16, 1), 127))
    values = decode(every)[:, 0]
    assert torch.equal(scaled_mm(every, every, 1.0, torch.float32), (32 * values[:, None] * values).float())


def test_every_position():
    """A one-hot row reads one column: element k of `a` meets element k of `b`, and no other."""
    positions = torch.eye(96) * ONE
    a = blocks(positions, torch.full((96, 3), 127))
    b = random_blocks(50, 96)
    assert torch.equal(scaled_mm(a, b, 1.0, torch.float32), decode(b).t().float())
    assert torch.equal(scaled_mm(b, a, 1.0, torch.float32), decode(b).float())


@pytest.mark.parametrize("size", [0, 1, 5, 31, 33, 100, 1000])
def test_sizes(size):
    """With equal scales, sums of up to 2^24 / 144 products are exact in any order."""
    for m, n, k in [(size, 33, 64), (33, size, 64), (33, 5, size), (size, size, 32)]:
        a, b = random_blocks(m, k, 125, 126), random_blocks(n, k, 130, 131)
        assert torch.equal(scaled_mm(a, b, 1.0, torch.float32), exact_mm(a, b).float())


@pytest.mark.parametrize("m, n, k", [(512, 640, 640), (130, 70, 1792), (70, 70, 131072)])
def test_accumulation(m, n, k):
    """Within the error of adding the terms one by one in float32. The last case is packed in several chunks."""
    a, b = random_blocks(m, k), random_blocks(n, k)
    terms = k if toolchain.isa() in ("portable", "amx") else k // 32
    x, y = decode(a), decode(b)
    exact, bound = x @ y.t(), (terms + 2) * EPSILON * (x.abs() @ y.abs().t())
    for alpha in 1.0, -16 / 9:
        out = scaled_mm(a, b, alpha, torch.float32)
        assert ((out - alpha * exact).abs() <= abs(alpha) * bound).all()


@pytest.mark.parametrize("name", QUANTIZERS)
def test_agrees_with_the_reference(name):
    """Within the error of adding the products one by one, whatever the formats."""
    seed = torch.tensor(3)
    x, w = torch.randn(100, 333), torch.randn(65, 333) * 1e-3
    a, b = (reference.quantize(v, quantizer(name), seed=seed, sign_seed=seed) for v in (x, w))
    x, w = (reference.decode(v, quantizer(name)) for v in (a, b))
    expected = reference.scaled_mm(a, b, 0.75, torch.float32)
    assert_same_product(scaled_mm(a, b, 0.75, torch.float32), expected, 0.75 * quantizer(name).shrink ** 2 * x, w)


@pytest.mark.parametrize("names", [("nvfp4-rtn", "nvfp4-rtn"), ("mxfp8", "mxfp8"), ("mxfp4-rtn-2d", "nvfp4-rtn-2d")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_products_of_other_formats(names, dtype):
    """Against float64. NaN scales reach their row and column; autocast does not reach the operands."""
    x, y = torch.randn(70, 320), torch.randn(50, 320)
    x[3, 17], x[69, 0], y[7, 319] = torch.nan, torch.inf, torch.nan
    a, b = (reference.quantize(v, quantizer(name)) for v, name in zip((x, y), names, strict=True))
    x, y = (reference.decode(v, quantizer(name)).double() for v, name in zip((a, b), names, strict=True))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = scaled_mm(a, b, -16 / 9, dtype)
    exact, sizes = -16 / 9 * (x @ y.t()), 16 / 9 * (x.abs() @ y.abs().t())
    nan = exact.isnan()
    assert nan[[3, 69]].all() and nan[:, 7].all() and not nan.all()
    assert out.dtype == dtype and torch.equal(out.isnan(), nan)
    bound = 322 * EPSILON * sizes + torch.finfo(dtype).eps * exact.abs()
    assert ((out - exact).abs() <= bound)[~nan].all()


def nvfp4(rows: int, k: int, seed: int) -> Blocks:
    """Any codes under any scales but NaN, and a tensor scale."""
    drawn, groups = torch.Generator().manual_seed(seed), (k + 15) // 16
    codes = torch.randint(0, 16, (rows, 16 * groups), generator=drawn)
    codes[:, k:] = 0
    scales = torch.randint(0, 127, (rows, groups), generator=drawn, dtype=torch.uint8).view(torch.float8_e4m3fn)
    return Blocks(reference.pack_nibbles(codes), scales, torch.rand(1, generator=drawn) + 0.5, None, "nvfp4")


def decode_nvfp4(x: Blocks) -> torch.Tensor:
    return elements(x) * x.scales.double().repeat_interleave(16, 1) * x.tensor_scale.double()


@pytest.mark.skipif(toolchain.isa() == "portable", reason="the integer kernels need AVX2")
@pytest.mark.parametrize("m, n, k", [(0, 5, 32), (7, 5, 0), (1, 1, 16), (33, 5, 48), (70, 130, 1000), (257, 64, 1792)])
def test_nvfp4_by_integer_products(m, n, k, monkeypatch):
    """Each group's term is exact, so the error is that of adding K / 16 of them, and of the factors."""
    monkeypatch.delattr(gemm, "_decoded_mm")
    a, b = nvfp4(m, k, 1), nvfp4(n, k, 2)
    x, y = decode_nvfp4(a), decode_nvfp4(b)
    exact, bound = -1.5 * (x @ y.t()), 1.5 * (k // 16 + 4) * EPSILON * (x.abs() @ y.abs().t())
    before = torch.get_num_threads()
    one, *more = [torch.set_num_threads(threads) or scaled_mm(a, b, -1.5, torch.float32) for threads in (1, 2, 3)]
    torch.set_num_threads(before)
    assert ((one - exact).abs() <= bound).all()
    assert all(torch.equal(out, one) for out in more)
    strided = Blocks(*(torch.stack((part, part), dim=1)[:, 1] for part in b[:2]), *b[2:])
    assert torch.equal(scaled_mm(a, strided, -1.5, torch.float32), one)
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(scaled_mm(a, b, -1.5, dtype), one.to(dtype))


@pytest.mark.skipif(toolchain.isa() == "portable", reason="the integer kernels need AVX2")
def test_nan_scales_of_nvfp4_reach_their_row_and_column_only(monkeypatch):
    monkeypatch.delattr(gemm, "_decoded_mm")
    a, b = nvfp4(70, 96, 1), nvfp4(50, 96, 2)
    clean, nan = scaled_mm(a, b, 1.0, torch.float32), torch.zeros(70, 50, dtype=torch.bool)
    for x, row, group in (a, 3, 1), (a, 69, 0), (b, 7, 2), (b, 33, 5):
        x.scales.view(torch.uint8)[row, group], x.codes[row, 8 * group : 8 * group + 8] = 0x7F, 0
    nan[[3, 69]], nan[:, [7, 33]] = True, True
    out = scaled_mm(a, b, 1.0, torch.float32)
    assert torch.equal(out.isnan(), nan) and torch.equal(out[~nan], clean[~nan])


def test_every_pair_of_scales():
    """1 * 1 under all pairs of scale bytes, subnormal and infinite results included; a byte 255 gives NaN."""
    bytes_ = torch.arange(256)
    codes = torch.zeros(256, 32)
    codes[:, 7] = ONE
    expected = exact_mm(blocks(codes, bytes_[:, None]), blocks(codes, bytes_[:, None])).float()
    for part in bytes_.split(64):  # a wider part would go to torch.mm
        b = blocks(codes[part], part[:, None])
        for byte in bytes_.tolist():
            out = scaled_mm(one_hot(1, 1, 7, byte), b, 1.0, torch.float32)
            torch.testing.assert_close(out, expected[byte : byte + 1, part], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("span", [0, 100, SPAN, SPAN + 1, 254])
@pytest.mark.parametrize("large, small", [(0, 1), (1, 0)])
def test_scales_far_apart(span, large, small, monkeypatch):
    """Two groups of very different size in one row: whichever of them `b` reads is exact."""
    decoded = []
    monkeypatch.setattr(gemm, "_decoded_mm", lambda *args, mm=gemm._decoded_mm: decoded.append(args) or mm(*args))
    codes, scales = torch.zeros(3, 64), torch.zeros(3, 2)
    codes[:, 32 * large], codes[:, 32 * small] = ONE, MINUS_THREE_HALVES
    scales[:, large], scales[:, small] = 254, 254 - span
    a = blocks(codes, scales)
    for group, value in (large, 1.0), (small, -1.5 * 2.0**-span):
        b = one_hot(40, 2, 32 * group, 127)
        expected = torch.full((3, 40), value * 2.0**127, dtype=torch.float64).float()
        assert torch.equal(scaled_mm(a, b, 1.0, torch.float32), expected)
        assert torch.equal(scaled_mm(b, a, 1.0, torch.float32), expected.t())
    assert len(decoded) == (4 if span > SPAN or toolchain.isa() == "portable" else 0)


@pytest.mark.parametrize("byte", [0, 1, 253, 254])
def test_extreme_scales(byte):
    """Operands at the ends of the range, brought back by the other. Codes 0 and +-1: 2 * 2^127 overflows if decoded."""
    a, b = random_blocks(40, 320, byte, byte + 1), random_blocks(40, 320, 254 - byte, 255 - byte)
    a.codes.bitwise_and_(0xAA)
    b.codes.bitwise_and_(0xAA)
    assert torch.equal(scaled_mm(a, b, 1.0, torch.float32), exact_mm(a, b).float())


def test_nan_reaches_its_row_and_column_only():
    a, b = random_blocks(70, 96), random_blocks(50, 96)
    clean = scaled_mm(a, b, 1.0, torch.float32)
    for x, row, group in (a, 3, 1), (a, 69, 0), (b, 7, 2), (b, 33, 1):
        x.scales[row, group], x.codes[row, 16 * group : 16 * group + 16] = 255, 0
    b.codes[20] = 0  # a zero times a NaN
    clean[:, 20] = 0
    nan = torch.zeros(70, 50, dtype=torch.bool)
    nan[[3, 69]], nan[:, [7, 33]] = True, True
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        out = scaled_mm(a, b, 1.0, dtype)
        assert torch.equal(out.isnan(), nan)
        assert torch.equal(out[~nan], clean.to(dtype)[~nan])


def test_nothing_but_nan():
    a, b = blocks(torch.zeros(5, 64), torch.full((5, 2), 255)), random_blocks(6, 64)
    assert scaled_mm(a, b, 1.0, torch.float32).isnan().all()
    assert scaled_mm(b, a, 1.0, torch.float32).isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [64, 61])
def test_output_is_rounded_to_nearest(dtype, n):
    a, b = random_blocks(40, 320, 120, 140), random_blocks(n, 320, 114, 128)
    expected = scaled_mm(a, b, 1 / 3, torch.float32)
    assert expected.abs().max() > 65504  # infinite in float16
    assert torch.equal(scaled_mm(a, b, 1 / 3, dtype), expected.to(dtype))


def test_views_are_read_right():
    a, b = random_blocks(40, 64), random_blocks(70, 64)
    strided = Blocks(*(torch.stack((x, x), dim=1)[:, 1] for x in b[:2]), *b[2:])
    assert not strided.codes.is_contiguous()
    assert torch.equal(scaled_mm(a, strided, 1.0, torch.float32), scaled_mm(a, b, 1.0, torch.float32))


@pytest.mark.skipif(toolchain.isa() == "portable", reason="torch.mm doesn't promise it")
def test_threads_do_not_change_a_bit():
    a, b = random_blocks(300, 640, 100, 150), random_blocks(700, 640, 100, 150)
    before = torch.get_num_threads()
    try:
        outs = [torch.set_num_threads(n) or scaled_mm(a, b, 1.0, torch.float32) for n in (1, 2, 3, 7)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(out, outs[0]) for out in outs)


def test_operands_must_share_k():
    with pytest.raises(QuartetError, match="3 and 2 groups of 32"):
        scaled_mm(random_blocks(4, 96), random_blocks(4, 64), 1.0, torch.float32)


def _lesser_levels() -> list[str]:
    levels = list(toolchain.ISA_FEATURES)
    return levels[levels.index(toolchain.isa()) + 1 :]


@pytest.mark.skipif(toolchain.ISA_VARIABLE in os.environ, reason="runs for each level already")
@pytest.mark.parametrize("isa", _lesser_levels())
def test_other_instruction_sets(isa):
    """All of this file, in a process of its own."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env={**os.environ, toolchain.ISA_VARIABLE: isa}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
