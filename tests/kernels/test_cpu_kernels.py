"""The C++ quantizers against the reference, bit for bit, built for every instruction set that this CPU has."""

import dataclasses
import functools
import itertools

import pytest
import torch
from cpu_cases import (
    DTYPES,
    ROUNDING,
    SEED,
    SHAPES,
    SIGN_SEED,
    assert_same,
    awkward,
    calm,
    every_quantizer,
    expected,
    isa,
    quantize,
    requantize,
)

from quartet_compile.errors import QuantizerError
from quartet_compile.kernels.cpu import native
from quartet_compile.kernels.numerics import philox, reference
from quartet_compile.kernels.numerics.reference import Blocks
from quartet_compile.kernels.quantizer import (
    E2M1_MAX,
    E4M3_NAN,
    E8M0_NAN,
    QUANTIZERS,
    QUEST_GAUSSIAN_CLIP,
    Quantizer,
    padded,
)
from quartet_compile.kernels.quantizer import quantizer as quantizer_named

__all__ = ["isa"]  # a fixture


@functools.cache  # one for all instruction sets
def expected_of(make, shape, dtype, quantizer: Quantizer, transpose: bool) -> Blocks:
    return expected(make(*shape, dtype), quantizer, transpose=transpose, mask=True)


@functools.cache
def combinations() -> list[Quantizer]:
    """Every legal combination of the fields, with two values of those that are numbers."""
    fields = {
        "elements": ("e2m1", "e4m3"),
        "group": (16, 32),
        "group_rows": (1, 16, 32),
        "rotation": (0, 16, 32, 64, 128),
        "random_signs": (False, True),
        "scale_format": ("e8m0", "e4m3"),
        "scale": ("absmax", "quest", "four-over-six"),
        "scale_rounding": ("down", "nearest", "up", "error", "even"),
        "shrink": (1.0, 0.75),
        "headroom": (1.0, 17 / 16),
        "largest_scale": (448.0, 256.0),
        "rounding": ("nearest", "stochastic", "eden"),
    }
    found = []
    for values in itertools.product(*fields.values()):
        try:
            found.append(Quantizer(**dict(zip(fields, values, strict=True))))
        except QuantizerError:
            continue
    return found


@every_quantizer
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("transpose", [False, True])
def test_quantize(quantizer, dtype, transpose):
    for make in (awkward, calm) if quantizer.two_level else (awkward,):
        for shape in SHAPES:
            assert_same(
                quantize(make(*shape, dtype), quantizer, transpose=transpose, mask=True),
                expected_of(make, shape, dtype, quantizer, transpose),
            )


def test_every_legal_quantizer():
    assert len(combinations()) > 250
    for i, quantizer in enumerate(combinations()):
        make, shape = calm if quantizer.two_level else awkward, (70, 300) if i % 2 else (261, 67)
        dtype, transpose = DTYPES[i % 3], i % 4 > 1
        blocks = quantize(make(*shape, dtype), quantizer, transpose=transpose, mask=True)
        try:
            assert_same(blocks, expected_of(make, shape, dtype, quantizer, transpose))
        except AssertionError as error:
            raise AssertionError(quantizer.name) from error


