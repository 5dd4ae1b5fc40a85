"""What this rank has told the others, and whom of them it has compared itself with."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
from collections.abc import Collection
from typing import Any

from .. import _compat
from ..config.rules import EVERYTHING, Rules
from ..errors import OptionError
from ..process import process

Said = dict[str, list[str]]
"""By option: its value as a user reads it, and a hash of all that it stands for."""


@dataclasses.dataclass(eq=False)
class Talk:
    """In one process group. store: its. said: by subject, what this rank says of it. compared: the ranks that it has
    compared that with. meets: those that it has collectives with. switches: how often it has waited in `set_recipe`.
    steps: `steps.py`: the optimizer steps of this rank, once it trains."""

    store: Any
    said: dict[str, Said] = dataclasses.field(default_factory=dict)
    compared: dict[str, set[int]] = dataclasses.field(default_factory=lambda: collections.defaultdict(set))
    meets: set[int] = dataclasses.field(default_factory=set)
    switches: int = 0
    steps: Any = None


def talk() -> Talk | None:
    """That of the default process group; None without other ranks."""
    store = _compat.default_store()
    if store is None:
        return None
    if process.talk is None or process.talk.store is not store:
        process.talk = Talk(store)
    found: Talk = process.talk
    return found


def described(value: Any) -> list[str]:
    """A value as a user reads it, and a hash of all that it stands for."""
    return [_shown(value), hashlib.sha256(repr(value).encode()).hexdigest()]


def compare(subject: str, mine: Said, meets: Collection[int], what: str) -> None:
    """Say something once, and raise `OptionError` if another rank has said otherwise. meets: ranks to wait for. what: what
    a rank does with these options, as `"compiles"`."""
    own = talk()
    if own is None:
        return
    key, others = f"quartet/{subject}", {}
    if subject not in own.said:
        own.said[subject] = mine
        others = _compat.say_to_ranks(key, json.dumps(mine))
    own.meets |= set(meets) - {_compat.rank()}
    awaited = set(meets) - {_compat.rank(), *others} - own.compared[subject]
    if awaited:
        others = {**others, **_compat.hear_ranks(key, awaited)}
    for rank, text in others.items():
        _raise_if_different(own.said[subject], rank, json.loads(text), what)
    if silent := sorted(awaited - others.keys()):
        raise OptionError(
            f"This rank, {_compat.rank()}, {what} with {_listed(own.said[subject])}, and {ranks(silent)} said nothing of it "
            f"in {_compat.patience():.0f} seconds; expected the same on every rank. Give all ranks the same options, in the "
            "same places of the program."
        )
    own.compared[subject] |= others.keys()


def _raise_if_different(mine: Said, rank: int, theirs: Said, what: str) -> None:
    different = [option for option in mine if mine[option] != theirs[option]]
    if different:
        got, there = (_listed({option: said[option] for option in different}) for said in (mine, theirs))
        raise OptionError(
            f"This rank, {_compat.rank()}, {what} with {got}, and rank {rank} with {there}; expected the same options on "
            "every rank, which else would train different models and wait for one another. Give all ranks the same."
        )


def _listed(said: Said) -> str:
    return ", ".join(f"{option}={shown}" for option, (shown, _) in said.items())


def ranks(numbers: list[int]) -> str:
    """Some of them, in words."""
    return f"rank{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"


def _shown(value: Any) -> str:
    if not isinstance(value, Rules):
        return repr(list(value) if isinstance(value, tuple) else value)
    pairs = [(glob, recipe.name) for glob, recipe in value]
    return repr(pairs[0][1] if [glob for glob, _ in pairs] == [EVERYTHING] else pairs)
