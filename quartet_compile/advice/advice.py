"""What `advise` gives: the figures of each recipe on a machine, and the verdict in one sentence."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from html import escape
from typing import Any

from ..law import Gap
from ..machines.roofline import ISSUE_SHARE, MATTERS
from ..machines.targets import Target
from ..tables import aligned, html, html_lines, ruled
from .measure import Measured
from .memory import Memory
from .times import Row

WORTH = 1.1
"""The speedup of a whole step, at the realistic rate, from which the verdict is yes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """One recipe on the target. Every time is predicted: compiled for the target, not run.

    rows: the matmuls that it quantizes. step_seconds, step_bf16_seconds: of one training step, forward and backward, as
    far as kernels have a prediction (`unknown` calls have none); realistic: the same at the share of the issue rate that
    kernels reach. gap: of the scaling law; None without a number of tokens, or where `no_gap` says why. same_time: the loss
    of bf16 on as many tokens as it gets in the same time. failure: of its kernels; without rows, why there is nothing else.
    """

    recipe: str
    rows: tuple[Row, ...] = ()
    kept: tuple[tuple[str, str], ...] = ()
    step_seconds: float = 0.0
    step_bf16_seconds: float = 0.0
    realistic_seconds: float = 0.0
    realistic_bf16_seconds: float = 0.0
    unknown: int = 0
    memory: Memory | None = None
    gap: Gap | None = None
    no_gap: str = ""
    same_time: float | None = None
    failure: str = ""

    @property
    def speedup(self) -> float:
        """Predicted time of a step in bf16 over that in this recipe, at the datasheet's rates."""
        return self.step_bf16_seconds / self.step_seconds if self.step_seconds else 1.0

    @property
    def realistic_speedup(self) -> float:
        """The same at the realistic rate."""
        return self.realistic_bf16_seconds / self.realistic_seconds if self.realistic_seconds else 1.0

    @property
    def exclude(self) -> list[str]:
        """Globs of the matmuls that don't pay, for the option `exclude`."""
        paying = {name for row in self.rows if row.pays for name in row.names}
        found: list[str] = []
        for row in (row for row in self.rows if not row.pays):
            glob = ".".join("*" if part.isdecimal() else part for part in row.names[0].split("."))
            alike = [name for name in paying if _alike(name, row.names[0])]
            found += [glob] if not alike else list(row.names)
        return list(dict.fromkeys(found))


