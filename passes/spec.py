"""What holds of a graph that was rewritten, as a table: each row has a name, one sentence, and the function that finds what
offends it.

The rows of `SPEC` hold after every pass; those of `AT_THE_END` once the last one has run. A row reads a graph through
`Rewritten`, which walks it once for all of them; `verify.py` asks the rows.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import fx

from .._compat import expression, is_tagged, is_tagged_forward, keeps_in_backward, sequence_number
from ..config.recipe import Recipe
from ..kernels.numerics import philox
from ..kernels.operand_formats import OPERAND_FORMATS, PRODUCT_FORMATS
from ..kernels.quantizer import quantizer
from ..kernels.schemas import (
    SCHEMAS,
    Epilogue,
    Quantize,
    QuantizePair,
    Requantize,
    ScaledGroupedMM,
    Transposed,
    Unrotate,
    arguments_of,
    epilogue_of,
    op_of,
    operands_of,
)
from .graph import CASTS, Values, aten
from .packed import is_part
from .packed import parts as packed_parts
from .rewritten import QUANTIZING, Product, Traced, product_nodes, products
from .rows import origin, route
from .site import MatmulSite
from .weight_cache import memory_of
from .work import Work

Offence = tuple[fx.Node | None, str]
"""The node at fault, None if no single one is, and what is wrong with it."""

OBSERVING = ("observe", "observe_requantized")
"""The ops that give a copy of an operand's scales."""

STREAMS = {
    "fprop": (philox.FPROP_X, philox.FPROP_W),
    "dgrad": (philox.DGRAD_DY, philox.DGRAD_W),
    "wgrad": (philox.WGRAD_DY, philox.WGRAD_X),
}
"""The streams of a GEMM's operands."""


class Row(NamedTuple):
    """A rule: its name, what it says, and what breaks it."""

    name: str
    sentence: str
    offences: Callable[[Rewritten], Iterator[Offence]]


