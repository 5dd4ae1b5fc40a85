"""A graph as text, one line an op, made for diffs and snapshot tests:

    fwd  x.q = quantize[mxfp4-quest](x)
    fwd  weight.q = quantize[mxfp4-quest, mask](weight)
    fwd  scaled_mm: f32[64, 96] = scaled_mm(x.q, weight.q) -> output
    bwd  scaled_mm_1: f32[96, 64] = scaled_mm[unrotate](output.grad.q, x.qt, weight.q.mask) -> weight.grad

`fwd` and `bwd` are the forward and the backward pass, `ckpt` what checkpointing computes in both.
Views are folded into the operand that they rename (`w.T`; a reshaped `x` is `x`), the outputs of a quantize op are one
name, and `->` says what the graph returns, so that a line says what is computed and not how tensors are passed around.
The ops of the pass, casts, and attention, whose kernel depends on the device, are named as they are printed; every
other op keeps its name in the graph, and so its line in the diff. What measures an operand or a gradient says which row
of the graph's table it writes, `observe[3](x.q)`, and has no name: its copy is called as the original.
"""

from __future__ import annotations

import fractions
import operator
import re
from collections import defaultdict
from typing import Any

import torch
from torch import fx

from .. import _compat
from .._compat import OpOverload
from ..kernels.schemas import (
    SCHEMAS,
    Quantize,
    QuantizePair,
    Requantize,
    ScaledGroupedMM,
    ScaledMM,
    arguments_of,
    epilogue_of,
    op_of,
)
from .graph import CONVERSIONS, TRANSPOSES, VIEWS, backward_of, tangents

_DTYPES = {
    torch.float32: "f32",
    torch.bfloat16: "bf16",
    torch.float16: "f16",
    torch.float64: "f64",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.uint8: "u8",
    torch.bool: "bool",
}
_RENAMED = {"quantize": "q", "quantize_pair": "q", "requantize": "qt", "transposed": "qt"}
"""What an operand's name gets when it is quantized, and when its transpose is quantized again."""


def show(graph: fx.Graph, names: dict[fx.Node, str]) -> str:
    """The text of a graph. names: what to call placeholders."""
    backward = backward_of(graph)
    outputs = _output_names(graph)
    printer = _Printer({**_gradient_names(graph, outputs), **names})
    lines = [(node, line) for node in graph.nodes if (line := printer.line(node))]
    returned = printer.returned(graph, outputs)
    return "".join(
        f"{_part(node, backward):4} {line}{' -> ' * (node in returned)}{', '.join(returned[node])}\n"
        for node, line in lines
    )


def _part(node: fx.Node, backward: set[fx.Node]) -> str:
    if node in backward or (backward and _compat.is_tagged_backward(node)):
        return "bwd"
    return "ckpt" if _compat.is_recomputed(node) else "fwd"


def _results(graph: fx.Graph) -> list[tuple[fx.Node, Any]]:
    """The nodes that a graph returns, each with AOTAutograd's description of it."""
    (output,) = (node for node in graph.nodes if node.op == "output")
    descriptions = _compat.descriptions_of(output) or range(len(output.args[0]))
    results = zip(output.args[0], descriptions, strict=True)
    return [(node, description) for node, description in results if isinstance(node, fx.Node)]


def _output_names(graph: fx.Graph) -> dict[Any, str]:
    """A name for each output of the model, by description: `output`, or of several `output[0]`."""
    descriptions = [d for _, d in _results(graph) if not (_compat.gradient_of(d) or _compat.update_of(d))]
    if len(descriptions) == 1:
        return {descriptions[0]: "output"}
    return {description: f"output[{index}]" for index, description in enumerate(descriptions)}


def _gradient_names(graph: fx.Graph, outputs: dict[Any, str]) -> dict[fx.Node, str]:
    """A name for each gradient that comes in: `output.grad`."""
    described = {node: _compat.output_of(_compat.description_of(node)) for node in tangents(graph)}
    return {node: f"{outputs[description]}.grad" for node, description in described.items() if description in outputs}


