"""E2M1: rounding of float32 to 4-bit codes, packing, and the values of codes.

`native` targets convert with one instruction for two values (`cvt.rn.satfinite.e2m1x2.f32`: sm_100a, sm_103a, sm_120a);
elsewhere bit arithmetic gives the same codes, in PTX where the target has it (assembly.py).
"""

import triton
import triton.language as tl

from .assembly import in_ptx

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)

TO_HALVES = tl.constexpr(6.103515625e-05)
"""2^-14, the factor of what `pack_stochastic_halves` takes."""


@triton.jit
def nearest(y):
    """int32 codes of float32 `y`: to nearest, ties to even, saturated at 6. No NaN.

    The steps of E2M1 are 0.5 below 2, 1 below 4, then 2: adding 1.5 * 2^22 times the power of two of that binade rounds
    to its step and leaves the number of steps in the low bits; each binade adds 2 codes.
    """
    magnitude = tl.minimum(tl.abs(y), 6.0)
    binade = tl.maximum(magnitude.to(tl.int32, bitcast=True) & 0x7F800000, 0x3F800000)
    magic = (binade + 0x0B400002).to(tl.float32, bitcast=True)
    code = ((magnitude + magic).to(tl.int32, bitcast=True) + (binade >> 22)) & 7
    return code | ((y.to(tl.int32, bitcast=True) >> 28) & 8)


@triton.jit
def nearest_magnitude(magnitude):
    """float32 values that `nearest` rounds `magnitude >= 0` to."""
    magnitude = tl.minimum(magnitude, 6.0)
    binade = tl.maximum(magnitude.to(tl.int32, bitcast=True) & 0x7F800000, 0x3F800000)
    magic = (binade + 0x0B400000).to(tl.float32, bitcast=True)
    return (magnitude + magic) - magic


