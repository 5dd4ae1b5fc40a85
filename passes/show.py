"""A graph as text, one line an op, made for diffs and snapshot tests:

    fwd  quantize = quantize[mxfp4-quest, mask](x)
    fwd  scaled_mm: f32[64, 96] = scaled_mm(quantize, quantize_1)
    bwd  unrotate: f32[96, 64] = unrotate(scaled_mm_2, quantize_1.mask)

Views are folded into the operand that they rename (`w.T`; a reshaped `x` is `x`), and the outputs of a quantize op are
one name, so that a line says what is computed and not how tensors are passed around.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from .graph import TRANSPOSES, VIEWS, descendants, tangents

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
_BLOCK_FIELDS = ("codes", "scales", "tensor_scale")


def show(graph: fx.Graph, names: dict[fx.Node, str]) -> str:
    """The text of a graph. names: what to call placeholders."""
    backward = descendants(tangents(graph))
    printer = _Printer(dict(names))
    lines = []
    for node in graph.nodes:
        line = printer.line(node)
        if line:
            is_backward = node in backward or "backward" in node.meta.get("partitioner_tag", "")
            lines.append(f"{'bwd' if is_backward else 'fwd'}  {line}")
    return "\n".join(lines) + "\n"


class _Printer:
    def __init__(self, names: dict[fx.Node, str]) -> None:
        self.names = names

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
            self.names[node] = self._output(*node.args)
            return None
        if node.target is torch.ops.aten.select.int and _is_quartet(node.args[0]):
            self.names[node] = f"{node.args[0].name}[{node.args[2]}]"
            return None
        self.names[node] = node.name
        return f"{node.name}{_kind(node)} = {self._call(node)}"

    def _view(self, node: fx.Node) -> str:
        source = self._operand(node.args[0])
        if node.target in TRANSPOSES and node.meta["val"].dim() == 2:
            return source[:-2] if source.endswith(".T") else source + ".T"
        return source

    def _output(self, node: fx.Node, index: int) -> str:
        if not _is_quartet(node):
            return f"{node.name}[{index}]"
        op = node.target._schema.name.removeprefix("quartet::")
        if op == "quantize_pair":
            return f"{node.name}.{('rows', 'columns')[index // 3]}.{_BLOCK_FIELDS[index % 3]}"
        return f"{node.name}.{(*_BLOCK_FIELDS, 'mask')[index]}"

    def _call(self, node: fx.Node) -> str:
        if not _is_quartet(node):
            name = node.target._schema.name.partition("::")[2] if hasattr(node.target, "_schema") else str(node.target)
            return f"{name}({', '.join(self._operands([*node.args, *node.kwargs.values()]))})"
        op, args = node.target._schema.name.removeprefix("quartet::"), node.args
        if op == "seed":
            return f"seed({args[0]})"
        if op == "quantize":
            x, quantizer, transpose, mask, _, seed, _ = args
            options = quantizer + ", mask" * mask
            source = self._operand(x) + (".T" if transpose else "")
            return f"quantize[{options}]({', '.join([source, *self._operands([seed])])})"
        if op == "quantize_pair":
            dy, row, column, *seeds = args
            kinds = row if row == column else f"{row}, {column}"
            return f"quantize_pair[{kinds}]({', '.join(self._operands([dy, *dict.fromkeys(seeds)]))})"
        if op == "requantize":
            return f"requantize[{args[4]}]({self._blocks(args[0])}.T, {self._operand(args[6])})"
        if op == "scaled_mm":
            return f"scaled_mm({self._blocks(args[0])}, {self._blocks(args[3])}{_alpha(args[6])})"
        return f"unrotate({', '.join(self._operands(args[:2]))})"

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


def _is_quartet(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "quartet"


def _alpha(alpha: float) -> str:
    return "" if alpha == 1 else f", x{alpha:.4g}"


def _kind(node: fx.Node) -> str:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return ""
    shape = ", ".join(map(str, value.shape))
    return f": {_DTYPES.get(value.dtype, str(value.dtype).removeprefix('torch.'))}[{shape}]"
