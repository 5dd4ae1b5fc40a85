"""Let what is made of a weight be kept while its values are the same, for `weight_cache=True`: a step after the rewriting.

Before:  w16 = cast(w);  wq = quantize(w16);  wt = transposed(wq)
After:   wq = quantize(w, cached_as=bf16);  wt = transposed(wq, cached_for=w)

The ops give the same bits (kernels/weight_cache.py): they read the weight, or the codes, and make their results again
unless the bytes are those of the last time. So the weight must have memory that outlives the call: a parameter itself,
through views and a cast, and of a gathered one the part of the rank. What is computed from parameters in the graph isn't
kept, nor what random numbers are drawn for.
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

from torch import fx

from ..errors import OptionError
from ..kernels.numerics import philox
from ..kernels.quantizer import quantizer
from ..kernels.schemas import SCHEMAS, Quantize, Requantize, Transposed, arguments_of, op_of
from ..report.report import Cached
from .graph import CONVERSIONS, VIEWS, Values, strip
from .packed import is_packed
from .site import MatmulSite
from .work import Work

_OPERANDS = {philox.FPROP_W: "W", philox.DGRAD_W: "W^T"}
"""By stream."""


class Memory(NamedTuple):
    """Where the values of a matrix lie: in a placeholder, read through views and at most one cast.

    nodes: those on the way from the placeholder, in order.
    """

    root: fx.Node
    nodes: tuple[fx.Node, ...]

    @property
    def cast(self) -> fx.Node | None:
        """The cast on the way."""
        return next((node for node in self.nodes if node.target in CONVERSIONS), None)


def apply(work: Work) -> None:
    """Mark what can be kept, and write for the report what can't, with the reason."""
    if not work.policy.weight_cache:
        return
    sites = {site.index: site for site in work.sites}
    names = {decision.site.index: decision.name for decision in work.decisions}
    values, weights, found = Values(), dict[fx.Node, fx.Node](), dict[tuple, Cached]()
    for node in [node for node in work.graph.nodes if node in work.build.author and node.users]:
        site = sites.get(work.build.author[node])
        call = arguments_of(node) if op_of(node) in ("quantize", "requantize", "transposed") else None
        if call is None or not _is_of_weight(call, site, weights):
            continue
        key = (strip(call[0]), *_how(call)) if isinstance(call, Quantize) else (node,)
        memory, reason = _memory(call, values, weights)
        if memory is not None:
            work.build.working_on = site.index
            weights[node] = _mark(work, node, call, memory)
        found.setdefault(key, _described(node, call, names[site.index], reason))
    work.cached = tuple(found.values())


def require_cpu(work: Work) -> None:
    """Raise `OptionError` if weights of a graph would be kept that aren't on the CPU."""
    if not work.policy.weight_cache:
        return
    for parameter, name in work.weights.names.items():
        device = parameter.meta["val"].device
        if device.type != "cpu":
            raise OptionError(
                f"Option 'weight_cache' is True, and the weight {name!r} is on {device}; expected weights on the CPU, for "
                "which alone it is built. Leave it out."
            )


def memory_of(x: fx.Node, values: Values) -> Memory | str:
    """Where the values of a matrix lie, or why that is no memory which outlives a call."""
    nodes: list[fx.Node] = []
    casts, node = 0, x
    while node.op != "placeholder":
        if node.target in VIEWS and values.root(node) is not node:
            source = node.args[0]
        elif node.target in CONVERSIONS:
            source, casts = node.args[0], casts + 1
            before, after = source.meta["val"], node.meta["val"]
            if before.device != after.device or before.stride() != after.stride():
                return "a cast gives it another layout"
        elif node.target in VIEWS or strip(node) is not node:
            return "it is laid out anew in the graph"
        else:
            return "it is computed in the graph"
        nodes.append(node)
        node = source
    if casts > 1:
        return "it is cast more than once"
    return Memory(node, tuple(reversed(nodes)))


def _is_of_weight(call: Any, site: MatmulSite | None, weights: dict[fx.Node, fx.Node]) -> bool:
    """Whether an op makes W or W^T of a parameter, or of the codes of one."""
    if site is None or site.weight is None:
        return False
    if isinstance(call, Transposed):
        return _of_codes(call, weights) is not None
    if isinstance(call, Requantize):
        return call.stream in _OPERANDS and _of_codes(call, weights) is not None
    return call.stream in _OPERANDS


def _of_codes(call: Requantize | Transposed, weights: dict[fx.Node, fx.Node]) -> fx.Node | None:
    """The weight whose kept codes an op reads; of a packed one, the codes themselves."""
    if call.codes.target is operator.getitem:
        return weights.get(call.codes.args[0])
    return call.codes if any(map(is_packed, strip(call.codes).users)) else None


def _memory(call: Any, values: Values, weights: dict[fx.Node, fx.Node]) -> tuple[Memory | None, str]:
    """Where the weight lies beside which the results of an op can be kept; or None, and why they can't."""
    named = call._asdict()
    spec = quantizer(call.quantizer)
    if named.get("seed") is not None or named.get("sign_seed") is not None:
        return None, f"{spec.name} draws random numbers"
    if spec.exact:
        return None, f"{spec.name} rounds nothing"
    if not isinstance(call, Quantize):
        weight = _of_codes(call, weights)
        return (Memory(weight, ()), "") if weight is not None else (None, "")
    found = memory_of(call.x, values)
    return (None, found) if isinstance(found, str) else (found, "")


def _mark(work: Work, node: fx.Node, call: Any, memory: Memory) -> fx.Node:
    """Let an op keep what it makes. Returns the weight that it is kept beside."""
    if not isinstance(call, Quantize):
        work.build.call_with(node, call._replace(cached_for=memory.root))
        return memory.root
    weight, dtype = call.x, call.x.meta["val"].dtype
    if memory.cast is not None:
        with work.build.graph.inserting_before(node):
            weight = _without_cast(work, memory)
    work.build.call_with(node, call._replace(x=weight, cached_as=dtype))
    return weight


def _without_cast(work: Work, memory: Memory) -> fx.Node:
    """The views of the placeholder that were views of its cast."""
    weight = memory.root
    for node in memory.nodes:
        if node.target not in CONVERSIONS:
            weight = work.build.call(node, node.target, weight, *node.args[1:], kwargs=dict(node.kwargs))
    return weight


def _how(call: Quantize) -> tuple:
    return call.quantizer, call.transpose, call.mask


def _described(node: fx.Node, call: Any, name: str, reason: str) -> Cached:
    named = dict(zip(SCHEMAS[op_of(node)].results, node.meta["val"], strict=True))
    sizes = [part.nbytes for part in named.values()]
    known = all(isinstance(size, int) for size in sizes)
    operand = _OPERANDS[call.stream] if isinstance(call, Quantize) else "W^T"
    return Cached(
        matmul=name, operand=operand, quantizer=call.quantizer, size=sum(sizes) if known else 0, reason=reason
    )
