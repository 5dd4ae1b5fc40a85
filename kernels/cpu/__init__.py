"""The CPU backend: the functions of `kernels/reference.py`, in C++ built at first use."""

from .native import quantize, quantize_pair, requantize, unrotate
from ..reference import scaled_mm

__all__ = ["quantize", "quantize_pair", "requantize", "scaled_mm", "unrotate"]
