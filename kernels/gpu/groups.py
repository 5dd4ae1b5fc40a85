"""Which group of rows a program of a grouped product works on."""

import triton
import triton.language as tl


@triton.jit
def tile_of_rows(ends_at, rows, pid, matrices: tl.constexpr, width: tl.constexpr, block: tl.constexpr):
    """The group, the first row and the end of the group of tile number `pid`, where each group has tiles of `block` rows of
    its own, and the rows after the last group count as one more.

    ends_at: pointer to int32[matrices]; width: a power of two above `matrices`. A tile beyond the last starts at its end.
    """
    e = tl.arange(0, width)
    ends = tl.load(ends_at + e, mask=e < matrices, other=0)
    ends = tl.where(e < matrices, ends, rows)
    starts = tl.load(ends_at + e - 1, mask=(e > 0) & (e <= matrices), other=0)
    starts = tl.where(e <= matrices, starts, rows)
    tiles = (ends - starts + block - 1) // block
    after = tl.cumsum(tiles, 0)
    group = tl.sum((after <= pid).to(tl.int32), 0)
    mine = e == group
    start = tl.sum(tl.where(mine, starts + (pid - after + tiles) * block, 0), 0)
    end = tl.sum(tl.where(mine, ends, 0), 0)
    return group, start, end


@triton.jit
def rows_of_group(ends_at, group):
    """The first row of a group and its end."""
    start = tl.load(ends_at + group - 1, mask=group > 0, other=0)
    return start, tl.load(ends_at + group)
