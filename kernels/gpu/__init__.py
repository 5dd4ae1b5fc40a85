"""The GPU backend: Triton tile functions, one idea a file, and the templates that Inductor renders around them.

    random      Philox noise and signs
    rotation    Hadamard butterflies, sums and means by halves
    rounding    E2M1 codes, packing
    scales      E8M0 and E4M3 scales
    blocks      groups of a tile to codes, scales and mask, and back: MXFP4
    reductions  what a block or a square of blocks agrees on
    any_blocks  blocks of every quantizer to codes, scales and mask, and back
    templates/  the kernels: what they load, which tile functions they call, what they store

What quantizes takes groups as `[size, groups]`, one group a column: with the groups last, the layout that the compiler
gives a tensor by itself puts a group into one thread, as do the loads of the templates, so that rotation, sums,
rounding and packing run in registers, without shuffles. What decodes takes rows. Every multiply whose rounded result
meets an add is a `fma(a, b, 0.0)`: a compiler may contract `a * b + c`, and the bits of `numerics/reference.py` would be
lost.
"""
