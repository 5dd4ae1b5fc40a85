"""Marks on parts of a model: `fp4` asks for low precision, `no_fp4` forbids it.

    @qc.no_fp4                      a function, a method, or a Module class
    def router(x): ...

    with qc.fp4(): ...              a block

Functions and blocks annotate the graph nodes that they trace; a Module class carries its mark as an attribute, which
the pass finds through the module stack of each node. The innermost annotation wins; `no_fp4` on an enclosing class
wins over an annotation `fp4`, since their order can't be known.

Marks are read when a model is compiled: they belong inside of it (around the call of a compiled model they do nothing),
and marking a class later needs `torch.compiler.reset()`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar, overload

import torch
from torch.fx.traceback import annotate

from .._compat import annotations_of, module_stack
from ..errors import OptionError

KEY = "quartet"
_ATTRIBUTE = "_quartet_mark"
_T = TypeVar("_T", bound=Callable[..., Any])


@overload
def fp4(marked: None = None) -> AbstractContextManager[None]: ...


@overload
def fp4(marked: _T) -> _T: ...


def fp4(marked: Any = None) -> Any:
    """Mark a function, a method, a Module class, or a `with` block to run in FP4.

    It overrides the default rules (output heads, routers) and is what `scope="marked"` looks for; `exclude` still wins.
    """
    return _mark("fp4", marked)


@overload
def no_fp4(marked: None = None) -> AbstractContextManager[None]: ...


@overload
def no_fp4(marked: _T) -> _T: ...


def no_fp4(marked: Any = None) -> Any:
    """Mark a function, a method, a Module class, or a `with` block to stay in high precision."""
    return _mark("no_fp4", marked)


def mark_of(meta: Mapping[str, Any]) -> str | None:
    """The mark of a graph node with this metadata: `"fp4"`, `"no_fp4"` or None."""
    annotated = annotations_of(meta).get(KEY)
    by_class = [mark for _, cls in module_stack(meta) if (mark := class_mark(cls))]
    innermost = by_class[-1] if by_class else None
    return "no_fp4" if "no_fp4" in (annotated, innermost) else annotated or innermost


def class_mark(cls: Any) -> str | None:
    """The mark that a Module class (or one that it derives from) carries."""
    return getattr(cls, _ATTRIBUTE, None)


def _mark(mark: str, marked: Any) -> Any:
    if marked is None:
        return annotate({KEY: mark})
    if inspect.isclass(marked) and issubclass(marked, torch.nn.Module):
        setattr(marked, _ATTRIBUTE, mark)
        return marked
    if isinstance(marked, torch.nn.Module) or inspect.isclass(marked) or not callable(marked):
        raise OptionError(
            f"quartet_compile.{mark} got {_describe(marked)}; expected a function, a method, a Module class, or "
            f"nothing (`with quartet_compile.{mark}():`). For one module of a model, use the options include and "
            "exclude."
        )
    return _annotated(mark, marked)


def _describe(marked: Any) -> str:
    if inspect.isclass(marked):
        return f"the class {marked.__name__}, which is no Module"
    return f"a {type(marked).__name__}"


def _annotated(mark: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with annotate({KEY: mark}):
            return function(*args, **kwargs)

    return wrapper
