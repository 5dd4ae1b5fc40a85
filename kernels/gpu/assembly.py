"""Whether the tile functions of a kernel are written in PTX, or in what Triton has for every GPU; and what only PTX can
say."""

import triton
import triton.language as tl
from triton.language import target_info


@triton.constexpr_function
def in_ptx():
    """Not in Triton's interpreter, which has no assembly, nor for AMD: the same bits by arithmetic."""
    if triton.knobs.runtime.interpret:
        return False
    return _IN_PTX[target_info.current_target().backend]


_IN_PTX = {"cuda": True, "hip": False}
"""By the backend of Triton; another one is a KeyError at compile time."""


@triton.jit
def in_registers(x):
    """32-bit integers `x`, of which the compiler no longer knows that they are the same in all threads: no lane is above 31.

    It computes what is the same in uniform registers, and would copy it for each instruction that takes none of these."""
    if not in_ptx() or x.dtype.primitive_bitwidth != 32:
        return x
    else:
        return tl.inline_asm_elementwise(
            """{
            .reg .b32 lanes;
            mov.u32 lanes, %lanemask_lt;
            shr.u32 lanes, lanes, 31;
            or.b32 $0, $1, lanes;
            }""",
            "=r,r",
            args=[x],
            dtype=x.dtype,
            is_pure=True,
            pack=1,
        )
