"""Distributed processes compute alike: each says its options to the others, and one that has others is told.

Nobody waits: a process writes its options to the store of the default process group at its first compilation, or before
where FSDP2 is told what to gather, and reads those of the ranks that have done so before. So of two ranks that differ at
least one gets the error.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from . import _compat
from .config.options import Config
from .config.rules import EVERYTHING, Rules
from .errors import OptionError
from .process import process


def check_ranks(config: Config) -> None:
    """Raise `OptionError` if what another rank compiles first has other options than what this one does."""
    if process.said_options:
        return
    mine = _described(config)
    said = {rank: json.loads(text) for rank, text in _compat.say_to_ranks("quartet/options", json.dumps(mine)).items()}
    process.said_options = bool(said)
    for rank, theirs in said.items():
        different = [option for option in mine if mine[option] != theirs[option]]
        if different:
            got = ", ".join(f"{option}={mine[option][0]}" for option in different)
            there = ", ".join(f"{option}={theirs[option][0]}" for option in different)
            raise OptionError(
                f"This rank compiles with {got}, and rank {rank} with {there}; expected the same options on every rank, "
                "which else would train different models and wait for one another. Give all ranks the same."
            )


def _described(config: Config) -> dict[str, list[str]]:
    """Each option as a user reads it, and a hash of all that it stands for."""
    policy = config.policy
    options: dict[str, Any] = {
        field.name: getattr(policy, field.name) for field in dataclasses.fields(policy) if field.compare
    }
    evaluation = options.pop("eval_recipe")
    options["eval"] = evaluation if evaluation != policy.recipe else None
    options["inductor"] = {
        key: value for key, value in config.inductor if isinstance(value, (str, int, float, type(None)))
    }
    return {name: [_shown(value), hashlib.sha256(repr(value).encode()).hexdigest()] for name, value in options.items()}


def _shown(value: Any) -> str:
    if not isinstance(value, Rules):
        return repr(list(value) if isinstance(value, tuple) else value)
    pairs = [(glob, recipe.name) for glob, recipe in value]
    return repr(pairs[0][1] if [glob for glob, _ in pairs] == [EVERYTHING] else pairs)
