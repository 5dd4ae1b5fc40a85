"""The reference numerics of Quartet's three quantizers, frozen: golden vectors, an independent model, edge cases, whole
GEMMs. All other quantizers: test_exact.py; the published kernels: test_published.py."""

import math

import exact_model
import exact_operand
import numpy as np
import pytest
import torch
from accumulation import assert_same_product

from quartet_compile.kernels.numerics import philox, reference
from quartet_compile.kernels.quantizer import QUANTIZERS, Quantizer

QUEST, RTN, SR = (QUANTIZERS[name] for name in ("mxfp4-quest", "mxfp4-rtn", "mxfp4-sr"))
BOTH = RTN.gain * RTN.gain
SEED, STREAM = 1234, philox.DGRAD_W
ALL = pytest.mark.parametrize("quantizer", [QUEST, RTN, SR], ids=lambda q: q.name)
NAN, INF = math.nan, math.inf


def run(x, quantizer, seed=SEED, stream=STREAM, **options):
    """Reference blocks with the signs and noise of (seed, stream)."""
    key = torch.tensor(seed)
    signs = philox.signs(key, stream, 32) if quantizer.random_signs else None
    return reference.quantize(x, quantizer, mask=True, stream=stream, seed=key, signs=signs, **options)


def model(x, quantizer, seed=SEED, stream=STREAM):
    """The same by the independent model: (codes, scales, mask)."""
    sign = exact_model.signs(seed, stream // 2) if quantizer.random_signs else None
    codes, scales, _, mask = exact_operand.quantize(x.numpy(), quantizer, sign, seed, stream)
    return tuple(torch.from_numpy(a) for a in (codes, scales, mask))


def decoded(blocks):
    """float64 values of the codes and scales, by the model; the shrink not undone."""
    unshrunk = Quantizer(rotation=0)
    return torch.from_numpy(exact_operand.decode(blocks.codes.numpy(), blocks.scales.numpy(), None, unshrunk))


def assert_is_model(x, quantizer, **options):
    blocks = run(x, quantizer, **options)
    for name, expected in zip(("codes", "scales", "mask"), model(x, quantizer, **options), strict=True):
        assert torch.equal(getattr(blocks, name), expected), name


def gaussian(rows, columns, seed=0, exponent=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, columns, generator=generator, dtype=torch.float64) * 2.0**exponent).float()


def relative(actual, expected):
    return ((actual.double() - expected).norm() / expected.double().norm()).item()


# Golden vectors: five groups: ordinary, one-hot first, zeros, with a NaN, tiny; then 8 columns that need padding


def golden_input():
    i = torch.arange(168)
    x = ((i * 37 + 11 * i * i) % 101 - 50) / 8.0
    x[32:96] = 0
    x[32], x[100] = -1.5, NAN
    x[128:160] *= 2.0**-125
    return x[None]


GOLDEN = {
    "mxfp4-quest": (
        "6fa64208e7e90ee0ee0e6a06ff600ee0 ffffffffffffffffffffffffffffffff 00000000000000000000000000000000 "
        "00000000000000000000000000000000 08808880888888008888080808080000 629e5d64629e5d64629e5d64629e5d64",
        "7f6464ff647e",
        "fefefffc 00000000 ffffffff 00000000 ffffffff ffffffff",
    ),
    "mxfp4-rtn": (
        "ee9cec2169a9df84f6ee6dd62e214884 dddddddddddddddddddddddddddddddd 00000000000000000000000000000000 "
        "00000000000000000000000000000000 08080088088008088880008088888800 c10546d4c10546d4c10546d4c10546d4",
        "7f7b40ff407e",
        "ffffffff ffffffff ffffffff 00000000 ffffffff ffffffff",
    ),
    "mxfp4-sr": (
        "ee9ded216998df84f6ed6dd72e214884 dddddddddeeddeddeedddddddddddedd 00000000000000000000000000000000 "
        "00000000000000000000000000000000 08080088088008088880008088888800 c11546d3c10556d4c00557d4c11556d4",
        "7f7b40ff407e",
        "ffffffff ffffffff ffffffff 00000000 ffffffff ffffffff",
    ),
}
"""Codes, scales, mask of `golden_input()` as hexadecimal bytes; the codes and the mask a word a group."""


