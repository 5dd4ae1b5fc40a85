"""torch's own product, `torch.nn.functional.scaled_mm`, as a choice beside our templates, where it computes the same.

`refusal` is the single statement of where that is. Inductor times the choices where it measures; QUARTET_GPU_LIBRARY
(`architectures.py`) says whether it may, and whether the library goes before ours.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import torch

from ..architectures import library_use
from ..library import IN_ROWS, LIBRARY_PRODUCTS, quartet_library_mm, quartet_library_mm_in_rows, trying
from .inductor import ExternKernelCaller, ExternKernelChoice, V

log = logging.getLogger("quartet_compile")


class _Measured(ExternKernelCaller):
    """A call of the library that is a trial while Inductor times it."""

    def benchmark(self, *args: Any, out: Any) -> Any:
        with trying():
            return super().benchmark(*args, out=out)


class _Choice(ExternKernelChoice):
    """A function that gives its result as a new tensor."""

    def bind(self, input_nodes: Any, layout: Any, ordered_kwargs_for_cpp_kernel: Any = (), **kwargs: Any) -> _Measured:
        self.ordered_kwargs_for_cpp_kernel = ordered_kwargs_for_cpp_kernel
        return _Measured(self, input_nodes, layout, kwargs, has_out_variant=False)


_OF_BLOCKS = _Choice(quartet_library_mm, has_out_variant=False)
_IN_ROWS = _Choice(quartet_library_mm_in_rows, has_out_variant=False)


class LibraryCall(NamedTuple):
    """A choice with what it is called with besides the inputs of the template. alone: whether it is the only one."""

    choice: ExternKernelChoice
    arguments: dict[str, Any]
    alone: bool


class Product(NamedTuple):
    """What is asked of a product: codes `a` and `b` of one of `LIBRARY_PRODUCTS`, `factor a b^T`, and whether our template
    ends it with the epilogue of the backward pass."""

    a: Any
    b: Any
    number_format: str
    factor: float
    dtype: torch.dtype
    has_epilogue: bool


def library_call(product: Product, architecture: str) -> LibraryCall | None:
    """The library's product, or None where it isn't one of the choices. It has no epilogue: that is a kernel of its own, so
    such a product is no choice beside one that has its own."""
    use = library_use()
    if use == "never" or (use == "measured" and product.has_epilogue):
        return None
    why = refusal(product, architecture)
    if why is None:
        how = dict(factor=product.factor, dtype=product.dtype)
        if product.number_format == IN_ROWS:
            return LibraryCall(_IN_ROWS, how, use == "always")
        return LibraryCall(_OF_BLOCKS, dict(how, number_format=product.number_format), use == "always")
    if use == "always":
        log.info("a product of %s is our template's, not the library's: %s", product.number_format, why)
    return None


def refusal(product: Product, architecture: str) -> str | None:
    """Why the library doesn't compute a product as our template does, or None if it does."""
    facts = LIBRARY_PRODUCTS.get(product.number_format)
    if facts is None or architecture not in facts.architectures:
        return f"it has none of {product.number_format} on {architecture}"
    if product.dtype not in facts.results:
        return f"its result is {' or '.join(map(str, facts.results))}, not {product.dtype}"
    if product.factor != 1.0 and not facts.takes_factor:
        return f"it would round before the factor of {product.factor:.4g}"
    if V.graph.cpp_wrapper:
        return "it is called from Python"
    columns, width = product.b.get_size()[0], product.a.get_size()[1]
    known = V.graph.sizevars.statically_known_multiple_of
    if not known(columns, 16):
        return f"its columns are not known to be a multiple of 16: {columns}"
    if not known(width, 16):
        return f"a row of codes is not known to be a multiple of 16 bytes: {width}"
    if not (_is_contiguous(product.a) and _is_contiguous(product.b)):
        return "its codes are not known to be contiguous, on 16 bytes"
    return None


def _is_contiguous(codes: Any) -> bool:
    sizes, stride = V.graph.sizevars, codes.get_stride()
    in_rows = stride[1] == 1 and sizes.statically_known_equals(stride[0], codes.get_size()[1])
    return in_rows and sizes.statically_known_multiple_of(codes.get_layout().offset, 16)
