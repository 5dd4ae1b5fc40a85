"""Warnings to a user: each has a code that stays what it is, points at the user's line, and says what to do.

    warnings.filterwarnings("ignore", "quartet QC103")                              one of them
    warnings.filterwarnings("error", category=quartet_compile.QuartetWarning)       all of them

docs/warnings.md lists the table.
"""

from __future__ import annotations

import dataclasses
import sys
import types
import warnings
from collections.abc import Mapping

from . import _compat
from .places import is_users


class QuartetWarning(UserWarning):
    """Every warning of Quartet Compile. Its text starts with `quartet` and its code, as `quartet QC101: `."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a code stands for, and what to do about it. alike: of distributed ranks each would say the same, and the first
    says it."""

    meaning: str
    remedy: str
    alike: bool = False


KINDS: Mapping[str, Kind] = types.MappingProxyType(
    {
        "QC101": Kind(
            "A compiled model has weight matmuls, and none of them runs in FP4.",
            "The warning has the reasons; `qc.explain(model, *inputs)` has one for each matmul. A float64 model: train it "
            "in float32, bfloat16 or float16. Products narrower than 32: nothing is to be gained.",
        ),
        "QC102": Kind(
            "Weight matmuls ran eagerly, outside of every compiled graph, in high precision.",
            "Remove the graph break that the warning names, compile the parts by themselves "
            "(`qc.quartet(model, regions=['layers.*'])`), or exclude these matmuls. `strict=True` makes it an error.",
        ),
        "QC103": Kind(
            "What `backend='quartet'` compiled runs inside of what another backend compiles, which takes it over.",
            "Compile the outer model or function with `backend='quartet'` too, or only the parts.",
        ),
        "QC104": Kind(
            "Modules share compiled code, so that `include` and `exclude` can't decide differently about them.",
            "Remove the graph break, or compile with `regions=[...]`, or give `qc.enable` the model, as the warning says.",
        ),
        "QC105": Kind(
            "A pattern of `include`, `exclude` or `recipe` matches nothing in the graphs compiled so far.",
            "Correct the pattern: `qc.explain(model, *inputs)` lists the names, `qc.quartet(model, ...)` checks them.",
        ),
        "QC106": Kind(
            "A pass failed on a matmul, which stays in high precision. It is a bug of Quartet Compile.",
            "Report it, with the text of the warning. The training goes on, and is right. `strict=True` makes it an error.",
        ),
        "QC201": Kind(
            "torch is newer than every version that the tests were run with.",
            "Nothing, where it works. If something fails, install a tested version (docs/support.md) and report it.",
        ),
        "QC202": Kind(
            "The CPU kernels can't be kept in Inductor's cache folder, so that every process builds them again.",
            "Set `TORCHINDUCTOR_CACHE_DIR` to a writable folder with 10 MB free.",
        ),
        "QC301": Kind(
            "An exported checkpoint is read wrongly by some of the loaders of its format.",
            "The warning names the loaders, and what to export instead for the others (docs/export.md).",
            alike=True,
        ),
        "QC401": Kind(
            "A run resumes with another recipe, other options or another version than its checkpoint was trained with.",
            "Compile with those of before, which the warning has; or nothing, where the change is wanted.",
            alike=True,
        ),
    }
)


def warn(code: str, text: str) -> None:
    """Warn at the user's innermost line; where no frame is the user's, at the outermost one."""
    if KINDS[code].alike and _compat.rank() != 0:
        return
    frame = sys._getframe(1)
    while frame.f_back is not None and not is_users(frame.f_code.co_filename):
        frame = frame.f_back
    warnings.warn_explicit(
        f"quartet {code}: {text}",
        QuartetWarning,
        filename=frame.f_code.co_filename,
        lineno=frame.f_lineno,
        module=frame.f_globals.get("__name__"),
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )
