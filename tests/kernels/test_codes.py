"""Codes: E2M1, E4M3 and E8M0 bit by bit, both roundings against exact rationals, and how codes are packed."""

import itertools
import math
from fractions import Fraction

import exact_model
import pytest
import torch

from quartet_compile.kernels import quantizer as formats
from quartet_compile.kernels.numerics import codes as number_codes
from quartet_compile.kernels.numerics import reference

INF = math.inf
MIDPOINTS = {0.25: 0, 0.75: 2, 1.25: 2, 1.75: 4, 2.5: 4, 3.5: 6, 5.0: 6}
"""Each midpoint of the E2M1 grid and the even code that it rounds to."""


def f32(values):
    return torch.tensor(values, dtype=torch.float32)


def encode(values, bits=None, noise_bits=8):
    return reference.encode_e2m1(f32(values), bits, noise_bits).tolist()


def neighbours(value):
    """The float32 values next to `value` below and above."""
    return (torch.nextafter(f32(value), f32(-INF)).item(), torch.nextafter(f32(value), f32(INF)).item())


# E2M1


def test_grid_is_that_of_the_format():
    """Sign, two exponent bits with bias 1, one mantissa bit; exponent 0 is subnormal (OCP MX v1.0, 5.3.3)."""
    for code in range(8):
        exponent, mantissa = code >> 1, code & 1
        value = (1 + mantissa / 2) * 2.0 ** (exponent - 1) if exponent else mantissa / 2
        assert formats.E2M1_VALUES[code] == value == exact_model.GRID[code]
    assert max(formats.E2M1_VALUES) == formats.E2M1_MAX
    decoded = reference.decode_e2m1(torch.arange(16))
    assert decoded.tolist() == [*formats.E2M1_VALUES, *(-v for v in formats.E2M1_VALUES)]
    assert decoded.signbit().tolist() == [False] * 8 + [True] * 8


def test_every_code_encodes_to_itself():
    codes = torch.arange(16)
    assert torch.equal(reference.encode_e2m1(reference.decode_e2m1(codes)), codes)
    for width in (8, 16):
        for bits in (0, 2**width - 1):
            assert torch.equal(reference.encode_e2m1(reference.decode_e2m1(codes), torch.tensor(bits), width), codes)


@pytest.mark.parametrize(("midpoint", "even"), MIDPOINTS.items())
def test_midpoints_tie_to_even_and_their_neighbours_do_not(midpoint, even):
    below, above = neighbours(midpoint)
    low = max(c for c in range(8) if formats.E2M1_VALUES[c] < midpoint)
    assert even in (low, low + 1) and even % 2 == 0
    assert encode([below, midpoint, above]) == [low, even, low + 1]
    assert encode([-below, -midpoint, -above]) == [low + 8, even + 8, low + 9]


def test_saturation_signs_and_zeros():
    huge = torch.finfo(torch.float32).max
    assert encode([6.0, *neighbours(6.0), 7.0, 8.0, huge, INF]) == [7] * 7
    assert encode([-6.0, -7.0, -huge, -INF]) == [15] * 4
    assert encode([0.0, -0.0, 1e-30, -1e-30, 2.0**-149, -(2.0**-149)]) == [0, 8, 0, 8, 0, 8]
    assert encode([7.0, -INF, 0.0, -0.0], torch.tensor(2**8 - 1)) == [7, 15, 0, 8]


def test_nearest_is_exact_on_every_bfloat16_of_the_range():
    patterns = torch.arange(0x3800, 0x4110, dtype=torch.int32)  # 2^-15 to 9
    values = (patterns << 16).view(torch.float32)
    expected = [exact_model.nearest(Fraction(v)) for v in values.tolist()]
    assert reference.encode_e2m1(values).tolist() == expected
    assert reference.encode_e2m1(-values).tolist() == [code + 8 for code in expected]


def scaled_values():
    """Values of every cell of the grid: fractions from 0 to 1, among them some below and just above 2^-8 and 2^-16."""
    small = [2**-24, 2**-17, 2**-16, 3 * 2**-17, 2**-15, 2**-9, 2**-8 - 2**-20, 2**-8, 3 * 2**-9]
    fractions = [0, *small, 0.1, 0.25, 1 / 3, 0.5, 0.6789, 0.875, *(1 - f for f in small)]
    grid = formats.E2M1_VALUES
    values = [low + f * (high - low) for low, high in itertools.pairwise(grid) for f in fractions]
    return f32([*values, *neighbours(6.0), *(n for v in MIDPOINTS for n in neighbours(v))])


