"""What each op of `torch.ops.quartet` takes and gives, once: a NamedTuple an op, its fields the arguments in order.

The schemas of the ops are generated from here. Whoever implements, lowers, prints or measures an op reads its arguments
by these names. In a graph, a tensor is the node that computes it; in Inductor, its buffer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, NewType, get_type_hints

import torch
from torch import Tensor

Size = NewType("Size", int)
"""An int that may be symbolic."""


class Operand(NamedTuple):
    """A quantized operand; `format` is a name of `FORMATS`."""

    codes: Tensor
    scales: Tensor
    tensor_scale: Tensor
    format: str


class Seed(NamedTuple):
    """A vector of seeds, from the generator of the device."""

    length: Size
    device: torch.device
    shared_by: Sequence[str]


class Quantize(NamedTuple):
    """A matrix or its transpose, quantized, with a trust mask if it is asked for. cached_as: the matrix is a weight, rounded
    to this dtype before it is quantized, and what is made of it is kept while its values are the same."""

    x: Tensor
    quantizer: str
    transpose: bool
    mask: bool
    stream: int
    seed: Tensor | None
    sign_seed: Tensor | None
    cached_as: torch.dtype | None = None


class QuantizePair(NamedTuple):
    """dY quantized along its rows and along its columns."""

    dy: Tensor
    row_quantizer: str
    column_quantizer: str
    seed: Tensor
    sign_seed: Tensor


class Requantize(NamedTuple):
    """The transpose of what the codes of `source` stand for, quantized. cached_for: the weight that the codes are of, beside
    which what is made of them is kept while they are the same."""

    codes: Tensor
    scales: Tensor
    tensor_scale: Tensor
    source: str
    quantizer: str
    stream: int
    seed: Tensor | None
    sign_seed: Tensor | None
    cached_for: Tensor | None = None


class Transposed(NamedTuple):
    """The codes of square blocks, transposed as they are. cached_for: as of `Requantize`."""

    codes: Tensor
    scales: Tensor
    tensor_scale: Tensor
    quantizer: str
    cached_for: Tensor | None = None


class Decode(NamedTuple):
    """The values of codes [..., rows, padded], rotated back, the first `columns` of each row."""

    codes: Tensor
    scales: Tensor
    tensor_scale: Tensor
    quantizer: str
    columns: Size
    dtype: torch.dtype


class Gathered(NamedTuple):
    """A weight of which ranks gathered codes, scales and the trust mask (`[rows, 0]` without one), and not its values:
    products of ours read its parts. `columns` is K."""

    codes: Tensor
    scales: Tensor
    tensor_scale: Tensor
    mask: Tensor
    quantizer: str
    columns: Size
    dtype: torch.dtype


class Epilogue(NamedTuple):
    """What ends a product: `(product where mask, else 0) H^T`, the first `columns` of it, as `Unrotate` says."""

    mask: Tensor | None
    rotation: int
    columns: Size


class ScaledMM(NamedTuple):
    """`alpha a b^T`, and an epilogue if `columns` is given."""

    a: Tensor
    a_scales: Tensor
    a_tensor_scale: Tensor
    a_format: str
    b: Tensor
    b_scales: Tensor
    b_tensor_scale: Tensor
    b_format: str
    alpha: float
    dtype: torch.dtype
    mask: Tensor | None = None
    rotation: int = 0
    columns: Size | None = None


class ScaledGroupedMM(NamedTuple):
    """`alpha a b^T` for groups of rows with a matrix each, and an epilogue if `columns` is given; `gemm` says which of
    `numerics/grouped.py`."""

    a: Tensor
    a_scales: Tensor
    a_tensor_scale: Tensor
    a_format: str
    b: Tensor
    b_scales: Tensor
    b_tensor_scale: Tensor
    b_format: str
    ends: Tensor
    matrices: int
    gemm: str
    alpha: float
    dtype: torch.dtype
    mask: Tensor | None = None
    rotation: int = 0
    columns: Size | None = None


class SeparateGroups(NamedTuple):
    """Where rows go so that each group starts a block."""

    ends: Tensor
    x: Tensor
    block: int


class SeparateMatrices(NamedTuple):
    """The same for a batch, each of whose matrices is a group."""

    x: Tensor
    block: int


class Unrotate(NamedTuple):
    """`(x where mask, else 0) H^T`, the first `columns` of it."""

    x: Tensor
    mask: Tensor | None
    rotation: int
    columns: Size


class Observe(NamedTuple):
    """Measures an operand that was made of `x`; gives a copy of its scales."""

    x: Tensor
    transpose: bool
    codes: Tensor
    scales: Tensor
    tensor_scale: Tensor
    quantizer: str
    stream: int
    sign_seed: Tensor | None
    graph: str
    row: int
    rows: int


class ObserveRequantized(NamedTuple):
    """Measures an operand that was made of the codes of another; gives a copy of its scales."""

    source_codes: Tensor
    source_scales: Tensor
    source_tensor_scale: Tensor
    source: str
    codes: Tensor
    scales: Tensor
    tensor_scale: Tensor
    quantizer: str
    stream: int
    sign_seed: Tensor | None
    graph: str
    row: int
    rows: int


class ObserveGradient(NamedTuple):
    """Measures a gradient against the product of unquantized operands; gives a copy of it."""

    gradient: Tensor
    a: Tensor
    a_transposed: bool
    b: Tensor
    b_transposed: bool
    ends: Tensor | None
    matrices: int
    gemm: str
    graph: str
    row: int
    rows: int


class Schema(NamedTuple):
    """An op's arguments, and the names of its results; none for a single one."""

    arguments: Any
    results: tuple[str, ...] = ()

    def __str__(self) -> str:
        """As torch writes it: `(Tensor x, bool mask=False) -> (Tensor codes, Tensor scales)`."""
        types, defaults = get_type_hints(self.arguments), self.arguments._field_defaults
        given = {name: f"={defaults[name]}" if name in defaults else "" for name in self.arguments._fields}
        arguments = ", ".join(f"{_TYPES[types[name]]} {name}{default}" for name, default in given.items())
        results = ", ".join(f"Tensor {name}" for name in self.results)
        return f"({arguments}) -> " + (f"({results})" if results else "Tensor")


