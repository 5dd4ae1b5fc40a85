"""The weight cache by itself: what tells the values of a weight apart, and what is given for equal ones."""

from __future__ import annotations

import gc
import threading

import pytest
import torch
from torch import nn

from quartet_compile.errors import QuartetError, WeightCacheError
from quartet_compile.kernels import cpu, weight_cache
from quartet_compile.kernels.cpu.fingerprint import fingerprint
from quartet_compile.kernels.quantizer import QUANTIZERS
from quartet_compile.process import process

quartet = torch.ops.quartet
MASK64, MASK128 = (1 << 64) - 1, (1 << 128) - 1
FIXED = [name for name, spec in QUANTIZERS.items() if not spec.seeded and not spec.exact]
"""Quantizers that draw nothing."""


@pytest.fixture(autouse=True)
def _empty():
    weight_cache.forget()
    yield
    weight_cache.forget()


@pytest.fixture
def made(monkeypatch):
    """The quantizers of the matrices that are really quantized, in order."""
    names, plain = [], cpu.quantize

    def quantize(x, quantizer, **how):
        names.append(quantizer.name)
        return plain(x, quantizer, **how)

    monkeypatch.setattr(cpu, "quantize", quantize)
    return names


def cached(w, name="mxfp4-quest", transpose=False, mask=False, dtype=None):
    return quartet.quantize(w, name, transpose, mask, 1, None, None, dtype or w.dtype)


def plain(w, name="mxfp4-quest", transpose=False, mask=False):
    return quartet.quantize(w, name, transpose, mask, 1, None, None)


def same(results, expected):
    pairs = zip(results, expected, strict=True)
    assert all(a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in pairs)
    return True


def keys(level):
    """SplitMix64, from its publication."""
    state, words = level << 32, []
    for _ in range(258):
        state = (state + 0x9E3779B97F4A7C15) & MASK64
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
        words.append(z ^ (z >> 31))
    return words


def hashed(block, k):
    """NH of a block of bytes under the keys k, and under those two words further."""
    block += bytes(-len(block) % 16)
    w = [int.from_bytes(block[i : i + 8], "little") for i in range(0, len(block), 8)]
    sums = [
        sum(((w[i] + k[i + s]) & MASK64) * ((w[i + 1] + k[i + 1 + s]) & MASK64) for i in range(0, len(w), 2)) & MASK128
        for s in (0, 2)
    ]
    return b"".join(total.to_bytes(16, "little") for total in sums)


def expected_fingerprint(rows):
    """The same of rows of bytes, level by level."""
    pieces, level = [row[i : i + 2048] for row in rows for i in range(0, len(row), 2048)], 0
    while True:
        data = b"".join(hashed(piece, keys(level)) for piece in pieces)
        if len(pieces) == 1:
            return tuple(int.from_bytes(data[i : i + 8], "little", signed=True) for i in range(0, 32, 8))
        pieces, level = [data[i : i + 2048] for i in range(0, len(data), 2048)], level + 1


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (16, 32), (33, 500), (1, 513), (130, 300)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fingerprint_is_as_published(shape, dtype):
    """Of 130 x 300 in float32 the hashes of blocks fill a block of their own, and a second one."""
    x = torch.randn(shape).to(dtype)
    assert fingerprint(x) == expected_fingerprint([x.view(torch.uint8).numpy().tobytes()])
    wide = torch.randn(shape[0], shape[1] + 3).to(dtype)[:, : shape[1]]
    rows = [row.contiguous().view(torch.uint8).numpy().tobytes() for row in wide]
    assert fingerprint(wide) == expected_fingerprint(rows if shape[0] > 1 else rows[:1])


def test_three_levels_and_threads():
    """8 MiB and a byte: the last level has two hashes of hashes of hashes."""
    x = torch.randint(256, (2**23 + 1,), dtype=torch.uint8)
    one = fingerprint(x)
    torch.set_num_threads(2)
    try:
        assert fingerprint(x) == one
    finally:
        torch.set_num_threads(1)
    x[-1] += 1
    assert fingerprint(x) != one


