"""The figures of one or two runs: a table, a JSON file, a picture."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from training import Trainer


def path_of(backend: str, device: str) -> str:
    """Which code computes the products: `CPU, Inductor`, ..."""
    where = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    how = {
        "eager": "eager PyTorch",
        "inductor": "Inductor",
        "quartet": f"Inductor + Quartet {'Triton kernels' if device == 'cuda' else 'CPU kernels'}",
    }
    return f"{where}, {how[backend]}"


def run_figures(trainer: Trainer) -> dict[str, Any]:
    """Everything one run measured. The validation loss is the last one."""
    history, settings = trainer.history, trainer.settings
    step = statistics.median(history.step_seconds) if history.step_seconds else history.first_step_seconds
    return {
        "path": path_of(settings.backend, settings.device),
        "backend": settings.backend,
        "recipe": (settings.recipe or "quartet") if settings.backend == "quartet" else None,
        "schedule": [list(switch) for switch in sorted(settings.schedule)],
        "dtype": settings.dtype,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "steps": trainer.step,
        "tokens": trainer.step * settings.tokens_a_step,
        "validation_loss": history.validation[-1][1] if history.validation else None,
        "step_seconds": step,
        "tokens_a_second": settings.tokens_a_step / step,
        "first_step_seconds": history.first_step_seconds,
        "first_eval_seconds": history.first_eval_seconds,
        "saved_bytes": history.saved_bytes,
        "losses": history.losses,
        "validation": history.validation,
    }


def machine() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }


def table(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """Runs side by side; every run after the first also against it."""
    first = next(iter(runs.values()))

    def row(name: str, key: str, show: str, unit: float = 1.0) -> list[str]:
        cells = [name]
        for run in runs.values():
            value = run[key]
            cell = "-" if value is None else show.format(value / unit)
            if run is not first and value and first[key] and key != "validation_loss":
                cell += f" ({value / first[key]:.2f}x)"
            cells.append(cell)
        return cells

    def gap(run: Mapping[str, Any]) -> str:
        if run is first or run["validation_loss"] is None or first["validation_loss"] is None:
            return "-"
        difference = run["validation_loss"] - first["validation_loss"]
        return f"{difference:+.4f} ({100 * difference / first['validation_loss']:+.1f} %)"

    rows = [
        ["", *runs],
        ["what ran", *(run["path"] for run in runs.values())],
        ["matmuls in FP4", *(run["matmuls_in_fp4"] or "none" for run in runs.values())],
        row("validation loss (nats a byte)", "validation_loss", "{:.4f}"),
        ["gap", *map(gap, runs.values())],
        row("step time, median (ms)", "step_seconds", "{:.1f}", 1e-3),
        row("tokens a second", "tokens_a_second", "{:,.0f}"),
        row("saved for backward (MB)", "saved_bytes", "{:.2f}", 1e6),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]])


def comparison(run: Mapping[str, Any], first: Mapping[str, Any]) -> dict[str, float]:
    """A run against the first: the gap in nats a byte, the rest as ratios."""
    return {
        "validation_gap": run["validation_loss"] - first["validation_loss"],
        "step_time": run["step_seconds"] / first["step_seconds"],
        "saved_bytes": run["saved_bytes"] / first["saved_bytes"],
    }


def smoothed(values: list[float], window: int) -> list[float]:
    """Exponential moving average over about `window` values, without a bias at the start."""
    average, weight, out = 0.0, 0.0, []
    keep = 1 - 1 / max(1, window)
    for value in values:
        average, weight = keep * average + (1 - keep) * value, keep * weight + (1 - keep)
        out.append(average / weight)
    return out


def picture(runs: Mapping[str, Mapping[str, Any]], title: str, path: Path) -> None:
    """Training losses, smoothed, with the validation losses as points; below, their distance from the first run's. Dashed
    lines are the switches of a schedule."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    first, *others = runs.values()
    colors = dict(zip(runs, ("#4C566A", "#D1495B", "#2E86AB"), strict=False))
    figure, panels = plt.subplots(
        1 + bool(others), sharex=True, squeeze=False, figsize=(7, 5.2 if others else 4), dpi=150, layout="constrained",
        height_ratios=[3, 1][: 1 + bool(others)],
    )  # fmt: skip
    top = panels[0, 0]
    for label, run in runs.items():
        train = smoothed(run["losses"], len(run["losses"]) // 40)
        top.plot(range(1, len(train) + 1), train, color=colors[label], linewidth=1.1, alpha=0.5)
        steps, losses = zip(*run["validation"], strict=True) if run["validation"] else ((), ())
        last = f", {losses[-1]:.3f} at the end" if losses else ""
        size, fill = (7, "none") if run is first else (3.5, "full")  # the first as rings: the others often lie within
        top.plot(steps, losses, "o", color=colors[label], markersize=size, fillstyle=fill, label=f"{label}{last}")
        for step, recipe in run.get("schedule", []):
            top.axvline(step, color=colors[label], linewidth=0.8, linestyle="--")
            top.annotate(
                recipe, (step, 0.02), (3, 0), xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=7,
                color=colors[label],
            )  # fmt: skip
        if run is not first:
            reference = dict(first["validation"])
            gaps = [(step, loss - reference[step]) for step, loss in run["validation"] if step in reference]
            if gaps:
                panels[1, 0].plot(*zip(*gaps, strict=True), ".-", color=colors[label], linewidth=1)
    early = smoothed(first["losses"], len(first["losses"]) // 40)[len(first["losses"]) // 16]
    top.set(title=title, ylabel="loss (nats a byte)", ylim=(None, early))
    top.legend(title="points: validation; lines: training", frameon=False)
    if others:
        panels[1, 0].axhline(0, color=colors[next(iter(runs))], linewidth=1)
        panels[1, 0].set_ylabel("validation gap")
    panels[-1, 0].set_xlabel("step")
    panels[-1, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    for panel in panels[:, 0]:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
    figure.savefig(path)
    plt.close(figure)


def write(runs: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any], data: str, folder: Path) -> list[Path]:
    """`figures.json`, `table.txt` and, where matplotlib is installed, `curves.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "figures.json", folder / "table.txt"]
    first, *others = runs
    compared = {name: comparison(runs[name], runs[first]) for name in others}
    everything = {"settings": settings, "data": data, "machine": machine(), "against_first": compared, "runs": runs}
    written[0].write_text(json.dumps(everything, indent=1, allow_nan=False) + "\n")
    written[1].write_text(table(runs) + "\n")
    try:
        picture(runs, f"Llama {settings['size']}, {data.partition(':')[0]}", folder / "curves.png")
    except ModuleNotFoundError as error:
        print(f"no picture: {error.name} isn't installed")
    else:
        written.append(folder / "curves.png")
    return written
