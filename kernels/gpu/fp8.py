"""MXFP4 in E4M3 with a scale a row: the operands of products on FP8 tensor cores."""

import triton
import triton.language as tl

from .assembly import in_ptx


@triton.jit
def _by_tables(words, low, high):
    """The bytes of eight codes: int32 of four each. low, high: int32, the bytes of the magnitudes 0, 0.5, 1, 1.5 and of
    2, 3, 4, 6. A byte permutation looks four up at once, and another gives their signs."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 places, signs, four;
        and.b32 places, $2, 0x77777777;
        shr.u32 signs, $2, 3;
        and.b32 signs, signs, 0x11111111;
        prmt.b32 $0, $3, $4, places;
        prmt.b32 four, 0x8000, 0, signs;
        or.b32 $0, $0, four;
        shr.u32 places, places, 16;
        shr.u32 signs, signs, 16;
        prmt.b32 $1, $3, $4, places;
        prmt.b32 four, 0x8000, 0, signs;
        or.b32 $1, $1, four;
        }""",
        "=&r,=&r,r,r,r",
        args=[words, low, high],
        dtype=(tl.int32, tl.int32),
        is_pure=True,
        pack=1,
    )


@triton.jit
def _four_by_tables(words, low, high):
    """The bytes of the four codes in the low half of a word."""
    bytes = tl.zeros_like(words)
    for code in tl.static_range(4):
        place = (words >> (4 * code)) & 7
        byte = (tl.where(place < 4, low, high) >> (8 * (place & 3))) & 0x7F
        bytes = bytes | ((byte | ((words >> (4 * code + 3)) & 1) << 7) << (8 * code))
    return bytes


@triton.jit
def decode(words, scales, largest):
    """E4M3 bytes, four in an int32[rows, 2 words], of the values times 2^6 over the row's largest scale; and int32[rows]:
    not 0 where E4M3 can't hold one of them.

    words: int32[rows, words] of eight codes each; scales: int32[rows, words / 4], E8M0 bytes; largest: int32[rows], below
    255. A code times 2^-8 to 2^6 is exact in E4M3, whose least is 2^-9: the bytes of its eight magnitudes are an exponent
    less for each power of two, until they are subnormal. What is smaller becomes 0. A NaN scale makes its group NaN.
    """
    rows: tl.constexpr = words.shape[0]
    groups: tl.constexpr = scales.shape[1]
    tl.static_assert(words.shape[1] == 4 * groups, "four words a group")
    below = largest[:, None] - scales
    low = tl.where(below < 12, 0x6C686000 - below * 0x08080800, 0x0C080400 >> tl.minimum(tl.maximum(below - 12, 0), 2))
    high = tl.where(below < 14, 0x7C787470 - below * 0x08080808, 0x0C080604)
    beyond = (below > 14) & (scales < 255)
    low = tl.where(scales == 255, 0x7F7F7F7F, tl.where(beyond, 0, low))
    high = tl.where(scales == 255, 0x7F7F7F7F, tl.where(beyond, 0, high))
    x = tl.reshape(words, (rows, groups, 4))
    low, high = tl.broadcast_to(low[:, :, None], x.shape), tl.broadcast_to(high[:, :, None], x.shape)
    if in_ptx():
        first, second = _by_tables(x, low, high)
    else:
        first, second = _four_by_tables(x, low, high), _four_by_tables(x >> 16, low, high)
    lost = tl.where(beyond[:, :, None], x & 0x77777777, 0)
    made = tl.reshape(tl.join(first, second), (rows, 8 * groups))
    return made, tl.max(tl.max((lost != 0).to(tl.int32), axis=2), axis=1)