def test_every_bit_counts():
    """Of a part of a matrix, whose neighbours don't."""
    whole = torch.zeros(4, 40, dtype=torch.int32)
    part = whole.view(torch.float32)[:, 3:36]
    found = {fingerprint(part)}
    for row in range(4):
        for column in range(3, 36):
            for bit in (0, 1, 15, 16, 23, 31):
                whole[row, column] = torch.tensor(1 << bit).to(torch.int32) if bit < 31 else -(2**31)
                found.add(fingerprint(part))
                whole[row, column] = 0
    assert len(found) == 1 + 4 * 33 * 6
    whole[:, :3], whole[:, 36:] = 1, 1
    assert fingerprint(part) in found


def test_no_bytes():
    assert fingerprint(torch.empty(0, 8)) == fingerprint(torch.empty(3, 0)) == (0, 0, 0, 0)


@pytest.mark.parametrize("name", FIXED)
def test_the_same_bits_as_without(name, made):
    """Whatever the layout of the weight, the direction, the mask, and the dtype in which it is quantized."""
    whole = torch.randn(70, 100)
    layouts = {"plain": whole, "transposed": whole.t(), "part": whole[:, 5:69], "gaps": whole[::2, ::3]}
    for w in [*layouts.values(), whole.bfloat16(), whole.half(), whole.double()]:
        for transpose in (False, True):
            for mask in (False, True):
                expected = plain(w, name, transpose, mask)
                assert same(cached(w, name, transpose, mask), expected)
                assert same(cached(w, name, transpose, mask), expected)
    assert same(cached(whole, name, dtype=torch.bfloat16), plain(whole.bfloat16(), name))
    assert len(made) == 7 * 4 * 2 + 2


def test_it_is_quantized_once(made):
    w = torch.randn(64, 64)
    for _ in range(3):
        cached(w)
    assert len(made) == 1


def test_what_is_given_may_be_overwritten():
    """As Inductor does, which reuses the memory of operands that are read no more."""
    w = torch.randn(64, 64)
    expected = plain(w, mask=True)
    for _ in range(3):
        given = cached(w, mask=True)
        assert same(given, expected)
        for part in given:
            part.zero_()


WRITES = {
    "in place": lambda w: w.mul_(2),
    "by .data": lambda w: w.data.mul_(2),
    "by numpy, which no counter sees": lambda w: w.data.numpy().__imul__(2),
    "one bit": lambda w: w.data.view(torch.int32)[-1, -1].bitwise_xor_(1 << 22),
    "the memory of another tensor": lambda w: setattr(w, "data", w.data * 2),
    "freed and filled again, as by FSDP2": lambda w: refilled(w),
}


def refilled(w):
    size, values = w.untyped_storage().nbytes(), w.data * 2
    w.untyped_storage().resize_(0)
    w.untyped_storage().resize_(size)
    w.data.copy_(values)


@pytest.mark.parametrize("write", WRITES)
@torch.no_grad()
def test_another_value_is_quantized_anew(write, made):
    w = nn.Parameter(torch.randn(64, 64))
    before = cached(w)
    WRITES[write](w)
    made.clear()
    assert same(cached(w), plain(w)) and len(made) == 2
    assert same(cached(w), plain(w)) and len(made) == 3
    assert not torch.equal(before[0], plain(w)[0]) or not torch.equal(before[1], plain(w)[1])


def test_freed_memory_that_is_filled_with_the_same_values_is_known(made):
    """FSDP2 gathers the same weight for each microbatch."""
    w = torch.randn(64, 64)
    values, size = w.clone(), w.untyped_storage().nbytes()
    cached(w)
    w.untyped_storage().resize_(0)
    w.untyped_storage().resize_(size)
    w.copy_(values)
    cached(w)
    assert len(made) == 1


