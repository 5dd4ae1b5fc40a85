"""Whether the tile functions of a kernel are written in PTX, or in what Triton has for every GPU."""

import triton
from triton.language import target_info


@triton.constexpr_function
def in_ptx():
    """Not in Triton's interpreter, which has no assembly, nor for AMD: the same bits by arithmetic."""
    if triton.knobs.runtime.interpret:
        return False
    return _IN_PTX[target_info.current_target().backend]


_IN_PTX = {"cuda": True, "hip": False}
"""By the backend of Triton; another one is a KeyError at compile time."""