def _alike(a: str, b: str) -> bool:
    """Whether two names differ in nothing but numbers."""
    left, right = a.split("."), b.split(".")
    return len(left) == len(right) and all(
        x == y or (x.isdecimal() and y.isdecimal()) for x, y in zip(left, right, strict=True)
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Advice:
    """Whether to train a model in FP4 on a machine. choices: a recipe each. parameters: all, and those outside embeddings
    and head, which the law is about. measured: what a few steps took here, if asked for."""

    model: str
    target: Target
    gpus: int
    tokens: float | None
    tokens_a_step: int | None
    parameters: int
    law_parameters: int
    choices: tuple[Choice, ...]
    measured: tuple[Measured, ...] = ()
    not_measured: str = ""

    @property
    def best(self) -> Choice | None:
        """The recipe of which a step is predicted the fastest, at the realistic rate; None if no matmul can be quantized."""
        able = [choice for choice in self.choices if choice.rows]
        return max(able, key=lambda choice: choice.realistic_speedup) if able else None

    @property
    def options(self) -> dict[str, Any]:
        """Options for `backend="quartet"` that follow; empty where the answer is no."""
        if self.best is None or self.answer == "no":
            return {}
        return {"recipe": self.best.recipe, **({"exclude": self.best.exclude} if self.best.exclude else {})}

    @property
    def answer(self) -> str:
        """`"yes"`; `"no"`; or `"measure"`, where predictions don't decide it."""
        best = self.best
        if best is None or best.speedup < MATTERS:
            return "no"
        if best.gap is not None and best.same_time is not None and best.same_time < best.gap.loss + best.gap.gap:
            return "no"
        return "yes" if best.realistic_speedup >= WORTH else "measure"

    @property
    def verdict(self) -> str:
        """The answer and its reason, in one sentence."""
        best, chip = self.best, self.target.chip
        if best is None:
            why = "; ".join(dict.fromkeys(choice.failure for choice in self.choices if choice.failure))
            reasons = dict.fromkeys(reason for choice in self.choices for _, reason in choice.kept)
            return f"No: none of its matmuls can be quantized ({why or '; '.join(reasons) or 'it has none'})."
        at = f"{best.speedup:.2f}x bf16's speed at the datasheet's rates, {best.realistic_speedup:.2f}x at {ISSUE_SHARE:.0%}"
        step = f"{best.recipe!r} on one {chip} is predicted to train at {at} of the issue rate"
        cost = ""
        if best.gap is not None:
            low, high = best.gap.interval
            cost = f", and to end {best.gap.gap:+.3f} nats a token from full precision ({low:+.3f} to {high:+.3f})"
        if self.answer == "no":
            if best.speedup < MATTERS:
                return f"No: {step}{cost}, so nothing is won."
            return f"No: {step}{cost}, and bf16 reaches a lower loss in the same time."
        if self.answer == "measure":
            return f"Measure first: {step}{cost}; so it depends on what the kernels reach."
        return f"Yes: {step}{cost}."

    def __str__(self) -> str:
        parts = [[self.verdict], self._options(), self._facts(), ruled(aligned(self._recipes(), (0,)))]
        parts += [
            [
                f"{choice.recipe}: predicted microseconds of its matmuls, forward and backward",
                *ruled(aligned(_rows(choice), (0, 7))),
            ]
            for choice in self.choices
            if choice.rows
        ]
        if self.measured:
            parts.append([f"Measured here: {self._where()}", *ruled(aligned(self._measured(), (0,)))])
        parts.append(self._notes())
        return "\n\n".join("\n".join(lines) for lines in parts if lines)

    def _repr_html_(self) -> str:
        body = html_lines([self.verdict, *self._options(), *self._facts()]) + html(self._recipes(), (0,))
        for choice in self.choices:
            if choice.rows:
                paying = [number for number, row in enumerate(choice.rows) if row.pays]
                body += f"<h3>{escape(choice.recipe)}</h3>{html(_rows(choice), (0, 7), paying)}"
        if self.measured:
            body += f"<h3>Measured here: {escape(self._where())}</h3>{html(self._measured(), (0,))}"
        return f"<div>{body}{html_lines(self._notes())}</div>"

    def to_html(self) -> str:
        """A page of its own, which loads nothing."""
        style = (
            "body{font:15px system-ui;max-width:70em;margin:2em auto;padding:0 1em;color-scheme:light dark}"
            "td,th{padding:.2em .8em}table{border-collapse:collapse;margin:1em 0}tr+tr{border-top:1px solid #8886}"
        )
        title = escape(f"FP4 for {self.model}?")
        head = f'<meta charset="utf-8"><title>{title}</title><style>{style}</style>'
        return f"<!doctype html><html><head>{head}</head><body><h1>{title}</h1>{self._repr_html_()}</body></html>\n"

    def to_json(self) -> str:
        """Everything, with the answer, the verdict, the options and the speedups."""
        data = dataclasses.asdict(self)
        data |= {"answer": self.answer, "verdict": self.verdict, "options": self.options}
        for choice, plain in zip(self.choices, data["choices"], strict=True):
            plain |= {
                "speedup": choice.speedup,
                "realistic_speedup": choice.realistic_speedup,
                "exclude": choice.exclude,
            }
            for row, one in zip(choice.rows, plain["rows"], strict=True):
                one |= {"speedup": row.speedup, "realistic_speedup": row.realistic_speedup, "pays": row.pays}
        return json.dumps(data, indent=1)

    def _options(self) -> list[str]:
        if not self.options:
            return []
        given = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return [f"model = quartet_compile.quartet(model, {given})"]

    def _facts(self) -> list[str]:
        chip, count = self.target.chip, f"{self.gpus} x " if self.gpus > 1 else ""
        facts = [
            f"{self.model}: {_count(self.parameters)} parameters, {_count(self.law_parameters)} of them outside embeddings "
            f"and head. {count}{chip} ({self.target.name}), {self.target.memory_bytes / 2**30:.0f} GiB each."
        ]
        if self.tokens is not None:
            facts.append(f"To be trained on {_count(self.tokens)} tokens.")
        return facts

    def _recipes(self) -> list[tuple[str, ...]]:
        share = f"at {ISSUE_SHARE:.0%}"
        head = (
            "recipe",
            "step ms",
            "in bf16",
            "speedup",
            share,
            "memory GiB",
            "in bf16",
            "loss gap",
            "interval",
            "days",
        )
        return [head, *(self._recipe(choice) for choice in self.choices)]

    def _recipe(self, choice: Choice) -> tuple[str, ...]:
        if choice.memory is None:
            return (choice.recipe, *[""] * 9)
        memory, days = choice.memory, ""
        fixed = memory.weights + memory.gradients + memory.moments
        if self.tokens is not None and self.tokens_a_step:
            days = f"{self.tokens / self.tokens_a_step / self.gpus * choice.realistic_seconds / 86400:.3g}"
        found = choice.gap
        return (
            choice.recipe,
            f"{1e3 * choice.step_seconds:.3f}",
            f"{1e3 * choice.step_bf16_seconds:.3f}",
            f"{choice.speedup:.2f}x",
            f"{choice.realistic_speedup:.2f}x",
            f"{(fixed + memory.operands) / 2**30:.2f}",
            f"{(fixed + memory.operands_before) / 2**30:.2f}",
            "" if found is None else f"{found.gap:+.4f}",
            "" if found is None else f"{found.interval[0]:+.4f} to {found.interval[1]:+.4f}",
            days,
        )

    def _where(self) -> str:
        """What the recipe ran on."""
        return next(one.path for one in self.measured if one.path)

    def _measured(self) -> list[tuple[str, ...]]:
        """A row each, beside the first, plain Inductor in the model's dtype. The GPU's peak only where there is a GPU."""
        first = self.measured[0]
        peaks = ["peak MiB"] if first.peak_bytes is not None else []
        rows = [("what", "step ms", "of the first", "saved MiB", *peaks, f"loss after {first.steps} steps", "gap")]
        for one in self.measured:
            peak = [] if one.peak_bytes is None else [f"{one.peak_bytes / 2**20:.0f}"]
            rows.append(
                (
                    one.name, f"{1e3 * one.seconds:.2f}", f"{one.seconds / first.seconds:.2f}x",
                    f"{one.saved_bytes / 2**20:.2f}", *peak, f"{one.loss:.4f}", f"{one.loss - first.loss:+.4f}",
                )
            )  # fmt: skip
        return rows

    def _notes(self) -> list[str]:
        notes = [
            f"Predicted: compiled for {self.target.name}, not run; lower bounds of kernels, no launch overhead, no "
            f"communication; at the datasheet's rates and, second, at {ISSUE_SHARE:.0%} of the issue rate, which decides "
            "what pays.",
            "Memory: weights, gradients, AdamW's two float32 moments and what matmuls save for their backward, on one GPU, "
            "unsharded; attention and norms save more. Days: at the realistic rate, all of the time in these kernels.",
        ]
        for choice in self.choices:
            kept: dict[str, list[str]] = {}
            for name, reason in choice.kept:
                kept.setdefault(reason, []).append(name)
            notes += [f"{choice.recipe} keeps {', '.join(names)}: {reason}." for reason, names in kept.items()]
            notes += [f"{choice.recipe}: {choice.unknown} calls of a step have no prediction."] * bool(choice.unknown)
            notes += [f"{choice.recipe}: no loss gap: {choice.no_gap}"] * bool(choice.no_gap)
            notes += [f"{choice.recipe}: {choice.failure}"] * bool(choice.failure)
            if choice.gap is not None and choice.gap.extrapolated:
                notes.append(
                    f"{choice.recipe}: the runs that the law is fitted on have other sizes than this (docs/law.md), so "
                    "it is extrapolated."
                )
            if choice.same_time is not None and choice.gap is not None:
                notes.append(
                    f"{choice.recipe}: loss {choice.gap.loss + choice.gap.gap:.4f}; bf16 in the same time "
                    f"{choice.same_time:.4f}, on the same tokens {choice.gap.loss:.4f}."
                )
        if self.measured:
            notes.append(
                "Measured: medians of steps of forward, backward and AdamW on one batch, from one start; saved is what "
                "autograd keeps between forward and backward, without parameters. So few steps say little of the loss."
            )
        notes += [f"Not measured: {self.not_measured}"] * bool(self.not_measured)
        return notes


def _rows(choice: Choice) -> list[tuple[str, ...]]:
    head = ("matmul", "M", "N", "K", "us", "in bf16", "speedup", "pays")
    return [
        head,
        *(
            (
                row.name,
                *map(str, row.sizes),
                f"{1e6 * row.seconds.realistic:.2f}",
                f"{1e6 * row.bf16_seconds:.2f}",
                f"{row.realistic_speedup:.2f}x",
                "yes" if row.pays else "no",
            )
            for row in choice.rows
        ),
    ]


_UNITS: Mapping[str, float] = {"T": 1e12, "B": 1e9, "M": 1e6, "K": 1e3}


def _count(number: float) -> str:
    unit = next((name for name, size in _UNITS.items() if number >= size), "")
    return f"{number / _UNITS.get(unit, 1.0):.3g}{unit}"