@ALL
def test_golden_vectors(quantizer):
    blocks = run(golden_input(), quantizer)
    for name, expected in zip(("codes", "scales", "mask"), GOLDEN[quantizer.name], strict=True):
        assert bytes(getattr(blocks, name).flatten().tolist()) == bytes.fromhex(expected), name
    assert_is_model(golden_input(), quantizer)


# The independent model, over the whole range of float32


@ALL
@pytest.mark.parametrize("exponent", [-149, -127, -125, -122, -100, -64, -62, -27, -24, 0, 9, 62, 64, 120, 124, 126])
def test_equals_the_model_at_every_magnitude(quantizer, exponent):
    x = gaussian(6, 80, seed=200 + exponent, exponent=exponent)
    x[0, ::3] = 0
    x[1] = x[1] * 2.0 ** torch.randint(-40, 1, (80,), generator=torch.Generator().manual_seed(exponent + 200))
    assert_is_model(x, quantizer)


@ALL
@pytest.mark.parametrize("seed", [0, -1, 2**62 + 12345])
@pytest.mark.parametrize("stream", [0, 5])
def test_equals_the_model_for_other_random_bits(quantizer, seed, stream):
    assert_is_model(gaussian(3, 96), quantizer, seed=seed, stream=stream)


def edge_groups():
    """Rows of one group each: one-hots, constants and steps at the thresholds of the definition."""
    rows = [torch.eye(32)[i] * v for i in (0, 1, 31) for v in (1.0, -3.0, 2.0**-126, 2.0**-65, 2.0**127)]
    around = [2.0**e for e in (-126, -125, -124, -101, -100, -99, -65, -64, -63, -27, -26, 63, 64, 122, 124, 127)]
    for value in torch.tensor(around):
        for v in (torch.nextafter(value, torch.tensor(0.0)), value, torch.nextafter(value, torch.tensor(INF))):
            rows += [v.repeat(32), torch.where(torch.arange(32) % 3 == 0, -v, v), torch.eye(32)[5] * v]
    rows += [(torch.eye(32)[2] + torch.eye(32)[3]) * 2.0**-64 - torch.eye(32)[0] * 2.0**-126]
    rows += [*(3 * torch.eye(32)[0] + gaussian(1, 32, seed=i, exponent=-15)[0] for i in range(40))]  # variance < 0
    return torch.stack(rows)


@ALL
def test_equals_the_model_at_thresholds(quantizer):
    x = edge_groups()
    assert_is_model(x, quantizer)
    assert_is_model(-x, quantizer)


def test_the_least_scale():
    """Byte 64, 2^-63: below it groups lose precision, and far below they vanish."""
    for exponent in (-126, -64):
        assert (run(gaussian(64, 32, exponent=exponent), RTN).scales == 64).all()
    base, smaller = (run(gaussian(64, 64, exponent=exponent), SR) for exponent in (0, -61))
    assert torch.equal(base.codes, smaller.codes) and torch.equal(base.scales.int() - 61, smaller.scales.int())
    one_hot = torch.eye(32)[1:2] * 2.0**-61 * 32**0.5 / 3  # rotates to +-1/3 of 2^-61: 4/3, times 3/4, of the scale
    assert [(run(one_hot * 2.0**-i, RTN).codes & 0x77).unique().tolist() for i in range(4)] == [
        [0x22],
        [0x11],
        [0],
        [0],
    ]
    assert not (run(gaussian(4, 32, exponent=-73), SR).codes & 0x77).any()


def test_zero_groups_and_the_sign_of_zero():
    """Codes of zeros are 0 under absmax; QuEST's rotate as they are, to a scale of 1e-8. Others keep their sign."""
    zeros = torch.tensor([[0.0] * 32, [-0.0] * 32])
    for quantizer, byte in ((QUEST, 100), (RTN, 64), (SR, 64)):
        blocks = run(zeros, quantizer)
        assert (blocks.scales == byte).all() and (blocks.mask == 255).all()
        assert blocks.codes[1].tolist() == [8 if quantizer is QUEST else 0, *[0] * 15] and not blocks.codes[0].any()
    negative = run(torch.full((1, 32), -(2.0**-100)), Quantizer(rotation=0, shrink=0.75))
    assert (negative.codes == 0x88).all()


# NaN and infinity