def test_it_is_freed_with_the_weight():
    """Also if the weight lives on in autograd alone for a while."""
    w = nn.Parameter(torch.randn(64, 64))
    cached(w)
    saved = torch.randn(64, 64, requires_grad=True) * w.detach()
    del w
    gc.collect()
    assert len(process.weights) == 1
    del saved
    assert len(process.weights) == 0


def test_weights_in_one_memory_are_apart(made):
    flat = torch.randn(2 * 64 * 64)
    first, second = flat.view(2, 64, 64)
    for _ in range(2):
        assert same(cached(first), plain(first)) and same(cached(second), plain(second))
    assert len(made) == 2 + 4
    first.mul_(2)
    made.clear()
    assert same(cached(second), plain(second)) and len(made) == 1
    assert same(cached(first), plain(first)) and len(made) == 3


def kept():
    return [how for views in process.weights.values() for view in views.values() for how in view]


def test_nothing_is_kept_of_other_values():
    """Of the recipes that a weight was used in, those of its present values."""
    w = torch.randn(64, 64)
    codes = cached(w, "mxfp4-rtn-2d")
    quartet.transposed(*codes[:3], "mxfp4-rtn-2d", w)
    cached(w, "nvfp4-rtn-2d")
    assert len(kept()) == 3
    w.mul_(2)
    cached(w)
    assert len(kept()) == 1


@pytest.mark.parametrize("name", ["mxfp4-rtn-2d", "nvfp4-rtn-2d"])
def test_the_transpose_of_codes_is_kept_beside_the_weight(name, monkeypatch):
    w, calls, without = torch.randn(70, 100), [], cpu.transposed

    def transposed(*args):
        calls.append(1)
        return without(*args)

    monkeypatch.setattr(cpu, "transposed", transposed)
    for change in (1, 1, 2, 1):
        w.mul_(change)
        codes = plain(w, name)[:3]
        for part in (given := quartet.transposed(*codes, name, w)):
            assert part.data_ptr() not in [each.data_ptr() for each in codes] or not part.numel()
        assert same(given, quartet.transposed(*codes, name))
    assert len(calls) == 2 + 4


def test_codes_that_are_quantized_again_are_kept_beside_the_weight(monkeypatch):
    w, calls, without, after = torch.randn(64, 96), [], cpu.requantize, "mxfp4-rtn-2d,group_rows=1"
    how = ("mxfp4-quest", after, 3, None, None)

    def requantize(*args, **named):
        calls.append(1)
        return without(*args, **named)

    monkeypatch.setattr(cpu, "requantize", requantize)
    for change in (1, 1, -1):
        w.mul_(change)
        codes = plain(w)[:3]
        assert same(quartet.requantize(*codes, *how, w), quartet.requantize(*codes, *how))
    assert len(calls) == 2 + 3


def test_what_draws_is_refused():
    """Its results are others each time."""
    w, seed = torch.randn(64, 64), torch.tensor(1)
    with pytest.raises(QuartetError, match="got mxfp4-sr with a seed; expected a quantizer that draws nothing"):
        quartet.quantize(w, "mxfp4-sr", False, False, 1, seed, seed, w.dtype)


def test_the_check_finds_another_result(monkeypatch):
    """`QUARTET_DEBUG=weights`."""
    w = torch.randn(64, 64)
    cached(w)
    (views,) = process.weights.values()
    (hows,) = views.values()
    (found,) = hows.values()
    found.made[0][3, 5] ^= 1
    cached(w)
    monkeypatch.setenv("QUARTET_DEBUG", "weights")
    with pytest.raises(WeightCacheError, match="other bits in result 0 of .*mxfp4-quest.* than the weight gives now"):
        cached(w)
    found.made[0][3, 5] ^= 1
    assert same(cached(w), plain(w))


def test_threads_share_it():
    """While one of them lets a graph go."""
    weights = [torch.randn(64, 96) for _ in range(4)]
    expected, errors = [plain(w) for w in weights], []

    def run():
        try:
            for turn in range(50):
                for w, result in zip(weights, expected, strict=True):
                    assert same(cached(w), result)
                if turn % 10 == 0:
                    weight_cache.forget()
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
