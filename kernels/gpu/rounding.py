"""E2M1: rounding of float32 to 4-bit codes, packing, and the values of codes.

`native` targets convert with one instruction for two values (`cvt.rn.satfinite.e2m1x2.f32`: sm_100a, sm_103a, sm_120a);
elsewhere, and in Triton's interpreter, which has no assembly, bit arithmetic gives the same codes.
"""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


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
def _half_above_half(x):
    """float32 `x / 2 + 1 / 2`, rounded toward zero, for `x` from 0 to 6."""
    if INTERPRETED:
        y = x * 0.5 + 0.5
        raw = y.to(tl.int32, bitcast=True)
        return tl.where((y - 0.5) * 2 > x, raw - 1, raw).to(tl.float32, bitcast=True)
    else:
        return tl.inline_asm_elementwise(
            "fma.rz.f32 $0, $1, 0f3F000000, 0f3F000000;", "=f,f", args=[x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def stochastic(y, bits):
    """int32 codes of float32 `y`, up iff `bits + floor(fraction * 2^16) >= 2^16`.

    y: at most 6 in magnitude, which scaling by the largest of a group with `shrink` sees to. bits: uint32 below 2^16, one
    an element.

    A code below 2 counts steps of 0.5; above, half the steps of a binade. `x / 2 + 1 / 2` lies in the binade below 1 and
    has x = 0.5 where that binade has its middle: there the codes below 2 continue those above, and the bits of a float32
    from bit 22 up are the code, those below are the fraction, in units of 2^-22.
    """
    magnitude = tl.abs(y)
    fixed = tl.maximum(magnitude, _half_above_half(magnitude)).to(tl.int32, bitcast=True)
    code = ((fixed + (bits.to(tl.int32) << 6)) >> 22) - 252
    return code | ((y.to(tl.int32, bitcast=True) >> 28) & 8)


@triton.jit
def _pack_native(low, high):
    """Packed bytes of float32 pairs to nearest, four pairs an assembly block."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b8 b<4>;
        cvt.rn.satfinite.e2m1x2.f32 b0, $5, $1;
        cvt.rn.satfinite.e2m1x2.f32 b1, $6, $2;
        cvt.rn.satfinite.e2m1x2.f32 b2, $7, $3;
        cvt.rn.satfinite.e2m1x2.f32 b3, $8, $4;
        mov.b32 $0, {b0, b1, b2, b3};
        }""",
        "=r,f,f,f,f,f,f,f,f",
        args=[low, high],
        dtype=tl.uint8,
        is_pure=True,
        pack=4,
    )


@triton.jit
def _merge(fields, bits: tl.constexpr):
    """int32[groups, n / 2]: neighbours of `fields: int32[groups, n]`, the even one in the low `bits`."""
    groups: tl.constexpr = fields.shape[0]
    size: tl.constexpr = fields.shape[1]
    low, high = tl.split(tl.reshape(fields, (groups, size // 2, 2)))
    return low | (high << bits)


@triton.jit
def pack_nearest(y, native: tl.constexpr):
    """Bytes [groups, n / 2]: the codes of `y: float32[groups, n]`, the even column in the low nibble."""
    if native and not INTERPRETED:
        groups: tl.constexpr = y.shape[0]
        size: tl.constexpr = y.shape[1]
        low, high = tl.split(tl.reshape(y, (groups, size // 2, 2)))
        return _pack_native(low, high)
    else:
        return _merge(nearest(y), 4)


@triton.jit
def pack_stochastic(y, bits):
    """As `pack_nearest`, stochastically rounded."""
    return _merge(stochastic(y, bits), 4)


@triton.jit
def pack_bits(keep):
    """Bytes [groups, n / 8] of booleans [groups, n]; column `c` is bit `c % 8`."""
    return _merge(_merge(_merge(keep.to(tl.int32), 1), 2), 4)


@triton.jit
def unpack_bits(packed):
    """The inverse of `pack_bits`: int1[groups, n]."""
    groups: tl.constexpr = packed.shape[0]
    size: tl.constexpr = packed.shape[1]
    bits = packed.to(tl.int32)[:, :, None] >> tl.arange(0, 8)[None, None, :]
    return tl.reshape(bits & 1, (groups, size * 8)) != 0


@triton.jit
def values(packed):
    """float32[groups, n] of packed codes uint8[groups, n / 2]."""
    groups: tl.constexpr = packed.shape[0]
    size: tl.constexpr = packed.shape[1]
    byte = packed.to(tl.int32)
    code = tl.reshape(tl.join(byte & 15, byte >> 4), (groups, size * 2))
    magnitude = code & 7
    normal = (magnitude << 22) + 0x3F000000
    raw = tl.where(magnitude > 1, normal, magnitude * 0x3F000000)
    return (raw | ((code & 8) << 28)).to(tl.float32, bitcast=True)
