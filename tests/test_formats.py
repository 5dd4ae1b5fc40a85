"""Formats: E2M1 and E8M0 codes bit by bit, both roundings against exact rationals, and quantizers as data."""

import dataclasses
import itertools
import math
from fractions import Fraction

import pytest
import torch
from golden import exact_model

from quartet_compile import formats
from quartet_compile.errors import QuantizerError
from quartet_compile.formats import QUANTIZERS, Quantizer
from quartet_compile.kernels import reference

INF = math.inf
MIDPOINTS = {0.25: 0, 0.75: 2, 1.25: 2, 1.75: 4, 2.5: 4, 3.5: 6, 5.0: 6}
"""Each midpoint of the E2M1 grid and the even code that it rounds to."""


def f32(values):
    return torch.tensor(values, dtype=torch.float32)


def encode(values, bits=None):
    return reference.encode_e2m1(f32(values), bits).tolist()


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
    for bits in (0, 2**16 - 1):
        assert torch.equal(reference.encode_e2m1(reference.decode_e2m1(codes), torch.tensor(bits)), codes)


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
    assert encode([7.0, -INF, 0.0, -0.0], torch.tensor(2**16 - 1)) == [7, 15, 0, 8]


def test_nearest_is_exact_on_every_bfloat16_of_the_range():
    patterns = torch.arange(0x3800, 0x4110, dtype=torch.int32)  # 2^-15 to 9
    values = (patterns << 16).view(torch.float32)
    expected = [exact_model.nearest(Fraction(v)) for v in values.tolist()]
    assert reference.encode_e2m1(values).tolist() == expected
    assert reference.encode_e2m1(-values).tolist() == [code + 8 for code in expected]


def scaled_values():
    """Values of every cell of the grid: fractions from 0 to 1, among them some below and just above 2^-16."""
    small = [2**-24, 2**-17, 2**-16, 3 * 2**-17, 2**-15]
    fractions = [0, *small, 0.1, 0.25, 1 / 3, 0.5, 0.6789, 0.875, *(1 - f for f in small)]
    grid = formats.E2M1_VALUES
    values = [low + f * (high - low) for low, high in itertools.pairwise(grid) for f in fractions]
    return f32([*values, *neighbours(6.0), *(n for v in MIDPOINTS for n in neighbours(v))])


@pytest.mark.parametrize("sign", [1, -1])
def test_stochastic_rounding_by_exact_counts_over_all_noise(sign):
    """A value goes up for exactly `floor(fraction * 2^16)` of the 2^16 noise values, else down; nowhere else, ever."""
    every = torch.arange(2**16)[None, :]
    for values in scaled_values().split(16):
        codes = reference.encode_e2m1(sign * values[:, None], every)
        counts = torch.stack([torch.bincount(row, minlength=16) for row in codes])
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            expected = [0] * 16
            magnitude = min(Fraction(value), Fraction(6))
            low = max(c for c in range(8) if exact_model.GRID[c] <= magnitude)
            if low < 7:
                step = exact_model.GRID[low + 1] - exact_model.GRID[low]
                ups = math.floor((magnitude - exact_model.GRID[low]) / step * 2**16)
                expected[low + 1 + (8 if sign < 0 else 0)] = ups
            expected[low + (8 if sign < 0 else 0)] += 2**16 - sum(expected)
            assert count == expected, value


def test_stochastic_rounding_goes_up_for_the_largest_noise():
    """Which noise goes up is part of the definition: `bits + floor(fraction * 2^16) >= 2^16`."""
    bits = torch.tensor([0, 2**15 - 1, 2**15, 2**16 - 1])
    assert encode([0.25] * 4, bits) == [0, 0, 1, 1]
    assert encode([5.0] * 4, bits) == [6, 6, 7, 7]
    assert encode([-2.25] * 4, bits) == [12, 12, 12, 13]


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


@pytest.mark.parametrize(("size", "multiple", "expected"), [(0, 32, 0), (1, 32, 32), (32, 32, 32), (33, 32, 64)])
def test_padded(size, multiple, expected):
    assert formats.padded(size, multiple) == expected


# Quantizers as data


def test_registered_quantizers_are_the_published_ones():
    published = Quantizer(elements="e2m1", group=32, rotation=32, random_signs=False, scale="quest", shrink=1.0)
    assert QUANTIZERS["mxfp4-quest"] == published
    backward = Quantizer(group=32, rotation=32, random_signs=True, scale="absmax", shrink=0.75, rounding="nearest")
    assert QUANTIZERS["mxfp4-rtn"] == backward
    assert QUANTIZERS["mxfp4-sr"] == dataclasses.replace(backward, rounding="stochastic")
    assert formats.QUEST_GAUSSIAN_CLIP == 2.92247856
    with pytest.raises(TypeError):
        QUANTIZERS["mine"] = published


def test_properties():
    facts = {name: (q.stochastic, q.seeded, q.exact, q.clips, q.gain) for name, q in QUANTIZERS.items()}
    assert facts == {
        "mxfp4-quest": (False, False, False, True, 1.0),
        "mxfp4-rtn": (False, True, False, False, 4 / 3),
        "mxfp4-sr": (True, True, False, False, 4 / 3),
        "exact-fixed": (False, False, True, False, 1.0),
        "exact-random": (False, True, True, False, 1.0),
    }


def test_every_legal_quantizer_is_read_back_from_its_name():
    legal = 0
    for values in itertools.product(*formats._ALLOWED.values()):
        try:
            quantizer = Quantizer(**dict(zip(formats._ALLOWED, values, strict=True)))
        except QuantizerError:
            continue
        legal += 1
        assert formats.quantizer(quantizer.name) == quantizer
    assert legal == 3 * (2 + 4 + 1)  # rotations x (exact, nearest, stochastic)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"elements": "e3m2"}, ["'elements'", "'e3m2'", "'e2m1'"]),
        ({"group": 16}, ["'group'", "16", "32"]),
        ({"rotation": 64}, ["'rotation'", "64", "32"]),
        ({"shrink": 0.5}, ["'shrink'", "0.5", "0.75"]),
        ({"random_signs": True, "rotation": 0}, ["random_signs", "rotation=32"]),
        ({"scale": "quest", "rounding": "stochastic", "shrink": 0.75}, ["quest", "stochastic", "absmax"]),
        ({"rounding": "stochastic"}, ["stochastic", "shrink=1.0", "shrink=0.75"]),
        ({"elements": "float32", "shrink": 0.75}, ["float32", "shrink=0.75", "shrink=1.0"]),
    ],
)
def test_contradictory_fields(fields, words):
    with pytest.raises(QuantizerError) as error:
        Quantizer(**fields)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mxfp4-qest", ["'mxfp4-qest'", "did you mean 'mxfp4-quest'", "mxfp4-sr"]),
        ("nothing like it", ["Registered", "mxfp4-rtn", "Quantizer(...)"]),
        ("size=3", ["'size'", "rotation"]),
        ("random_signs=yes", ["'random_signs'", "'yes'", "True"]),
        ("group=many", ["'group'", "'many'", "32"]),
        ("group=16", ["'group'", "16", "32"]),
    ],
)
def test_unknown_names(name, words):
    with pytest.raises(QuantizerError) as error:
        formats.quantizer(name)
    assert all(word in str(error.value) for word in words), str(error.value)