class _Printer:
    def __init__(self, names: dict[fx.Node, str]) -> None:
        self.names = names
        self._taken = set(names.values())

    def line(self, node: fx.Node) -> str | None:
        if node.op == "placeholder":
            self.names.setdefault(node, node.name)
            return None
        if node.op == "output":
            return None
        if node.target in VIEWS:
            self.names[node] = self._view(node)
            return None
        if node.target is operator.getitem:
            self.names[node] = self._item(*node.args)
            return None
        if node.target is torch.ops.aten.select.int and op_of(node.args[0]) == "seed":
            seeds, _, index = node.args
            self.names[node] = f"{self._operand(seeds)}[{index}]"
            return None
        if _observes(node):
            return self._observation(node)
        name = self.names[node] = self._name(node)
        return f"{name}{_kind(node)} = {self._call(node)}"

    def returned(self, graph: fx.Graph, outputs: dict[Any, str]) -> dict[fx.Node, list[str]]:
        """What the graph returns of each node that has a line: `output`, `weight.grad`, an updated buffer."""
        placeholders = (node for node in graph.nodes if node.op == "placeholder")
        inputs = {_compat.description_of(node): self.names[node] for node in placeholders}
        returned = defaultdict(list)
        for node, description in _results(graph):
            name = outputs.get(description) or inputs.get(_compat.update_of(description))
            name = name or f"{inputs.get(_compat.gradient_of(description), '?')}.grad"
            returned[_printed(node)].append(name + ".T" * self.names[node].endswith(".T"))
        return returned

    def _name(self, node: fx.Node) -> str:
        if _is_attention(node):
            return self._unused("attention" + "_backward" * _op(node).endswith("backward"))
        if node.target in CONVERSIONS:
            return self._unused(f"{self._operand(node.args[0])}.{_dtype(node.meta['val'])}")
        op = op_of(node)
        if op is None:
            return node.name
        if op not in _RENAMED:
            return self._unused(op)
        first, *_ = arguments_of(node)
        source = re.sub(r"(\.T|\.q(_\d+)?\.codes)$", "", self._operand(first))
        return self._unused(f"{source}.{_RENAMED[op]}")

    def _unused(self, name: str) -> str:
        number, result = 0, name
        while result in self._taken:
            number, result = number + 1, f"{name}_{number + 1}"
        self._taken.add(result)
        return result

    def _view(self, node: fx.Node) -> str:
        source = self._operand(node.args[0])
        if node.target in TRANSPOSES and node.meta["val"].dim() == 2:
            return source[:-2] if source.endswith(".T") else source + ".T"
        return source

    def _item(self, node: fx.Node, index: int) -> str:
        name, op = self._operand(node), op_of(node)
        if op is None:
            return f"{name}[{index}]"
        result = SCHEMAS[op].results[index]
        if op == "quantize_pair":
            side, _, result = result.partition("_")
            return f"{name}.{side}s.{result}"
        return f"{name}.{result}"

    def _observation(self, node: fx.Node) -> str:
        call = arguments_of(node)
        of_gradient = op_of(node) == "observe_gradient"
        self.names[node] = self._operand(call.gradient if of_gradient else call.scales)
        observed = self.names[node] if of_gradient else self._blocks(call.codes)
        return f"observe[{call.row}]({observed})"

    def _call(self, node: fx.Node) -> str:
        if _is_attention(node):
            tensors = [arg for arg in node.args if isinstance(arg, fx.Node)]
            return f"{self.names[node].rstrip('_0123456789')}({', '.join(self._operands(tensors))})"
        if node.target in CONVERSIONS:
            return f"cast({self._operand(node.args[0])})"
        op = op_of(node)
        if op is None:
            return f"{_op(node)}({', '.join(self._operands([*node.args, *node.kwargs.values()]))})"
        call = arguments_of(node)
        if op == "seed":
            return f"seed({call.length})"
        if op == "quantize":
            options = call.quantizer + ", mask" * call.mask + ", cached" * (call.cached_as is not None)
            source = self._operand(call.x) + (".T" if call.transpose else "")
            return f"quantize[{options}]({', '.join([source, *self._seeds(call)])})"
        if op == "quantize_pair":
            row, column = call.row_quantizer, call.column_quantizer
            kinds = row if row == column else f"{row}, {column}"
            return f"quantize_pair[{kinds}]({', '.join([self._operand(call.dy), *self._seeds(call)])})"
        if op == "requantize":
            options = call.quantizer + ", cached" * (call.cached_for is not None)
            return f"requantize[{options}]({', '.join([self._blocks(call.codes) + '.T', *self._seeds(call)])})"
        if op == "transposed":
            return f"transposed{'[cached]' * (call.cached_for is not None)}({self._blocks(call.codes)})"
        if isinstance(call, (ScaledMM, ScaledGroupedMM)):
            return self._product(op, call)
        if op == "unrotate":
            return f"unrotate({', '.join(self._operands([call.x, call.mask]))})"
        return f"{op}({', '.join(self._operands(call))})"

    def _product(self, op: str, call: ScaledMM | ScaledGroupedMM) -> str:
        ends = [call.ends] if isinstance(call, ScaledGroupedMM) else []
        operands = [self._blocks(call.a), self._blocks(call.b), *self._operands([*ends, call.mask])]
        option = "" if epilogue_of(call) is None else "[unrotate]"
        return f"{op}{option}({', '.join(operands)}){_factor(call.alpha)}"

    def _seeds(self, call: Quantize | QuantizePair | Requantize) -> list[str]:
        """The seed of the noise, and that of the signs if it is another one."""
        if call.sign_seed is call.seed or call.sign_seed is None:
            return self._operands([call.seed])
        return [*self._operands([call.seed]), f"signs {self._operand(call.sign_seed)}"]

    def _blocks(self, codes: fx.Node) -> str:
        return self._operand(codes).removesuffix(".codes")

    def _operands(self, args: Any) -> list[str]:
        texts = [self._operand(arg) for arg in args]
        return [text for text in texts if text]

    def _operand(self, arg: Any) -> str:
        if isinstance(arg, fx.Node):
            return self.names.get(arg, arg.name)
        if isinstance(arg, (list, tuple)):
            return f"[{', '.join(self._operands(arg))}]"
        return "" if arg is None or isinstance(arg, (torch.device, torch.dtype, torch.layout)) else str(arg)


def _printed(node: fx.Node) -> fx.Node:
    """The node whose line computes this one."""
    while node.target in VIEWS or node.target is operator.getitem or _observes(node):
        node = node.args[0]
    return node


def _op(node: fx.Node) -> str:
    return _compat.op_name(node.target).partition("::")[2] or str(node.target)


def _observes(node: fx.Node) -> bool:
    return (op_of(node) or "").startswith("observe")


def _is_attention(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and "scaled_dot_product" in _op(node)


def _factor(alpha: float) -> str:
    return "" if alpha == 1 else f" * {fractions.Fraction(alpha).limit_denominator(1000)}"


def _kind(node: fx.Node) -> str:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return ""
    return f": {_dtype(value)}[{', '.join(map(str, value.shape))}]"


def _dtype(value: torch.Tensor) -> str:
    return _DTYPES.get(value.dtype, str(value.dtype).removeprefix("torch."))