@ALL
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_one_bad_value_makes_its_whole_group_nan_and_no_other(quantizer, value):
    x = gaussian(1, 96).repeat(32, 1)
    clean = run(x, quantizer)
    x[torch.arange(32), 32 + torch.arange(32)] = value
    bad = run(x, quantizer)
    assert (bad.scales[:, 1] == 255).all() and not bad.codes[:, 16:32].any() and not bad.mask[:, 4:8].any()
    for name, width in (("scales", 1), ("codes", 16), ("mask", 4)):
        old, new = (getattr(b, name).unflatten(1, (3, width))[:, [0, 2]] for b in (clean, bad))
        assert torch.equal(old, new)
    values = reference.decode(bad, quantizer)
    assert values[:, 32:64].isnan().all() and values[:, :32].isfinite().all() and values[:, 64:].isfinite().all()


def test_overflow_of_the_sums_is_nan():
    ok, over = torch.full((1, 32), 2.0**61), torch.full((1, 32), 2.0**62)
    assert run(ok, QUEST).scales != 255 and run(over, QUEST).scales == 255  # (sqrt(32) 2^62)^2 > 2^128
    alternating = torch.where(torch.arange(32) % 2 == 0, 1.0, -1.0)[None]
    largest = torch.finfo(torch.float32).max
    assert run(alternating * largest, QUEST).scales == 255
    signs = alternating[0]
    assert reference.quantize(alternating * 2.0**122, RTN, signs=signs).scales == 127 + 124 - 2
    assert reference.quantize(alternating * largest, RTN, signs=signs).scales == 255


def test_nan_reaches_every_output_of_its_row_or_column():
    a, b = gaussian(5, 96), gaussian(7, 96, seed=1)
    a[2, 40], b[3, 95] = INF, NAN
    product = reference.scaled_mm(run(a, RTN), run(b, RTN), BOTH, torch.float32)
    expected = torch.zeros(5, 7, dtype=torch.bool)
    expected[2], expected[:, 3] = True, True
    assert torch.equal(product.isnan(), expected) and product[~expected].isfinite().all()


@pytest.mark.parametrize("exponent", range(-60, 61, 6))
def test_just_below_a_power_of_two(exponent):
    """float32 log2 rounds up there (116 of 120 exponents); the field does not. For absmax and for QuEST's scale."""
    below = torch.nextafter(torch.tensor(2.0**exponent), torch.tensor(0.0))
    if exponent:
        assert below.log2().floor() == exponent
    absmax, quest = Quantizer(rotation=0, shrink=0.75), Quantizer(rotation=0, scale="quest")
    alternate = torch.where(torch.arange(32) % 2 == 0, 1.0, -1.0)[None]
    assert reference.quantize(alternate * below, absmax).scales.item() == exponent - 1 - 2 + 127
    if exponent >= -24:
        value = np.float32((2.0**exponent - 1e-8) / float(exact_model.QUEST))
        for _ in range(8):
            if exact_model.quest_scale([value, -value] * 16) < np.float32(2.0**exponent):
                break
            value = np.nextafter(value, np.float32(0))
        assert exact_model.quest_scale([value, -value] * 16) >= below.item() * (1 - 2.0**-23)
        assert reference.quantize(alternate * float(value), quest).scales.item() == exponent - 1 + 127


def test_every_rounding_of_the_quest_scale_counts():
    """Groups whose scale is within a few float32 steps of a power of two: any other order of the sums shows."""
    groups = gaussian(20, 32).double()
    deviation = reference.hadamard(groups).std(1, correction=0, keepdim=True)
    steps = 1 + torch.arange(-12, 13) * 2.0**-24
    x = (groups / (deviation * float(exact_model.QUEST)))[:, None] * steps[:, None]
    assert_is_model(x.flatten(0, 1).float(), QUEST)


def test_the_mask_is_0_from_6_on():
    quest = Quantizer(rotation=0, scale="quest")
    x = torch.where(torch.arange(32) % 2 == 0, 2.5, -2.5).repeat(3, 1)  # scale 1
    x[:, 7] = torch.tensor([6.0, -6.0, 5.9999995])
    blocks = reference.quantize(x, quest, mask=True)
    assert (blocks.scales == 127).all() and (reference.unpack_nibbles(blocks.codes)[:, 7] & 7 == 7).all()
    assert blocks.mask[:, 0].tolist() == [0x7F, 0x7F, 0xFF] and (blocks.mask[:, 1:] == 255).all()


