"""The reference equals the independent model bit for bit (codes, scales, tensor scale, mask): every registered quantizer
on every kind of data, and every legal combination of fields on one operand that has them all."""

import functools
import math

import exact_model
import exact_operand
import numpy as np
import pytest
import torch
from quantizers import legal_quantizers

from quartet_compile.kernels.numerics import philox, reference
from quartet_compile.kernels.quantizer import QUANTIZERS, Quantizer, quantizer

ALL = pytest.mark.parametrize("name", list(QUANTIZERS))
NAN, INF = math.nan, math.inf
ROOT = 2.0**0.5


def run(x, q, seed=1234, stream=philox.DGRAD_W):
    """Reference blocks with the signs and noise of (seed, stream)."""
    key = torch.tensor(seed)
    signs = philox.signs(key, stream, q.rotation) if q.random_signs else None
    return reference.quantize(x, q, mask=True, stream=stream, seed=key, signs=signs)


def as_bytes(tensor):
    return tensor.contiguous().view(torch.uint8) if tensor.element_size() == 1 else tensor


def assert_is_model(x, q, seed=1234, stream=philox.DGRAD_W):
    blocks = run(x, q, seed, stream)
    signs = exact_model.signs(seed, stream // 2, q.rotation) if q.random_signs else None
    arrays = exact_operand.quantize(x.numpy(), q, signs, seed, stream)
    for name, array in zip(("codes", "scales", "tensor_scale", "mask"), arrays, strict=True):
        actual, expected = as_bytes(getattr(blocks, name)), torch.from_numpy(array)
        assert actual.dtype == expected.dtype and actual.shape == expected.shape, name
        assert torch.equal(actual.nan_to_num(7.0), expected.nan_to_num(7.0)), f"{name} of {q.name}"
    return blocks


def shape_for(q):
    """Rows that leave a square block unfilled, and columns that need padding to two blocks or more."""
    return (q.group + 2 if q.square else 5, 150 if q.rotation > 32 else 70)


def gaussian(rows, columns, seed=0, exponent=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, columns, generator=generator, dtype=torch.float64) * 2.0**exponent).float()


def with_zeros(rows, columns):
    """Every third value, the first row and the last two groups are 0 of either sign; rows of very different size."""
    x = gaussian(rows, columns, seed=2)
    x[:, ::3], x[0], x[:, -20:] = 0.0, -0.0, 0.0
    x[2] *= 2.0 ** torch.randint(-60, 1, (columns,), generator=torch.Generator().manual_seed(2))
    x[1:3] *= 2.0**-30
    return x


def with_nan(rows, columns):
    x = gaussian(rows, columns, seed=3)
    x[0, 40], x[1, columns - 1], x[3, 0], x[3, 18] = NAN, INF, -INF, NAN
    return x


def heavy_tails(rows, columns):
    return gaussian(rows, columns, seed=4) / gaussian(rows, columns, seed=5).abs().sqrt() ** 3


def ties(rows, columns):
    """Quarters up to 6, most of which are midpoints or grid points at the scale 1."""
    steps = torch.randint(-24, 25, (rows, columns), generator=torch.Generator().manual_seed(6))
    steps[:, ::16] = 24
    return steps / 4.0


THRESHOLDS = torch.tensor([2.0**e for e in (-127, -126, -125, -118, -101, -100, -99, -65, -64, -63, 0, 20, 126, 127)])


def constants(rows, columns):
    """Values at and next to the thresholds of the definition, a column of a group each; alternating signs."""
    beside = [torch.nextafter(THRESHOLDS, torch.tensor(to)) for to in (0.0, INF)]
    values = torch.stack([beside[0], THRESHOLDS, beside[1]], 1).flatten()[:, None]
    return values * torch.where(torch.arange(columns) % 2 == 0, 1.0, -1.0)


def one_hot(rows, columns):
    values = constants(rows, 1)[:, 0]
    x = torch.zeros(len(values), columns)
    x[torch.arange(len(values)), torch.arange(len(values)) * 7 % columns] = values
    return x


def just_below(rows, columns):
    """Groups whose largest is next to a power of two, to 1.5 of it (6), to 1.75 (448) and to its root of two."""
    x = gaussian(15, columns, seed=7).clamp(-3, 3) / 4
    tops = torch.tensor([1.0, 1.5, 1.75, ROOT, 0.75])
    for i, to in enumerate((-INF, None, INF)):
        x[5 * i : 5 * i + 5, ::16] = (tops if to is None else torch.nextafter(tops, torch.tensor(to)))[:, None]
    return x


