"""Block Hadamard rotation by butterflies in registers, and sums by pairwise halves; bit for bit `numerics/reference.py`."""

import triton
import triton.language as tl

from .assembly import in_ptx
from .rounding import INTERPRETED, eighths, interleaved, neighbours


@triton.jit
def halves(x):
    """`x[:n/2]` and `x[n/2:]` of `x: [n, groups]`."""
    size: tl.constexpr = x.shape[0]
    groups: tl.constexpr = x.shape[1]
    return tl.split(tl.permute(tl.reshape(x, (2, size // 2, groups)), (1, 2, 0)))


@triton.jit
def _butterfly(x, stride: tl.constexpr):
    size: tl.constexpr = x.shape[0]
    groups: tl.constexpr = x.shape[1]
    pairs = tl.permute(tl.reshape(x, (size // (2 * stride), 2, stride, groups)), (0, 2, 3, 1))
    low, high = tl.split(pairs)
    return tl.reshape(tl.permute(tl.join(low + high, low - high), (0, 3, 1, 2)), (size, groups))


@triton.jit
def butterflies(x):
    """`H @ x * sqrt(size)` for `x: float32[size, groups]`, size 16 to 128: sums and differences at
    strides 1, 2, 4, ..."""
    size: tl.constexpr = x.shape[0]
    tl.static_assert(size == 16 or size == 32 or size == 64 or size == 128)
    x = _butterfly(_butterfly(_butterfly(_butterfly(x, 1), 2), 4), 8)
    if size >= 32:
        x = _butterfly(x, 16)
    if size >= 64:
        x = _butterfly(x, 32)
    if size >= 128:
        x = _butterfly(x, 64)
    return x


@triton.jit
def sums_of_bfloat16(even, odd, factors):
    """float32 `even + odd` and `even - odd` of bfloat16[16, groups], each times its factor, a power of two with a sign,
    whose bits are in `factors: uint16[32, 1]`; in three instructions of sm_100 and later, which take bfloat16 as it is."""
    of_even, of_odd = neighbours(factors)
    return tl.inline_asm_elementwise(
        """{
        .reg .f32 second, minus;
        fma.rn.f32.bf16 second, $3, $5, 0f80000000;
        neg.f32 minus, second;
        fma.rn.f32.bf16 $0, $2, $4, second;
        fma.rn.f32.bf16 $1, $2, $4, minus;
        }""",
        "=f,=f,h,h,h,h",
        args=[even, odd, tl.broadcast_to(of_even, even.shape), tl.broadcast_to(of_odd, odd.shape)],
        dtype=(tl.float32, tl.float32),
        is_pure=True,
        pack=1,
    )


@triton.jit
def positive_sums_of_bfloat16(even, odd):
    """As `sums_of_bfloat16` without factors, after adding +0 to `even`: no sum is -0."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b16 one, minus;
        .reg .f32 first;
        mov.b16 one, 0x3F80;
        mov.b16 minus, 0xBF80;
        fma.rn.f32.bf16 first, $2, one, 0f00000000;
        fma.rn.f32.bf16 $0, $3, one, first;
        fma.rn.f32.bf16 $1, $3, minus, first;
        }""",
        "=f,=f,h,h",
        args=[even, odd],
        dtype=(tl.float32, tl.float32),
        is_pure=True,
        pack=1,
    )


@triton.jit
def _two_sums_and_differences(low0, low1, high0, high1):
    return tl.inline_asm_elementwise(
        """{
        .reg .b64 low, high, sum, difference;
        mov.b64 low, {$4, $5};
        mov.b64 high, {$6, $7};
        add.rn.f32x2 sum, low, high;
        sub.rn.f32x2 difference, low, high;
        mov.b64 {$0, $1}, sum;
        mov.b64 {$2, $3}, difference;
        }""",
        "=f,=f,=f,=f,f,f,f,f",
        args=[low0, low1, high0, high1],
        dtype=(tl.float32, tl.float32, tl.float32, tl.float32),
        is_pure=True,
        pack=1,
    )


@triton.jit
def _butterfly_packed(x, stride: tl.constexpr):
    """`_butterfly`, stride 2 or more, by instructions for two float32."""
    size: tl.constexpr = x.shape[0]
    groups: tl.constexpr = x.shape[1]
    x = tl.reshape(x, (size // (2 * stride), 2, stride // 2, 2, groups))
    low, high = tl.split(tl.permute(x, (0, 2, 4, 3, 1)))
    low0, low1 = tl.split(low)
    high0, high1 = tl.split(high)
    sum0, sum1, difference0, difference1 = _two_sums_and_differences(low0, low1, high0, high1)
    x = tl.join(tl.join(sum0, sum1), tl.join(difference0, difference1))
    return tl.reshape(tl.permute(x, (0, 4, 1, 3, 2)), (size, groups))


@triton.jit
def butterflies_of_pairs(sums, differences, packed: tl.constexpr):
    """`butterflies` of 32 elements a group after the first stage: float32[16, groups] each. packed: the target adds two
    float32 in one instruction."""
    tl.static_assert(sums.shape[0] == 16)
    x = interleaved(sums, differences)
    if packed and in_ptx():
        return _butterfly_packed(_butterfly_packed(_butterfly_packed(_butterfly_packed(x, 2), 4), 8), 16)
    else:
        return _butterfly(_butterfly(_butterfly(_butterfly(x, 2), 4), 8), 16)


@triton.jit
def hadamard_matrix(signs):
    """float16[32, 32]: `diag(s) H * sqrt(32)`, elements +-1; bit i of `signs`, a uint32 scalar, says that s[i] is -1."""
    row, column = tl.arange(0, 32)[:, None], tl.arange(0, 32)[None, :]
    of_column = signs ^ tl.zeros(column.shape, tl.uint32)  # bit i: the sign of row i
    of_column ^= tl.where(column & 1 != 0, 0xAAAAAAAA, 0).to(tl.uint32)
    of_column ^= tl.where(column & 2 != 0, 0xCCCCCCCC, 0).to(tl.uint32)
    of_column ^= tl.where(column & 4 != 0, 0xF0F0F0F0, 0).to(tl.uint32)
    of_column ^= tl.where(column & 8 != 0, 0xFF00FF00, 0).to(tl.uint32)
    of_column ^= tl.where(column & 16 != 0, 0xFFFF0000, 0).to(tl.uint32)
    one = ((of_column >> row.to(tl.uint32)) << 15) | 0x3C00  # the bits above the sign go
    return one.to(tl.uint16).to(tl.float16, bitcast=True)


@triton.jit
def root(size: tl.constexpr, times: tl.constexpr = 1.0):
    """float32 scalar `times` / sqrt(size), rounded once, for sizes 16 to 128; `times` for size 0, which is no rotation."""
    tl.static_assert(size == 0 or size == 16 or size == 32 or size == 64 or size == 128)
    if size == 0:
        scale: tl.constexpr = 1.0
    elif size == 16:
        scale: tl.constexpr = 0.25
    elif size == 32:
        scale: tl.constexpr = 0.17677669529663687
    elif size == 64:
        scale: tl.constexpr = 0.125
    else:
        scale: tl.constexpr = 0.08838834764831845
    return tl.full((), scale * times, tl.float32)


def _of_pairs(instruction: str) -> tl.constexpr:
    """PTX of an instruction that takes two pairs of float32."""
    return tl.constexpr(
        f"""{{
        .reg .b64 left, right, results;
        mov.b64 left, {{$2, $3}};
        mov.b64 right, {{$4, $5}};
        {instruction} results, left, right;
        mov.b64 {{$0, $1}}, results;
        }}"""
    )


_ADD_PAIRS, _MULTIPLY_PAIRS = _of_pairs("add.rn.f32x2"), _of_pairs("mul.rn.f32x2")


@triton.jit
def _on_pairs(left0, left1, right0, right1, assembly: tl.constexpr):
    return tl.inline_asm_elementwise(
        assembly,
        "=f,=f,f,f,f,f",
        args=[left0, left1, right0, right1],
        dtype=(tl.float32, tl.float32),
        is_pure=True,
        pack=1,
    )


@triton.jit
def _two_products(x0, x1, factor0, factor1):
    if not in_ptx():
        return x0 * factor0, x1 * factor1
    else:
        return _on_pairs(x0, x1, factor0, factor1, _MULTIPLY_PAIRS)


@triton.jit
def uncontracted(x, factor, packed: tl.constexpr):
    """float32 `x * factor`, rounded, whatever is added to it, for `x: [n, groups]`; packed: as in `butterflies_of_pairs`."""
    if INTERPRETED:
        return x * factor
    elif packed and in_ptx():
        even, odd = neighbours(x)
        factor = tl.broadcast_to(factor, even.shape)
        return interleaved(*_two_products(even, odd, factor, factor))
    else:
        assembly: tl.constexpr = "mul.rn.f32 $0, $1, $2;" if in_ptx() else "v_mul_f32 $0, $1, $2"
        registers: tl.constexpr = "=f,f,f" if in_ptx() else "=v,v,v"
        return tl.inline_asm_elementwise(
            assembly,
            registers,
            args=[x, tl.broadcast_to(factor, x.shape)],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )


@triton.jit
def hadamard(x):
    """`x @ H` for `x: float32[groups, size]`, size 16 to 128: the butterflies, then one multiply by 1/sqrt(size)."""
    return tl.fma(tl.trans(butterflies(tl.trans(x))), tl.broadcast_to(root(x.shape[1]), x.shape), tl.zeros_like(x))


@triton.jit
def rotated_back(x, times: tl.constexpr, packed: tl.constexpr):
    """`H @ x * times` for `x: float32[32, groups]`, one multiply; packed: as in `butterflies_of_pairs`."""
    even, odd = neighbours(x)
    return uncontracted(butterflies_of_pairs(even + odd, even - odd, packed), root(32, times), packed)


@triton.jit
def _add_halves(x):
    """`x[:h] + x[h:]` of `x: [2 h, groups]`."""
    low, high = halves(x)
    return low + high


@triton.jit
def pairwise_sum(x):
    """float32[groups]: the sums of the columns of `x: [size, groups]`, size 16 to 128, by halves: `x[:h] + x[h:]`, and
    again."""
    size: tl.constexpr = x.shape[0]
    groups: tl.constexpr = x.shape[1]
    tl.static_assert(size == 16 or size == 32 or size == 64 or size == 128)
    if size >= 128:
        x = _add_halves(x)
    if size >= 64:
        x = _add_halves(x)
    if size >= 32:
        x = _add_halves(x)
    return tl.reshape(_add_halves(_add_halves(_add_halves(_add_halves(x)))), (groups,))


@triton.jit
def mean(x):
    """float32[groups]: the means of the columns of `x: [size, groups]`, by pairwise halves."""
    each: tl.constexpr = 1.0 / x.shape[0]
    return pairwise_sum(x) * each


@triton.jit
def _two_sums(low0, low1, high0, high1):
    if not in_ptx():
        return low0 + high0, low1 + high1
    else:
        return _on_pairs(low0, low1, high0, high1, _ADD_PAIRS)


@triton.jit
def _add_halves_of_pairs(even, odd):
    low_even, high_even = halves(even)
    low_odd, high_odd = halves(odd)
    return _two_sums(low_even, low_odd, high_even, high_odd)


@triton.jit
def _pairwise_sum_of_pairs(even, odd):
    even, odd = _add_halves_of_pairs(*_add_halves_of_pairs(*_add_halves_of_pairs(*_add_halves_of_pairs(even, odd))))
    return tl.reshape(even + odd, (even.shape[1],))


@triton.jit
def means(x, packed: tl.constexpr):
    """float32[groups] twice: the means of `x: float32[32, groups]` and of its squares, by pairwise halves; packed: as in
    `butterflies_of_pairs`."""
    if packed:
        even, odd = neighbours(x)
        average = _pairwise_sum_of_pairs(even, odd) * 0.03125
        return average, _pairwise_sum_of_pairs(*_two_products(even, odd, even, odd)) * 0.03125
    else:
        return mean(x), mean(tl.fma(x, x, tl.zeros_like(x)))


@triton.jit
def _larger(x):
    low, high = halves(x)
    return tl.maximum(tl.abs(low), tl.abs(high), propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _largest_of_seven(x0, x1, x2, x3, x4, x5, x6):
    """The largest magnitude, by comparisons of three."""
    return tl.inline_asm_elementwise(
        """{
        .reg .f32 most;
        max.NaN.abs.f32 most, $1, $2, $3;
        max.NaN.abs.f32 most, most, $4, $5;
        max.NaN.abs.f32 $0, most, $6, $7;
        }""",
        "=f,f,f,f,f,f,f,f",
        args=[x0, x1, x2, x3, x4, x5, x6],
        dtype=tl.float32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def _larger_of_two(x, y):
    return tl.maximum(tl.abs(x), tl.abs(y), propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _quarters(x):
    even, odd = neighbours(x)
    return neighbours(even) + neighbours(odd)


@triton.jit
def largest(x, native: tl.constexpr):
    """float32[groups]: the largest magnitude of `x: float32[32, groups]`, NaN if there is one. native: the target compares
    three in one instruction."""
    tl.static_assert(x.shape[0] == 32)
    if native and in_ptx():
        x0, x1, x2, x3, x4, x5, x6, x7 = eighths(x)
        y0, y2, y1, y3 = _quarters(_largest_of_seven(x0, x1, x2, x3, x4, x5, x6))
        y4, y6, y5, y7 = _quarters(x7)
        x = _larger_of_two(_largest_of_seven(y0, y1, y2, y3, y4, y5, y6), y7)
    else:
        x = _larger(_larger(_larger(_larger(_larger(x)))))
    return tl.reshape(x, (x.shape[1],))
