"""Ranks gather the same of FSDP2's parameters: else one would send codes, and another weights.

A rank that sends codes waits at its first gather for what the ranks of that gather say. One that was never asked for codes
says so at its first call of something compiled that FSDP2 shards, and waits there; so each of them gets the error.
"""

from __future__ import annotations

from collections.abc import Collection

from ..config.options import Policy
from .talk import compare, described, talk

_SUBJECT, _WHAT = "gathers", "lets FSDP2 gather"


def say_gathers(policy: Policy | None) -> None:
    """Tell the others of which policy this rank sends codes; of None, weights."""
    compare(_SUBJECT, _said(policy), (), _WHAT)


def check_gathers(ranks: Collection[int]) -> None:
    """Raise `OptionError` if one of these ranks, which are about to gather with this one, sends something else."""
    own = talk()
    if own is not None and not own.compared[_SUBJECT].issuperset(ranks):
        compare(_SUBJECT, _said(None), ranks, _WHAT)


def _said(policy: Policy | None) -> dict[str, list[str]]:
    if policy is None:
        return {"wire": described("high"), "recipe": described("no codes")}
    return {"wire": described("quantized"), "recipe": described(policy.recipe)}
