"""Time of a convolution, forward and backward, by unfolding and FP4 products beside plain Inductor, interleaved in one run.

    python examples/bench_convolution.py               every case, 1 thread
    python examples/bench_convolution.py 3x3           those whose name has "3x3"
    python examples/bench_convolution.py --dtype bfloat16    both under autocast

Unfolding makes the input of an overlapping convolution several times as large; each of these elements is quantized, and
meets as many filters as there are. So the table has the filters of each case, from which on a convolution may pay.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
from collections.abc import Callable

import torch
from bench_step import CLOCKS, DTYPES
from torch import Tensor, nn

CASES: dict[str, tuple[Callable[[], nn.Module], tuple]] = {
    **{
        f"3x3, {n} filters": (lambda n=n: nn.Conv2d(n, n, 3, padding=1), (8, n, 16, 16))
        for n in (64, 128, 256, 512, 1024)
    },
    "3x3, stride 2, 256 filters": (lambda: nn.Conv2d(256, 256, 3, stride=2, padding=1), (8, 256, 32, 32)),
    "3x3, stride 2, 512 filters": (lambda: nn.Conv2d(512, 512, 3, stride=2, padding=1), (8, 512, 32, 32)),
    "3, 1-D, 512 filters": (lambda: nn.Conv1d(512, 512, 3, padding=1), (4, 512, 512)),
    "1x1, 256 filters": (lambda: nn.Conv2d(256, 256, 1), (8, 256, 16, 16)),
    "2x2, stride 2, 256 filters": (lambda: nn.Conv2d(256, 256, 2, stride=2), (8, 256, 32, 32)),
    "transposed 2x2, stride 2, 256 filters": (lambda: nn.ConvTranspose2d(256, 256, 2, stride=2), (8, 256, 16, 16)),
    "transposed 4x4, stride 2, 256 filters": (
        lambda: nn.ConvTranspose2d(256, 256, 4, stride=2, padding=1),
        (8, 256, 16, 16),
    ),
}


def step(function: Callable[[Tensor], Tensor], x: Tensor, dtype: torch.dtype | None, now: Callable[[], float]) -> float:
    """Seconds of one forward and backward by `now`, under autocast to `dtype` if there is one."""
    start = now()
    with torch.autocast("cpu", dtype) if dtype else contextlib.nullcontext():
        y = function(x)
    y.sum().backward()
    return now() - start


def ratios(make: Callable[[], nn.Module], shape: tuple, rounds: int, dtype: str, clock: str) -> tuple[float, float]:
    """Milliseconds of plain Inductor, and how long FP4 takes beside it: medians over the rounds."""
    torch.manual_seed(0)
    model, x = make(), torch.randn(shape, requires_grad=True)
    plain = torch.compile(model, dynamic=False)
    fp4 = torch.compile(model, backend="quartet", dynamic=False, options={"include": ["*"]})
    functions = (lambda x: plain(x).tanh(), lambda x: fp4(x).tanh())
    how = DTYPES[dtype], CLOCKS[clock]
    for function in functions:
        step(function, x, *how)
        step(function, x, *how)
    times = [[step(function, x, *how) for function in functions] for _ in range(rounds)]
    return 1e3 * statistics.median(t for t, _ in times), statistics.median(b / a for a, b in times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("case", nargs="?", default="", help="a part of the names of cases")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="bfloat16 is autocast")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="processor time is of all threads together")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(
        f"CPU Inductor, {args.threads} threads, torch {torch.__version__}, {args.clock} time, "
        f"{args.rounds} interleaved rounds"
    )
    print(f"{'convolution':<40} {'input':<20} {f'{args.dtype} ms':>11} {f'FP4 / {args.dtype}':>14}")
    for name, (make, shape) in CASES.items():
        if args.case in name:
            torch._dynamo.reset()
            milliseconds, ratio = ratios(make, shape, args.rounds, args.dtype, args.clock)
            print(f"{name:<40} {[*shape]!s:<20} {milliseconds:>11.1f} {ratio:>14.2f}", flush=True)


if __name__ == "__main__":
    main()