@pytest.mark.parametrize("width", [8, 16])
@pytest.mark.parametrize("sign", [1, -1])
def test_stochastic_rounding_by_exact_counts_over_all_noise(sign, width):
    """A value goes up for `fraction * 2^width` of the noise values, to the nearest, else down; nowhere else, ever."""
    every = torch.arange(2**width)[None, :]
    for values in scaled_values().split(16):
        codes = reference.encode_e2m1(sign * values[:, None], every, width)
        counts = torch.stack([torch.bincount(row, minlength=16) for row in codes])
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            expected = [0] * 16
            magnitude = min(Fraction(value), Fraction(6))
            low = max(c for c in range(8) if exact_model.GRID[c] <= magnitude)
            if low < 7:
                step = exact_model.GRID[low + 1] - exact_model.GRID[low]
                ups = math.floor((magnitude - exact_model.GRID[low]) / step * 2**width + Fraction(1, 2))
                expected[low + 1 + (8 if sign < 0 else 0)] = ups
            expected[low + (8 if sign < 0 else 0)] += 2**width - sum(expected)
            assert count == expected, value


@pytest.mark.parametrize("deviation", [1.6, 0.2])
def test_8_bits_shorten_nothing_on_average(deviation):
    """The expectation over all noise of the quantiles of a Gaussian: by `bits / 2^n` 7.5e-4 and 3.9e-3 short."""
    y = deviation * 2**0.5 * torch.erfinv(torch.linspace(-1, 1, 2**13 + 1)[1:-1]).clamp(-2.6, 2.6)
    means = reference.decode_e2m1(reference.encode_e2m1(y[:, None], torch.arange(256)[None, :], 8)).double().mean(dim=1)
    assert 1 - (means * y).sum() / y.square().sum() == pytest.approx(0, abs=5e-5)


def test_stochastic_rounding_goes_up_for_the_largest_noise():
    """Which noise goes up is part of the definition: `fraction + (bits + 1/2) / 2^width >= 1`."""
    for width in (8, 16):
        bits = torch.tensor([0, 2 ** (width - 1) - 1, 2 ** (width - 1), 2**width - 1])
        assert encode([0.25] * 4, bits, width) == [0, 0, 1, 1]
        assert encode([5.0] * 4, bits, width) == [6, 6, 7, 7]
        assert encode([-2.25] * 4, bits, width) == [12, 12, 12, 13]


# E4M3


def e4m3(values, bits=None):
    """Codes of float32 values, nearest or stochastic."""
    if bits is None:
        return number_codes.encode_e4m3(values).view(torch.uint8)
    return number_codes.stochastic_e4m3(values, bits).view(torch.uint8)


E4M3 = f32([float(value) for value in exact_model.E4M3])


def test_e4m3_values_are_those_of_the_format():
    decoded = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    assert torch.equal(decoded[:127], E4M3) and torch.equal(decoded[128:255], -E4M3)
    assert decoded[[formats.E4M3_NAN, 255]].isnan().all()
    assert E4M3.max() == formats.E4M3_MAX and E4M3[1] == 2.0**-9 and E4M3[8] == 2.0**-6


def test_every_e4m3_code_encodes_to_itself():
    codes = torch.arange(127, dtype=torch.uint8)
    assert torch.equal(e4m3(E4M3), codes) and torch.equal(e4m3(-E4M3), codes + 128)
    for bits in (0, 2**16 - 1):
        assert torch.equal(e4m3(E4M3, torch.tensor(bits)), codes)


def test_e4m3_midpoints_tie_to_even_and_their_neighbours_do_not():
    low = torch.arange(126, dtype=torch.uint8)
    middle = (E4M3[:-1] + E4M3[1:]) / 2
    assert torch.equal(e4m3(middle), low + low % 2)
    assert torch.equal(e4m3(torch.nextafter(middle, f32(-INF))), low)
    assert torch.equal(e4m3(torch.nextafter(middle, f32(INF))), low + 1)


def test_e4m3_saturates_and_keeps_nan():
    beyond = f32([*neighbours(448.0), 464.0, 480.0, 1e30, INF])
    assert e4m3(beyond).tolist() == [126] * 6 and e4m3(-beyond).tolist() == [254] * 6
    assert e4m3(beyond, torch.tensor(0)).tolist() == [125, *[126] * 5]
    assert e4m3(beyond, torch.tensor(2**16 - 1)).tolist() == [126] * 6
    assert number_codes.encode_e4m3(f32([math.nan])).float().isnan().all()
    assert e4m3(f32([0.0, -0.0, 2.0**-11, 2.0**-149])).tolist() == [0, 128, 0, 0]


