"""Each matrix product of the generated modules with what quantizing its operands costs, beside the same product in bf16.

What a kernel writes and another reads says which quantizing kernels feed a product: one that feeds several is shared
evenly among them. An inverse rotation belongs to the product whose result it reads. A kernel that quantizes and also does
the work of the model before it (a norm, an activation) counts as quantizing with all of it.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from ..machines.roofline import predict
from ..machines.targets import Target
from .traffic import is_product, marker

if TYPE_CHECKING:
    from .backend import Generated
    from .launches import Launch

_QUANTIZING = ("quantize", "requantize", "decode_fp8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seconds:
    """Predicted seconds: at the whole issue rate, and at `roofline.ISSUE_SHARE` of it."""

    full: float = 0.0
    realistic: float = 0.0

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(full=self.full + other.full, realistic=self.realistic + other.realistic)

    def __mul__(self, factor: float) -> Seconds:
        return Seconds(full=self.full * factor, realistic=self.realistic * factor)


class _Timed(Protocol):
    @property
    def seconds(self) -> Seconds: ...

    @property
    def bf16_seconds(self) -> float: ...


class Faster:
    """What has predicted `seconds` in a recipe, and `bf16_seconds`."""

    @property
    def speedup(self: _Timed) -> float:
        """Predicted time in bf16 over that in this recipe, quantizing included, each kernel at the datasheet's rates."""
        return self.bf16_seconds / self.seconds.full

    @property
    def realistic_speedup(self: _Timed) -> float:
        """The same with instructions at `roofline.ISSUE_SHARE` of the issue rate."""
        return self.bf16_seconds / self.seconds.realistic


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison(Faster):
    """Matrix products in this recipe and in bf16.

    product, quantizing: predicted seconds of the products, and of what quantizes for them. bf16_seconds: of the same
    products in bf16, at the datasheet's rate, with the same epilogues.
    """

    product: Seconds
    quantizing: Seconds
    bf16_seconds: float

    @property
    def seconds(self) -> Seconds:
        """In this recipe, quantizing included."""
        return self.product + self.quantizing

    @property
    def quantizing_share(self) -> float:
        """Quantizing's share of the time in this recipe."""
        return self.quantizing.full / self.seconds.full


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matmul(Comparison):
    """Equal matrix products of a graph: [M, K] by [K, N], `batch` of them a call.

    number_format: of its operands, as "mxfp4"; empty for one that was left as it is. calls: how many there are.
    """

    graph: str
    number_format: str
    batch: int
    m: int
    n: int
    k: int
    calls: int


def total(comparisons: Iterable[Comparison], unfed: Seconds | None = None) -> Comparison | None:
    """All of them as one, None of none. unfed: seconds of quantizing to add."""
    comparisons = list(comparisons)
    if not comparisons:
        return None
    return Comparison(
        product=sum((one.product for one in comparisons), Seconds()),
        quantizing=sum((one.quantizing for one in comparisons), unfed or Seconds()),
        bf16_seconds=math.fsum(one.bf16_seconds for one in comparisons),
    )


def find_matmuls(
    modules: Iterable[Generated], seconds: Mapping[int, Seconds | None], target: Target
) -> tuple[list[Matmul], Seconds]:
    """The matrix products of all modules, and the seconds of quantizing kernels that feed none of their own graph.

    seconds: of each launch, by its `id`. A product whose time is not known is left out.
    """
    found: list[Matmul] = []
    unfed = Seconds()
    for module in modules:
        products, rest = _in_module(module.graph, module.launches, seconds, target)
        found += products
        unfed += rest
    return _merged(found), unfed


def _in_module(
    graph: str, launches: Sequence[Launch], seconds: Mapping[int, Seconds | None], target: Target
) -> tuple[list[Matmul], Seconds]:
    feeding, unfed = _dataflow(launches)
    shares = Counter(source for sources in feeding.values() for source in sources)
    cost = lambda index: seconds.get(id(launches[index])) or Seconds()  # noqa: E731
    found = []
    for index, sources in feeding.items():
        launch, product = launches[index], seconds.get(id(launches[index]))
        in_bf16, _ = predict(launch.bf16_bytes, launch.operations, "bf16", target)
        if launch.sizes is None or product is None or in_bf16 is None:
            unfed += [(source, 1 / shares[source]) for source in sources]
            continue
        batch, m, n, k = launch.sizes
        ours = marker(launch.source)
        number_format = ours[1] if ours else launch.number_format or ("decoded to bf16" if sources else "")
        quantizing = sum((cost(source) * (1 / shares[source]) for source in sources), Seconds())
        found.append(
            Matmul(
                graph=graph,
                number_format=number_format,
                batch=batch, m=m, n=n, k=k, calls=1,
                product=product,
                quantizing=quantizing,
                bf16_seconds=in_bf16 if number_format else product.full,
            )
        )  # fmt: skip
    return found, sum((cost(index) * part for index, part in unfed), Seconds())


def _dataflow(launches: Sequence[Launch]) -> tuple[dict[int, list[int]], list[tuple[int, float]]]:
    """For each product, by its index among the launches, the quantizing launches that it needs; and those that no product
    of the graph needs, with 1.0, all of each."""
    made: dict[int, frozenset[int]] = {}  # by storage: the quantizing launches behind what it holds
    result_of: dict[int, int] = {}  # by storage: the product whose result it holds
    feeding: dict[int, list[int]] = {}
    quantizing: set[int] = set()
    for index, launch in enumerate(launches):
        op = (marker(launch.source) or ("",))[0]
        sources = frozenset().union(*(made.get(place, frozenset()) for place in launch.reads))
        for place in launch.writes:
            made.pop(place, None)
        if is_product(op) or launch.sizes is not None:
            feeding[index] = sorted(sources)
            result_of.update(dict.fromkeys(launch.writes, index))
        elif op.startswith("unrotate"):
            quantizing.add(index)
            for product in {result_of[place] for place in launch.reads if place in result_of}:
                feeding[product].append(index)
        elif op.startswith(_QUANTIZING) or (sources and launch.source):  # what reads codes and isn't ours decodes them
            quantizing.add(index)
            made.update(dict.fromkeys(launch.writes, sources | {index}))
    fed = {source for sources in feeding.values() for source in sources}
    return feeding, [(index, 1.0) for index in sorted(quantizing - fed)]


def _merged(matmuls: Iterable[Matmul]) -> list[Matmul]:
    """Equal products of a graph as one."""
    groups: dict[tuple, list[Matmul]] = {}
    for one in matmuls:
        groups.setdefault((one.graph, one.number_format, one.batch, one.m, one.n, one.k), []).append(one)
    return [dataclasses.replace(group[0], calls=len(group), **vars(total(group))) for group in groups.values()]