@dataclasses.dataclass
class Rewritten:
    """A graph after a pass, as the rows read it."""

    work: Work
    _arguments: dict[fx.Node, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def new(self) -> dict[fx.Node, int | None]:
        """The nodes that were made, each with its site."""
        return self.work.build.author

    @functools.cached_property
    def position(self) -> dict[fx.Node, int]:
        """Of each node of the graph."""
        return {node: index for index, node in enumerate(self.work.graph.nodes)}

    @functools.cached_property
    def by_op(self) -> dict[str, list[fx.Node]]:
        """The new nodes that call ops of ours."""
        found = defaultdict(list)
        for node in self.new:
            op = op_of(node)
            if op is not None:
                found[op].append(node)
        return found

    @functools.cached_property
    def inputs(self) -> dict[fx.Node, list[fx.Node]]:
        """What each new node reads."""
        return {node: node.all_input_nodes for node in self.new}

    @functools.cached_property
    def op(self) -> dict[fx.Node, str]:
        """Of each new node that calls an op of ours."""
        return {node: op for op, nodes in self.by_op.items() for node in nodes}

    def arguments(self, node: fx.Node) -> Any:
        """`arguments_of` a node, kept."""
        found = self._arguments.get(node)
        if found is None:
            found = self._arguments[node] = arguments_of(node)
        return found

    @functools.cached_property
    def sites(self) -> list[MatmulSite]:
        """The sites that are rewritten."""
        return self.work.chosen

    @functools.cached_property
    def packed(self) -> dict[int | None, fx.Node]:
        """The packed weight of each that has one, by its index."""
        return {site.index: site.packed for site in self.sites if site.packed is not None}

    @functools.cached_property
    def recipes(self) -> dict[int, Recipe]:
        """The recipe of each, by its index."""
        return self.work.recipes

    @functools.cached_property
    def products(self) -> list[Product]:
        """The products of all sites."""
        build, recipes = self.work.build, self.recipes
        return [
            product for site in self.sites for product in products(build, site, recipes[site.index], self.arguments)
        ]

    @functools.cached_property
    def operands(self) -> dict[fx.Node, tuple[Product, Traced]]:
        """The operands of all products, by their codes, each with the first product that reads it."""
        found: dict[fx.Node, tuple[Product, Traced]] = {}
        for product in self.products:
            for operand in product.operands:
                found.setdefault(operand.blocks.codes, (product, operand))
        return found

    def of(self, *ops: str) -> Iterator[fx.Node]:
        """The new nodes that call one of some ops."""
        return (node for op in ops for node in self.by_op.get(op, ()))


def builder(graph: Rewritten) -> Iterator[Offence]:
    build = graph.work.build
    if len(graph.work.graph.nodes) != len(build.before) + len(build.author):
        for node in graph.position.keys() - build.before - build.author.keys():
            yield node, "was not"
        for node in (build.before | build.author.keys()) - graph.position.keys():
            yield None, f"{node} was removed"


def value(graph: Rewritten) -> Iterator[Offence]:
    for node in graph.new:
        if node.meta.get("val") is None:
            yield node, "has none"


def place(graph: Rewritten) -> Iterator[Offence]:
    sites = {site.index: (site.node, *site.backward) for site in graph.sites}
    of_graph = [node for nodes in sites.values() for node in nodes]
    for what, is_there in (("tag", is_tagged), ("sequence number", lambda node: sequence_number(node) is not None)):
        whole: dict[Any, bool] = {index: all(map(is_there, nodes)) for index, nodes in sites.items()}
        whole[None] = all(map(is_there, of_graph))
        for node, site in graph.new.items():
            if whole[site] and not is_there(node):
                yield node, f"has no {what}"


def gradient(graph: Rewritten) -> Iterator[Offence]:
    backward, late = graph.work.backward, set()
    for node in sorted(graph.new, key=graph.position.__getitem__):
        if any(source in backward or source in late for source in graph.inputs[node]):
            late.add(node)
            if is_tagged_forward(node):
                yield node, "reads a gradient and is tagged as a forward node"
    for node in late:
        for user in node.users:
            if user not in graph.new and user not in backward and user.op != "output":
                yield node, f"reads a gradient and is read by {user}, which reads none"


def order(graph: Rewritten) -> Iterator[Offence]:
    position, new = graph.position, graph.new
    for node in new:
        here = position[node]
        for source in graph.inputs[node]:
            if position.get(source, here) >= here:
                yield node, f"reads {source}, which comes later"
        for user in node.users:
            if user not in new and position.get(user, here) <= here:
                yield node, f"is read by {user}, which comes before"


def replaced(graph: Rewritten) -> Iterator[Offence]:
    return ((node, f"is still read by {next(iter(node.users))}") for node in graph.work.build.replaced if node.users)


def nothing_left(graph: Rewritten) -> Iterator[Offence]:
    return ((node, f"is still read by {next(iter(node.users))}") for node in graph.work.replaced if node.users)


def read(graph: Rewritten) -> Iterator[Offence]:
    for node in graph.of(*QUANTIZING):
        call = graph.arguments(node)
        results = SCHEMAS[graph.op[node]].results
        unread = {*results} - {results[item.args[1]] for item in node.users if item.users}
        if not getattr(call, "mask", False):
            unread.discard("mask")
        if unread:
            yield node, f"nobody reads its {' and '.join(name for name in results if name in unread)}"


def role(graph: Rewritten) -> Iterator[Offence]:
    work, recipes = graph.work, graph.recipes
    known = {
        node: role for site in work.chosen for role, node, _ in product_nodes(work.build, site, recipes[site.index])
    }
    for node in graph.of("scaled_mm", "scaled_grouped_mm"):
        call = graph.arguments(node)
        if node not in known:
            yield node, "stands for none"
        elif isinstance(call, ScaledGroupedMM) and call.gemm != known[node]:
            yield node, f"says that it is {call.gemm}, and stands for {known[node]}"


def parts(graph: Rewritten) -> Iterator[Offence]:
    for node in graph.of("scaled_mm", "scaled_grouped_mm", "requantize", "transposed"):
        call = graph.arguments(node)
        for blocks in (call,) if isinstance(call, (Requantize, Transposed)) else operands_of(call):
            codes, scales, tensor_scale = map(origin, (blocks.codes, blocks.scales, blocks.tensor_scale))
            if graph.op.get(scales) in OBSERVING:
                scales = graph.arguments(scales).scales
            packed = graph.packed.get(graph.new[node])
            if packed is not None and codes.target is not operator.getitem:
                for item, part in zip(blocks[:3], packed_parts(packed), strict=True):
                    if not is_part(item, part):
                        yield node, f"{packed} is of {part}, and it reads {item}"
                continue
            if codes.target is not operator.getitem or graph.op.get(codes.args[0]) not in QUANTIZING:
                yield node, f"{codes} are no codes"
                continue
            made, index = codes.args
            if not SCHEMAS[graph.op[made]].results[index].endswith("codes"):
                yield node, f"{codes} is the {SCHEMAS[graph.op[made]].results[index]} of {made}, and read as codes"
            for item, place in ((scales, index + 1), (tensor_scale, index + 2)):
                if item.args != (made, place):
                    yield node, f"{codes} is of {made}, and it reads {item} beside it"


def wire(graph: Rewritten) -> Iterator[Offence]:
    routes: dict[fx.Node, tuple[str, ...]] = {}
    for node in graph.of("scaled_mm", "scaled_grouped_mm", "requantize", "transposed", "unrotate"):
        for source in graph.inputs[node]:
            item = origin(source)
            if item.target is not operator.getitem or graph.op.get(item.args[0]) not in QUANTIZING:
                continue
            made, index = item.args
            if SCHEMAS[graph.op[made]].results[index].endswith("tensor_scale"):  # nothing of it is sent
                continue
            if routes.setdefault(made, route(source)) != route(source):
                yield node, f"{source} comes another way than the other parts of {made}"


def recipe(graph: Rewritten) -> Iterator[Offence]:
    for product in graph.products:
        gemm, alpha = getattr(graph.recipes[product.site.index], product.role), product.call.alpha
        for operand, wanted in zip(product.operands, (gemm.a, gemm.b), strict=True):
            if operand.spec is not wanted and operand.spec != wanted:
                yield product.node, f"{product.role} has an operand in {operand.quantizer}, the recipe {wanted.name}"
        if alpha != gemm.gain:
            yield product.node, f"{product.role} multiplies by {alpha}, the recipe by {gemm.gain}"
    for node in graph.of("requantize", "transposed"):
        source = trace_of(graph, node)
        named = graph.arguments(node).source if graph.op[node] == "requantize" else graph.arguments(node).quantizer
        if source is not None and source.quantizer != named:
            yield node, f"reads codes of {source.quantizer} as those of {named}"


def trace_of(graph: Rewritten, node: fx.Node) -> Traced | None:
    """What a node that quantizes codes again reads, if a product reads what it makes."""
    for item in node.users:
        if item in graph.operands:
            return graph.operands[item][1].source
    return None


def formats(graph: Rewritten) -> Iterator[Offence]:
    for product in graph.products:
        said = tuple(operand.blocks.format for operand in product.operands)
        if said not in PRODUCT_FORMATS:
            yield product.node, f"{' and '.join(said)} are no pair of PRODUCT_FORMATS"
        for operand in product.operands:
            name, blocks = operand.blocks.format, operand.blocks
            if operand.spec.format != name:
                yield product.node, f"{blocks.codes} is in {operand.spec.format}, and read as {name}"
            elif blocks.codes.meta["val"].dtype != OPERAND_FORMATS[name].codes:
                yield product.node, f"{blocks.codes} has {blocks.codes.meta['val'].dtype}, which {name} has not"


def contraction(graph: Rewritten) -> Iterator[Offence]:
    for product in graph.products:
        call, widths = product.call, []
        for operand in product.operands:
            packed = OPERAND_FORMATS[operand.spec.format].packed
            widths.append(expression(operand.blocks.codes.meta["val"].shape[1]) * packed)
        if isinstance(call, ScaledGroupedMM) and product.role == "dgrad":  # its matrices lie side by side
            widths[0] *= call.matrices
        if widths[0] != widths[1]:
            yield product.node, f"one has {widths[0]} columns, the other {widths[1]}"


def signs(graph: Rewritten) -> Iterator[Offence]:
    for product in graph.products:
        left, right = (_rotation(operand) for operand in product.operands)
        if left != right:
            yield product.node, f"one has {_rotated(*left)}, the other {_rotated(*right)}"


def seeds(graph: Rewritten) -> Iterator[Offence]:
    for node in graph.of("quantize", "quantize_pair", "requantize"):
        call = graph.arguments(node)
        pair = isinstance(call, QuantizePair)
        names = (call.row_quantizer, call.column_quantizer) if pair else (call.quantizer,)
        needed = any(quantizer(name).seeded for name in names)
        if needed != (call.seed is not None) or needed != (call.sign_seed is not None):
            has = "a seed" if call.seed is not None else "no seed"
            yield node, f"{' and '.join(names)} {'needs one' if needed else 'needs none'}, and it has {has}"


def forward_seeds(graph: Rewritten) -> Iterator[Offence]:
    gemms = (recipe.fprop for recipe in graph.recipes.values() if recipe.fprop)
    if any(operand.seeded for gemm in gemms for operand in (gemm.a, gemm.b)):
        return
    for product in graph.products:
        for operand in product.operands if product.role == "fprop" else ():
            if operand.seed is not None or operand.sign_seed is not None:
                yield operand.made, "reads one in fprop"
    tagged = is_tagged(graph.sites[0].node)
    for vector in graph.of("seed"):
        for node in (vector, *vector.users):
            if tagged and not keeps_in_backward(node):
                yield node, "may move to the forward graph"
            for user in node.users:
                if is_tagged_forward(user):
                    yield user, f"reads {node} and is tagged as a forward node"


def streams(graph: Rewritten) -> Iterator[Offence]:
    for product in graph.products:
        for operand, expected in zip(product.operands, STREAMS[product.role], strict=True):
            if operand.seed is not None and operand.stream not in (None, expected):
                yield operand.made, f"draws from stream {operand.stream} for {product.role}; expected {expected}"


def noise(graph: Rewritten) -> Iterator[Offence]:
    first: dict[tuple, Traced] = {}
    values = Values()
    for _, operand in graph.operands.values():
        if operand.stream is None or not operand.spec.noisy:
            continue
        other = first.setdefault((_seed(operand.seed), operand.stream), operand)
        if other is not operand and _what(other, values) != _what(operand, values):
            yield operand.made, f"draws the noise of {other.made} for something else"


def unrotated(graph: Rewritten) -> Iterator[Offence]:
    for product in graph.products:
        if product.role == "fprop":
            continue
        source, saved = product.operands[1].source, graph.work.saved[product.site.index]
        left = source.spec.rotation if source is not None else 0
        operand = saved.x if product.role == "dgrad" else saved.w
        mask = operand.mask if operand is not None else None
        for node, call in _endings(product):
            if call is None:
                if left or mask is not None:
                    yield product.node, f"is read by {node} as it is, rotated by {left} or masked"
                continue
            columns = product.site.shape[2]
            if call.rotation != left:
                yield node, f"undoes a rotation of {call.rotation}, and fprop's is {left}"
            if (origin(call.mask) if call.mask is not None else None) is not (origin(mask) if mask else None):
                yield node, f"has the mask {call.mask}, and fprop made {mask}"
            if expression(call.columns) != expression(columns):
                yield node, f"leaves {call.columns} columns of {columns}"


def kept(graph: Rewritten) -> Iterator[Offence]:
    values = Values()
    for node in graph.of("quantize", "requantize", "transposed"):
        call = graph.arguments(node)
        if getattr(call, "cached_as", None) is None and getattr(call, "cached_for", None) is None:
            continue
        if getattr(call, "seed", None) is not None or getattr(call, "sign_seed", None) is not None:
            yield node, "is kept, and draws random numbers"
        if isinstance(call, Quantize):
            found = memory_of(call.x, values)
            if isinstance(found, str):
                yield node, f"is kept, and of {call.x} {found}"
            continue
        made = call.codes.args[0] if call.codes.target is operator.getitem else None
        weight = graph.arguments(made).x if graph.op.get(made) == "quantize" else call.codes
        if call.cached_for is not weight:
            yield node, f"is kept beside {call.cached_for}, and its codes are of {weight}"


def _rotation(operand: Traced) -> tuple:
    """The size of an operand's rotation, and what its signs are drawn from."""
    spec = operand.spec
    if not spec.random_signs:
        return spec.rotation, None, None
    return spec.rotation, _seed(operand.sign_seed), operand.stream // 2


def _rotated(size: int, seed: Any, gemm: int | None) -> str:
    return f"a rotation of {size}" + (f" with signs of {seed} for GEMM {gemm}" if seed is not None else "")


def _seed(node: fx.Node) -> Any:
    """Which seed a node is: two nodes that select one of a vector are the same."""
    return node.args if node.target is aten.select.int else node


def _what(operand: Traced, values: Values) -> tuple:
    """What an operand is: a matrix, and the quantizers that it went through. Activation checkpoints each have their own
    nodes for one operand."""
    matrix = values.matrix(operand.matrix)
    quantizers, source = [operand.quantizer], operand.source
    while source is not None:
        quantizers.append(source.quantizer)
        source = source.source
    return (matrix.t if operand.transposed else matrix).key, *quantizers


def _endings(product: Product) -> list[tuple[fx.Node, Epilogue | Unrotate | None]]:
    """What takes the rotation and the mask of fprop away: the product itself, or else each of its readers, through casts;
    None for one that doesn't."""
    own = epilogue_of(product.call)
    if own is not None:
        return [(product.node, own)]
    return [
        (reader, arguments_of(reader) if op_of(reader) == "unrotate" else None) for reader in _readers(product.node)
    ]


def _readers(product: fx.Node) -> list[fx.Node]:
    """Who reads a product, through casts."""
    found = []
    for user in product.users:
        found += _readers(user) if user.target in CASTS else [user]
    return found


SPEC = (
    Row("builder", "a new node is made by the builder, and none is removed", builder),
    Row("value", "a new node has a fake value", value),
    Row("place", "a new node has the tag and the sequence number that the matmuls of its site have", place),
    Row("replaced", "a matmul that was replaced is read no more", replaced),
    Row("role", "a product stands for one GEMM of one site", role),
    Row("parts", "codes, scales and tensor scale of an operand are made by one op", parts),
    Row("wire", "codes, scales and mask that ranks gather of an operand are put together alike", wire),
    Row("recipe", "a product has the quantizers of its recipe, and undoes their shrink", recipe),
    Row("format", "both operands of a product are in the formats that it says, a pair that products take", formats),
    Row("contraction", "both operands of a product have the same K", contraction),
    Row("seed", "what quantizes has a seed exactly if its quantizer draws", seeds),
    Row("forward seed", "no seed is read in forward unless the recipe says so", forward_seeds),
    Row("signs", "both operands of a product are rotated by the same signs", signs),
    Row("stream", "an operand that draws does so from the stream of its GEMM and side", streams),
    Row("noise", "two operands with one seed and one stream are the same matrix, quantized alike", noise),
    Row("kept", "what is kept draws nothing, and belongs to the memory of the weight that it is made of", kept),
    Row("unrotate", "a gradient loses the rotation, the padding and the mask of fprop, and no other", unrotated),
)

AT_THE_END = (
    Row("order", "a node comes after what it reads", order),
    Row("gradient", "a forward node reads no gradient", gradient),
    Row("nothing left", "every matmul that is replaced is read no more", nothing_left),
    Row("read", "each part of a quantized operand is read", read),
)
