"""A failure of the passes themselves: what it is about stays as it was, and the user is told. A bug here must not stop a
training."""

from __future__ import annotations

import dataclasses
import logging

from ..errors import StrictError
from ..warn import warn
from .graph import VerifyError
from .work import Work

log = logging.getLogger("quartet_compile")


def keep(work: Work, error: Exception) -> None:
    """Reverse the decision for the site on which a pass failed, or if that can't be told, for all; the reason says why.

    Raises `StrictError` under `strict`.
    """
    failed = _site(work, error)
    decisions = []
    for decision in work.decisions:
        if decision.rewrite and failed in (None, decision.site.index):
            reason = tell(repr(decision.name), error, work.policy.strict)
            decision = dataclasses.replace(decision, rewrite=False, reason=reason)
        decisions.append(decision)
    work.decisions = decisions


def tell(what: str, error: BaseException, strict: bool) -> str:
    """Warn, or with `strict` raise, of a failure of the passes. Returns the reason for the report."""
    how = f"{type(error).__name__}: {error}"
    reason = f"the pass failed on it ({how}), which is a bug of Quartet Compile: please report it"
    if strict:
        raise StrictError(f"strict=True, and {what} stays in high precision: {reason}. Or set strict=False.") from error
    warn("QC106", f"{what} stays in high precision: {reason}.")
    log.debug("the pass failed on %s", what, exc_info=error)
    return reason


def _site(work: Work, error: Exception) -> int | None:
    """The index of the site that an error is about: that of the node at fault, or else the one that was worked on."""
    node, build = error.node if isinstance(error, VerifyError) else None, work.build
    return work.replaced.get(node, build.author.get(node, build.working_on))
