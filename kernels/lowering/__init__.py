"""Inductor lowerings of `torch.ops.quartet` on CUDA: each op to a Triton template of `gpu/templates`.

Everywhere else (CPU tensors, formats that round nothing, grouped products of two formats) an op stays a call. What is
private to torch is in `inductor.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..gpu.supports import GROUPED_PRODUCTS, TEMPLATE_PRODUCTS, supports, supports_product
from ..operand_formats import pair
from ..quantizer import quantizer as quantizer_named
from ..support import require
from .grouped import scaled_grouped_mm
from .inductor import V, fallback_handler, register_lowering
from .products import scaled_mm
from .quantize import quantize, quantize_pair, requantize
from .transposed import transposed
from .unrotate import unrotate


def _has_template(op: str, args: tuple) -> bool:
    """Whether templates can do a call: what rounds nothing has none, nor have grouped products of two formats, nor the
    transpose of MXFP8. Raises `QuantizerError` for what neither they nor the reference know."""
    if op in _PRODUCTS:
        forms = pair(*(x.get_dtype() for x in (*args[0:2], *args[3:5])))
        require(supports_product(*forms))
        return forms in _PRODUCTS[op]
    quantizers = [quantizer_named(args[index]) for index in _QUANTIZERS[op]]
    for spec in quantizers:
        require(supports(spec))
    return all(spec.elements in _ELEMENTS[op] for spec in quantizers)


_PRODUCTS = {"scaled_mm": TEMPLATE_PRODUCTS, "scaled_grouped_mm": GROUPED_PRODUCTS}
_QUANTIZERS = {"quantize": (1,), "quantize_pair": (1, 2), "requantize": (3, 4), "transposed": (3,), "unrotate": ()}
"""Which arguments of an op name quantizers."""

_ELEMENTS = {**dict.fromkeys(_QUANTIZERS, ("e2m1", "e4m3")), "transposed": ("e2m1",)}
"""The elements that an op's templates know."""


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
