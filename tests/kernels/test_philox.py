"""Random bits: the published answers of Philox, the layout of counters and keys, what that layout must decorrelate, and
that products of operands rounded with these bits are unbiased."""

import itertools

import exact_model
import pytest
import torch

from quartet_compile.kernels import quantizer as formats
from quartet_compile.kernels.numerics import philox, reference
from quartet_compile.kernels.quantizer import QUANTIZERS

ONES, PI = 0xFFFFFFFF, (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)

# Random123, kat_vectors: (rounds, counter, key) -> output
KNOWN = [
    (7, (0,) * 4, (0,) * 2, "5f6fb709 0d893f64 4f121f81 4f730a48"),
    (7, (ONES,) * 4, (ONES,) * 2, "5207ddc2 45165e59 4d8ee751 8c52f662"),
    (7, PI, (0xA4093822, 0x299F31D0), "4dfccaba 190a87f0 c47362ba b6b5242a"),
    (10, (0,) * 4, (0,) * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
]


def words(values):
    return tuple(torch.tensor(v, dtype=torch.int64) for v in values)


def noise(seed, stream, rows, columns, bits=8):
    return philox.noise(torch.tensor(seed), stream, rows, columns, bits)


@pytest.mark.parametrize(("rounds", "counter", "key", "output"), KNOWN)
def test_known_answers(rounds, counter, key, output):
    expected = [int(word, 16) for word in output.split()]
    assert [int(w) for w in philox.philox(words(counter), words(key), rounds)] == expected
    assert list(exact_model.philox(counter, key, rounds)) == expected


def test_default_is_seven_rounds():
    zeros = words((0,) * 4)
    assert [int(w) for w in philox.philox(zeros, zeros[:2])] == [int(w) for w in philox.philox(zeros, zeros[:2], 7)]


WIDTHS = pytest.mark.parametrize("bits", [8, 16])


@WIDTHS
@pytest.mark.parametrize("seed", [0, 1, -1, 2**32, 2**63 - 1, -(2**63), 0x0123456789ABCDEF])
def test_noise_is_the_scalar_model(seed, bits):
    for stream in (0, 4, 5):
        expected = [[exact_model.noise(seed, stream, r, c, bits) for c in range(35)] for r in range(5)]
        assert noise(seed, stream, 5, 35, bits).tolist() == expected


def test_noise_golden():
    """Two rows that straddle a block of 16 columns as bytes, and one of 8 columns as 16-bit halves of the same words."""
    rows = [" ".join(f"{v:02x}" for v in row) for row in noise(1234, philox.DGRAD_W, 2, 18).tolist()]
    assert rows == [
        "05 83 f7 ab cb 59 e0 17 9a 9b 23 27 75 36 7f 49 d4 bc",
        "8a 03 fe 69 46 1f 9a a7 31 3d 79 98 60 18 ea 4b f0 19",
    ]
    rows = [" ".join(f"{v:04x}" for v in row) for row in noise(1234, philox.DGRAD_W, 2, 10, 16).tolist()]
    assert rows == [
        "8305 abf7 59cb 17e0 9b9a 2723 3675 497f bcd4 1335",
        "038a 69fe 1f46 a79a 3d31 9879 1860 4bea 19f0 d340",
    ]


@WIDTHS
def test_noise_is_a_function_of_the_position(bits):
    whole = noise(7, 3, 40, 100, bits)
    for rows, columns in ((40, 64), (40, 33), (1, 100), (13, 8), (39, 1)):
        assert torch.equal(noise(7, 3, rows, columns, bits), whole[:rows, :columns])


def squares(x):
    """[i, j, 64, 64], the squares of a matrix."""
    return x.unflatten(0, (-1, 64)).unflatten(2, (-1, 64)).transpose(1, 2)


@WIDTHS
def test_the_directions_of_dy_share_their_noise(bits):
    """dY^T's square (i, j) has the noise of dY's square (j, i), row for row: of the same elements of dY, transposed. So each
    element of a direction has its own."""
    rows = noise(7, philox.DGRAD_DY, 256, 384, bits)
    columns = noise(7, philox.WGRAD_DY, 384, 256, bits)
    assert torch.equal(squares(columns), squares(rows).transpose(0, 1))
    assert torch.equal(columns[:300, :200], noise(7, philox.WGRAD_DY, 300, 200, bits))


def test_the_scales_of_each_direction_have_their_own_noise():
    assert [exact_model.scale_noise(7, 4, 130, g) for g in range(9)] == scale_noise(4, 131, 9)[130].tolist()
    assert not torch.equal(scale_noise(4, 8, 8), scale_noise(2, 8, 8))


def scale_noise(stream, rows, groups):
    return philox.scale_noise(torch.tensor(7), stream, rows, groups)


@WIDTHS
def test_noise_has_all_its_bits(bits):
    drawn = noise(0, 0, 512, 512, bits)
    assert drawn.min() >= 0 and drawn.max() < 2**bits and drawn.unique().numel() > 0.97 * 2**bits


@WIDTHS
@pytest.mark.parametrize("row_offset", [0, 2**32 - 2, 2**32, 2**40 + 5, 2**48 - 4])
@pytest.mark.parametrize("block_offset", [0, 2**32 - 2, 2**33, 2**47 + 1])
@pytest.mark.parametrize("stream", [philox.DGRAD_DY, philox.WGRAD_DY])
def test_rows_and_columns_beyond_32_bits_enter_the_counter(monkeypatch, row_offset, block_offset, stream, bits):
    """`noise` of 4 rows and 32 columns, moved to where no test can allocate them: its first two `arange` are offset."""
    offsets, arange = iter((row_offset, block_offset, 0)), torch.arange
    monkeypatch.setattr(torch, "arange", lambda *size, **how: arange(*size, **how) + next(offsets))
    actual = philox.noise(torch.tensor(99), stream, 4, 32, bits).tolist()
    rows, first = range(row_offset, row_offset + 4), 128 // bits * block_offset
    assert actual == [[exact_model.noise(99, stream, r, c, bits) for c in range(first, first + 32)] for r in rows]


def test_positions_2_to_the_32_apart_differ():
    near = [exact_model.noise(0, 0, 0, c, 8) for c in range(64)]
    assert near != [exact_model.noise(0, 0, 2**32, c, 8) for c in range(64)]
    assert near != [exact_model.noise(0, 0, 0, c + 2**36, 8) for c in range(64)]


@pytest.mark.parametrize("seed", [0, 5, -1, 2**40 + 3])
def test_signs_are_the_scalar_model_and_shared_by_both_operands(seed):
    key = torch.tensor(seed)
    for gemm, (left, right) in enumerate(((0, 1), (2, 3), (4, 5))):
        signs = philox.signs(key, left, 32)
        assert signs.dtype == torch.float32 and signs.tolist() == [float(s) for s in exact_model.signs(seed, gemm)]
        assert torch.equal(signs, philox.signs(key, right, 32))
        assert torch.equal(philox.signs(key, left, 128)[:32], signs)


@pytest.mark.parametrize("size", [16, 64, 128])
def test_signs_of_other_sizes_are_the_scalar_model(size):
    for seed, gemm in ((0, 0), (-1, 1), (2**40 + 3, 2)):
        expected = [float(s) for s in exact_model.signs(seed, gemm, size)]
        assert philox.signs(torch.tensor(seed), 2 * gemm, size).tolist() == expected


def test_signs_golden():
    signs = philox.signs(torch.tensor(1234), philox.WGRAD_X, 32)
    assert "".join("-" if s < 0 else "+" for s in signs.tolist()) == "++++-+-+-+++-+-++-+-+-++--+++--+"


def test_streams_of_noise_and_signs_do_not_meet():
    streams = (philox.FPROP_X, philox.FPROP_W, philox.DGRAD_DY, philox.DGRAD_W, philox.WGRAD_DY, philox.WGRAD_X)
    assert streams == tuple(range(6)) and max(streams) < philox.SIGN_STREAM


def _z_of_ones(bits):
    """Standard deviations by which each of the 8 bits is off balance."""
    ones = torch.stack([(bits >> i) & 1 for i in range(8)]).double().sum(1)
    return (ones - bits.numel() / 2) / (bits.numel() / 4) ** 0.5


def _z_of_bytes(bits):
    """Chi-square over 256 bins, as standard deviations from its mean."""
    count = torch.bincount(bits.flatten(), minlength=256).double()
    mean = bits.numel() / 256
    return (((count - mean) ** 2 / mean).sum() - 255) / (2 * 255) ** 0.5


def _against(*args, rows=slice(None), columns=slice(None)):
    return noise(11, 0, 256, 256) ^ noise(*args)[rows, columns]


def _against_transpose():
    bits = noise(11, 0, 256, 256)
    return (bits ^ bits.t())[torch.ones(256, 256, dtype=torch.bool).triu(1)]


# If all is well the largest of these 9 * 8 scores exceeds 5 with probability 1e-4; the seeds are fixed.
@pytest.mark.parametrize(
    "difference",
    [
        pytest.param(lambda: noise(11, 0, 256, 256), id="none"),
        pytest.param(lambda: _against(12, 0, 256, 256), id="next seed"),
        pytest.param(lambda: _against(11 + 2**32, 0, 256, 256), id="high word of the seed"),
        pytest.param(lambda: _against(11, 1, 256, 256), id="next stream"),
        pytest.param(lambda: _against(11, 0, 257, 256, rows=slice(1, None)), id="next row"),
        pytest.param(lambda: _against(11, 0, 256, 257, columns=slice(1, None)), id="next column"),
        pytest.param(lambda: _against(11, 0, 256, 272, columns=slice(16, None)), id="next block of columns"),
        pytest.param(_against_transpose, id="transpose"),
    ],
)
def test_noise_and_its_differences_are_balanced(difference):
    bits = difference()
    assert _z_of_ones(bits.flatten()).abs().max() < 5
    assert _z_of_bytes(bits).abs() < 5


def test_signs_are_balanced_and_uncorrelated_over_seeds():
    drawn = torch.stack([philox.signs(torch.tensor(seed), 2, 32) for seed in range(2000)])
    assert (drawn.sum(0) / 2000**0.5).abs().max() < 5
    products = torch.stack([(drawn[:, i] * drawn[:, j]).sum() for i, j in itertools.combinations(range(32), 2)])
    assert (products / 2000**0.5).abs().max() < 5


# Products of operands that are rounded again


@pytest.fixture
def one_thread():
    """Thousands of tiny operations: 10 times slower when two threads share a busy core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def averages(name, count, terms=64):
    """Exact `A^T B` of two quantized operands, and `count` products of them requantized with fresh seeds."""
    quest, quantizer = QUANTIZERS["mxfp4-quest"], formats.quantizer(name)
    generator = torch.Generator().manual_seed(2)
    a, b = (reference.quantize(torch.randn(terms, 64, generator=generator), quest) for _ in range(2))
    products = []
    for seed in range(count):
        key = torch.tensor(seed)
        signs = philox.signs(key, philox.WGRAD_DY, quantizer.rotation)
        left, right = (
            reference.requantize(source, quest, quantizer, stream=stream, seed=key, signs=signs)
            for source, stream in ((a, philox.WGRAD_DY), (b, philox.WGRAD_X))
        )
        products.append(reference.scaled_mm(left, right, quantizer.gain**2, torch.float32).double())
    exact = reference.decode(a, quest).double().t() @ reference.decode(b, quest).double()
    return exact, torch.stack(products)


def squared_error(values, exact):
    return (((values - exact) ** 2).sum((-2, -1)).mean() / (exact**2).sum()).item()


def test_stochastic_products_converge_to_the_exact_one(one_thread):
    """The squared error of the mean of B products is 1/B of that of one. 4096 outputs: spread of a ratio 2 to 4 %."""
    exact, products = averages("mxfp4-sr", 128)
    single = squared_error(products, exact)
    assert single == pytest.approx(2 * 2.78e-2, rel=0.05)
    for batch in (4, 16, 64):
        means = products.unflatten(0, (128 // batch, batch)).mean(1)
        assert single / squared_error(means, exact) == pytest.approx(batch, rel=0.1)
    assert ((products * exact).sum() / 128 / (exact**2).sum()).item() == pytest.approx(1.0, abs=2.5e-3)


@pytest.mark.parametrize(
    ("name", "error", "short"),
    [
        ("nvfp4-sr,rotation=128,random_signs=True", 2.35e-2, 0),
        ("nvfp4-eden", 9.73e-3, 5.9e-4),
        ("mxfp4-eden", 2.66e-2, 8e-4),
    ],
)
def test_products_of_other_quantizers_converge_to_the_exact_one(one_thread, name, error, short):
    """As above, over 128 terms. EDEN's operands are each too short by `short`, which only larger averages would show."""
    exact, products = averages(name, 64, terms=128)
    single = squared_error(products, exact)
    assert single == pytest.approx(2 * error, rel=0.05)
    for batch in (4, 16):
        means = products.unflatten(0, (64 // batch, batch)).mean(1)
        assert single / squared_error(means, exact) == pytest.approx(batch, rel=0.1)
    along = ((products * exact).sum() / 64 / (exact**2).sum()).item()
    assert along == pytest.approx(1.0 - 2 * short, abs=2.5e-3)


def test_nearest_products_meet_a_plateau(one_thread):
    """Rounded to nearest each operand is too short by 0.9 %; an average of products keeps that."""
    exact, products = averages("mxfp4-rtn", 128)
    assert squared_error(products.mean(0), exact) > 1.5 * squared_error(products, exact) / 128
    along = ((products * exact).sum() / 128 / (exact**2).sum()).item()
    assert along == pytest.approx((1 - 9.4e-3) ** 2, abs=7e-3) and along < 0.99