@ALL
@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this CPU cannot flush subnormals to zero")
def test_flush_to_zero_mode_changes_no_bit_but_signs_of_zeros(quantizer):
    exponents = (-63, -64, -90, -100, -110, -120, -124, -126, -140)
    for x in (edge_groups(), *(gaussian(16, 96, seed=-e, exponent=e) for e in exponents)):
        plain = run(x, quantizer)
        values = reference.decode(plain, quantizer)
        assert torch.set_flush_denormal(True)
        try:
            flushed, decoded_then = run(x, quantizer), reference.decode(plain, quantizer)
        finally:
            torch.set_flush_denormal(False)
        assert torch.equal(plain.scales, flushed.scales) and torch.equal(plain.mask, flushed.mask)
        differ = reference.unpack_nibbles(plain.codes) ^ reference.unpack_nibbles(flushed.codes)
        assert not (differ & 7).any() and not (values[differ.bool()] != 0).any()
        assert torch.equal(decoded_then.nan_to_num(7.0), values.nan_to_num(7.0))


# Rotation


def test_hadamard_is_sylvester_and_orthogonal():
    parity = torch.tensor([[(i & j).bit_count() % 2 for j in range(32)] for i in range(32)])
    matrix = (1 - 2 * parity).double() / 32**0.5
    h = reference.hadamard(torch.eye(32))
    assert relative(h, matrix) < 1e-7 and torch.equal(h, h.t())
    x = gaussian(64, 32)
    assert relative(reference.hadamard(x), x.double() @ matrix) < 3e-7
    assert relative(reference.hadamard(reference.hadamard(x)), x) < 3e-7
    integers = torch.randint(-(2**18), 2**18, (64, 32), generator=torch.Generator().manual_seed(0)).float()
    exact = (integers.double() @ (1 - 2 * parity).double()).float() * torch.tensor(32**-0.5)
    assert torch.equal(reference.hadamard(integers), exact)


def test_order_of_butterflies():
    x = gaussian(8, 32)
    expected = torch.tensor(np.array([exact_model.rotate(list(row)) for row in x.numpy()]))
    assert torch.equal(reference.hadamard(x), expected)
    backwards = x.reshape(8, 2, 2, 2, 2, 2).permute(0, 5, 4, 3, 2, 1).reshape(8, 32)
    backwards = reference.hadamard(backwards).reshape(8, 2, 2, 2, 2, 2).permute(0, 5, 4, 3, 2, 1).reshape(8, 32)
    assert relative(backwards, expected) < 1e-6 and not torch.equal(backwards, expected)


def test_signs_are_on_the_input_side():
    x, signs = gaussian(4, 32), philox.signs(torch.tensor(3), 0, 32)
    exact = Quantizer(elements="float32", random_signs=True)
    values = reference.quantize(x, exact, signs=signs).codes
    assert torch.equal(values, reference.hadamard(x * signs))
    assert not torch.allclose(values, reference.hadamard(x) * signs)


