"""What the C++ kernels do with quantized operands and masks, against the reference, bit for bit, built for every
instruction set that this CPU has: quantizing again, decoding, and the backward pass of a rotation."""

import functools

import pytest
import torch
from cpu_cases import DTYPES, SEED, SHAPES, SIGN_SEED, STREAM, assert_same, awkward, every_quantizer, isa, requantize

from quartet_compile.errors import QuartetError
from quartet_compile.kernels.cpu import decoded, native
from quartet_compile.kernels.numerics import reference
from quartet_compile.kernels.numerics.reference import Blocks
from quartet_compile.kernels.quantizer import E4M3_NAN, QUANTIZERS, Quantizer, padded

__all__ = ["isa"]  # a fixture


@functools.cache
def sources(quantizer: Quantizer) -> list[Blocks]:
    """Random codes under every scale, the subnormal, the overflowing and the NaN ones among them."""
    generator, found = torch.Generator().manual_seed(1), []

    def random(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator, dtype=torch.uint8)

    for rows, width in ((1, 1), (31, 3), (64, 8), (260, 5)):  # width: in blocks of 32
        if quantizer.exact:
            values = torch.randn(rows, width * 32, generator=generator)
            found.append(Blocks(values, random(0, 1, rows, 0), torch.empty(0), None, quantizer.format))
            continue
        codes = random(0, 256, rows, width * (16 if quantizer.elements == "e2m1" else 32))
        if quantizer.elements == "e4m3":
            codes[1:] -= (codes[1:] & 0x7F == E4M3_NAN).byte()
            codes = codes.view(torch.float8_e4m3fn)
        groups = width * 32 // quantizer.group
        every = torch.arange(rows * groups).reshape(rows, groups).to(torch.uint8)
        near = random(118, 130, rows, groups)
        choices = (near, every, every % 3, every * 0, torch.where(every % 16 == 0, every, near))
        if quantizer.two_level:
            choices = [(byte & 0x7F).view(torch.float8_e4m3fn) for byte in choices]
        for scales in choices:
            found.append(Blocks(codes, scales, torch.tensor([1.7e-3] * quantizer.two_level), None, quantizer.format))
        if quantizer.format == "mxfp4":  # zeros of either sign, and sums that cancel
            ones = torch.where(random(0, 4, *codes.shape) == 0, codes & 0xAA, codes & 0x88)
            found.append(Blocks(ones, every * 0 + 127, torch.empty(0), None, quantizer.format))
    return found


@functools.cache
def expected_again(i: int, before: Quantizer, after: Quantizer) -> Blocks:
    return reference.requantize(sources(before)[i], before, after, stream=STREAM, seed=SEED, sign_seed=SIGN_SEED)


SOURCES = ("mxfp4-rtn", "mxfp4-quest", "nvfp4-rtn", "mxfp8", "exact-fixed")


@every_quantizer
@pytest.mark.parametrize("before", SOURCES)
def test_requantize(quantizer, before):
    for i, source in enumerate(sources(QUANTIZERS[before])):
        again = requantize(source, QUANTIZERS[before], quantizer)
        assert_same(again, expected_again(i, QUANTIZERS[before], quantizer))


@pytest.mark.parametrize("name", SOURCES)
def test_decode(name):
    for source in sources(QUANTIZERS[name]):
        values = decoded.decode(source, QUANTIZERS[name].shrink)
        wanted = reference.decode(source, QUANTIZERS[name])
        torch.testing.assert_close(values, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rotation", [0, 16, 32, 64, 128])
def test_unrotate(dtype, rotation):
    generator = torch.Generator().manual_seed(2)
    for rows, columns in (*SHAPES, (0, 32), (32, 0), (600, 1000)):  # the last has ties in the rounding to bfloat16
        x = awkward(rows, padded(columns, max(rotation, 16)), dtype)
        random = torch.randint(0, 256, (rows, x.shape[1] // 8), generator=generator, dtype=torch.uint8)
        for mask in (random, None):
            actual, wanted = (f(x, mask, rotation, columns) for f in (native.unrotate, reference.unrotate))
            torch.testing.assert_close(actual, wanted, rtol=0, atol=0, equal_nan=True)
            assert torch.equal(actual.signbit() | actual.isnan(), wanted.signbit() | wanted.isnan())


def test_unrotate_of_more_padding_than_the_rotation_needs():
    x = torch.randn(5, 128)
    for rotation in (0, 16, 32):
        actual, wanted = (f(x, None, rotation, 20) for f in (native.unrotate, reference.unrotate))
        assert torch.equal(actual, wanted)


def test_wrong_shapes_are_refused():
    mask = torch.zeros(4, 8, dtype=torch.uint8)
    for x, columns in ((torch.ones(4, 60), 60), (torch.ones(4, 64), 65), (torch.ones(5, 64), 64)):
        with pytest.raises(QuartetError, match="expected"):
            native.unrotate(x, mask, 32, columns)
    source = Blocks(torch.zeros(4, 31, dtype=torch.uint8), mask[:, :2], torch.empty(0), mask, "mxfp4")
    with pytest.raises(QuartetError, match=r"shape \(4, 31\) .* as codes; expected torch.uint8 of shape \(4, 32\)"):
        native.requantize(source, Quantizer(), Quantizer(), stream=0, seed=None)


def test_masked_nan_is_zero():
    x = torch.full((2, 32), torch.nan)
    x[:, 3] = 1.0
    out = native.unrotate(x, torch.tensor([[8, 0, 0, 0], [255, 0, 0, 0]], dtype=torch.uint8), 32, 32)
    assert torch.equal(out[0].abs(), torch.full((32,), 32**-0.5)) and out[1].isnan().all()
