"""Pictures of the scaling law: loss against tokens with the fitted curves, and the map of the best precision."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from .budgets import SPEEDUPS, Speedup, best, candidates
from .fitting import Fit
from .formula import Efficiency, Law, LawError, needed
from .runs import DATA, Run
from .table import read_table

COLORS = ("#B8C0CC", "#E9C46A", "#8AB6D6", "#E8998D")
"""Of the candidates, in their order."""

LINES = ("#4C566A", "#D1495B", "#2E86AB", "#3A7D44", "#8F5DA2", "#C07C2B")
LOG10_PARAMETERS, LOG10_RATIO = (7.0, 12.0), (0.0, 4.0)
CELLS = 160
"""Of the map, in each direction."""

PLACES = {"top": (0, 5, "center", "bottom"), "right": (6, 0, "left", "center"), "left": (-6, 0, "right", "center")}
"""Where a model's name stands from its point: offset in points, alignment."""


def plot_fit(fit: Fit, runs: Sequence[Run], path: str | os.PathLike[str]) -> None:
    """Writes a picture with a panel a precision: points are runs, lines the law, a colour a number of parameters.

    Only precisions with efficiencies in `fit` have a panel, the baseline the first.
    """
    plt = _pyplot()
    by_recipe = {f"{fit.baseline}:{fit.baseline}": (1.0, 1.0)}
    by_recipe |= {each.recipe: (each.eff_n, each.eff_d) for each in fit.efficiencies}
    sizes = sorted({run.parameters for run in runs if run.recipe in by_recipe})
    colors = {size: plt.get_cmap("viridis")(0.9 * i / max(1, len(sizes) - 1)) for i, size in enumerate(sizes)}
    columns = min(3, len(by_recipe))
    rows = -(-len(by_recipe) // columns)
    figure, panels = plt.subplots(
        rows,
        columns,
        squeeze=False,
        sharey=True,
        figsize=(0.6 + 3.4 * columns, 0.4 + 2.8 * rows),
        dpi=150,
        layout="constrained",
    )
    for panel, (recipe, (eff_n, eff_d)) in zip(panels.flat, by_recipe.items(), strict=False):
        own = [run for run in runs if run.recipe == recipe]
        for size in sizes:
            points = sorted((run.tokens, run.loss) for run in own if run.parameters == size)
            if points:
                _curve(panel, fit.law, size, points, eff_n, eff_d, colors[size])
        panel.set(xscale="log", title=f"{recipe}\neffN {eff_n:.3g}, effD {eff_d:.3g}")
        panel.title.set_fontsize(8)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
    for panel in list(panels.flat)[len(by_recipe) :]:
        panel.set_visible(False)
    for panel in panels[:, 0]:
        panel.set_ylabel("loss (nats a token)")
    figure.supxlabel("training tokens", fontsize=9)
    handles = [plt.Line2D([], [], marker="o", color=colors[size], label=f"{size / 1e6:.3g}M") for size in sizes]
    panels[0, 0].legend(handles=handles, title="parameters", frameon=False, fontsize=7, title_fontsize=7)
    _save(plt, figure, path)


def _curve(
    panel: Any, law: Law, size: float, points: Sequence[tuple[float, float]], eff_n: float, eff_d: float, color: Any
) -> None:
    tokens, losses = zip(*points, strict=True)
    low, high = tokens[0] / 1.3, tokens[-1] * 1.3
    along = [low * (high / low) ** (i / 60) for i in range(61)]
    panel.plot(along, [law.predict(size, d, eff_n=eff_n, eff_d=eff_d) for d in along], color=color, linewidth=1)
    panel.plot(tokens, losses, "o", color=color, markersize=3.5)


def plot_regions(
    law: Law,
    fp4: Efficiency,
    path: str | os.PathLike[str],
    against: Mapping[str, Sequence[Speedup]] | None = None,
    *,
    title: str = "",
) -> None:
    """Writes maps of the best candidate over parameters and tokens a parameter, with open models as points.

    against: a map for each precision that FP4 is compared with, `"FP8"` or `"bf16"`, with FP4's speedups over it; by
    default both, by bit operations. The models' parameters are without embedding and head where their reports allow it,
    and activated ones for a mixture of experts; `data/open_models.csv` says which.
    """
    plt = _pyplot()
    against = against or {"FP8": SPEEDUPS["bit-operations"], "bf16": SPEEDUPS["bit-operations/bf16"]}
    size = (0.6 + 6.6 * len(against), 5.2)
    figure, panels = plt.subplots(
        1, len(against), squeeze=False, sharey=True, figsize=size, dpi=150, layout="constrained"
    )
    for panel, (other, speedups) in zip(panels[0], against.items(), strict=True):
        _map(plt, panel, law, fp4, other, speedups)
    panels[0, 0].set_ylabel("training tokens a parameter")
    figure.suptitle(title, fontsize=10)
    _save(plt, figure, path)


def _map(plt: ModuleType, panel: Any, law: Law, fp4: Efficiency, other: str, speedups: Sequence[Speedup]) -> None:
    colors, names = needed("matplotlib.colors", "A picture"), candidates(other)
    sizes, ratios = (
        [10 ** (low + (high - low) * (i + 0.5) / CELLS) for i in range(CELLS)]
        for low, high in (LOG10_PARAMETERS, LOG10_RATIO)
    )
    won = [[names.index(best(law, fp4, size, size * ratio, speedups, other)) for size in sizes] for ratio in ratios]
    panel.pcolormesh(
        sizes, ratios, won, cmap=colors.ListedColormap(COLORS), vmin=-0.5, vmax=3.5, shading="nearest", rasterized=True
    )
    for model in read_table(DATA / "open_models.csv", ("parameters", "tokens"), ("name", "place")):
        x, y, across, along = PLACES[model["place"]]
        point = (model["parameters"], model["tokens"] / model["parameters"])
        panel.plot(*point, "o", color="black", markersize=3.5)
        panel.annotate(model["name"], point, (x, y), textcoords="offset points", fontsize=7, ha=across, va=along)
    present = {index for row in won for index in row}
    handles = [
        plt.Rectangle((0, 0), 1, 1, color=COLORS[index], label=_words(name, index in present))
        for index, name in enumerate(names)
    ]
    panel.legend(handles=handles, loc="lower left", fontsize=8)
    panel.set(
        xscale="log", yscale="log", xlim=[10**edge for edge in LOG10_PARAMETERS], ylim=[10**edge for edge in LOG10_RATIO],
        xlabel="parameters outside embedding and head",
    )  # fmt: skip
    panel.set_title(f"Instead of {other}, with FP4 {_speeds(speedups)} as fast", fontsize=9)


def _words(candidate: str, present: bool) -> str:
    """A candidate as a legend says it."""
    forward, backward = candidate.split(":")
    both = f"{forward} throughout" if forward == backward else f"{forward} forward, {backward} backward"
    return both if present else f"{both}: nowhere the best"


def _speeds(speedups: Sequence[Speedup]) -> str:
    """The speedups of a map: a number, or the smallest and the largest."""
    found = sorted({speed for each in speedups for speed in (each.forward, each.backward)})
    return f"{found[0]:g}x" if len(found) == 1 else f"{found[0]:g}x to {found[-1]:g}x"


def _pyplot() -> ModuleType:
    """pyplot, writing files and opening no window."""
    needed("matplotlib", "A picture").use("Agg")
    return needed("matplotlib.pyplot", "A picture")


def _save(plt: ModuleType, figure: Any, path: str | os.PathLike[str]) -> None:
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise LawError(
            f"Can't write the picture {path}: {error}; expected a path as regions.png, in a folder that exists."
        ) from None
    finally:
        plt.close(figure)
