"""FX: what the nodes of a traced graph carry in `meta` besides `val`, the fake value, what their ops and sizes are, and what
depends on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx

from .installed import private

OpOverload: type[Any] = private("torch._ops:OpOverload")

_PLACE = (
    "seq_nr",
    "partitioner_tag",
    "recompute",
    "ac_graph_id",
    "has_backward_hook",
    "custom",
    "nn_module_stack",
    "fwd_nn_module_stack",
    "stack_trace",
    "source_fn_stack",
    "fwd_source_fn_stack",
    "autograd_backward",
)
"""The keys that say where in the model and in the step a node belongs."""


def place_of(node: fx.Node) -> dict[str, Any]:
    """What a node that stands in for this one must carry: autograd's sequence number, the partitioner's tag, the recompute
    policy, the module and the annotation."""
    return {key: node.meta[key] for key in _PLACE if key in node.meta}


def descendants(starts: Iterable[fx.Node]) -> set[fx.Node]:
    """Every node that depends on one of the starts, the starts included."""
    seen = set(starts)
    stack = list(seen)
    while stack:
        for user in stack.pop().users:
            if user not in seen:
                seen.add(user)
                stack.append(user)
    return seen


def module_stack(meta: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The path and the class of each module that a node with this metadata was traced in, the innermost last."""
    return list((meta.get("nn_module_stack") or {}).values())


def annotations_of(meta: Mapping[str, Any]) -> Mapping[str, Any]:
    """What `torch.fx.traceback.annotate` said where a node with this metadata was traced."""
    return meta.get("custom") or {}


def annotation() -> dict[str, Any]:
    """What it says where the program is now."""
    return dict(annotations_of(private("torch.fx.traceback").current_meta))


def sequence_number(node: fx.Node) -> int | None:
    """Autograd's sequence number, which a forward op and its backward have in common."""
    return node.meta.get("seq_nr")


def recomputation(node: fx.Node) -> tuple:
    """The activation checkpoint that a node is recomputed in; the partitioner recomputes each by itself."""
    return node.meta.get("ac_graph_id"), node.meta.get("recompute")


def is_recomputed(node: fx.Node) -> bool:
    """Whether checkpointing computes a node in the forward and in the backward pass."""
    return getattr(node.meta.get("recompute"), "name", "").endswith("RECOMPUTE")


def save(node: fx.Node) -> None:
    """Forbid to compute a node again in the backward pass."""
    node.meta["recompute"] = private("torch.utils.checkpoint:CheckpointPolicy").MUST_SAVE


def is_autograds(node: fx.Node) -> bool:
    """Whether autograd's engine called a node's op, where a whole step was traced."""
    return node.meta.get("autograd_backward", False)


def keep_in_backward(node: fx.Node) -> None:
    """Forbid the partitioner to move a node into the forward graph, though it reads no gradient."""
    node.meta["partitioner_tag"] = "must_be_in_backward"


def is_tagged_backward(node: fx.Node) -> bool:
    """Whether the partitioner is told that a node belongs to the backward graph."""
    return "backward" in node.meta.get("partitioner_tag", "")


def is_tagged_forward(node: fx.Node) -> bool:
    """Whether the partitioner is told that a node belongs to the forward graph."""
    return node.meta.get("partitioner_tag") == "is_forward"


def is_tagged(node: fx.Node) -> bool:
    """Whether the partitioner is told where a node belongs."""
    return "partitioner_tag" in node.meta


def keeps_in_backward(node: fx.Node) -> bool:
    """Whether the partitioner must not move a node into the forward graph."""
    return node.meta.get("partitioner_tag") == "must_be_in_backward"


def op_name(target: Any) -> str:
    """The qualified name of an op, `aten::mm`; empty for what is no op."""
    return target._schema.name if isinstance(target, OpOverload) else ""


def makes_a_view(op: Any) -> bool:
    """Whether an op returns a view of what it is given."""
    aliases = [returned.alias_info for returned in op._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def expression(size: int | torch.SymInt) -> Any:
    """A size as something that can be compared and hashed without a guard: an int, or the expression of a dynamic one."""
    return size if isinstance(size, int) else size.node.expr