def overflowing(rows, columns):
    """Butterflies that overflow in some groups and not in others."""
    x = torch.full((rows, columns), 2.0**121)
    x[:, 1] += 2.0**119
    x[1:, 3::5] *= -1
    x[2] *= 32
    return x


DATA = {
    "gaussian": gaussian,
    "heavy tails": heavy_tails,
    "zeros": with_zeros,
    "nan": with_nan,
    "ties": ties,
    "constants": constants,
    "one hot": one_hot,
    "just below": just_below,
    "overflowing": overflowing,
    **{f"2^{e}": functools.partial(gaussian, seed=300 + e, exponent=e) for e in (-127, -122, -100, -64, 62, 124, 126)},
}


@ALL
@pytest.mark.parametrize("data", DATA)
def test_equals_the_model(name, data):
    q = QUANTIZERS[name]
    x = DATA[data](*shape_for(q))
    if data in ("constants", "one hot") and q.rotation > 32:
        x = x[::2]
    assert_is_model(x, q)


@pytest.mark.parametrize("name", [name for name, q in QUANTIZERS.items() if q.seeded])
@pytest.mark.parametrize("seed", [-1, 2**62 + 12345])
def test_equals_the_model_for_other_random_bits(name, seed):
    assert_is_model(gaussian(3, 40), QUANTIZERS[name], seed=seed, stream=philox.WGRAD_X)


def of_all_kinds(rows, columns):
    x = gaussian(rows, columns, seed=9)
    x[0] = heavy_tails(1, columns)[0]
    x[1] = ties(1, columns)[0]
    x[2, ::2] *= 2.0**-70
    x[2, 40:] = 0.0
    x[3, :16] = 0.0
    x[3, 70] = NAN
    return x


def test_every_legal_quantizer_equals_the_model():
    """All rotations with all roundings of elements and scales, square blocks, headrooms: over 250 combinations."""
    seen = set()
    for q in legal_quantizers():
        if q.exact and (q.scale, q.scale_rounding) != ("absmax", "down"):
            continue  # exact quantizers have no scales
        assert_is_model(of_all_kinds(q.group + 1 if q.square else 4, 80), q)
        seen.add((q.rotation, q.elements, q.scale_format, q.scale, q.scale_rounding, q.rounding))
    assert len(seen) > 100


@pytest.mark.parametrize("size", [16, 32, 64, 128])
def test_hadamard_of_every_size(size):
    """The order of butterflies is the model's; the matrix is Sylvester's; it is its own inverse."""
    x = gaussian(4, size)
    expected = torch.tensor(np.array([exact_model.rotate(list(row)) for row in x.numpy()]))
    assert torch.equal(reference.hadamard(x), expected)
    sylvester = torch.ones(1, 1, dtype=torch.float64)
    while len(sylvester) < size:
        sylvester = torch.cat([torch.cat([sylvester, sylvester], 1), torch.cat([sylvester, -sylvester], 1)])
    torch.testing.assert_close(expected.double(), x.double() @ sylvester / size**0.5, rtol=0, atol=2e-6)
    torch.testing.assert_close(reference.hadamard(expected), x, rtol=0, atol=2e-6)


def test_nearest_power_is_by_the_logarithm():
    """At and from float32(sqrt 2) on the scale is the power above; the largest lies in [2.83, 5.66) of the scale."""
    q = quantizer("rotation=0,scale_rounding=nearest")
    root = torch.tensor(ROOT)  # rounds down
    for top, exponent in ((torch.nextafter(root, torch.tensor(0.0)), 0), (root, 1), (torch.tensor(1.0), 0)):
        assert run(torch.full((1, 32), top.item()), q).scales.item() == 127 + exponent - 2
    x = gaussian(256, 32) * 2.0 ** torch.linspace(0, 1, 256)[:, None]
    largest = x.abs().amax(1) / reference.decode_e8m0(run(x, q).scales)[:, 0]
    assert largest.min() >= 2 * ROOT - 1e-6 and largest.max() < 4 * ROOT


def test_even_rounds_the_largest_as_an_element():
    """From 1.75 * 2^n on the mantissa of E2M1 carries, from 1.9375 * 2^n on that of E4M3."""
    for elements, binades, carries in (("e2m1", 2, 1.75), ("e4m3", 8, 1.9375)):
        q = Quantizer(elements=elements, rotation=0, scale_rounding="even")
        edge = torch.tensor(carries)
        for top, exponent in ((torch.nextafter(edge, torch.tensor(0.0)), 0), (edge, 1), (torch.tensor(1.0), 0)):
            assert run(torch.full((1, 32), top.item()), q).scales.item() == 127 + exponent - binades


