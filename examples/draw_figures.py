"""The figures of docs/how_it_works.md: `python examples/draw_figures.py --out docs`.

Every number in them is computed here, by `quartet_compile.quantize` on a CPU; the graph is that of `explain`'s passes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import torch

import quartet_compile as qc

matplotlib.use("Agg")
import matplotlib.pyplot as plt

INK, FULL, LOW, SAVED = "#4C566A", "#B8C0CC", "#E8998D", "#8AB6D6"
VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""What a code of E2M1 can be, besides its sign."""

PLAIN = "mxfp4-rtn,rotation=0,random_signs=False"

BOXES = {
    "X": (0.0, 2.0, "X", FULL), "W": (0.0, 0.0, "W", FULL), "qx": (1.7, 2.0, "quantize\nQuEST, mask", LOW),
    "qw": (1.7, 0.0, "quantize\nQuEST, mask", LOW), "Y": (3.6, 1.0, "scaled_mm", LOW), "out": (5.3, 1.0, "Y", FULL),
    "dY": (10.4, 1.0, "dY", FULL), "pair": (8.7, 1.0, "quantize both\nways, random", LOW),
    "rx": (6.8, 2.0, "requantize X^T\nrandom", LOW), "rw": (6.8, 0.0, "requantize W^T\nrandom", LOW),
    "dW": (8.7, 3.0, "scaled_mm\nunrotate, mask", LOW), "dX": (8.7, -1.0, "scaled_mm\nunrotate, mask", LOW),
    "gw": (10.4, 3.0, "dW", FULL), "gx": (10.4, -1.0, "dX", FULL),
}  # fmt: skip
"""Of a linear layer's program: the middle of each box, its text and colour."""

ARROWS = (
    ("X", "qx"), ("W", "qw"), ("qx", "Y"), ("qw", "Y"), ("Y", "out"), ("dY", "pair"), ("qx", "rx"), ("qw", "rw"),
    ("pair", "dW"), ("pair", "dX"), ("rx", "dW"), ("rw", "dX"), ("dW", "gw"), ("dX", "gx"),
)  # fmt: skip


def group() -> matplotlib.figure.Figure:
    """A group of 32 with an outlier, rounded to nearest and by QuEST."""
    values = torch.randn(32, generator=torch.Generator().manual_seed(0))
    values[5] = 20.0
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.2), dpi=150, layout="constrained", width_ratios=[1, 2.4])
    panels[0].eventplot([*VALUES, *(-value for value in VALUES)], colors=INK, linelengths=0.6)
    panels[0].set(title="An FP4 number, times a scale", yticks=[], xlabel="value")
    places = torch.arange(32)
    plain, rotated = (qc.quantize(values, name).restore() for name in (PLAIN, "mxfp4-quest"))
    bars = {"the group": (values, INK), "to nearest": (plain, SAVED), "QuEST, which rotates": (rotated, LOW)}
    for shift, (name, (heights, color)) in enumerate(bars.items()):
        error = (heights - values)[places != 5].square().mean() / values[places != 5].square().mean()
        label = name if name == "the group" else f"{name}: {error:.0%} of the others' squares off"
        panels[1].bar(places + 0.3 * (shift - 1), heights, 0.3, color=color, label=label)
    panels[1].set(
        ylim=(-4, 5.5), title="A group of 32 with an outlier of 20 at place 5 (cut off)", xlabel="place in the group"
    )
    panels[1].legend(frameon=False, fontsize=7, ncols=3, loc="lower center")
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def linear() -> matplotlib.figure.Figure:
    """The program of a linear layer, forward and backward."""
    figure, panel = plt.subplots(figsize=(10, 4.4), dpi=150, layout="constrained")
    patches = {}
    for name, (x, y, text, color) in BOXES.items():
        box = {"boxstyle": "round,pad=0.35", "facecolor": color, "edgecolor": INK}
        drawn = panel.text(x, y, text, ha="center", va="center", fontsize=8, bbox=box, color="black")
        patches[name] = drawn.get_bbox_patch()
    for start, end in ARROWS:
        saved = start in ("qx", "qw") and end.startswith("r")
        arrow = {
            "arrowstyle": "-|>",
            "color": SAVED if saved else INK,
            "lw": 2.5 if saved else 1,
            "shrinkA": 1,
            "shrinkB": 1,
        }
        arrow |= {"patchA": patches[start], "patchB": patches[end]}
        panel.annotate("", BOXES[end][:2], BOXES[start][:2], arrowprops=arrow)
    panel.text(4.6, 2.25, "saved for backward: codes, scales, a bit of mask", fontsize=8, ha="center", color=INK)
    panel.text(2.6, 3.3, "forward", fontsize=10, ha="center", color=INK)
    panel.text(8.2, 3.9, "backward", fontsize=10, ha="center", color=INK)
    panel.set(xlim=(-0.7, 11.1), ylim=(-1.7, 4.2))
    panel.axis("off")
    return figure


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/figures"), help="folder (default: %(default)s)")
    folder = parser.parse_args(argv).out
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in (("group", group), ("linear", linear)):
        draw().savefig(folder / f"{name}.png", facecolor="white")
        print(folder / f"{name}.png")


if __name__ == "__main__":
    main()
