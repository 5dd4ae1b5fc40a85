"""`stats`: how well a model quantizes, measured inside of its compiled graphs (the option `stats=True`).

Graphs write a table each as they run (`kernels/stats.py`), under a key that their compilation got here. Which of
them belong to a model is known by the parameters that they read; what the rows of a table are is in the graph's record.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch

from ..callables import modules_of, uncompiled
from ..errors import StatsError
from ..kernels import stats as statistics
from ..process import process
from ..tables import aligned, ruled
from . import records
from .report import Observed

REMEDY = "Compile with the option stats=True (options={'stats': True}, or quartet(model, stats=True)) and run a step."


def remember(uuid: str, parameters: Iterable[torch.nn.Parameter]) -> str:
    """A key for the table of a graph that is compiled now. Equal graphs of one process, as of two models of a class, get
    different keys, and in another process the same ones in the same order."""
    key = f"{uuid}-{process.compilations[uuid]}"
    process.compilations[uuid] += 1
    parameters = list(parameters)
    process.graphs[key] = tuple(map(id, parameters))
    for parameter in parameters:
        process.reading.setdefault(parameter, []).append(key)
    return key


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statistic:
    """What one step measured of one operand or gradient; None for what isn't measured of it, or has not run.

    graph: `"training"`, or `"inference"` for a graph without gradients.
    gemm, operand: `fprop` with X and W; `dgrad` with dY, W^T and the gradient dX; `wgrad` with dY^T, X^T and dW.
    amax: the largest magnitude. underflow, clipped: shares of the nonzero values that became 0, and that are beyond what
    their block can hold. error: the squared error over the sum of squares. cosine: of a gradient, with the same product
    in high precision. reason: why nothing is measured.
    """

    matmul: str
    graph: str
    gemm: str
    operand: str
    quantizer: str
    amax: float | None = None
    underflow: float | None = None
    clipped: float | None = None
    error: float | None = None
    cosine: float | None = None
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Stats:
    """The statistics of a model's last step, or of the last step that each of its graphs ran in."""

    records: tuple[Statistic, ...]

    def to_dict(self) -> dict[str, list[Any]]:
        """The columns, for `pandas.DataFrame(stats.to_dict())`: a row for each operand and each gradient."""
        fields = [field.name for field in dataclasses.fields(Statistic)]
        return {name: [getattr(record, name) for record in self.records] for name in fields}

    def scalars(self) -> dict[str, float]:
        """Each number by a tag, as `layers.0.q_proj/dgrad/dX/cosine`, for TensorBoard and its like. Those of a matmul that
        comes several times in a graph are numbered; those of inference start with `inference/`."""
        found: dict[str, float] = {}
        seen: Counter[str] = Counter()
        for record in self.records:
            tag = f"{record.matmul}/{record.gemm}/{record.operand}"
            tag = tag if record.graph == "training" else f"{record.graph}/{tag}"
            seen[tag] += 1
            tag += f"_{seen[tag]}" if seen[tag] > 1 else ""
            values = ((name, getattr(record, name)) for name in statistics.FIELDS)
            found |= {f"{tag}/{name}": value for name, value in values if value is not None}
        return found

    def __str__(self) -> str:
        return "\n".join(_table(self.records))


def stats(model: Any = None) -> Stats:
    """The statistics of a model that was compiled with `stats=True`, as its last step left them.

    model: what `torch.compile` or `quartet` returned, or the Module itself, also one that is compiled in place, in regions
    or inside of a function; its graphs are found by its parameters. Of a function whose modules can't be seen, and without
    a model, the graphs of the whole process. Of recompilations, those that ran last. Modules that share one compiled graph
    share its numbers: those of the module that ran last, under the name of the first.

    Raises `StatsError` if there are none.
    """
    parameters = _parameters(model)
    keys = (
        process.graphs
        if parameters is None
        else dict.fromkeys(key for p in parameters for key in process.reading.get(p, ()))
    )
    what = "this process" if model is None else f"this {type(uncompiled(model)).__name__}"
    if not keys:
        sharded = " Of a model whose parameters are sharded (FSDP2), ask for the whole process: stats()." * bool(
            process.graphs
        )
        why = "no graph of it was compiled with stats=True"
        raise StatsError(f"There are no statistics of {what}: {why}. {REMEDY}{sharded}")
    tables = {key: table for key in keys if (table := statistics.read(key)) is not None}
    if not tables:
        raise StatsError(f"There are no statistics of {what}: none of its graphs has run an FP4 matmul yet. {REMEDY}")
    return Stats(tuple(record for key in _latest(tables) for record in _records(key, tables[key].values.tolist())))


