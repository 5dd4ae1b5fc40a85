"""Every CPU kernel on awkward sizes and layouts, built with sanitizers: `LD_PRELOAD=libasan.so python sanitized.py`.

A process of its own (test_sanitizers.py): AddressSanitizer must be there before any memory is taken. Results are not
compared here; what a kernel reads or writes beyond a tensor, and what C++ leaves undefined, ends the process.
"""

import os
import sys

import torch
from cpu_cases import DTYPES, ROUNDING, SEED, SIGN_SEED, STREAM, awkward

from quartet_compile.kernels import cpu
from quartet_compile.kernels.cpu import decoded, loader, toolchain
from quartet_compile.kernels.quantizer import padded

SHAPES = ((1, 1), (1, 33), (33, 1), (7, 95), (31, 33), (33, 100), (70, 260), (257, 65), (0, 32), (32, 0), (300, 1100))


def build(flags: list[str]) -> None:
    """Let the loader build with these flags too."""
    found = toolchain.toolchain

    def with_flags() -> toolchain.Toolchain:
        tools = found()
        return tools._replace(
            compile_flags=(*tools.compile_flags, "-g", *flags), link_flags=(*tools.link_flags, *flags)
        )

    loader.toolchain = with_flags


def views(rows: int, columns: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """A matrix in every layout; each ends where its storage ends."""
    x = awkward(rows, columns, dtype) if rows * columns else torch.zeros(rows, columns, dtype=dtype)
    wide = torch.nn.functional.pad(x, (5, 0, 3, 0))
    return [
        x,
        x.t().contiguous().t(),
        wide[3:, 5:],
        x.repeat_interleave(2, 1)[:, ::2][:, :columns],
        x[:1].expand(rows, -1),
    ]


def run(name: str) -> None:
    """All kernels on operands of one quantizer."""
    quantizer, seeds = ROUNDING[name], dict(stream=STREAM, seed=SEED, sign_seed=SIGN_SEED)
    for index, (rows, columns) in enumerate(SHAPES):
        for x in views(rows, columns, DTYPES[index % 3]):
            for transpose in (False, True):
                blocks = cpu.quantize(x, quantizer, transpose=transpose, mask=True, **seeds)
                decoded.decode(blocks, quantizer.shrink)
                cpu.requantize(blocks, quantizer, quantizer, **seeds)
                if quantizer.square:
                    cpu.transposed(blocks, quantizer)
            cpu.quantize_pair(x, quantizer, quantizer, seed=SEED, sign_seed=SIGN_SEED)
        a, b = cpu.quantize(x, quantizer, **seeds), cpu.quantize(torch.zeros(61, columns), quantizer, **seeds)
        for dtype in DTYPES:
            cpu.scaled_mm(a, b, 1.5, dtype)
            cpu.scaled_mm(b, a, 1.5, dtype)


def run_unrotate() -> None:
    for dtype in DTYPES:
        for rotation in (0, 16, 32, 64, 128):
            for rows, columns in SHAPES:
                x = torch.ones(rows, padded(columns, max(rotation, 16)), dtype=dtype)
                for mask in (None, torch.zeros(rows, x.shape[1] // 8, dtype=torch.uint8)):
                    cpu.unrotate(x, mask, rotation, columns)


if __name__ == "__main__":
    os.environ.pop("LD_PRELOAD")  # not for the compiler, which would be many times slower
    build(sys.argv[1:])
    torch.set_num_threads(2)
    run_unrotate()
    for name in ROUNDING:
        run(name)
        print(name, flush=True)
    print("all kernels ran")