@triton.jit
def _half_above_half(x):
    """float32 `x / 2 + 1 / 2`, rounded toward zero, for `x` from 0 to 6."""
    if not in_ptx():
        y = x * 0.5 + 0.5
        raw = y.to(tl.int32, bitcast=True)
        return tl.where((y - 0.5) * 2 > x, raw - 1, raw).to(tl.float32, bitcast=True)
    else:
        return tl.inline_asm_elementwise(
            "fma.rz.f32 $0, $1, 0f3F000000, 0f3F000000;", "=f,f", args=[x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def _stochastic_raw(y, bits):
    """int32: the sign of `y` in bit 31 and, from bit 22, the magnitude of its code plus 252; below, what is left over.

    A code below 2 counts steps of 0.5; above, half the steps of a binade. `x / 2 + 1 / 2` lies in the binade below 1 and
    has x = 0.5 where that binade has its middle: there the codes below 2 continue those above, and the bits of a float32
    from bit 22 up are the code, those below are the fraction, in units of 2^-22.
    """
    magnitude = tl.abs(y)
    fixed = tl.maximum(magnitude, _half_above_half(magnitude)).to(tl.int32, bitcast=True)
    return (fixed + (bits.to(tl.int32) << 6) + 32) ^ (y.to(tl.int32, bitcast=True) & -0x80000000)


@triton.jit
def stochastic(y, bits):
    """int32 codes of float32 `y`, up iff `fraction + (bits + 1/2) / 2^16 >= 1`.

    y: at most 6 in magnitude, which scaling by the largest of a group with `shrink` sees to. bits: uint32 below 2^16, one
    an element.
    """
    raw = _stochastic_raw(y, bits)
    return (((raw >> 22) - 252) & 7) | ((raw >> 28) & 8)


@triton.jit
def stochastic_halves(y, bits):
    """int32 codes of `y * 2^14`, up iff `fraction + (bits + 1/2) / 2^8 >= 1`.

    E2M1's binades above 1, and its even steps below, are those of float16 above 2^-14 and below: in `y` as float16, rounded
    toward zero, the code is the bits from 9 up and the fraction those below, in units of 2^-9.

    y: float32, at most 6 * 2^-14 in magnitude. bits: uint32 below 2^8.
    """
    half = y.to(tl.float16)
    away = tl.abs(half.to(tl.float32)) > tl.abs(y)
    raw = (half.to(tl.uint16, bitcast=True).to(tl.int32) - away.to(tl.int32)) + ((bits.to(tl.int32) << 1) + 1)
    return ((raw >> 9) & 7) | ((raw >> 12) & 8)


@triton.jit
def _pack_raw(low, high, keep):
    """Packed bytes of pairs of `_stochastic_raw`, and 0 where `keep` is 0 and not -1; four pairs an assembly block.

    Two upper halves share a word, of codes four places apart, so that all shifts act on two codes. Adding 252 flipped
    bit 2 of each code.
    """
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 p<4>, s<7>, k<2>, code, sign;
        prmt.b32 p0, $1, $3, 0x7632;
        prmt.b32 p1, $5, $7, 0x7632;
        prmt.b32 p2, $2, $4, 0x7632;
        prmt.b32 p3, $6, $8, 0x7632;
        shr.b32 s0, p0, 6;
        shr.b32 s1, p1, 2;
        shl.b32 s2, p2, 2;
        shl.b32 s3, p3, 6;
        and.b32 code, s0, 0x00070007;
        lop3.b32 code, s1, 0x00700070, code, 0xEA;
        lop3.b32 code, s2, 0x07000700, code, 0xEA;
        lop3.b32 code, s3, 0x70007000, code, 0xEA;
        shr.b32 s4, p0, 12;
        shr.b32 s5, p1, 8;
        shr.b32 s6, p2, 4;
        and.b32 sign, s4, 0x00080008;
        lop3.b32 sign, s5, 0x00800080, sign, 0xEA;
        lop3.b32 sign, s6, 0x08000800, sign, 0xEA;
        lop3.b32 sign, p3, 0x80008000, sign, 0xEA;
        lop3.b32 code, code, 0x44444444, sign, 0xBE;
        prmt.b32 k0, $9, $10, 0x0040;
        prmt.b32 k1, $11, $12, 0x4000;
        prmt.b32 k0, k0, k1, 0x7610;
        and.b32 $0, code, k0;
        }""",
        "=r,r,r,r,r,r,r,r,r,r,r,r,r",
        args=[low, high, keep],
        dtype=tl.uint8,
        is_pure=True,
        pack=4,
    )


@triton.jit
def _pack_native(low, high, keep):
    """Packed bytes of float32 pairs to nearest, and 0 where `keep` is 0 and not -1; four pairs an assembly block."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b8 b<4>;
        .reg .b32 k<2>, code;
        cvt.rn.satfinite.e2m1x2.f32 b0, $5, $1;
        cvt.rn.satfinite.e2m1x2.f32 b1, $6, $2;
        cvt.rn.satfinite.e2m1x2.f32 b2, $7, $3;
        cvt.rn.satfinite.e2m1x2.f32 b3, $8, $4;
        mov.b32 code, {b0, b1, b2, b3};
        prmt.b32 k0, $9, $10, 0x0040;
        prmt.b32 k1, $11, $12, 0x4000;
        prmt.b32 k0, k0, k1, 0x7610;
        and.b32 $0, code, k0;
        }""",
        "=r,f,f,f,f,f,f,f,f,r,r,r,r",
        args=[low, high, keep],
        dtype=tl.uint8,
        is_pure=True,
        pack=4,
    )


@triton.jit
def _keeping(valid, rows: tl.constexpr):
    """int32[rows, groups]: -1 where `valid: int1[groups]`, else 0."""
    return tl.broadcast_to(tl.where(valid, -1, 0)[None, :], (rows, valid.shape[0]))


@triton.jit
def neighbours(x):
    """`x[0::2]` and `x[1::2]` of `x: [n, groups]`."""
    size: tl.constexpr = x.shape[0]
    groups: tl.constexpr = x.shape[1]
    return tl.split(tl.permute(tl.reshape(x, (size // 2, 2, groups)), (0, 2, 1)))


@triton.jit
def interleaved(even, odd):
    """[2 n, groups] with rows `even[0], odd[0], even[1], ...` of [n, groups] each."""
    return tl.reshape(tl.permute(tl.join(even, odd), (0, 2, 1)), (even.shape[0] * 2, even.shape[1]))


@triton.jit
def _merge(fields, bits: tl.constexpr):
    """int32[n / 2, groups]: neighbours of `fields: int32[n, groups]`, the even one in the low `bits`."""
    low, high = neighbours(fields)
    return low | (high << bits)


@triton.jit
def pack_nearest(y, valid, native: tl.constexpr):
    """uint8[n / 2, groups]: the codes of `y: float32[n, groups]`, the even one in the low nibble; 0 in groups that are
    not `valid: int1[groups]`."""
    keep = _keeping(valid, y.shape[0] // 2)
    if native and in_ptx():
        low, high = neighbours(y)
        return _pack_native(low, high, keep)
    else:
        return (_merge(nearest(y), 4) & keep).to(tl.uint8)


@triton.jit
def eighths(x):
    """`x[0::8]` to `x[7::8]` of `x: [n, groups]`."""
    even, odd = neighbours(x)
    a, c = neighbours(even)
    b, d = neighbours(odd)
    x0, x4 = neighbours(a)
    x2, x6 = neighbours(c)
    x1, x5 = neighbours(b)
    x3, x7 = neighbours(d)
    return x0, x1, x2, x3, x4, x5, x6, x7


@triton.jit
def _noise_of_halves(first, second):
    """Four of uint32, of the bytes of two words: 128 times what `stochastic_halves` adds to elements 0 and 2, 1 and 3, 4
    and 6, 5 and 7. Apart from `_pack_by_halves`, so that the two directions of dY compute it once."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 halves;
        mov.b32 halves, 0x80808080;
        prmt.b32 $0, $4, halves, 0x2404;
        prmt.b32 $1, $4, halves, 0x3414;
        prmt.b32 $2, $5, halves, 0x2404;
        prmt.b32 $3, $5, halves, 0x3414;
        }""",
        "=r,=r,=r,=r,r,r",
        args=[first, second],
        dtype=(tl.uint32, tl.uint32, tl.uint32, tl.uint32),
        is_pure=True,
        pack=1,
    )


@triton.jit
def _pack_by_halves(y0, y1, y2, y3, y4, y5, y6, y7, noise0, noise1, noise2, noise3, keep):
    """uint32: eight of `stochastic_halves`, by `_noise_of_halves`, and 0 where `keep` is 0 and not -1; one integer addition
    of noise to two elements."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 a, b, c, d, n<4>, even, odd, low, high;
        cvt.rz.f16x2.f32 a, $3, $1;
        cvt.rz.f16x2.f32 b, $4, $2;
        cvt.rz.f16x2.f32 c, $7, $5;
        cvt.rz.f16x2.f32 d, $8, $6;
        shr.u32 n0, $9, 7;
        shr.u32 n1, $10, 7;
        shr.u32 n2, $11, 7;
        shr.u32 n3, $12, 7;
        add.u32 a, a, n0;
        add.u32 b, b, n1;
        add.u32 c, c, n2;
        add.u32 d, d, n3;
        prmt.b32 even, a, c, 0x7531;
        prmt.b32 odd, b, d, 0x7531;
        shr.u32 low, even, 1;
        shr.u32 even, even, 4;
        lop3.b32 low, low, even, 0x07070707, 0xE4;
        shl.b32 high, odd, 3;
        lop3.b32 high, high, odd, 0x70707070, 0xE4;
        lop3.b32 low, low, high, 0x0F0F0F0F, 0xE4;
        and.b32 $0, low, $13;
        }""",
        "=r,f,f,f,f,f,f,f,f,r,r,r,r,r",
        args=[y0, y1, y2, y3, y4, y5, y6, y7, noise0, noise1, noise2, noise3, keep],
        dtype=tl.uint32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def _upper(words):
    """`words >> 16`, out of the compiler's sight: it would merge this shift with the next, and a mask would follow."""
    if not in_ptx():
        return words >> 16
    else:
        return tl.inline_asm_elementwise(
            "shr.u32 $0, $1, 16;", "=r,r", args=[words], dtype=tl.uint32, is_pure=True, pack=1
        )