@every_quantizer
def test_empty_matrices(quantizer):
    for shape in ((0, 32), (32, 0), (0, 0)):
        for transpose in (False, True):
            blocks = quantize(torch.zeros(shape), quantizer, transpose=transpose, mask=True)
            rows, columns = reversed(shape) if transpose else shape
            full = padded(columns, quantizer.block)
            assert blocks.codes.shape == (rows, full // 2 if quantizer.elements == "e2m1" else full)
            assert blocks.scales.shape == (rows, full // quantizer.group) and blocks.mask.shape == (rows, full // 8)
            assert blocks.tensor_scale.tolist() == [1.0] * quantizer.two_level
        again = requantize(quantize(torch.zeros(0, 64), quantizer), quantizer, quantizer)
        assert again.codes.shape == (padded(64, quantizer.block), 0)


@every_quantizer
def test_strides(quantizer):
    x = calm(130, 200) if quantizer.two_level else awkward(130, 200)
    for i, view in enumerate(views(x)):
        for transpose in (False, True):
            assert_same(quantize(view, quantizer, transpose=transpose), expected_of_view(i, quantizer, transpose))


def views(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return x.t(), x[:, 7:139], x[3::2], x[:, ::3], x.t()[5:, 2:70], x[4].expand(40, 200), x[:1].t(), x[:, 9:10]


@functools.cache
def expected_of_view(i: int, quantizer: Quantizer, transpose: bool) -> Blocks:
    x = calm(130, 200) if quantizer.two_level else awkward(130, 200)
    return expected(views(x)[i].contiguous(), quantizer, transpose=transpose)


@every_quantizer
def test_one_nan_or_infinity_spoils_only_its_block(quantizer):
    height, width, of_block = quantizer.group_rows, quantizer.block, quantizer.block // quantizer.group
    for value, place in ((torch.nan, 5), (torch.inf, 64), (-torch.inf, 150)):
        x = torch.ones(40, 160)
        x[17, place] = value
        blocks = quantize(x, quantizer, mask=True)
        spoiled = blocks.scales.view(torch.uint8) == (E4M3_NAN if quantizer.two_level else E8M0_NAN)
        first_row, first_group = 17 // height * height, place // width * of_block
        assert spoiled[first_row : first_row + height, first_group : first_group + of_block].all()
        assert spoiled.sum() == min(height, 40 - first_row) * of_block
        assert_same(blocks, expected(x, quantizer, mask=True))


@every_quantizer
def test_groups_at_the_least_scale(quantizer):
    """Some are below it; and pairs of very small inputs that cancel."""
    x = torch.full((64, 64), 2.0**-63)
    x[:32] *= 1 - 2.0**-24
    x[:, 6::32], x[:, 7::32] = -(2.0**-110), 2.0**-111
    x[1::2] *= -1
    for sign in (1.0, -1.0):
        options = dict(mask=True, seed=SEED, signs=torch.full((quantizer.rotation,), sign))
        assert_same(native.quantize(x, quantizer, **options), reference.quantize(x, quantizer, **options))


@pytest.mark.parametrize("name", ["nvfp4-rtn", "nvfp4-rtn-4over6", "mxfp8"])
def test_every_tie_of_e4m3(name):
    """As scales of a tensor whose own scale is 1, and as elements of groups whose scale is 1."""
    quantizer = QUANTIZERS[name]
    codes = torch.arange(E4M3_NAN, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    ties = (codes[1:] + codes[:-1]) / 2
    ties = torch.cat((codes, *(torch.nextafter(ties, torch.tensor(to)) for to in (0.0, 1e9)), ties))
    if quantizer.two_level:
        ties = ties[ties <= quantizer.largest_scale]
        x = ties[:, None] * 6 * torch.linspace(-1, 1, 16)
        x[0, 0] = 6 * quantizer.largest_scale
        assert quantize(x, quantizer).tensor_scale == 1
    else:
        x = torch.nn.functional.pad(torch.stack((ties, -ties), dim=1), (0, 30), value=448.0)
        assert (quantize(x, quantizer).scales == 127).all()
    assert_same(quantize(x, quantizer), expected(x, quantizer))


def test_quest_scales_to_the_last_bit():
    """Groups whose scale is a rounding error from a power of two, and groups that rotate to almost a constant."""
    quantizer, generator = QUANTIZERS["mxfp4-quest"], torch.Generator().manual_seed(3)
    x = torch.randn(4000, 32, generator=generator)
    deviation = reference.hadamard(x.double()).std(-1, correction=0, keepdim=True)
    near_one = (x / (deviation * (QUEST_GAUSSIAN_CLIP / E2M1_MAX))).float()
    constant = x * 10.0 ** -torch.randint(3, 9, (4000, 1), generator=generator)
    constant[:, 0] = x[:, 0]
    assert 100 < (quantize(near_one, quantizer).scales == 127).sum() < 3900
    for values in (near_one, constant):
        assert_same(quantize(values, quantizer), expected(values, quantizer))


def test_explicit_signs():
    x = torch.cat((calm(40, 170), torch.zeros(1, 170)))  # times -1, zeros are negative
    for name in ("mxfp4-rtn", "mxfp4-eden", "nvfp4-eden"):
        quantizer = QUANTIZERS[name]
        for signs in (philox.signs(torch.tensor(5), 0, quantizer.rotation), -torch.ones(quantizer.rotation)):
            options = dict(seed=SEED, signs=signs)
            assert_same(native.quantize(x, quantizer, **options), reference.quantize(x, quantizer, **options))


def test_exact_formats_are_the_reference():
    for name in ("exact-fixed", "exact-random"):
        x = torch.randn(33, 40)
        assert_same(quantize(x, QUANTIZERS[name], mask=True), expected(x, QUANTIZERS[name], mask=True))


@pytest.mark.parametrize(
    "rows, columns",
    [
        ("mxfp4-sr", "mxfp4-sr"),
        ("mxfp4-rtn", "mxfp4-sr"),
        ("exact-random", "mxfp4-rtn"),
        ("nvfp4-eden", "nvfp4-eden"),
        ("mxfp4-sr", "nvfp4-sr"),
    ],
)
def test_pair_is_two_calls(rows, columns):
    row, column = QUANTIZERS[rows], QUANTIZERS[columns]
    for shape in ((33, 100), (100, 260), (300, 140)):
        for dtype in DTYPES:
            x = calm(*shape, dtype) if not row.exact else torch.randn(shape, dtype=dtype)
            for dy in (x, x.t()):
                by_row, by_column = native.quantize_pair(dy, row, column, seed=SEED, sign_seed=SIGN_SEED)
                assert_same(by_row, expected(dy, row, philox.DGRAD_DY, SEED))
                assert_same(by_column, expected(dy, column, philox.WGRAD_DY, SIGN_SEED, transpose=True))


@pytest.mark.parametrize("name", ["mxfp4-sr,rotation=0,random_signs=False", "nvfp4-sr", "nvfp4-sr,noise_bits=16"])
@pytest.mark.parametrize("pair", [native.quantize_pair, reference.quantize_pair])
def test_both_directions_draw_one_noise(pair, name):
    """If dY's squares of 64 are symmetric, they round to the same codes in both directions."""
    x = torch.randn(2, 64, 3, 64)
    dy = (x + x.transpose(1, 3)).reshape(128, 192)
    quantizer = quantizer_named(name)
    rows, columns = pair(dy, quantizer, quantizer, seed=SEED, sign_seed=SIGN_SEED)
    assert torch.equal(rows.codes.view(2, 64, 3, 32).transpose(0, 2), columns.codes.view(3, 64, 2, 32))


def test_other_dtypes_become_float32():
    x, quantizer = torch.randn(40, 70, dtype=torch.float64), QUANTIZERS["mxfp4-quest"]
    assert_same(quantize(x, quantizer), expected(x, quantizer))
    assert native.unrotate(x[:, :64], torch.full((40, 8), 255, dtype=torch.uint8), 32, 64).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_flush_to_zero_mode_changes_no_bit_but_signs_of_zeros(dtype):
    """With E4M3 scales not even these."""
    for quantizer in ROUNDING.values():
        for make in (awkward, calm) if quantizer.two_level else (awkward,):
            x = make(100, 260, dtype)
            assert torch.set_flush_denormal(True)
            flushed = quantize(x, quantizer, mask=True)
            torch.set_flush_denormal(False)
            plain = expected_of(make, (100, 260), dtype, quantizer, False)
            if not quantizer.two_level:
                flushed, plain = (b._replace(codes=reference.decode(b, quantizer) + 0.0) for b in (flushed, plain))
            assert_same(flushed, plain)


@pytest.mark.parametrize("name", ["mxfp4-sr", "mxfp4-eden", "nvfp4-eden", "nvfp4-rtn-2d", "mxfp8"])
def test_threads_change_nothing(name):
    x, quantizer = calm(300, 1024), QUANTIZERS[name]
    source = quantize(x, quantizer)
    mask = torch.randint(0, 256, (300, 128), dtype=torch.uint8)

    def everything() -> list[Blocks]:
        pair = native.quantize_pair(x, quantizer, quantizer, seed=SEED, sign_seed=SIGN_SEED)
        again = requantize(source, quantizer, quantizer)
        unrotated = native.unrotate(torch.ones(300, 1024), mask, quantizer.rotation, 1000)
        return [quantize(x, quantizer), *pair, again, source._replace(codes=unrotated)]

    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(everything())
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        for blocks, wanted in zip(result, results[0], strict=True):
            assert_same(blocks, wanted)


@pytest.mark.parametrize(
    "base, changes",
    [
        (
            Quantizer(random_signs=True, shrink=0.75),
            [{"scale": "quest", "shrink": 1.0}, {"shrink": 1.0}, {"rounding": "stochastic"}, {"rounding": "eden"},
             {"random_signs": False}, {"rotation": 0, "random_signs": False}, {"rotation": 64},
             {"scale_rounding": "nearest"}, {"scale_rounding": "up"}, {"scale_rounding": "even"},
             {"shrink": 1.0, "elements": "e4m3"}, {"shrink": 1.0, "scale_rounding": "error"}],
        ),
        (
            QUANTIZERS["nvfp4-rtn"],
            [{"headroom": 1.25}, {"largest_scale": 256.0}, {"scale": "four-over-six", "largest_scale": 256.0},
             {"rotation": 16}, {"rounding": "stochastic", "headroom": 17 / 16}, {"group_rows": 16}],
        ),
    ],
)  # fmt: skip
def test_every_field_of_a_quantizer_changes_the_result(base, changes):
    """So that none is dropped on its way to C++."""
    x = torch.randn(64, 128)
    before = quantize(x, base)
    for change in changes:
        after = quantize(x, dataclasses.replace(base, **change))
        parts = zip(before[:3], after[:3], strict=True)
        assert any(a.shape != b.shape or not torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in parts)


@pytest.mark.parametrize("name", ["mxfp4-rtn-2d", "nvfp4-rtn-2d", "mxfp8,group_rows=32"])
@pytest.mark.parametrize("shape", [(0, 64), (1, 1), (65, 33), (100, 40), (129, 200), (300, 257)], ids=str)
def test_square_blocks_are_transposed_as_they_are(name, shape):
    spec = quantizer_named(name)
    blocks = quantize(awkward(*shape), spec)
    assert_same(native.transposed(blocks, spec), reference.transposed(blocks, spec))
    apart = blocks._replace(codes=blocks.codes.t().contiguous().t(), scales=blocks.scales.t().contiguous().t())
    assert_same(native.transposed(apart, spec), reference.transposed(blocks, spec))