def _parameters(model: Any) -> list[torch.nn.Parameter] | None:
    """The parameters of a model, None if it has none or they can't be seen."""
    modules = [] if model is None else modules_of(uncompiled(model))
    return [parameter for module in modules for parameter in module.parameters()] or None


def _latest(tables: dict[str, statistics.Table]) -> list[str]:
    """Of the graphs with the same matmuls and parameters the one that ran last, in the order of their compilation."""
    last: dict[tuple[Any, ...], str] = {}
    order = list(process.graphs)
    for key, table in tables.items():
        training, observed = _graph(key)
        same = (training, process.graphs[key], *dict.fromkeys(item.matmul for item in observed))
        if same not in last or table.time > tables[last[same]].time:
            last[same] = key
    return sorted(last.values(), key=lambda key: (not _graph(key)[0], order.index(key)))


def _graph(key: str) -> tuple[bool, tuple[Observed, ...]]:
    """Whether a graph computes gradients, and what it measures."""
    reports = [report for report in records.read(key) if report.observed]
    if not reports:
        raise StatsError(
            "A graph with statistics came from Inductor's cache without its record, so its matmuls have no names. Delete "
            "the cache (TORCHINDUCTOR_CACHE_DIR), or make it writable, and compile again."
        )
    return reports[-1].training, reports[-1].observed


def _records(key: str, rows: list[list[float]]) -> list[Statistic]:
    training, observed = _graph(key)
    found = []
    for item in observed:
        values = rows[item.row] if item.row is not None else ()
        known = {
            name: value for name, value in zip(statistics.FIELDS, values, strict=False) if value != statistics.UNWRITTEN
        }
        found.append(
            Statistic(
                matmul=item.matmul,
                graph="training" if training else "inference",
                gemm=item.gemm,
                operand=item.operand,
                quantizer=item.quantizer,
                reason=item.reason,
                **known,
            )
        )
    return found


_HEADER = ("matmul", "GEMM", "operands", "amax", "", "underflow", "", "clipped", "", "error", "", "cosine")
_FIRST = ("X", "dY", "dY^T")
_LEGEND = (
    "A line is a GEMM, with two numbers where there is one for each operand: amax, the largest magnitude; underflow and",
    "clipped, the shares of the nonzero values that became 0 and that are beyond what their block can hold; error, the",
    "squared error over the sum of squares. cosine: of the GEMM's gradient with the same product in high precision.",
)


def _table(records: Iterable[Statistic]) -> list[str]:
    gemms: list[list[Statistic]] = []
    for record in records:
        if record.operand in _FIRST:
            gemms.append([])
        gemms[-1].append(record)
    lines = aligned([_HEADER, *map(_row, gemms)], left={0, 1, 2})
    kinds = [gemm[0].graph for gemm in gemms]
    for position in reversed(range(len(kinds))):
        if kinds[position] == "inference" and kinds[:position].count("inference") == 0:
            lines.insert(position + 1, "inference graph" + "s" * (kinds.count("inference") > 1))
    reasons = {f"{r.operand} has no numbers of its own: {r.reason}.": None for r in records if r.reason}
    return [*ruled(lines), "", *_LEGEND, *reasons]


def _row(gemm: list[Statistic]) -> tuple[str, ...]:
    first, second = gemm[:2]
    cells = [first.matmul, first.gemm, f"{first.operand}, {second.operand}"]
    for name in ("amax", "underflow", "clipped", "error"):
        cells += [_text(name, getattr(operand, name)) for operand in (first, second)]
    return (*cells, _text("cosine", gemm[2].cosine) if gemm[2:] else "")


def _text(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(value)
    return {"amax": "{:.3g}", "error": "{:.2g}", "cosine": "{:.4f}"}.get(name, "{:.2%}").format(value)