@triton.jit
def _bytes(words):
    """uint8[4 n, groups] of `words: uint32[n, groups]`."""
    n: tl.constexpr = words.shape[0]
    groups: tl.constexpr = words.shape[1]
    upper = words >> 16
    pairs = tl.join(tl.join(words, upper), tl.join(words >> 8, upper >> 8)).to(tl.uint8)
    return tl.reshape(tl.permute(pairs, (0, 2, 3, 1)), (4 * n, groups))


@triton.jit
def pack_stochastic(y, valid, words):
    """As `pack_nearest`, stochastically rounded by `words: uint32[n / 2, groups]` of 16 bits an element, the first
    element's in the low half."""
    bits = interleaved(words & 0xFFFF, _upper(words))
    keep = _keeping(valid, y.shape[0] // 2)
    if not in_ptx():
        return (_merge(stochastic(y, bits), 4) & keep).to(tl.uint8)
    else:
        low, high = neighbours(_stochastic_raw(y, bits))
        return _pack_raw(low, high, keep)


@triton.jit
def pack_stochastic_halves(y, valid, words):
    """As `pack_nearest`, of `y * 2^14`, stochastically rounded by `words: uint32[n / 4, groups]` of 8 bits an element, the
    first element's the low ones."""
    if not in_ptx():
        codes = stochastic_halves(y, _bytes(words))
        return (_merge(codes, 4) & _keeping(valid, y.shape[0] // 2)).to(tl.uint8)
    else:
        y0, y1, y2, y3, y4, y5, y6, y7 = eighths(y)
        n0, n1, n2, n3 = _noise_of_halves(*neighbours(words))
        keep = _keeping(valid, y.shape[0] // 8)
        return _bytes(_pack_by_halves(y0, y1, y2, y3, y4, y5, y6, y7, n0, n1, n2, n3, keep))


@triton.jit
def pack_bits(keep):
    """Bytes [n / 8, groups] of booleans [n, groups]; element `e` is bit `e % 8`."""
    return _merge(_merge(_merge(keep.to(tl.int32), 1), 2), 4)


@triton.jit
def _pack_signs(x0, x1, x2, x3, x4, x5, x6, x7):
    """uint32: bit i is the sign of the i-th float32, one shift for each."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 bits;
        shr.u32 bits, $8, 31;
        shf.l.wrap.b32 bits, $7, bits, 1;
        shf.l.wrap.b32 bits, $6, bits, 1;
        shf.l.wrap.b32 bits, $5, bits, 1;
        shf.l.wrap.b32 bits, $4, bits, 1;
        shf.l.wrap.b32 bits, $3, bits, 1;
        shf.l.wrap.b32 bits, $2, bits, 1;
        shf.l.wrap.b32 $0, $1, bits, 1;
        }""",
        "=r,r,r,r,r,r,r,r,r",
        args=[x0, x1, x2, x3, x4, x5, x6, x7],
        dtype=tl.uint32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def _two_squares_plus(x0, x1, addend):
    return tl.inline_asm_elementwise(
        """{
        .reg .b64 two, addends, sums;
        mov.b64 two, {$2, $3};
        mov.b64 addends, {$4, $4};
        fma.rn.f32x2 sums, two, two, addends;
        mov.b64 {$0, $1}, sums;
        }""",
        "=f,=f,f,f,f",
        args=[x0, x1, addend],
        dtype=(tl.float32, tl.float32),
        is_pure=True,
        pack=1,
    )


@triton.jit
def pack_below(y, limit: tl.constexpr, packed: tl.constexpr):
    """`pack_bits(|y| < limit)` for float32 `y: [n, groups]`, of which no NaN; `limit` is 6 times a power of two. packed: the
    target has instructions for two float32."""
    if not in_ptx():
        return pack_bits(tl.abs(y) < limit)
    else:
        least: tl.constexpr = limit * limit
        if packed:
            even, odd = neighbours(y)
            y = interleaved(*_two_squares_plus(even, odd, tl.full(even.shape, -least, tl.float32)))
        else:
            y = tl.fma(y, y, tl.full(y.shape, -least, tl.float32))
        return _pack_signs(*eighths(y.to(tl.int32, bitcast=True)))


@triton.jit
def unpack_bits(packed):
    """int1[rows, n] of bytes [rows, n / 8]; column `c` is bit `c % 8`. Rows, not columns, are the groups here."""
    groups: tl.constexpr = packed.shape[0]
    size: tl.constexpr = packed.shape[1]
    bits = packed.to(tl.int32)[:, :, None] >> tl.arange(0, 8)[None, None, :]
    return tl.reshape(bits & 1, (groups, size * 8)) != 0


@triton.jit
def _keep_four(x0, x1, x2, x3, words, shift):
    """Each of four float32 where the highest bit of its byte of `words << shift` is set, else 0."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 bits, m<4>;
        shl.b32 bits, $8, $9;
        prmt.b32 m0, bits, bits, 0x8888;
        prmt.b32 m1, bits, bits, 0x9999;
        prmt.b32 m2, bits, bits, 0xAAAA;
        prmt.b32 m3, bits, bits, 0xBBBB;
        and.b32 $0, $4, m0;
        and.b32 $1, $5, m1;
        and.b32 $2, $6, m2;
        and.b32 $3, $7, m3;
        }""",
        "=r,=r,=r,=r,r,r,r,r,r,r",
        args=[x0, x1, x2, x3, words, shift],
        dtype=(tl.float32, tl.float32, tl.float32, tl.float32),
        is_pure=True,
        pack=1,
    )


@triton.jit
def kept(x, words):
    """float32 `x: [32, groups]` where the bits of `words: uint32[groups]` are set, else 0; element `e` has bit `e`."""
    groups: tl.constexpr = x.shape[1]
    if INTERPRETED:
        bits = words[None, :] & (1 << tl.arange(0, 32).to(tl.uint32))[:, None]
        return tl.where(bits != 0, x, 0.0)
    else:
        even, odd = tl.split(tl.permute(tl.reshape(x, (2, 2, 8, groups)), (0, 2, 3, 1)))
        x0, x2 = tl.split(tl.permute(even, (1, 2, 0)))
        x1, x3 = tl.split(tl.permute(odd, (1, 2, 0)))
        shift = tl.broadcast_to(7 - tl.arange(0, 8)[:, None], (8, groups))
        y0, y1, y2, y3 = _keep_four(x0, x1, x2, x3, tl.broadcast_to(words[None, :], (8, groups)), shift)
        y = tl.join(tl.join(y0, y2), tl.join(y1, y3))
        return tl.reshape(tl.permute(y, (2, 3, 0, 1)), (32, groups))


@triton.jit
def values_over_2_126(packed):
    """float32[groups, n] of packed codes uint8[groups, n / 2], times 2^-126: sign, exponent and significand of a code where
    float32 has its own; those of 0.5 are subnormal."""
    groups: tl.constexpr = packed.shape[0]
    size: tl.constexpr = packed.shape[1]
    byte = packed.to(tl.int32)
    low = ((byte << 22) | (byte << 28)) & -0x7E400000
    high = ((byte << 18) & 0x01C00000) | ((byte << 24) & -0x80000000)
    return tl.reshape(tl.join(low, high), (groups, size * 2)).to(tl.float32, bitcast=True)


@triton.jit
def values(packed):
    """float32[groups, n] of packed codes uint8[groups, n / 2]; exact, since a multiply without `ftz` takes subnormals."""
    return values_over_2_126(packed) * 8.507059173023462e37  # 2^126


@triton.jit
def _half(words, place: tl.constexpr, field):
    """float16 of the code at bit 4 * `place` of uint32 `words`, times 2^(field - 15), or 0 where `field` is 0."""
    code = words >> (4 * place)
    small = (((code & 7) << 9) | ((code & 8) << 12)).to(tl.uint16).to(tl.float16, bitcast=True)
    power = tl.where(field == 0, 0, (field + 126) << 23).to(tl.float32, bitcast=True)
    return (small.to(tl.float32) * power).to(tl.float16)


@triton.jit
def _eight_halves(words, field):
    """`_half` of each of the eight codes."""
    if not in_ptx():
        low = (_half(words, 0, field), _half(words, 1, field), _half(words, 2, field), _half(words, 3, field))
        high = (_half(words, 4, field), _half(words, 5, field), _half(words, 6, field), _half(words, 7, field))
        return low + high
    else:
        return tl.inline_asm_elementwise(
            """{
            .reg .b8 p<4>;
            .reg .b32 x<4>, y<4>, factors;
            prmt.b32 factors, $9, $9, 0x1010;
            mov.b32 {p0, p1, p2, p3}, $8;
            cvt.rn.f16x2.e2m1x2 x0, p0;
            cvt.rn.f16x2.e2m1x2 x1, p1;
            cvt.rn.f16x2.e2m1x2 x2, p2;
            cvt.rn.f16x2.e2m1x2 x3, p3;
            mul.rn.f16x2 y0, x0, factors;
            mul.rn.f16x2 y1, x1, factors;
            mul.rn.f16x2 y2, x2, factors;
            mul.rn.f16x2 y3, x3, factors;
            mov.b32 {$0, $1}, y0;
            mov.b32 {$2, $3}, y1;
            mov.b32 {$4, $5}, y2;
            mov.b32 {$6, $7}, y3;
            }""",
            "=h,=h,=h,=h,=h,=h,=h,=h,r,r",
            args=[words, field << 10],
            dtype=(tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16),
            is_pure=True,
            pack=1,
        )


@triton.jit
def halves_of_codes(words, field):
    """float16[rows, 8 n] of `words: uint32[rows, n]` of eight codes each, times 2^(field - 15), or 0 where
    `field: int32[rows, n]` is 0; exact. In PTX by the conversion of sm_100 and later."""
    x0, x1, x2, x3, x4, x5, x6, x7 = _eight_halves(words, field)
    x = tl.join(tl.join(tl.join(x0, x4), tl.join(x2, x6)), tl.join(tl.join(x1, x5), tl.join(x3, x7)))
    return tl.reshape(x, (words.shape[0], 8 * words.shape[1]))