def test_unrotate_inverts_and_selects():
    x = gaussian(6, 96)
    ones = torch.full((6, 12), 255, dtype=torch.uint8)
    rotated = reference.hadamard(x.reshape(6, 3, 32)).reshape(6, 96)
    assert relative(reference.unrotate(rotated, ones, 32, 70), x[:, :70]) < 3e-7
    mask = torch.randint(0, 256, (6, 12), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    keep = reference.unpack_bits(mask)
    assert torch.equal(reference.unrotate(x, mask, 32, 96), reference.unrotate(torch.where(keep, x, 0.0), ones, 32, 96))
    assert torch.equal(reference.unrotate(torch.where(keep, x, NAN), mask, 32, 96), reference.unrotate(x, mask, 32, 96))
    x[1, 40] = INF
    spread = reference.unrotate(x, ones, 32, 96)
    assert not spread[1, 32:64].isfinite().any() and spread[1, :32].isfinite().all() and spread[0].isfinite().all()
    assert reference.unrotate(x.bfloat16(), ones, 32, 33).dtype == torch.bfloat16
    assert torch.equal(reference.unrotate(x, ones, 0, 96), x)


# Layout: padding, rows, strides, dtypes


@ALL
def test_padding_is_exact_and_changes_no_random_bit(quantizer):
    x = gaussian(5, 70)
    short, long = run(x, quantizer), run(torch.nn.functional.pad(x, (0, 58)), quantizer)
    for name in ("codes", "scales", "mask"):
        assert torch.equal(getattr(short, name), getattr(long, name)[:, : getattr(short, name).shape[1]])
    assert not long.codes[:, 48:].any() and (long.scales[:, 3:] == (100 if quantizer is QUEST else 64)).all()
    exact = Quantizer(elements="float32", random_signs=quantizer.random_signs)
    product = reference.scaled_mm(run(x, exact), run(x, exact), 1.0, torch.float32)
    assert_same_product(product, x.double() @ x.double().t(), x, x)


@ALL
def test_a_row_does_not_depend_on_the_others_nor_on_strides(quantizer):
    x = gaussian(9, 64)
    whole = run(x, quantizer)
    for part, rows in ((run(x[:4], quantizer), slice(0, 4)), (run(x[:1], quantizer), slice(0, 1))):
        assert all(torch.equal(a, b[rows]) for a, b in zip(part.tensors, whole.tensors, strict=True) if a.numel())
    for same in (run(x.t().contiguous().t(), quantizer), run(x.t().contiguous(), quantizer, transpose=True)):
        assert all(torch.equal(a, b) for a, b in zip(same.tensors, whole.tensors, strict=True))
    for dtype in (torch.bfloat16, torch.float16):
        narrow, wide = run(x.to(dtype), quantizer), run(x.to(dtype).float(), quantizer)
        assert all(torch.equal(a, b) for a, b in zip(narrow.tensors, wide.tensors, strict=True))


@ALL
@pytest.mark.parametrize("shape", [(0, 64), (0, 40), (4, 0), (0, 0)])
def test_empty_operands(quantizer, shape):
    blocks = run(torch.zeros(shape), quantizer)
    full = -(-shape[1] // 32) * 32
    assert [t.shape for t in blocks.tensors] == [
        (shape[0], full // 2),
        (shape[0], full // 32),
        (0,),
        (shape[0], full // 8),
    ]
    assert reference.decode(blocks, quantizer).shape == (shape[0], full)
    other = run(torch.ones(3, shape[1]), quantizer)
    assert torch.equal(reference.scaled_mm(blocks, other, 1.0, torch.float32), torch.zeros(shape[0], 3))
    assert reference.unrotate(torch.zeros(shape[0], full), blocks.mask, 32, shape[1]).shape == shape


# Requantization and products


@pytest.mark.parametrize("quantizer", [RTN, SR], ids=lambda q: q.name)
def test_requantize_is_quantize_of_the_decoded_transpose(quantizer):
    source = run(gaussian(40, 96), QUEST)
    key = torch.tensor(SEED)
    signs = philox.signs(key, STREAM, 32)
    actual = reference.requantize(source, QUEST, quantizer, stream=STREAM, seed=key, signs=signs)
    codes, scales, _ = model(decoded(source).t().float(), quantizer)
    assert torch.equal(actual.codes, codes) and torch.equal(actual.scales, scales) and actual.codes.shape == (96, 32)


def test_both_directions_of_dy():
    """Rows take signs and noise from the seed; columns noise from the seed, but signs from their own."""
    dy, seed, sign_seed = gaussian(40, 70), torch.tensor(SEED), torch.tensor(77)
    rows, columns = reference.quantize_pair(dy, SR, RTN, seed=seed, sign_seed=sign_seed)
    codes, scales, _ = model(dy, SR, stream=philox.DGRAD_DY)
    assert torch.equal(rows.codes, codes) and torch.equal(rows.scales, scales)
    codes, scales, _ = model(dy.t(), RTN, seed=77, stream=philox.WGRAD_DY)
    assert torch.equal(columns.codes, codes) and torch.equal(columns.scales, scales)


def test_scaled_mm_is_the_product_of_the_decoded_values():
    """Within the bound of a float32 accumulation of K terms: K 2^-24 |a| |b|^T for each output."""
    a, b = run(gaussian(20, 160), QUEST), run(gaussian(30, 160, seed=1, exponent=3), RTN)
    da, db = decoded(a), decoded(b)
    actual = reference.scaled_mm(a, b, RTN.gain, torch.float32)
    bound = 160 * 2.0**-24 * (da.abs() @ db.abs().t()) * 4 / 3
    assert ((actual - da @ db.t() * 4 / 3).abs() <= bound).all()
    assert torch.equal(reference.scaled_mm(a, b, RTN.gain, torch.bfloat16), actual.bfloat16())
