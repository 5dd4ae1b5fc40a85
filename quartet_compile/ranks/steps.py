"""Ranks compute each optimizer step by the same recipes: what `set_recipe` changes on one, it changes on all at that step.

Nobody waits. At each step of one optimizer, a rank adds one to a number in the store. One whose recipes are others than at
its last step writes which, and adds `_NEWS` instead. So the sum tells each rank how many news there are, which it compares
with its own recipes of the same step.

A rank that sees a difference goes on, and writes a verdict: the message, and from which step on each rank raises it. Ranks
that share collectives are at most one step apart, so the sum of all steps tells how far the foremost is; the verdict holds
from the step after. All ranks then end at the same one, with the same message, and none waits for another.
"""

from __future__ import annotations

import json
import weakref
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from .. import _compat
from ..config.options import Config
from ..config.rules import Rules
from ..errors import OptionError
from ..process import process
from .talk import described, talk

_STEPS = "quartet/steps"
_NEWS = 1 << 40

Current = dict[str, str]
"""What a user reads of the recipes of a step, and a hash of all of them."""


class Steps:
    """The optimizer steps of this rank since its first training graph was compiled. number: of the one that goes on.

    recipes: by the first step that had them. heard: how many of the news. open: the news of steps to come. verdict: the
    step from which on it holds, and the message. Counted are the steps of the first optimizer that steps, until another one
    makes two without it, as in a second phase of training: then those of that one.
    """

    def __init__(self, recipe: str) -> None:
        self._recipe = recipe
        self._optimizer: weakref.ref[Any] | None = None
        self._other: weakref.ref[Any] | None = None
        self.number = 0
        self._recipes: dict[int, Current] = {0: self._in_force()}
        self._heard = 0
        self._open: list[dict[str, Any]] = []
        self._verdict: tuple[int, str] | None = None

    def before(self, optimizer: Any) -> None:
        """The optimizer is about to step. Raises `OptionError` by a verdict; parameters are those of the last step then."""
        known, other = (at() if at is not None else None for at in (self._optimizer, self._other))
        if known is not None and optimizer is not known and optimizer is not other:
            self._other = weakref.ref(optimizer)
            return
        self._optimizer, self._other = weakref.ref(optimizer), None
        self.number += 1
        self._hear(self._say())
        for news in [news for news in self._open if news["step"] <= self.number]:
            self._open.remove(news)
            if self._at(news["step"])["hash"] != news["recipes"]["hash"]:
                self.object(
                    f"At optimizer step {news['step']} since the first compilation, rank {news['rank']} computes with "
                    f"{news['recipes']['shown']}, and rank {_compat.rank()} with {self._at(news['step'])['shown']}; "
                    "expected the same recipe on every rank. Call quartet_compile.set_recipe on all of them, with the "
                    "same recipe and between the same two steps."
                )
        if self._verdict is not None and self.number >= self._verdict[0]:
            raise OptionError(self._verdict[1])

    def object(self, message: str) -> None:
        """Let every rank raise this, at a step that none has begun."""
        total = _compat.count(_STEPS, _NEWS)
        if total is not None:
            foremost = -(-(total % _NEWS) // _compat.world_size())
            self._write(total // _NEWS, {"verdict": message, "from": foremost + 1})

    def _say(self) -> int:
        """Count a step, and tell of its recipes if they are new. Gives how many news there are."""
        now, changes = self._in_force(), 1
        if now["hash"] != self._at(self.number)["hash"]:
            self._recipes[self.number] = now
            first = _compat.count(f"quartet/recipes/{self.number}/{now['hash']}", 1)
            changes += _NEWS * (first == 1)  # of all ranks that say the same, one writes it
        total = _compat.count(_STEPS, changes)
        if total is None:
            return self._heard
        if changes > 1:
            self._write(total // _NEWS, {"rank": _compat.rank(), "step": self.number, "recipes": now})
        return total // _NEWS

    def _hear(self, news: int) -> None:
        for number in range(self._heard + 1, news + 1):
            text = _compat.read(_key(number))
            found = json.loads(text) if text is not None else {}
            if "step" in found:
                self._open.append(found)
            elif found and self._verdict is None:
                self._verdict = found["from"], found["verdict"]
        self._heard = max(self._heard, news)

    def _write(self, number: int, what: dict[str, Any]) -> None:
        _compat.write(_key(number), json.dumps(what))

    def _at(self, step: int) -> Current:
        return self._recipes[max(first for first in self._recipes if first <= step)]

    def _in_force(self) -> Current:
        """Of the whole process: which recipes `set_recipe` has put in the place of which."""
        switched = [state for state in list(process.switched.values()) if state.config != state.first]
        recipes = {_recipes(state.config) for state in switched}
        shown = [f"recipe={described(recipe)[0]}" + _evaluation(recipe, other) for recipe, other in recipes]
        pairs = {described([_recipes(state.first), _recipes(state.config)])[1] for state in switched}
        return {"shown": " and ".join(sorted(shown)) or f"recipe={self._recipe}", "hash": "/".join(sorted(pairs))}


def start() -> None:
    """Count optimizer steps from now on."""
    own = talk()
    if own is None or own.steps is not None:
        return
    own.steps = Steps(own.said["options"]["recipe"][0])
    if not process.counts_steps:
        process.counts_steps = True
        register_optimizer_step_pre_hook(_before)


def _before(optimizer: Any, args: Any, kwargs: Any) -> None:
    if torch.compiler.is_compiling():
        return
    own = talk()
    if own is not None and own.steps is not None:
        own.steps.before(optimizer)


def _key(number: int) -> str:
    return f"quartet/news/{number}"


def _recipes(config: Config) -> tuple[Rules, Rules]:
    return config.policy.recipe, config.policy.eval_recipe


def _evaluation(recipe: Rules, other: Rules) -> str:
    return f", eval={described(other)[0]}" if other != recipe else ""
