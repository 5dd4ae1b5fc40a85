"""The CPU backend: the functions of `kernels/numerics/reference.py`, in C++ built at first use."""

from .decoded import decode_operand as decode
from .gemm import scaled_mm
from .native import quantize, quantize_pair, requantize, transposed, unrotate

__all__ = ["decode", "quantize", "quantize_pair", "requantize", "scaled_mm", "transposed", "unrotate"]
