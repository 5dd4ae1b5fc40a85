"""Square blocks: what the rows of a block agree on, and its transpose; in plain PyTorch."""

from __future__ import annotations

import torch

from ..quantizer import Quantizer, padded


def over_square(x: torch.Tensor, quantizer: Quantizer) -> torch.Tensor:
    """The largest of `x: [rows, groups, 1]` over the rows of each block, for each of its rows; for booleans, any."""
    if quantizer.group_rows == 1:
        return x
    return _each(_blocks(x, quantizer).amax(1), x, quantizer)


def sum_over_square(x: torch.Tensor, quantizer: Quantizer) -> torch.Tensor:
    """The sum over the rows of each block by pairwise halves, rows beyond the last counting 0; for each of its rows."""
    if quantizer.group_rows == 1:
        return x
    sums = _blocks(x, quantizer)
    while sums.shape[1] > 1:
        half = sums.shape[1] // 2
        sums = sums[:, :half] + sums[:, half:]
    return _each(sums[:, 0], x, quantizer)


def _blocks(x: torch.Tensor, quantizer: Quantizer) -> torch.Tensor:
    rows, groups, _ = x.shape
    full = padded(rows, quantizer.group_rows)
    fill = torch.zeros((full - rows, groups, 1), dtype=x.dtype, device=x.device)
    return torch.cat([x, fill]).reshape(full // quantizer.group_rows, quantizer.group_rows, groups, 1)


def _each(of_block: torch.Tensor, x: torch.Tensor, quantizer: Quantizer) -> torch.Tensor:
    return of_block.repeat_interleave(quantizer.group_rows, dim=0)[: x.shape[0]]
