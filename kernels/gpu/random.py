"""The random bits of `kernels/numerics/philox.py` (Philox4x32-7, same keys and counters), for tiles."""

import triton
import triton.language as tl

from ..numerics import philox as numerics
from .assembly import in_ptx

_DGRAD_DY, _WGRAD_DY = tl.constexpr(numerics.DGRAD_DY), tl.constexpr(numerics.WGRAD_DY)
_NOISE_SQUARE = tl.constexpr(numerics.NOISE_SQUARE)


@triton.jit
def _round(c0, c1, c2, c3, k0, k1):
    """One instruction for both words of a product, where `umulhi` beside a multiply are two."""
    p = c2.to(tl.uint64) * 0xCD9E8D57
    q = c0.to(tl.uint64) * 0xD2511F53
    return (p >> 32).to(tl.uint32) ^ c1 ^ k0, p.to(tl.uint32), (q >> 32).to(tl.uint32) ^ c3 ^ k1, q.to(tl.uint32)


@triton.jit
def philox(c0, c1, c2, c3, seed):
    """Philox4x32 with 7 rounds: four uint32 tensors for a counter of four uint32 tensors of one shape.

    seed: an int64 scalar, the key, low word first.
    """
    k0 = (seed & 0xFFFFFFFF).to(tl.uint32)
    k1 = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    for _ in tl.static_range(7):
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
        k0 = k0 + tl.full((), 0x9E3779B9, tl.uint32)
        k1 = k1 + tl.full((), 0xBB67AE85, tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def noise_words(seed, stream: tl.constexpr, row, column, words: tl.constexpr, bits: tl.constexpr):
    """uint32[words, groups]: the random words of the elements from `column` on in each group, 32 / `bits` elements a word,
    the first in the low bits.

    row, column: integer[groups], of the logical operand, below 2^31; the columns are multiples of a group's size, a
    power of two.
    dY^T in wgrad has the words of dY in dgrad: `kernels/numerics/philox.py`.
    """
    if stream == _WGRAD_DY:
        exchanged = (row ^ column) & -_NOISE_SQUARE
        return _noise_words(seed, _DGRAD_DY, row ^ exchanged, column ^ exchanged, words, bits)
    else:
        return _noise_words(seed, stream, row, column, words, bits)


@triton.jit
def _noise_words(seed, stream: tl.constexpr, row, column, words: tl.constexpr, bits: tl.constexpr):
    groups: tl.constexpr = row.shape[0]
    blocks: tl.constexpr = words // 4
    block = (column // (128 // bits))[None, :] + tl.arange(0, blocks)[:, None]
    c0 = block.to(tl.uint32)
    c1 = tl.broadcast_to(row[None, :], (blocks, groups)).to(tl.uint32)
    zero = tl.zeros((blocks, groups), tl.uint32)
    w0, w1, w2, w3 = philox(c0, c1, zero, zero + stream, seed)
    four = tl.permute(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (0, 2, 3, 1))
    return tl.reshape(four, (words, groups))


@triton.jit
def scale_noise(seed, stream: tl.constexpr, row, group):
    """uint32[groups] of 16 random bits for the elements (row, group): int[groups] each."""
    c0, zero = (group // 8).to(tl.uint32), tl.zeros(row.shape, tl.uint32)
    w0, w1, w2, w3 = philox(c0, row.to(tl.uint32), zero, zero + stream, seed)
    half = group % 8
    word = tl.where(half < 4, tl.where(half < 2, w0, w1), tl.where(half < 6, w2, w3))
    return tl.where(half % 2 == 0, word & 0xFFFF, word >> 16)


@triton.jit
def _sign_words(seed, stream: tl.constexpr):
    """Four of uint32[1]: the bits of all 128 signs of the GEMM of `stream`."""
    zero = tl.zeros((1,), tl.uint32)
    return philox(zero, zero, zero, zero + (16 + stream // 2), seed)


@triton.jit
def sign_word(seed, stream: tl.constexpr):
    """uint32 scalar: bit i is set where the random sign i of the GEMM of `stream` is -1, of the first 32."""
    return tl.sum(_sign_words(seed, stream)[0], 0)


@triton.jit
def signed(seed, stream: tl.constexpr, bits: tl.constexpr):
    """uint16[32, 1]: the 16-bit float of these `bits` with each of the random signs of the GEMM of `stream`. Signs 16 apart
    share a word, so that a shift and a logical operation make two."""
    word = _sign_words(seed, stream)[0][None, :] << (15 - tl.arange(0, 16)[:, None]).to(tl.uint32)
    two = (word & 0x80008000) ^ tl.full((), bits * 0x10001, tl.uint32)
    return tl.reshape(tl.permute(tl.join(two, two >> 16).to(tl.uint16), (2, 0, 1)), (32, 1))


@triton.jit
def sign_bits(seed, stream: tl.constexpr, size: tl.constexpr):
    """uint32[size, 1], size at most 128: bit 31 where the random sign of the GEMM of `stream` is -1, else 0."""
    tl.static_assert(size <= 128)
    w0, w1, w2, w3 = _sign_words(seed, stream)
    index = tl.arange(0, size)[:, None]
    word = tl.broadcast_to(w0[None, :], (size, 1))
    if size > 32:
        word = tl.where(index < 32, word, w1[None, :])
    if size > 64:
        word = tl.where(index < 64, word, tl.where(index < 96, w2[None, :], w3[None, :]))
    return (word << (31 - index % 32).to(tl.uint32)) & 0x80000000


@triton.jit
def flipped(x, seed, stream: tl.constexpr):
    """`x: [32, groups]` with the random signs of the GEMM of `stream`; bfloat16 stays that, other types become float32."""
    if x.dtype == tl.bfloat16 and in_ptx():
        word = tl.broadcast_to(_sign_words(seed, stream)[0][None, :], (32, 1))
        signs = ((word << (31 - tl.arange(0, 32)[:, None]).to(tl.uint32)) >> 16) & 0x8000
        return _flipped_bfloat16(x, tl.broadcast_to(signs.to(tl.uint16), x.shape))
    else:
        return xor(x.to(tl.float32), tl.broadcast_to(sign_bits(seed, stream, 32), x.shape))


@triton.jit
def _flipped_bfloat16(x, signs):
    """One instruction for two elements."""
    return tl.inline_asm_elementwise(
        "xor.b32 $0, $1, $2;", "=r,r,r", args=[x, signs], dtype=tl.bfloat16, is_pure=True, pack=2
    )


@triton.jit
def xor(x, bits):
    """`x`, of whose bits those in `bits` are turned over; integers of the same size."""
    return (x.to(bits.dtype, bitcast=True) ^ bits).to(x.dtype, bitcast=True)
