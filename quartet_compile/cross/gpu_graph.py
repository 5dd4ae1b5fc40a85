"""A graph that was traced on CPU tensors, made into the one that tracing on a GPU would have given.

Tracing needs autograd, and autograd needs a device that is there; so it runs on the CPU, and what it decided by the device
is decided again: which attention kernel, and in which type a layer norm keeps its mean and variance. Other decompositions
that look at the device (batch norm in half precision, matrix-vector products of a few elements) keep the CPU's branch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from .. import _compat
from .._compat.fake_gpu import DEVICE, relabel

aten = torch.ops.aten


def use_gpu_attention(gm: fx.GraphModule) -> None:
    """In a Dynamo graph, scaled_dot_product_attention becomes a call of the kernel that a GPU would run."""
    for module in gm.modules():
        if isinstance(module, fx.GraphModule):
            for node in module.graph.find_nodes(op="call_function", target=F.scaled_dot_product_attention):
                node.target = attention
            module.recompile()


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`F.scaled_dot_product_attention` by the kernel that torch picks on a GPU: FlashAttention for float16 and bfloat16
    without a mask, else the memory-efficient one; the plain formula for shapes that neither takes."""
    width, dtype = query.shape[-1], query.dtype
    half = dtype in (torch.float16, torch.bfloat16)
    plain = query.dim() != 4 or width != value.shape[-1] or width % (8 if half else 4) or dtype == torch.float64
    if plain:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if half and attn_mask is None and width <= 256:
        return aten._scaled_dot_product_flash_attention.default(
            query, key, value, dropout_p, is_causal, False, scale=scale
        )[0]
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=dtype).masked_fill(~attn_mask, float("-inf"))
        attn_mask = attn_mask.expand(*query.shape[:3], key.shape[2])
    training = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    return aten._scaled_dot_product_efficient_attention.default(
        query, key, value, attn_mask, training, dropout_p, is_causal, scale=scale
    )[0]


def decompositions() -> dict:
    """Inductor's decompositions, as on a GPU."""
    table = dict(_compat.decompositions())
    layer_norm = aten.native_layer_norm.default
    if layer_norm in table:
        table[layer_norm] = _layer_norm(table[layer_norm])
    return table


def _layer_norm(decomposed: Callable) -> Callable:
    """A GPU keeps mean and 1/std in float32 where a CPU rounds them to the input's type."""

    def native_layer_norm(x: Tensor, shape: list[int], weight: Any, bias: Any, eps: float) -> tuple:
        if x.dtype not in (torch.float16, torch.bfloat16):
            return decomposed(x, shape, weight, bias, eps)
        weight, bias = (None if t is None else t.float() for t in (weight, bias))
        y, mean, rstd = decomposed(x.float(), shape, weight, bias, eps)
        return y.to(x.dtype), mean, rstd

    return native_layer_norm


def to_gpu(gm: fx.GraphModule) -> None:
    """Move a traced graph to the GPU: its tensors, and the device of each op that makes one. A tensor constant stays on
    the CPU and is copied."""
    for module in gm.modules():
        if isinstance(module, fx.GraphModule):
            for node in list(module.graph.nodes):
                _move(module.graph, node)


def _move(graph: fx.Graph, node: fx.Node) -> None:
    if node.op == "get_attr":
        return
    value = node.meta.get("val")
    if node.target is aten.lift_fresh_copy.default and isinstance(value, Tensor) and value.device != DEVICE:
        with graph.inserting_after(node):
            copy = graph.call_function(torch.ops.prims.device_put.default, (node, DEVICE))
        copy.meta = {**node.meta, "val": relabel(value)}
        node.replace_all_uses_with(copy, lambda user: user is not copy)
        return
    node.args = tuple(DEVICE if isinstance(arg, torch.device) else arg for arg in node.args)
    node.kwargs = {name: DEVICE if isinstance(arg, torch.device) else arg for name, arg in node.kwargs.items()}
    if "val" in node.meta:
        node.meta["val"] = _compat.map_tensors(lambda _, tensor: relabel(tensor), "", value)