def test_the_power_with_the_smaller_error_is_chosen():
    """ "error" equals the better of "down" and of one above, group by group, and keeps "down" on a tie."""
    for scale in ("absmax", "quest"):
        down, error = (Quantizer(scale=scale, scale_rounding=rounding) for rounding in ("down", "error"))
        x = gaussian(400, 32)
        h = reference.hadamard(x).double()
        low, best = run(x, down), run(x, error)
        step = best.scales.int() - low.scales.int()
        assert set(step.flatten().tolist()) == {0, 1}
        unit = reference.decode_e8m0(low.scales).double()

        def squared(unit, h=h):
            return ((reference.decode_e2m1(reference.encode_e2m1((h / unit).float())) * unit - h) ** 2).sum(1)

        better = squared(2 * unit) < squared(unit)
        assert (better != step[:, 0].bool()).sum() == 0
    x = torch.zeros(1, 32)
    x[0, :2] = torch.tensor([4.0, 2.0])  # exact with the scales 1 and 2
    assert run(x, quantizer("rotation=0,scale_rounding=error")).scales.item() == 127


# NVFP4


@pytest.mark.parametrize("name", ["nvfp4-rtn-4over6", "nvfp4-rtn-2d-4over6"])
def test_four_over_six_never_has_the_larger_error(name):
    """Than the scale of the largest at 6, in float64, but for ties and rounding of the errors."""
    both, six = QUANTIZERS[name], quantizer(f"{name.replace('-4over6', '')},largest_scale=256.0")
    x = gaussian(64, 128)
    x[32:] = x[32:].clamp(-0.7, 0.7)  # of plain Gaussian squares almost none gains by it
    errors = [((reference.decode(run(x, q), q).double() - x) ** 2) for q in (both, six)]
    sums = [
        e.reshape(64 // q.group_rows, q.group_rows, 8, 16).sum((1, 3)) for e, q in zip(errors, (both, six), strict=True)
    ]
    assert (sums[0] <= sums[1] * (1 + 1e-6)).all() and (sums[0] < sums[1]).float().mean() > 0.1


def test_nothing_clips_under_stochastic_rounding():
    """17/16 covers the most that E4M3 rounds a normal group scale down."""
    x = gaussian(256, 256)
    q = QUANTIZERS["nvfp4-sr"]
    blocks = run(x, q)
    unit = (blocks.scales.float() * blocks.tensor_scale).repeat_interleave(16, 1)
    assert (x / unit).abs().max() <= 6.0


@pytest.mark.parametrize("tensor_scale", [1.0, 2.0**-40])
def test_the_largest_value_has_the_largest_scale(tensor_scale):
    """Its group's scale is `largest_scale`, and it is 6 / headroom of it; a tensor of zeros has scale 1."""
    x = gaussian(8, 64) * tensor_scale
    for name in ("nvfp4-rtn", "nvfp4-sr", "nvfp4-rtn-2d"):
        q = QUANTIZERS[name]
        blocks = run(x, q)
        assert blocks.scales.float().max() == q.largest_scale
        assert blocks.tensor_scale.item() == pytest.approx(x.abs().max().item() / 448 / 6 * q.headroom, rel=1e-6)
    zeros = run(torch.zeros(2, 32), QUANTIZERS["nvfp4-rtn"])
    assert zeros.tensor_scale.item() == 1.0 and (zeros.scales.float() == 1.0).all() and (zeros.mask == 255).all()


@ALL
def test_one_bad_value_makes_its_block_nan_and_no_other(name):
    q = QUANTIZERS[name]
    x = gaussian(2 * q.group_rows, 2 * q.block)
    x[0, :8] *= 100  # the tensor's largest, beside the NaN: it counts as if its block were not there
    bad = x.clone()
    bad[0, 3] = NAN
    x[: q.group_rows, : q.block] = 0.0
    clean, broken = (reference.decode(run(t, q), q) for t in (x, bad))
    of_block = torch.zeros_like(clean, dtype=torch.bool)
    of_block[: q.group_rows, : q.block] = True
    assert broken[of_block].isnan().all() and torch.equal(broken[~of_block], clean[~of_block])
    if not q.exact:
        mask = reference.unpack_bits(run(bad, q).mask)
        assert not mask[of_block].any() and mask[:, q.block :].float().mean() > 0.8


def test_a_group_that_overflows_has_no_part_in_the_correction_of_its_block():
    q, signs = quantizer("mxfp4-eden,rotation=64"), torch.ones(64)
    x = torch.full((1, 64), 2.0**122)
    x[0, 40] += 2.0**112  # the first column sums to 2^128; those of the second group to 2^112
    blocks = reference.quantize(x, q, seed=torch.tensor(0), signs=signs)
    assert blocks.scales[0, 0] == 255 and abs(blocks.scales[0, 1].item() - 127 - (112 - 3 - 2)) <= 1  # without it: 254


# Square blocks


@pytest.mark.parametrize("name", ["mxfp4-rtn-2d", "nvfp4-rtn-2d", "nvfp4-rtn-2d-4over6", "mxfp8,group_rows=32"])
def test_the_transpose_of_square_blocks_is_the_quantized_transpose(name):
    q = quantizer(name)
    x = gaussian(2 * q.group + 3, 3 * q.group)
    x[5, 40] = NAN
    of_transpose, transposed = run(x.t(), q), reference.transposed(run(x, q), q)
    if q.scale == "absmax":
        for a, b in zip(of_transpose[:3], transposed[:3], strict=True):
            assert torch.equal(as_bytes(a), as_bytes(b))
    values = reference.decode(run(x, q), q)
    full = -(-x.shape[0] // q.group) * q.group
    expected = torch.nn.functional.pad(values, (0, 0, 0, full - x.shape[0])).t()
    actual = reference.decode(transposed, q)
    assert torch.equal(actual[:, : x.shape[0]].nan_to_num(7.0), expected[:, : x.shape[0]].nan_to_num(7.0))
    assert not actual[:, x.shape[0] :].nan_to_num(0.0).any()


# Layout


@ALL
def test_padding_changes_no_random_bit_and_a_row_none_of_another(name):
    """But for the rows of a square block; and E4M3 scales are relative to the tensor's largest, here in the first row."""
    q = QUANTIZERS[name]
    x = gaussian(2 * q.group_rows, q.block + 10)
    x[0, 0] = 10.0
    whole, padded = run(x, q), run(torch.nn.functional.pad(x, (0, 3 * q.block)), q)
    for a, b in zip(whole.tensors, padded.tensors, strict=True):
        a, b = as_bytes(a), as_bytes(b)
        assert torch.equal(a, b if a.dim() == 1 else b[:, : a.shape[1]])
    part = run(x[: q.group_rows], q)
    assert all(
        torch.equal(as_bytes(a), as_bytes(b)[: a.shape[0]]) for a, b in zip(part.tensors, whole.tensors, strict=True)
    )


@ALL
@pytest.mark.parametrize("shape", [(0, 64), (4, 0), (0, 0)])
def test_empty_operands(name, shape):
    q = QUANTIZERS[name]
    blocks = run(torch.zeros(shape), q)
    full = -(-shape[1] // q.block) * q.block
    assert blocks.mask.shape == (shape[0], full // 8) and reference.decode(blocks, q).shape == (shape[0], full)
    assert blocks.tensor_scale.tolist() == ([1.0] if q.two_level else [])


@pytest.mark.parametrize("name", [name for name, q in QUANTIZERS.items() if not q.exact])
@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this CPU cannot flush subnormals to zero")
def test_flush_to_zero_mode_changes_no_bit_but_signs_of_zeros(name):
    """With E4M3 scales not even these."""
    q = QUANTIZERS[name]
    family = [make(*shape_for(q)) for make in (constants, one_hot, with_zeros, just_below)]
    exponents = (-63, -64, -90, -100, -110, -120, -124, -126, -140)
    for x in (*family, *(gaussian(q.group_rows, 2 * q.block, seed=-e, exponent=e) for e in exponents)):
        plain = run(x, q)
        assert torch.set_flush_denormal(True)
        try:
            flushed = run(x, q)
        finally:
            torch.set_flush_denormal(False)
        if not q.two_level:
            plain, flushed = (blocks._replace(codes=reference.decode(blocks, q) + 0.0) for blocks in (plain, flushed))
        for a, b in zip(plain.tensors, flushed.tensors, strict=True):
            assert torch.equal(as_bytes(a).nan_to_num(7.0), as_bytes(b).nan_to_num(7.0))


def test_the_random_bits_of_eden_are_those_of_row_and_group(monkeypatch):
    """One draw of 16 bits a group, at (row, group); none an element."""
    asked = []
    drawn = philox.scale_noise
    monkeypatch.setattr(philox, "noise", None)
    monkeypatch.setattr(philox, "scale_noise", lambda *place: asked.append(place[1:]) or drawn(*place))
    run(gaussian(3, 256), QUANTIZERS["nvfp4-eden"])
    run(gaussian(3, 256), QUANTIZERS["mxfp4-eden"])
    assert asked == [(philox.DGRAD_W, 3, 16), (philox.DGRAD_W, 3, 8)]


# Quantizing again


def source_of_many_scales():
    """Rows whose scales spread over 40 binades, one with a NaN."""
    x = gaussian(70, 64, seed=11) * 2.0 ** torch.randint(-30, 11, (70, 1), generator=torch.Generator().manual_seed(11))
    x[40, 5], x[3] = NAN, 0.0
    return x


ALIGNED = [name for name, q in QUANTIZERS.items() if reference.is_aligned(q, q)] + [
    "mxfp4-sr,noise_bits=16",
    "mxfp4-rtn,rotation=0,random_signs=False",
]


@pytest.mark.parametrize("source", ["mxfp4-quest", "mxfp4-rtn"])
@pytest.mark.parametrize("name", ALIGNED)
def test_requantization_equals_the_model(name, source):
    q, before = quantizer(name), QUANTIZERS[source]
    blocks = run(source_of_many_scales(), before)
    signs = exact_model.signs(1234, philox.DGRAD_W // 2, 32) if q.random_signs else None
    arrays = exact_operand.requantize(
        blocks.codes.numpy(), blocks.scales.numpy(), before, q, signs, 1234, philox.DGRAD_W
    )
    key = torch.tensor(1234)
    made = reference.requantize(blocks, before, q, stream=philox.DGRAD_W, seed=key, sign_seed=key)
    assert torch.equal(made.codes, torch.from_numpy(arrays[0])) and torch.equal(
        made.scales, torch.from_numpy(arrays[1])
    )
    assert made.scales.min() >= 64 and (made.scales == 255).any()


def test_the_order_of_sums_changes_no_bit_of_a_requantization(monkeypatch):
    """Butterflies from the largest stride down, and a product with the matrix, give the same blocks."""
    q, before, key = QUANTIZERS["mxfp4-sr"], QUANTIZERS["mxfp4-quest"], torch.tensor(5)
    blocks = run(source_of_many_scales(), before)

    def again():
        return reference.requantize(blocks, before, q, stream=3, seed=key, sign_seed=key)

    matrix, expected = reference.hadamard_sums(torch.eye(32)), again()
    for order in (torch.arange(32), torch.randperm(32, generator=torch.Generator().manual_seed(0))):
        monkeypatch.setattr(reference, "hadamard_sums", lambda x, order=order: x[..., order] @ matrix[order])
        made = again()
        assert torch.equal(made.codes, expected.codes) and torch.equal(made.scales, expected.scales)


def test_sums_of_zeros_have_no_sign_in_a_requantization():
    """The first half are zeros, which with the signs of a row of the matrix would sum to -0; the second half cancels there.
    -0 - 0 would be -0."""
    row, column = reference.hadamard_sums(torch.eye(16))[5], 16 + 5
    codes = torch.cat([torch.where(row > 0, 8, 0), torch.full((16,), 2)])[:, None].expand(32, 32)
    blocks = reference.Blocks(
        reference.pack_nibbles(codes), torch.full((32, 1), 127, dtype=torch.uint8), torch.empty(0), None, "mxfp4"
    )
    made = reference.requantize(
        blocks, QUANTIZERS["mxfp4-quest"], QUANTIZERS["mxfp4-rtn"], stream=0, seed=None, signs=torch.ones(32)
    )
    assert (reference.unpack_nibbles(made.codes)[:, column] == 0).all() and (made.codes != 0).any()


def test_what_is_decoded_first_is_not_aligned():
    assert ALIGNED[:2] == ["mxfp4-rtn", "mxfp4-sr"]
    for name in ("mxfp4-eden,rotation=32", "mxfp4-rtn,rotation=64", "mxfp4-rtn,scale_rounding=nearest", "mxfp4-quest"):
        assert not reference.is_aligned(QUANTIZERS["mxfp4-quest"], quantizer(name))
    assert not reference.is_aligned(QUANTIZERS["nvfp4-rtn"], QUANTIZERS["mxfp4-sr"])
