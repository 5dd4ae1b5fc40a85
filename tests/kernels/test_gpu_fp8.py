"""The tile functions of products on FP8 tensor cores in Triton's interpreter, bit for bit arithmetic in torch."""

from __future__ import annotations

import pytest
import torch

from quartet_compile.kernels.numerics import reference

pytest.importorskip("triton")
from interpreted_module import in_interpreter

LARGEST = 200
DISTANCES = torch.tensor([*range(20), 63, 199, *range(10)], dtype=torch.int32)
"""Powers of two of each row's second scale below its largest; the last row's scale is NaN in place of that."""

CODES = torch.arange(256, dtype=torch.uint8).reshape(8, 32)[torch.arange(64) % 8].reshape(32, 64)[:, :32]
"""Every pair of codes, two groups of 32 codes a row."""

X = torch.randint(-8, 9, (32, 32), generator=torch.Generator().manual_seed(1)).float()
MASK = torch.randint(0, 256, (32, 4), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)


def scales_of_rows():
    scales = torch.full((32, 2), LARGEST, dtype=torch.uint8)
    scales[:, 1] -= DISTANCES.to(torch.uint8)
    scales[-1, 1] = 255
    return scales


@pytest.fixture(scope="module")
def made():
    i32 = torch.int32
    largest = torch.full((32,), LARGEST, dtype=i32)
    given = [CODES.contiguous().view(i32), scales_of_rows(), largest]
    calls = {
        "decode": ("_decode_fp8", given, [((32, 16), i32), (32, i32)], {"rows": 32, "groups": 2}),
        "rotated": ("_rotated_rows", [X, MASK.view(i32)[:, 0]], [((32, 32), torch.float32)], {"rows": 32}),
    }
    return in_interpreter("tile_kernels:run_all", calls)


def test_every_code_at_every_distance_is_torchs_e4m3(made):
    """Exact to a distance of 14 powers of two; beyond, zeros with their signs, and the row is marked."""
    words, lost = made["decode"]
    values = reference.decode_e2m1(reference.unpack_nibbles(CODES)).reshape(32, 2, 32)
    shift = scales_of_rows().int() - LARGEST
    factors = torch.where(shift < -14, 0.0, torch.exp2(shift.float() + 6))
    factors[-1, 1] = float("nan")
    wanted = values * factors[..., None]
    got = words.view(torch.uint8).view(torch.float8_e4m3fn).float().reshape(32, 2, 32)
    nan = wanted.isnan()
    assert nan.sum() == 32 and torch.equal(got.isnan(), nan)
    assert torch.equal(got.view(torch.int32)[~nan], wanted.view(torch.int32)[~nan])
    assert torch.equal(wanted.to(torch.float8_e4m3fn).float()[~nan], wanted[~nan])
    assert lost.tolist() == [int(distance > 14) for distance in DISTANCES[:-1].tolist()] + [0]


def test_a_group_of_zeros_is_never_lost(made):
    """What E4M3 can't reach is zero then, and so are they."""
    zeros = torch.full((32, 8), -2004318072, dtype=torch.int32)  # 0x88888888: negative zeros
    given = [zeros, scales_of_rows(), torch.full((32,), LARGEST, dtype=torch.int32)]
    made = in_interpreter(
        "tile_kernels:run",
        "_decode_fp8",
        given,
        [((32, 16), torch.int32), (32, torch.int32)],
        {"rows": 32, "groups": 2},
    )
    assert made[1].sum() == 0


def test_rows_are_masked_and_rotated_back(made):
    """Integers, of which every sum is exact."""
    wanted = reference.unrotate(X, MASK, 32, 32)
    assert torch.equal(made["rotated"][0], (wanted * 32**0.5).round())
