"""The parts of Inductor that the lowerings are made of, all private to torch. Supported: torch 2.11 to 2.13."""

from __future__ import annotations

import torch

try:
    from torch._inductor import config, ir
    from torch._inductor.lowering import empty_strided, fallback_handler, lowerings, register_lowering
    from torch._inductor.select_algorithm import (
        SymbolicGridFn,
        TritonTemplate,
        autotune_select_algorithm,
        realize_inputs,
    )
    from torch._inductor.virtualized import V, ops
except ImportError as error:
    raise ImportError(
        f"quartet_compile needs a part of Inductor that torch {torch.__version__} lacks: {error}. "
        "It is tested with torch 2.11 to 2.13: install one of them, or a newer quartet_compile."
    ) from error

__all__ = [
    "SymbolicGridFn",
    "TritonTemplate",
    "V",
    "autotune_select_algorithm",
    "config",
    "empty_strided",
    "fallback_handler",
    "ir",
    "lowerings",
    "ops",
    "realize_inputs",
    "register_lowering",
]
