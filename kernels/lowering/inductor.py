"""The parts of Inductor that the lowerings are made of, all private to torch."""

from __future__ import annotations

from ... import _compat

try:
    from torch._inductor import config, ir
    from torch._inductor.lowering import empty_strided, fallback_handler, lowerings, register_lowering
    from torch._inductor.select_algorithm import (
        ExternKernelCaller,
        ExternKernelChoice,
        SymbolicGridFn,
        TritonTemplate,
        autotune_select_algorithm,
        realize_inputs,
    )
    from torch._inductor.utils import expr_fits_within_32bit
    from torch._inductor.virtualized import V, ops
except ImportError as error:
    raise _compat.missing(f"a part of Inductor ({error})") from error

__all__ = [
    "ExternKernelCaller",
    "ExternKernelChoice",
    "SymbolicGridFn",
    "TritonTemplate",
    "V",
    "autotune_select_algorithm",
    "config",
    "empty_strided",
    "expr_fits_within_32bit",
    "fallback_handler",
    "ir",
    "lowerings",
    "ops",
    "realize_inputs",
    "register_lowering",
]
