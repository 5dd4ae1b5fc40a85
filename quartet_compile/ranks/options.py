"""Ranks compile with the same options: compared at the first compilation, or before where FSDP2 is told what to gather."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import torch

from ..config.options import Config
from . import steps
from .talk import Said, compare, described


def check_ranks(config: Config, meets: Collection[int] = ()) -> None:
    """Raise `OptionError` if what another rank compiles first has other options than what this one does.

    It knows of ranks that were there before; so of two that differ at least one gets the error. Of ranks that it has to
    meet, it waits for those that weren't; so both get it. meets: ranks with which what it compiles has collectives.
    """
    compare("options", _described(config), meets, "compiles")
    if torch.is_grad_enabled():
        steps.start()


def _described(config: Config) -> Said:
    policy = config.policy
    options: dict[str, Any] = {
        field.name: getattr(policy, field.name) for field in dataclasses.fields(policy) if field.compare
    }
    evaluation = options.pop("eval_recipe")
    options["eval"] = evaluation if evaluation != policy.recipe else None
    options["inductor"] = {
        key: value for key, value in config.inductor if isinstance(value, (str, int, float, type(None)))
    }
    return {name: described(value) for name, value in options.items()}
