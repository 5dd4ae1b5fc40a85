"""Random bits: Philox4x32-7, a counter-based generator (Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", which gives 7 rounds as the fewest that pass BigCrush).

Every random bit is a pure function of (key, stream, row, column) of the logical, unpadded operand, so the order of
threads, tiles, padding, recomputation and devices changes nothing.

* key: the 64-bit seed of the matmul, low word first.
* counter: `(block, row, high, stream)` in 32-bit words, where `high` packs bits 32..47 of `row` (low half) and of `block`
  (high half).
* noise of element (row, column): with 8 bits an element a block is 16 columns, and byte `column % 16` of the 128-bit
  output, little-endian, is theirs; with 16 bits a block is 8 columns, of which each has a 16-bit half.
* the two directions of dY share their noise, so that a kernel that rounds both draws it once: element (row, column) of
  dY^T in wgrad has the noise of element (row', column') of dY in dgrad, where row and column exchange all but their low 6
  bits. That is one to one, so no two elements of a direction share their noise.
* noise of the scale of group g (EDEN): 16 bits, those at the counter of element (row, g) of the operand's own stream.
* signs of a GEMM: counter `(0, 0, 0, 16 + gemm)`; bit `i` of the 128-bit output set means that sign `i` is -1.

A stream is `2 * gemm + operand`, with the GEMMs numbered fprop 0, dgrad 1, wgrad 2. Plain PyTorch on int64; the C++ and
Triton kernels compute the same bits. Test vectors: `kat_vectors` of the Random123 distribution.
"""

from __future__ import annotations

import torch

ROUNDS = 7
SCALE_BITS = 16
"""Of the draw that rounds the scale of a group (EDEN)."""

FPROP_X, FPROP_W, DGRAD_DY, DGRAD_W, WGRAD_DY, WGRAD_X = range(6)
SIGN_STREAM = 16

NOISE_SQUARE = 64
"""Rows and columns of a square of dY in which its two directions share noise."""

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF

Words = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def philox(counter: Words, key: tuple[torch.Tensor, torch.Tensor], rounds: int = ROUNDS) -> Words:
    """Philox4x32 of int64 tensors that hold 32-bit words; broadcasts."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for step in range(rounds):
        if step:
            k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
        hi0, lo0 = _multiply(c0, _MULTIPLIERS[0])
        hi1, lo1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
    return c0, c1, c2, c3


def _multiply(a: torch.Tensor, b: int) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low word of the 64-bit product; in 16-bit halves of `b`, since int64 has no unsigned product."""
    low = a * (b & 0xFFFF)
    high = a * (b >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def split_key(seed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The two 32-bit words of an int64 seed, low word first."""
    return seed & _WORD, (seed >> 32) & _WORD


def noise(seed: torch.Tensor, stream: int, rows: int, columns: int, bits: int) -> torch.Tensor:
    """int64[rows, columns] of `bits` random bits for each element, 8 or 16. `seed`: int64 scalar tensor."""
    row, block = _places(seed, rows, columns, bits)
    if stream == WGRAD_DY:
        first = block * (128 // bits)
        exchanged = (row ^ first) & -NOISE_SQUARE
        stream, row, block = DGRAD_DY, row ^ exchanged, (first ^ exchanged) // (128 // bits)
    return _drawn(seed, stream, row, block, bits)[:, :columns]


def scale_noise(seed: torch.Tensor, stream: int, rows: int, groups: int) -> torch.Tensor:
    """int64[rows, groups] of `SCALE_BITS` random bits for the scale of each group."""
    return _drawn(seed, stream, *_places(seed, rows, groups, SCALE_BITS), SCALE_BITS)[:, :groups]


def _places(seed: torch.Tensor, rows: int, columns: int, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows, [rows, 1], and the blocks that their columns lie in, [1, blocks]."""
    of_block = 128 // bits
    row = torch.arange(rows, dtype=torch.int64, device=seed.device)[:, None]
    block = torch.arange((columns + of_block - 1) // of_block, dtype=torch.int64, device=seed.device)[None, :]
    return row, block


def _drawn(seed: torch.Tensor, stream: int, row: torch.Tensor, block: torch.Tensor, bits: int) -> torch.Tensor:
    """int64[rows, columns] of `bits` each: the random bits of `row` and `block`, which broadcast to [rows, blocks]."""
    high = ((row >> 32) & 0xFFFF) | (((block >> 32) & 0xFFFF) << 16)
    four = philox((block & _WORD, row & _WORD, high, torch.full_like(high, stream)), split_key(seed))
    words = torch.stack(torch.broadcast_tensors(*four), dim=-1)
    parts = (words[..., None] >> torch.arange(0, 32, bits, dtype=torch.int64, device=seed.device)) & ((1 << bits) - 1)
    return parts.flatten(1)


def signs(seed: torch.Tensor, stream: int, size: int) -> torch.Tensor:
    """float32[size] of +-1 that both operands of the GEMM of `stream` share; `size` at most 128."""
    zero = torch.zeros((), dtype=torch.int64, device=seed.device)
    words = torch.stack(philox((zero, zero, zero, zero + SIGN_STREAM + stream // 2), split_key(seed)))
    bits = (words[:, None] >> torch.arange(32, dtype=torch.int64, device=seed.device)) & 1
    return (1 - 2 * bits).reshape(-1)[:size].float()
