"""Ops of torch's own that hold weight matmuls inside, which run where no graph is: its recurrent layers, and its encoder
layer and attention in evaluation. Dynamo keeps code out of graphs rather than put one of them in, so no pass meets them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

Product = tuple[torch.Tensor, int]
"""A weight, `[N, K]`, and the rows that are multiplied with it at a time."""


def inside(op: Any, args: tuple) -> Iterator[Product]:
    """The products with a weight inside of an op; none of any other op."""
    read = _READERS.get(op)
    return iter(()) if read is None else read(args)


def _recurrent(args: tuple) -> Iterator[Product]:
    """oneDNN's layer: the input `[T, B, I]`, its weight and the state's. The state's is multiplied once a step."""
    x, of_input, of_state = args[:3]
    state = args[5]
    yield of_input, _rows(x)
    yield of_state, state.shape[-2]


def _cudnn(args: tuple) -> Iterator[Product]:
    """cuDNN's: all layers and directions, with the same number of tensors each, first the weights of input and state."""
    x, weights, each, _, state = args[:5]
    for first in range(0, len(weights), each):
        yield weights[first], _rows(x)
        yield weights[first + 1], state.shape[-2]


def _weights_at(*places: int) -> Callable[[tuple], Iterator[Product]]:
    def read(args: tuple) -> Iterator[Product]:
        return ((args[at], _rows(args[0])) for at in places)

    return read


def _rows(x: torch.Tensor) -> int:
    return x.numel() // x.shape[-1]


_READERS: dict[Any, Callable[[tuple], Iterator[Product]]] = {
    torch.ops.aten.mkldnn_rnn_layer.default: _recurrent,
    torch.ops.aten._cudnn_rnn.default: _cudnn,
    torch.ops.aten._native_multi_head_attention.default: _weights_at(5, 7),
    torch.ops.aten._transformer_encoder_layer_fwd.default: _weights_at(3, 5, 14, 16),
}
