"""Inductor lowerings of `torch.ops.quartet` on CUDA: each op to a Triton template of `gpu/templates`.

Everywhere else (CPU tensors, formats that round nothing, grouped products of two formats) an op stays a call. What is
private to torch is in `inductor.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..quantizer import quantizer as quantizer_named
from ..schemas import SCHEMAS
from .grouped import scaled_grouped_mm
from .inductor import V, fallback_handler, register_lowering
from .products import scaled_mm
from .quantize import quantize, quantize_pair, requantize
from .transposed import transposed
from .unrotate import unrotate


def _has_template(op: str, call: Any) -> bool:
    """Whether templates can do a call: what rounds nothing has none, nor have grouped products of two formats."""
    named = call._asdict()
    formats = {quantizer_named(named[field]).format for field in _QUANTIZERS if field in named}
    formats |= {named[field] for field in ("a_format", "b_format") if field in named}
    if op == "transposed":
        return formats <= {"mxfp4", "nvfp4"}
    return "float32" not in formats and (op != "scaled_grouped_mm" or len(formats) == 1)


_QUANTIZERS = ("quantizer", "row_quantizer", "column_quantizer", "source")
"""The arguments that name quantizers."""


def _has_elements(x: Any) -> bool:
    return not any(V.graph.sizevars.statically_known_equals(size, 0) for size in x.get_size())


def _register(name: str, lower: Callable) -> None:
    op, arguments = getattr(torch.ops.quartet, name).default, SCHEMAS[name].arguments
    call = fallback_handler(op, add_to_fallback_set=False)

    @register_lowering(op, type_promotion_kind=None)
    def lowering(*args: Any, **kwargs: Any) -> Any:
        given = arguments(*args, **kwargs)
        first, *_ = given
        templated = first.get_device().type == "cuda" and _has_template(name, given) and _has_elements(first)
        return lower(given) if templated else call(*args, **kwargs)


for _lower in (quantize, quantize_pair, requantize, transposed, scaled_mm, scaled_grouped_mm, unrotate):
    _register(_lower.__name__, _lower)
