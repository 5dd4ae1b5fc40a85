"""What autograd keeps alive between forward and backward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


def saved_bytes(loss: torch.Tensor, model: nn.Module) -> int:
    """Bytes that autograd keeps alive between forward and backward, without the model's own parameters and buffers.

    Each storage counts once and whole, however many views of it are saved. Eager nodes show what they save as
    `_saved_*`; a compiled graph is one `autograd.Function` (`CompiledFunctionBackward`) with everything in
    `saved_tensors`, or in `_tensors_no_vc_check` where AOTAutograd leaves out the version check (torch 2.13).
    """
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}
    for node in graph_nodes(loss.grad_fn):
        for tensor in saved_tensors(node):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
    return sum(kept.values())


def graph_nodes(root: Any) -> Iterator[Any]:
    """Every node of the autograd graph below `root`, once."""
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting.extend(following for following, _ in node.next_functions)


def saved_tensors(node: Any) -> Iterator[torch.Tensor]:
    """The tensors that one node keeps for its backward."""
    if hasattr(node, "saved_tensors"):
        values = [node.saved_tensors, getattr(node, "_tensors_no_vc_check", None) or ()]
    else:
        values = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
    for value in values:
        for tensor in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(tensor, torch.Tensor):
                yield tensor
