"""What the elements of a block, and the rows of a square of blocks, agree on: sums and largest.

A tile is `[block, blocks]`, one block a column; its groups are `[group, groups]`, the first group of every block, then the
second of every block. Both are the same registers.
"""

import triton
import triton.language as tl

from .rotation import pairwise_sum


@triton.jit
def to_groups(x, group: tl.constexpr):
    """[group, groups] of blocks [block, blocks]."""
    block: tl.constexpr = x.shape[0]
    blocks: tl.constexpr = x.shape[1]
    if block == group:
        return x
    else:
        parts = tl.permute(tl.reshape(x, (block // group, group, blocks)), (1, 0, 2))
        return tl.reshape(parts, (group, block // group * blocks))


@triton.jit
def to_blocks(x, blocks: tl.constexpr):
    """The inverse of `to_groups`."""
    group: tl.constexpr = x.shape[0]
    of_block: tl.constexpr = x.shape[1] // blocks
    if of_block == 1:
        return x
    else:
        parts = tl.permute(tl.reshape(x, (group, of_block, blocks)), (1, 0, 2))
        return tl.reshape(parts, (of_block * group, blocks))


@triton.jit
def each_group(of_block, of_block_groups: tl.constexpr):
    """[groups] of [blocks]: what a block has, for each of its groups."""
    blocks: tl.constexpr = of_block.shape[0]
    wide = tl.broadcast_to(of_block[None, :], (of_block_groups, blocks))
    return tl.reshape(wide, (of_block_groups * blocks,))


@triton.jit
def _each_row(of_square, rows: tl.constexpr):
    """[count * rows] of [count]: what a square has, for each of its rows."""
    count: tl.constexpr = of_square.shape[0]
    return tl.reshape(tl.broadcast_to(of_square[:, None], (count, rows)), (count * rows,))


@triton.jit
def most_in_square(x, rows: tl.constexpr):
    """The largest of `x: int32[groups]` among the `rows` of each square, neighbours, for each of them."""
    if rows == 1:
        return x
    else:
        groups: tl.constexpr = x.shape[0]
        return _each_row(tl.max(tl.reshape(x, (groups // rows, rows)), axis=1), rows)


@triton.jit
def sum_in_square(x, rows: tl.constexpr):
    """The sum of `x: float32[groups]` over the `rows` of each square by pairwise halves, for each of them."""
    if rows == 1:
        return x
    else:
        groups: tl.constexpr = x.shape[0]
        return _each_row(pairwise_sum(tl.trans(tl.reshape(x, (groups // rows, rows)))), rows)
