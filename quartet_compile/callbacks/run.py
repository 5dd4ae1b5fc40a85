"""What every callback does in the course of a run, whatever trainer calls it."""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Mapping
from typing import Any

from .. import _compat
from ..compiled import compiled_by_us
from ..config.listed import DEFAULTS, RecipeOption
from ..config.rules import rules
from ..errors import OptionError, StatsError
from ..frontend.set_recipe import set_recipe
from ..origin import check_provenance, provenance
from ..process import process
from ..report.report import Report
from ..report.stats import stats
from ..report.summary import counted, share

log = logging.getLogger("quartet_compile")

REPORT = "quartet_report.txt"
"""The file of the report, in the trainer's own folder."""


class Run:
    """One run of a trainer. every: steps between statistics, None for none. schedule: recipes by numbers of steps done."""

    def __init__(self, every: int | None, schedule: Mapping[int, RecipeOption] | None) -> None:
        if every is not None and (not isinstance(every, int) or isinstance(every, bool) or every < 1):
            raise OptionError(f"every={every!r}: expected a number of steps, 1 or more, or None for no statistics.")
        self.every, self.schedule = every, dict(schedule or {})
        for step, recipe in self.schedule.items():
            if not isinstance(step, int) or isinstance(step, bool) or step < 0:
                raise OptionError(
                    f"schedule has the step {step!r}; expected numbers of steps done, as {{9000: 'mxfp4-bwd'}}."
                )
            rules("schedule", recipe)
        self._since: int | None = None
        self._first: Any = None
        self._reported = False

    def start(self, model: Any, step: int, before: Mapping[str, Any] | None) -> None:
        """The run begins, or resumes, with `step` steps done. before: the provenance in its checkpoint. Of a second run, as
        of another `trainer.train()`, the steps before the schedule's first have the recipe that the model had at first.

        Raises `OptionError` for a model that isn't compiled, or without statistics where they are asked for.
        """
        provenance(model)
        compiled = compiled_by_us(model)
        if self.every is not None and not (compiled and compiled.config.policy.stats):
            raise OptionError(
                f"every={self.every} asks for statistics, and the model is compiled without them. Compile it with the "
                "option stats=True, or leave `every` out."
            )
        if self._first is None and compiled is not None:
            self._first = compiled.options.get("recipe", DEFAULTS["recipe"])
        if before is not None:
            self._switch(model, step - 1)  # the recipe of the last step before the checkpoint
            check_provenance(model, before)

    def before_step(self, model: Any, step: int) -> dict[str, float]:
        """With `step` steps done: the recipe that the schedule has from now on. What is to be logged: how many switches of
        the schedule there were, where one is made."""
        if not self._switch(model, step):
            return {}
        return {"quartet/switches": float(sum(at <= step for at in self.schedule))}

    def after_step(self, model: Any, step: int, folder: str | pathlib.Path) -> dict[str, float]:
        """After a step, with `step` done: what is to be logged. The first one also writes the report to the folder."""
        found: dict[str, float] = {}
        if not self._reported:
            self._reported = True
            found |= self._report(folder)
        if self.every is not None and step % self.every == 0:
            found |= {f"quartet/{tag}": value for tag, value in _statistics(model).items()}
        return found

    def _switch(self, model: Any, step: int) -> bool:
        due = max((at for at in self.schedule if at <= step), default=None)
        if due == self._since:
            return False
        self._since = due
        recipe = self._first if due is None else self.schedule[due]
        set_recipe(model, recipe)
        log.info("step %d: recipe %s", step, rules("schedule", recipe).name)
        return True

    def _report(self, folder: str | pathlib.Path) -> dict[str, float]:
        graphs = tuple(reports[-1] for reports in process.reports.values() if reports)
        if not graphs:
            return {}
        names = dict.fromkeys(site.recipe for graph in graphs for site in graph.sites if site.recipe)
        report = Report(recipe=", ".join(names) or "bf16", graphs=graphs)
        log.info("%s", counted(report.sites))
        if _compat.rank() == 0:
            path = pathlib.Path(folder) / REPORT
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{report}\n")
        done = sum(site.rewritten for site in report.sites)
        scalars = {"quartet/matmuls": float(len(report.sites)), "quartet/matmuls_in_low_precision": float(done)}
        flops = share(report.sites)
        return scalars if flops is None else scalars | {"quartet/share_of_flops": flops}


def _statistics(model: Any) -> dict[str, float]:
    """Of the model; of the whole process where its graph was compiled for an equal one before it. A run doesn't stop for
    want of them."""
    for which in (model, None):
        try:
            return stats(which).scalars()
        except StatsError as error:
            log.info("no statistics: %s", error)
    return {}
