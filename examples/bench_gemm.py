"""Products of quantized operands on the CPU, packing included, beside `torch.mm` in float32 and in bf16, of the same shape.

    python examples/bench_gemm.py --threads 2                       # a Llama's linear layers
    QUARTET_CPU_ISA=avx2 python examples/bench_gemm.py --shapes 512x640x640

The variants take turns within a round; a figure is the best round of each, so that other work on the machine meets all.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import torch
from bench_step import CLOCKS

from quartet_compile.kernels import cpu
from quartet_compile.kernels.cpu import toolchain
from quartet_compile.kernels.quantizer import quantizer

QUANTIZERS = {"MXFP4": "mxfp4-quest", "NVFP4": "nvfp4-rtn", "MXFP8": "mxfp8"}
SHAPES = ((512, 640, 640), (512, 1792, 640), (512, 640, 1792), (2048, 128, 128), (2048, 512, 128))


def shape(text: str) -> tuple[int, int, int]:
    """M, N and K of `512x640x640`."""
    sizes = text.split("x")
    if len(sizes) != 3 or not all(size.isdigit() for size in sizes):
        raise argparse.ArgumentTypeError(f"{text!r} is no shape; expected MxNxK, as 512x640x640")
    m, n, k = map(int, sizes)
    return m, n, k


def best(calls: dict[str, Callable[[], object]], rounds: int, now: Callable[[], float]) -> dict[str, float]:
    """Seconds of each call in its best round, by `now`."""
    seconds = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            start = now()
            call()
            seconds[name] = min(seconds[name], now() - start)
    return seconds


def products(m: int, n: int, k: int) -> dict[str, Callable[[], torch.Tensor]]:
    """`a b^T` of `a: [m, k]` and `b: [n, k]`, as float32, from float32 operands and from ones that are quantized already;
    in bf16 as bf16."""
    a, b = torch.randn(m, k), torch.randn(n, k)
    low = a.bfloat16(), b.bfloat16()
    calls: dict[str, Callable[[], torch.Tensor]] = {"float32": lambda: a @ b.t(), "bf16": lambda: low[0] @ low[1].t()}
    for name, spec in QUANTIZERS.items():
        left, right = (cpu.quantize(x, quantizer(spec)) for x in (a, b))
        calls[name] = lambda left=left, right=right: cpu.scaled_mm(left, right, 1.0, torch.float32)
    return calls


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shapes", nargs="+", type=shape, default=SHAPES, metavar="MxNxK")
    p.add_argument("--threads", type=int, default=torch.get_num_threads())
    p.add_argument("--rounds", type=int, default=40)
    p.add_argument("--clock", choices=CLOCKS, default="wall", help="processor time is of all threads together")
    args = p.parse_args(argv)
    torch.set_num_threads(args.threads)
    print(
        f"torch {torch.__version__}, {toolchain.isa()}, {args.threads} threads, {args.clock} time, "
        f"best of {args.rounds} rounds"
    )
    names = ("bf16", *QUANTIZERS)
    print(f"{'M x N x K':<16}  {'float32 Gop/s':>13}" + "".join(f"  {name:>7}" for name in names))
    for m, n, k in args.shapes:
        seconds = best(products(m, n, k), args.rounds, CLOCKS[args.clock])
        ratios = "".join(f"  {seconds['float32'] / seconds[name]:>6.2f}x" for name in names)
        print(f"{f'{m}x{n}x{k}':<16}  {2 * m * n * k / seconds['float32'] / 1e9:>13.0f}{ratios}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