def test_e4m3_is_exact_on_every_bfloat16_of_the_range():
    values = (torch.arange(0x3A00, 0x43F0, dtype=torch.int32) << 16).view(torch.float32)  # 2^-11 to 480
    expected = torch.tensor([exact_model.nearest(Fraction(v), exact_model.E4M3) for v in values.tolist()])
    assert torch.equal(e4m3(values).long(), expected) and torch.equal(e4m3(-values).long(), expected + 128)


def e4m3_values():
    """Every midpoint, and values of subnormal cells, of the one between, of normal ones and of the last."""
    fractions = [2**-20, 2**-17, 2**-16, 3 * 2**-17, 0.1, 1 / 3, 0.6789, 1 - 2**-16, 1 - 2**-18]
    cells = (0, 1, 6, 7, 8, 9, 15, 16, 55, 56, 87, 119, 125)
    inside = [E4M3[c].item() + f * (E4M3[c + 1] - E4M3[c]).item() for c in cells for f in fractions]
    return torch.cat([(E4M3[:-1] + E4M3[1:]) / 2, f32(inside)])


def test_stochastic_e4m3_by_exact_counts_over_all_noise():
    every = torch.arange(2**16)[None, :]
    for values in e4m3_values().split(16):
        codes = e4m3(values[:, None], every)
        for value, row in zip(values.tolist(), codes, strict=True):
            low = max(c for c in range(127) if exact_model.E4M3[c] <= Fraction(value))
            ups = 0
            if low < 126:
                step = exact_model.E4M3[low + 1] - exact_model.E4M3[low]
                ups = math.floor((Fraction(value) - exact_model.E4M3[low]) / step * 2**16)
            assert torch.equal(row, (low + (every[0] >= 2**16 - ups)).to(torch.uint8)), value


# E8M0 and powers of two


def test_every_e8m0_byte():
    decoded = reference.decode_e8m0(torch.arange(256, dtype=torch.uint8)).double()
    assert decoded[:255].tolist() == [2.0 ** (byte - 127) for byte in range(255)]
    assert decoded[formats.E8M0_NAN].isnan() and formats.E8M0_NAN == 255


def test_powers_of_two():
    exponents = torch.arange(-126, 128)
    assert reference.power_of_two(exponents).double().tolist() == [2.0**e for e in range(-126, 128)]


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this CPU cannot flush subnormals to zero")
def test_powers_of_two_come_from_bits_in_flush_to_zero_mode():
    torch.set_flush_denormal(True)
    try:
        byte0 = reference.decode_e8m0(torch.tensor([0, 1], dtype=torch.uint8)).view(torch.int32).tolist()
    finally:
        torch.set_flush_denormal(False)
    assert byte0 == [1 << 22, 1 << 23]


# Packing


def test_nibbles_even_column_low():
    codes = torch.tensor([[1, 2, 15, 8]])
    assert reference.pack_nibbles(codes).tolist() == [[0x21, 0x8F]]
    every = torch.arange(256, dtype=torch.uint8).reshape(16, 16)
    assert torch.equal(reference.pack_nibbles(reference.unpack_nibbles(every)), every)


def test_bits_first_column_lowest():
    keep = torch.tensor([[1, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0]]).bool()
    assert reference.pack_bits(keep).tolist() == [[0x81, 0x02]]
    every = torch.arange(256, dtype=torch.uint8).reshape(16, 16)
    assert torch.equal(reference.pack_bits(reference.unpack_bits(every)), every)


def test_half_precision_holds_the_rule_of_8_bits():
    """The bits of float16(y / 2^14), rounded toward zero, are code * 512 + fraction: what kernels/gpu makes use of."""
    grid = f32(formats.E2M1_VALUES)
    beside = torch.cat([grid, torch.nextafter(grid, f32(9.0))[:-1], torch.nextafter(grid, f32(0.0))[1:]])
    y = torch.cat([beside, torch.rand(500, generator=torch.Generator().manual_seed(0)) * 6])[:, None]
    bits = torch.arange(256)[None, :]
    half = (y * 2.0**-14).half()
    down = half.float() > y * 2.0**-14
    whole = half.view(torch.int16).long() - down.long()
    assert torch.equal((whole + 2 * bits + 1) >> 9, reference.encode_e2m1(y.expand(-1, 256), bits.expand(len(y), -1)))
