"""Inductor lowerings of `torch.ops.quartet` on CUDA: each op to a Triton template of `gpu/templates`.

Everywhere else (CPU tensors, formats that round nothing, grouped products of two formats) an op stays a call. What is
private to torch is in `inductor.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..quantizer import quantizer as quantizer_named
from .grouped import scaled_grouped_mm
from .inductor import V, fallback_handler, register_lowering
from .operands import form_of
from .products import scaled_mm
from .quantize import quantize, quantize_pair, requantize
from .transposed import transposed
from .unrotate import unrotate


def _has_template(op: str, args: tuple) -> bool:
    """Whether templates can do a call: what rounds nothing has none, nor have grouped products of two formats."""
    if op in _QUANTIZERS:
        return not any(quantizer_named(args[index]).exact for index in _QUANTIZERS[op])
    if "mm" in op:
        forms = {form_of(*args[0:2]), form_of(*args[3:5])}
        return None not in forms and (op == "scaled_mm" or len(forms) == 1)
    return op != "transposed" or args[0].get_dtype() == torch.uint8


_QUANTIZERS = {"quantize": (1,), "quantize_pair": (1, 2), "requantize": (3, 4)}
"""Which arguments of an op name quantizers."""


def _has_elements(x: Any) -> bool:
    return not any(V.graph.sizevars.statically_known_equals(size, 0) for size in x.get_size())


def _register(name: str, lower: Callable) -> None:
    op = getattr(torch.ops.quartet, name).default
    call = fallback_handler(op, add_to_fallback_set=False)

    @register_lowering(op, type_promotion_kind=None)
    def lowering(*args: Any, **kwargs: Any) -> Any:
        x = args[0]
        templated = x.get_device().type == "cuda" and not kwargs and _has_template(name, args) and _has_elements(x)
        return lower(*args) if templated else call(*args, **kwargs)


for _lower in (quantize, quantize_pair, requantize, transposed, scaled_mm, scaled_grouped_mm, unrotate):
    _register(_lower.__name__, _lower)