_TYPES: dict[Any, str] = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    Sequence[str]: "str[]",
    Size: "SymInt",
    Size | None: "SymInt?",
    torch.device: "Device",
    torch.dtype: "ScalarType",
    torch.dtype | None: "ScalarType?",
    **{kind: kind.__name__ for kind in (str, int, float, bool)},
}

_BLOCKS = Operand._fields[:3]

SCHEMAS: Mapping[str, Schema] = MappingProxyType(
    {
        "seed": Schema(Seed),
        "quantize": Schema(Quantize, (*_BLOCKS, "mask")),
        "quantize_pair": Schema(QuantizePair, tuple(f"{side}_{of}" for side in ("row", "column") for of in _BLOCKS)),
        "requantize": Schema(Requantize, _BLOCKS),
        "transposed": Schema(Transposed, _BLOCKS),
        "decode": Schema(Decode),
        "gathered": Schema(Gathered),
        "scaled_mm": Schema(ScaledMM),
        "scaled_grouped_mm": Schema(ScaledGroupedMM),
        "separate_groups": Schema(SeparateGroups, ("index", "back", "separate_ends")),
        "separate_matrices": Schema(SeparateMatrices, ("index", "back", "separate_ends")),
        "unrotate": Schema(Unrotate),
        "observe": Schema(Observe),
        "observe_requantized": Schema(ObserveRequantized),
        "observe_gradient": Schema(ObserveGradient),
    }
)
"""By the op's name in `torch.ops.quartet`."""


def by_name(op: str, function: Callable[[Any], Any]) -> Callable:
    """A function of an op's arguments, which takes them one by one."""
    arguments = SCHEMAS[op].arguments
    return lambda *args, **kwargs: function(arguments(*args, **kwargs))


def op_of(node: Any) -> str | None:
    """The name in `torch.ops.quartet` of the op that a graph's node calls; None if it calls another."""
    return _name_of(node.target)


@functools.cache
def _name_of(target: Any) -> str | None:
    space, _, name = str(getattr(target, "overloadpacket", None)).partition(".")
    return name if space == "quartet" else None


def arguments_of(node: Any) -> Any:
    """The arguments of a node that calls an op of ours, by name. Raises `TypeError` for any other node."""
    op = op_of(node)
    if op is None:
        raise TypeError(f"{node} calls {node.target}; expected an op of torch.ops.quartet, whose arguments have names.")
    return SCHEMAS[op].arguments(*node.args, **node.kwargs)


def operands_of(product: ScaledMM | ScaledGroupedMM) -> tuple[Operand, Operand]:
    """Both operands of a product."""
    p = product
    return (
        Operand(p.a, p.a_scales, p.a_tensor_scale, p.a_format),
        Operand(p.b, p.b_scales, p.b_tensor_scale, p.b_format),
    )


def epilogue_of(product: ScaledMM | ScaledGroupedMM) -> Epilogue | None:
    """What ends a product; None if nothing does."""
    return None if product.columns is None else Epilogue(product.mask, product.rotation, product.columns)
