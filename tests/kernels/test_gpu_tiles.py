"""The tile functions of kernels/gpu in Triton's interpreter, bit for bit the reference and torch's own types."""

from __future__ import annotations

import pathlib
import re

import exact_model
import pytest
import torch

import quartet_compile.kernels
from quartet_compile.kernels.numerics import codes as elements
from quartet_compile.kernels.numerics import philox, reference

pytest.importorskip("triton")
from interpreted_module import in_interpreter

SEED = 0x0123456789ABCDEF
SIZES = (16, 32, 64, 128)
BLOCK = (256, 8)
PLACES = ((0, 0), (40, 3), (2**20 + 4, 4))


def ordinary(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    spread = torch.exp2(torch.randint(-12, 4, (count,), generator=generator).float())
    return torch.randn(count, generator=generator) * spread


def around_grid():
    """Every tie and grid point of E2M1, its neighbours in float32, and values beyond."""
    points = torch.arange(0, 33) * 0.25
    near = torch.cat(
        [points, torch.nextafter(points, torch.tensor(99.0)), torch.nextafter(points, torch.tensor(-99.0))]
    )
    return torch.cat([near, -near, torch.tensor([-0.0, 1e-38, -1e-38, 6.0001, 1e30, -1e30, float("inf")])])


def padded(x, count):
    return torch.cat([x, ordinary(count - x.numel(), seed=1)])


ELEMENTS = padded(around_grid(), 1024)
WITHIN = ELEMENTS.clamp(-6, 6)
BY_BYTES = WITHIN[:128].repeat_interleave(256)
EVERY_BYTE = torch.arange(256, dtype=torch.int32).repeat(128)
NOISE = torch.randint(0, 2**16, (1024,), generator=torch.Generator().manual_seed(2), dtype=torch.int32)
NOISE[:64], NOISE[64:128] = 0, 2**16 - 1
POSITIVE = padded(
    torch.tensor([0.0, 2.0**-11, 2.0**-10, 3 * 2.0**-10, 2.0**-9, 0.0156, 447.9, 448.0, 464.0, 1e9, float("inf")]), 1024
).abs()
POSITIVE[20] = float("nan")
GROUPS = ordinary(64 * 32).reshape(64, 32)
BEHIND = torch.where(torch.rand(64, 32, generator=torch.Generator().manual_seed(7)) < 0.1, float("nan"), GROUPS)
KEEP = torch.randint(0, 2, (1024,), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
MASK_WORDS = reference.pack_bits(BEHIND == BEHIND).view(torch.int32)[:, 0]
BYTES = torch.arange(256, dtype=torch.uint8)
SWIZZLED = torch.randint(0, 256, (BLOCK[0] * BLOCK[1],), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)
SIGNED = ordinary(128)
SCALED = torch.cat([ELEMENTS[:512].nan_to_num(posinf=1e30), ordinary(512) * torch.exp2(torch.arange(512) % 24 - 12.0)])
CODES = torch.randint(0, 256, (8, 32), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
NV_SCALES = torch.randint(1, 126, (8, 4), generator=torch.Generator().manual_seed(6), dtype=torch.uint8)


@pytest.fixture(scope="module")
def made(once):
    f32, u8, i32, i64 = torch.float32, torch.uint8, torch.int32, torch.int64
    seed = torch.tensor(SEED)
    calls = {
        "nearest": ("_nearest", [ELEMENTS], [(1024, i32), (512, u8)], {"n": 1024}),
        "stochastic": ("_stochastic", [WITHIN, NOISE], [(1024, i32)], {"n": 1024}),
        "values": ("_values", [BYTES], [(512, f32)], {"n": 512}),
        "bits": ("_bits", [KEEP], [(128, u8), (1024, u8)], {"n": 1024}),
        "e4m3": ("_e4m3", [POSITIVE], [(1024, u8), (1024, f32)], {"n": 1024}),
        "scales": ("_decode_scales", [BYTES], [(256, f32), (256, f32)], {}),
        "unswizzle": ("_unswizzle", [SWIZZLED], [(BLOCK, u8)], {"rows": BLOCK[0], "groups": BLOCK[1]}),
        "mean and largest": ("_mean_and_largest", [GROUPS], [(64, f32), (64, f32)], {"groups": 64}),
        "halves": ("_stochastic_halves", [BY_BYTES, EVERY_BYTE], [(BY_BYTES.numel(), i32)], {"n": BY_BYTES.numel()}),
        "below": ("_below", [ELEMENTS], [(128, u8)], {"n": 1024}),
        "kept": ("_kept_and_rotated_back", [BEHIND, MASK_WORDS], [((64, 32), f32), ((64, 32), f32)], {"groups": 64}),
        "nvfp4": ("_nvfp4", [CODES, NV_SCALES], [((8, 64), f32)], {"rows": 8, "groups": 4}),
    }
    calls["e4m3 elements"] = ("_e4m3_elements", [SCALED, NOISE], [(1024, u8), (1024, u8)], {"n": 1024})
    calls["scale noise"] = ("_scale_noise", [seed], [((4, 16), i64)], {"rows": 4, "groups": 16, "stream": 4})
    for size in SIZES:
        calls[f"sum {size}"] = ("_pairwise", [GROUPS], [(2048 // size, f32)], {"groups": 2048 // size, "size": size})
        calls[f"signs of {size}"] = ("_signs", [SIGNED, seed], [(size, f32)], {"stream": 5, "size": size})
        calls[f"hadamard {size}"] = ("_hadamard", [GROUPS], [(2048, f32)], {"n": 2048, "size": size})
    for first, stream in PLACES:
        for bits in (8, 16):
            place = {"rows": 4, "columns": 64, "first": first * 16, "stream": stream, "bits": bits}
            calls[f"noise {first} {bits}"] = ("_noise", [seed], [((4, 2 * bits), i64)], place)
    for stream in range(6):
        for dtype in (f32, torch.float16, torch.bfloat16):
            x = SIGNED.to(dtype)
            calls[f"flipped {stream} {dtype}"] = ("_flipped", [x, seed], [(128, f32)], {"stream": stream, "n": 128})
        calls[f"signs {stream}"] = ("_signs", [SIGNED, seed], [(32, f32)], {"stream": stream, "size": 32})
    return once("gpu_tiles", lambda: in_interpreter("tile_kernels:run_all", calls))


def test_nearest(made):
    codes, packed = made["nearest"]
    expected = reference.encode_e2m1(ELEMENTS)
    assert torch.equal(codes.long(), expected)
    assert torch.equal(packed, reference.pack_nibbles(expected))


def test_stochastic(made):
    assert torch.equal(made["stochastic"][0].long(), reference.encode_e2m1(WITHIN, NOISE.long(), 16))


def test_stochastic_by_halves(made):
    """Around every grid point and tie, with every byte of noise."""
    assert torch.equal(made["halves"][0].long(), reference.encode_e2m1(BY_BYTES, EVERY_BYTE.long(), 8))


def test_mask_of_what_does_not_clip(made):
    assert torch.equal(made["below"][0], reference.pack_bits(ELEMENTS.abs() < 6))


def test_values(made):
    expected = reference.decode_e2m1(reference.unpack_nibbles(BYTES))
    assert torch.equal(made["values"][0].view(torch.int32), expected.view(torch.int32))


def test_mask_bits(made):
    packed, unpacked = made["bits"]
    assert torch.equal(packed, reference.pack_bits(KEEP.bool()))
    assert torch.equal(unpacked, KEEP)


def test_e4m3_is_torchs(made):
    byte, value = made["e4m3"]
    expected = POSITIVE.clamp(max=448.0).to(torch.float8_e4m3fn)
    assert torch.equal(byte, expected.view(torch.uint8))
    torch.testing.assert_close(value, expected.float(), rtol=0, atol=0, equal_nan=True)


def test_e4m3_of_elements_and_of_scales_with_noise(made):
    codes, rounded = made["e4m3 elements"]
    assert torch.equal(codes, elements.encode_e4m3(SCALED).view(torch.uint8))
    assert torch.equal(rounded, elements.stochastic_e4m3(SCALED.abs(), NOISE.long()).view(torch.uint8))


def test_scale_bytes(made):
    e8m0, e4m3 = made["scales"]
    torch.testing.assert_close(e8m0, reference.decode_e8m0(BYTES), rtol=0, atol=0, equal_nan=True)
    expected = BYTES.view(torch.float8_e4m3fn).float()
    torch.testing.assert_close(e4m3, expected, rtol=0, atol=0, equal_nan=True)


def test_scales_in_the_layout_of_tensor_memory(made):
    """The place of (row, group) in a block of 128 rows by 4 groups, as the PTX ISA has it."""
    rows, groups = BLOCK
    row, group = torch.arange(rows)[:, None], torch.arange(groups)[None, :]
    block = (row // 128) * (groups // 4) + group // 4
    place = block * 512 + row % 32 * 16 + row % 128 // 32 * 4 + group % 4
    assert torch.equal(made["unswizzle"][0], SWIZZLED[place])


@pytest.mark.parametrize("size", SIZES)
def test_hadamard(made, size):
    expected = reference.hadamard(GROUPS.reshape(-1, size)).flatten()
    assert torch.equal(made[f"hadamard {size}"][0], expected)


def test_masked_and_rotated_back(made):
    """A NaN behind a 0 of the mask is gone. The factor, a power of two, is exact."""
    kept, rotated = made["kept"]
    expected = BEHIND.nan_to_num()
    assert torch.equal(kept, expected)
    assert torch.equal(rotated, reference.hadamard(expected) / 2)


def test_mean_and_largest(made):
    mean, largest = made["mean and largest"]
    halves = GROUPS
    while halves.shape[1] > 1:
        halves = halves[:, : halves.shape[1] // 2] + halves[:, halves.shape[1] // 2 :]
    assert torch.equal(mean, halves[:, 0] / 32)
    assert torch.equal(largest, GROUPS.abs().amax(1))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("first", "stream"), PLACES)
def test_noise(made, first, stream, bits):
    words = made[f"noise {first} {bits}"][0]
    drawn = (words[..., None] >> torch.arange(0, 32, bits)) & ((1 << bits) - 1)
    columns = range(first * 16, first * 16 + 64)
    assert drawn.flatten(1).tolist() == [
        [exact_model.noise(SEED, stream, r, c, bits) for c in columns] for r in range(4)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stream", range(6))
def test_flipped(made, stream, dtype):
    signs = philox.signs(torch.tensor(SEED), stream, 32).repeat(4)
    assert torch.equal(made[f"flipped {stream} {dtype}"][0], SIGNED.to(dtype).float() * signs)


@pytest.mark.parametrize("stream", range(6))
def test_signs(made, stream):
    flipped = made[f"signs {stream}"][0]
    assert torch.equal(flipped, SIGNED[:32] * philox.signs(torch.tensor(SEED), stream, 32))


@pytest.mark.parametrize("size", SIZES)
def test_signs_and_sums_of_every_size(made, size):
    assert torch.equal(made[f"signs of {size}"][0], SIGNED[:size] * philox.signs(torch.tensor(SEED), 5, size))
    assert torch.equal(made[f"sum {size}"][0], elements.pairwise_sum(GROUPS.reshape(-1, size))[:, 0])


def test_noise_of_scales(made):
    assert torch.equal(made["scale noise"][0], philox.scale_noise(torch.tensor(SEED), 4, 4, 16))


def test_nvfp4_values(made):
    values = reference.decode_e2m1(reference.unpack_nibbles(CODES)).reshape(8, 4, 16)
    expected = values * NV_SCALES.view(torch.float8_e4m3fn).float()[..., None]
    assert torch.equal(made["nvfp4"][0], expected.reshape(8, 64))


def test_sizes_in_templates_are_in_parentheses():
    """A symbolic size or stride is written as an expression: `row * {{stride}}` would be `row * (m + 31) // 32`."""
    templates = list(pathlib.Path(quartet_compile.kernels.__file__).parent.glob("gpu/templates/*.jinja"))
    assert len(templates) > 8
    for path in templates:
        for line in path.read_text().splitlines():
            for use in re.finditer(r"\{\{(size|stride)\(.*?\)\}\}", line):
                before, after = line[: use.start()].rstrip(), line[use.end() :].lstrip()
                apart = before.endswith("(") and after.startswith(")")
                alone = before.endswith(("=", "<")) and not after.startswith(("*", "/", "%", "+", "-"))
                assert apart or alone, f"{path.name}: {line.strip()}"
