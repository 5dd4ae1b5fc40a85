"""What Dynamo writes: its log of graph breaks, its reasons and its errors, read by their wording; and what is written into
its trace."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

from .installed import private

_BREAK = re.compile(r"in user code at (.+):(\d+)\nGraph Break Reason: (.*)")
_EXPLAINED = re.compile(r"^(\S.*)\n  Explanation: ", re.MULTILINE)
_WRAPPED = re.compile(r": got (\w+\(.*\))$", re.MULTILINE)
_REMEDIES = {"RNN, GRU, or LSTM": "torch._dynamo.config.allow_rnn = True lets Dynamo into them, step by step"}
_RESUMED = re.compile(r"^torch_dynamo_resume_in_(.*)_at_\d+$")


@contextlib.contextmanager
def errors_on_fakes_unlogged() -> Iterator[None]:
    """An op that fails on fake tensors raises inside, without a traceback in torch's log."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def graph_break_logger() -> logging.Logger:
    """Dynamo's log of graph breaks (`TORCH_LOGS=graph_breaks`)."""
    return private("torch._logging:getArtifactLogger")("torch._dynamo.symbolic_convert", "graph_breaks")


def graph_break(text: str) -> tuple[str, int, str] | None:
    """The file, the line and the reason in a record of that log: it names the line, then the reason, then an explanation.
    None for a record that says something else."""
    found = _BREAK.search(text)
    if found is None:
        return None
    explained = _EXPLAINED.search(text)
    reason = explained[1] if explained else found[3]
    return found[1], int(found[2]), with_remedy(reason.removeprefix("Graph Break Reason: ").strip())


def with_remedy(reason: str) -> str:
    """A reason for a graph break, with the setting of Dynamo's that takes it away, where there is one."""
    return reason + "".join(f" ({remedy})" for words, remedy in _REMEDIES.items() if words in reason)


def trace_artifact(name: str, text: Callable[[], str]) -> None:
    """Put a text into the trace that `TORCH_TRACE` writes and tlparse shows. Without one, `text` isn't called."""

    def describe() -> dict[str, str]:
        return {"name": name, "encoding": "string"}

    private("torch._logging:trace_structured")("artifact", metadata_fn=describe, payload_fn=text)


def is_in_loop(reason: str) -> bool:
    """Whether a reason for not compiling is a graph break in a loop, in which Dynamo can't go on."""
    return "graph break in loop" in reason


def wrapped_error(error: Exception) -> str | None:
    """The user's error that Dynamo's own one wraps, as `ValueError('...')`; None if it wraps none."""
    found = _WRAPPED.search(str(error))
    return found and found[1]


def user_stack(error: Exception) -> list[Any]:
    """The frames of the user's program at which Dynamo raised an error; none of another error."""
    return list(getattr(error, "real_stack", None) or ())


def function_name(name: str) -> str:
    """The name of the user's function whose code a frame runs, after a graph break too."""
    return _RESUMED.sub(r"\1", name)
