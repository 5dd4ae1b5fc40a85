"""A report as a reader sees it: the summary first, then a line for each matmul, equal ones of equal layers together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ..errors import ReportError
from ..optional import needed
from ..tables import aligned, html, html_folded, html_lines, ruled
from .fold import folded
from .report import REAL, Cached, Gathered, Report, Site
from .summary import counted, part_of, percent, whole

_HEAD = ("matmul", "M", "N", "K", "runs in", "because")
_LEFT = (0, 4, 5)
_SIZES = "Each multiplies [M, K] by [K, N]; of a linear layer, M is the number of tokens."


def as_text(report: Report) -> str:
    """The report for a terminal."""
    sites = report.sites
    return "\n".join([*summary(report), "", *table(sites), *["", _SIZES] * bool(sites)])


def as_html(report: Report) -> str:
    """The report for a notebook: one self-contained element."""
    rows = _rows(report.sites)
    done = [number for number, each in enumerate(folded(report.sites)) if each.site.rewritten]
    diff = html_folded("Graphs, before and after", report.graph_diff())
    return f"<div>{html_lines(summary(report))}{html(rows, _LEFT, done)}{diff}</div>"


def table(sites: Sequence[Site]) -> list[str]:
    """The matmuls, a line for each fold of them."""
    return ruled(aligned(_rows(sites), _LEFT))


def _rows(sites: Sequence[Site]) -> list[tuple[str, ...]]:
    found = [(each.name, each.site) for each in folded(sites)]
    return [
        _HEAD,
        *((name, *map(str, site.shape), site.runs_in or site.dtype, site.reason) for name, site in found),
    ]


def summary(report: Report) -> list[str]:
    """How much is in low precision, which rule decided how much, and what the reader has to know of the rest."""
    sites = report.sites
    graphs = f"{len(report.graphs)} graph{'s' * (len(report.graphs) != 1)}"
    known = bool(whole(sites)) and not report.eager_sites  # of those, no backward is seen
    lines = [f"{counted(sites, known)}, in {graphs} (recipe {report.recipe!r})."]
    if sites:
        lines.append("Rules, and how many matmuls" + " and what share of these FLOPs" * known + " each decided:")
    for rule, count in report.rules.items():
        if count:
            part = part_of([site for site in sites if site.reason == rule], sites) if known else None
            lines.append(f"{count:>5}{'' if part is None else percent(part):>{8 * known}}  {rule}")
    lines += _sent(report.gathered)
    lines += _kept(report.cached)
    lines += [f"Pattern {pattern} matches no module of these graphs." for pattern in report.unmatched]
    lines += [f"Graph break at {line}" for line in report.eager]
    by_call = report.captured == REAL
    lines += ["Captured by a real call, since the code does not run without the tensors' values."] * by_call
    lines += [f"Not seen: {report.gap}"] * bool(report.gap)
    return lines


def _sent(gathered: Sequence[Gathered]) -> list[str]:
    """What ranks send of what they quantize."""
    if not gathered:
        return []
    sent = [item for item in gathered if not item.reason]
    before, after = (sum(getattr(item, which) for item in gathered) for which in ("bytes_before", "bytes_after"))
    lines = [
        f"Ranks gather {len(sent)} of {len(gathered)} operands in low precision: {after:,} bytes instead of {before:,}."
    ]
    return lines + [
        f"   as it is: {item.operand} of {item.matmul}, {list(item.shape)}: {item.reason}"
        for item in gathered
        if item.reason
    ]


def _kept(cached: Sequence[Cached]) -> list[str]:
    """What is made of weights: how much is kept, and what is made each time, equal reasons together."""
    if not cached:
        return []
    kept = [item for item in cached if not item.reason]
    made: dict[tuple[str, str], list[str]] = {}
    for item in cached:
        if item.reason:
            made.setdefault((item.operand, item.reason), []).append(item.matmul)
    size = sum(item.size for item in kept)
    lines = [f"The weight cache keeps {len(kept)} of {len(cached)} operands made of weights: {size:,} bytes."]
    return lines + [
        f"   made each time: {operand} of {names[0]}{f' and {len(names) - 1} more' * (len(names) > 1)}: {reason}"
        for (operand, reason), names in made.items()
    ]


def plot(report: Report, path: str | os.PathLike[str] | None) -> Any:
    """See `Report.plot`."""
    matplotlib = needed("matplotlib.figure", "report.plot", ReportError)
    sites = report.sites
    bars = [(each, part) for each in folded(sites) if (part := part_of(each.sites, sites)) is not None]
    if not bars:
        raise ReportError(
            "report.plot has nothing to show: of no matmul are the sizes known. Give inputs of fixed sizes (dynamic=False)."
        )
    figure = matplotlib.Figure(figsize=(8, 1.3 + 0.28 * len(bars)), dpi=150, layout="constrained")
    panel = figure.subplots()
    runs = list(dict.fromkeys(each.site.runs_in or each.site.dtype for each, _ in bars))
    low = [name for name in runs if any(each.site.rewritten and each.site.runs_in == name for each, _ in bars)]
    colors = dict(zip([*low, *(name for name in runs if name not in low)], _COLORS * len(runs), strict=False))
    for name, color in colors.items():
        own = [
            (at, 100 * part) for at, (each, part) in enumerate(bars) if (each.site.runs_in or each.site.dtype) == name
        ]
        panel.barh([at for at, _ in own], [length for _, length in own], color=color, label=name)
    panel.set_yticks(range(len(bars)), [each.name for each, _ in bars])
    panel.invert_yaxis()
    panel.legend(frameon=False)
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_xlabel("% of the FLOPs of all matmuls outside attention, forward and backward")
    panel.set_title(f"{counted(sites)} (recipe {report.recipe!r})", fontsize=10)
    if path is not None:
        figure.savefig(path)
    return figure


_COLORS = ["#2E86AB", "#B8C0CC", "#E9C46A", "#8F5DA2"]
