"""Inductor lowerings of `torch.ops.quartet` on CUDA: each op to a Triton template of `gpu/templates`.

Everywhere else (CPU tensors, formats that round nothing, grouped products of two formats) an op stays a call. What is
private to torch is in `inductor.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..gpu.supports import GPU, GROUPED_PRODUCTS, TEMPLATE_PRODUCTS
from ..quantizer import quantizer as quantizer_named
from ..schemas import SCHEMAS
from . import grouped, products, quantize, transposed, unrotate
from .inductor import V, fallback_handler, register_lowering


def _has_template(op: str, call: Any) -> bool:
    """Whether templates can do a call: what rounds nothing has none, nor have grouped products of two formats, nor the
    transpose of MXFP8. Raises `QuantizerError` for what neither they nor the reference know."""
    named = call._asdict()
    quantizers = [quantizer_named(named[field]) for field in _QUANTIZERS if field in named]
    for spec in quantizers:
        GPU.require(spec)
    if op in _PRODUCTS:
        GPU.require_product(call.a_format, call.b_format)
        return (call.a_format, call.b_format) in _PRODUCTS[op]
    return all(spec.elements in _ELEMENTS[op] for spec in quantizers)


_PRODUCTS = {"scaled_mm": TEMPLATE_PRODUCTS, "scaled_grouped_mm": GROUPED_PRODUCTS}
_QUANTIZERS = ("quantizer", "row_quantizer", "column_quantizer", "source")
"""The arguments that name quantizers."""

_ELEMENTS = {
    **dict.fromkeys(("quantize", "quantize_pair", "requantize", "unrotate"), ("e2m1", "e4m3")),
    "transposed": ("e2m1",),
}
"""The elements that an op's templates know."""


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


for _lower in (
    quantize.quantize,
    quantize.quantize_pair,
    quantize.requantize,
    transposed.transposed,
    products.scaled_mm,
    grouped.scaled_grouped_mm,
    unrotate.unrotate,
):
    _register(_lower.__name__, _lower)
