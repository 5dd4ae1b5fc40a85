"""What was rewritten and why: one `Site` for each matmul of a graph, and the `Report` that lists them."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping, Sequence
from typing import Any

FAKES, REAL = "fake tensors", "a real call"
ROWS, COLUMNS = "rows", "columns"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Site:
    """One matmul `[M, K] x [K, N]` of the model's forward pass.

    name:  the module (or parameter) as users write it.
    shape: `(M, N, K)`; a dynamic size is a string.
    dtype: of the product.
    gemms: for fprop, dgrad and wgrad the quantizers of the operands, `"high precision"`, or None where there is no
           such GEMM (no gradient needed).
    recipe: the name of the recipe that it is rewritten by; empty if it is kept.
    runs_in: `"fp4"`, `"fp4-weights"` where activations are not rounded, or a dtype; with the roles, as
        `"fp4 (dgrad, wgrad)"`, where not all of its GEMMs are quantized.
    grouped: whether it is rewritten as products of groups of rows with a matrix each.
    weight: the name of the parameter that its weight is; empty where it has none, or one that is computed.
    outputs: which dimension of that parameter its N outputs are, `"rows"` of `[..., N, K]` or `"columns"` of `[..., K, N]`;
        `"some rows"`, `"some columns"` where it doesn't read all of them; empty of filters.
    """

    name: str
    shape: tuple[int | str, int | str, int | str]
    dtype: str
    rewritten: bool
    reason: str
    gemms: Mapping[str, str | None]
    recipe: str = ""
    runs_in: str = ""
    grouped: bool = False
    weight: str = ""
    outputs: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observed:
    """What a graph compiled with `stats=True` measures of one matmul: a quantized operand, or a gradient.

    operand: `"X"`, `"W"`; `"dY"`, `"W^T"`, `"dX"`; `"dY^T"`, `"X^T"`, `"dW"`. quantizer: empty for a gradient.
    row: of the graph's table; None if it isn't measured, for the reason given.
    """

    matmul: str
    gemm: str
    operand: str
    quantizer: str = ""
    row: int | None = None
    reason: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gathered:
    """A matrix that ranks gather and then quantize: of a graph compiled with `wire="quantized"`, or a weight that FSDP2
    gathers.

    matmul: the first that reads it; of FSDP2, the module whose weight it is.
    operand: `"X"`, `"W"`, `"dY"`, or a transpose, as `"W^T"`.
    shape: of the whole; a dynamic size is a string.
    bytes_before, bytes_after: of the whole, as it is and as it is sent; 0 where sizes are dynamic.
    reason: why it is sent as it is; empty if its codes are.
    """

    matmul: str
    operand: str
    shape: tuple[int | str, ...]
    ranks: int
    bytes_before: int
    bytes_after: int
    reason: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cached:
    """What is made of a weight, of a graph compiled with `weight_cache=True`.

    matmul: the first that reads it. operand: `"W"` or `"W^T"`. quantizer: its name.
    size: bytes of what is kept, 0 where sizes are dynamic. reason: why it is made each time; empty if it is kept.
    """

    matmul: str
    operand: str
    quantizer: str
    size: int
    reason: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphReport:
    """One compiled graph: its matmuls, and its text before and after, one line an op. training: it has a backward.
    observed: what it measures of itself. gathered: what its ranks gather and then quantize. cached: what is
    made of its weights, and whether it is kept."""

    sites: tuple[Site, ...]
    training: bool
    before: str = ""
    after: str = ""
    observed: tuple[Observed, ...] = ()
    gathered: tuple[Gathered, ...] = ()
    cached: tuple[Cached, ...] = ()

    def table(self) -> str:
        """The matmuls, a line each, equal ones of equal layers together."""
        from . import shown  # it reads reports

        return "\n".join(shown.table(self.sites))

    def diff(self, context: int = 1) -> str:
        """Unified diff of the two texts; empty if nothing was rewritten."""
        lines = difflib.unified_diff(
            self.before.splitlines(), self.after.splitlines(), "before", "after", lineterm="", n=context
        )
        return "".join(line + "\n" for line in lines)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """The matmuls of a model, in the order of its forward pass, over all its graphs.

    recipe: its name; with `eval`, that of the graphs that there are.
    unmatched: include and exclude patterns that matched no module.
    eager: where and why parts of the model run outside of compiled graphs, one line each.
    eager_sites: the matmuls of those parts.
    captured: how the model was run to be seen, `"fake tensors"` or `"a real call"`.
    gap: which part of it could not be seen, and why; empty if all was.
    by_fsdp: what FSDP2 gathers, outside of the graphs, where codes are asked for.
    """

    recipe: str
    graphs: tuple[GraphReport, ...]
    unmatched: tuple[str, ...] = ()
    eager: tuple[str, ...] = ()
    eager_sites: tuple[Site, ...] = ()
    captured: str = FAKES
    gap: str = ""
    by_fsdp: tuple[Gathered, ...] = ()

    @property
    def sites(self) -> list[Site]:
        """Every matmul; those that run eagerly come last."""
        return [*(site for graph in self.graphs for site in graph.sites), *self.eager_sites]

    @property
    def gathered(self) -> list[Gathered]:
        """What ranks gather and then quantize, under `wire="quantized"`, and what FSDP2 gathers where it sends codes."""
        return [*(item for graph in self.graphs for item in graph.gathered), *self.by_fsdp]

    @property
    def cached(self) -> list[Cached]:
        """What is made of weights, and whether it is kept, under `weight_cache=True`."""
        return [item for graph in self.graphs for item in graph.cached]

    @property
    def rules(self) -> dict[str, int]:
        """How many matmuls each rule decided, in the order of the report; patterns that decided none have 0."""
        counts: dict[str, int] = {}
        for site in self.sites:
            counts[site.reason] = counts.get(site.reason, 0) + 1
        return counts | dict.fromkeys(self.unmatched, 0)

    def graph_diff(self, context: int = 1) -> str:
        """Unified diff of the joint graphs before and after, one line an op; empty if nothing was rewritten."""
        return "".join(graph.diff(context) for graph in self.graphs)

    def __str__(self) -> str:
        from . import shown  # it reads reports

        return shown.as_text(self)

    def _repr_html_(self) -> str:
        from . import shown

        return shown.as_html(self)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """A picture: a bar for each line of the report with its share of the FLOPs, a colour for what it runs in.

        path: where to write it too, as `"report.png"`. Returns the matplotlib figure, which notebooks show. Raises
        `ReportError` without matplotlib, and where no sizes are known.
        """
        from . import shown

        return shown.plot(self, path)


def precision(sites: Sequence[Site]) -> str:
    """What those that are rewritten run in."""
    formats = {part.split(" ")[0] for site in sites if site.rewritten for part in site.runs_in.split(" + ")}
    shown = (name.replace("fp", "FP", 1) for name in formats)
    return " or ".join(sorted(shown)) or "FP4"
