"""`set_recipe` where the recipe decides what goes over the wire: each rank waits there for those that it meets.

A rank that never comes is in a collective by then, which would wait for this one. So this one does as if nothing had been
asked, and lets all ranks raise the error at an optimizer step that they reach together.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from .. import _compat
from ..config.options import Config
from ..errors import OptionError
from .talk import described, ranks, talk


def agree(configs: Iterable[Config]) -> bool:
    """Whether the ranks that this one meets go over to the same recipes, at the same optimizer step. configs: with these.

    False if a rank doesn't come, and all will raise. Raises `OptionError` where one goes over to others, or before any
    training.
    """
    own = talk()
    if own is None or not own.meets:
        return True
    own.switches += 1
    step = own.steps.number if own.steps is not None else 0
    recipes = {(config.policy.recipe, config.policy.eval_recipe) for config in configs}
    shown = " and ".join(sorted({described(recipe)[0] for recipe, _ in recipes}))
    mine = {"step": step, "recipe": shown, "hash": sorted(described(each)[1] for each in recipes)}
    key = f"quartet/switches/{own.switches}"
    others = _compat.say_to_ranks(key, json.dumps(mine))
    others = {**others, **_compat.hear_ranks(key, own.meets - others.keys())}
    for rank in sorted(own.meets & others.keys()):
        theirs = json.loads(others[rank])
        if theirs != mine:
            raise OptionError(
                f"set_recipe got recipe={mine['recipe']} on rank {_compat.rank()} after {mine['step']} optimizer steps, and "
                f"recipe={theirs['recipe']} on rank {rank} after {theirs['step']}; expected the same on every rank. Call it "
                "on all of them, with the same recipe and between the same two steps."
            )
    silent = sorted(own.meets - others.keys())
    if not silent:
        return True
    text = (
        f"set_recipe got recipe={shown} on rank {_compat.rank()} after {step} optimizer steps, and was not called on "
        f"{ranks(silent)} in {_compat.patience():.0f} seconds; expected the same on every rank, since wire='quantized'. "
        "Call it on all of them, with the same recipe and between the same two steps."
    )
    if own.steps is None:
        raise OptionError(text)
    own.steps.object(text)
    return False
