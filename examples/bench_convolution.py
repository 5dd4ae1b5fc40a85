"""Time of a convolution, forward and backward, by unfolding and FP4 products beside plain Inductor, interleaved in one run.

    python examples/bench_convolution.py               every case, 1 thread
    python examples/bench_convolution.py 3x3           those whose name has "3x3"

Unfolding makes the input of an overlapping convolution several times as large; each of these elements is quantized, and
meets as many filters as there are. So the table has the filters of each case, from which on a convolution may pay.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
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


def step(function: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Seconds of one forward and backward."""
    start = time.perf_counter()
    function(x).sum().backward()
    return time.perf_counter() - start


def ratios(make: Callable[[], nn.Module], shape: tuple, rounds: int) -> tuple[float, float]:
    """Milliseconds of plain Inductor, and how long FP4 takes beside it: medians over the rounds."""
    torch.manual_seed(0)
    model, x = make(), torch.randn(shape, requires_grad=True)
    plain = torch.compile(model, dynamic=False)
    fp4 = torch.compile(model, backend="quartet", dynamic=False, options={"include": ["*"]})
    functions = (lambda x: plain(x).tanh(), lambda x: fp4(x).tanh())
    for function in functions:
        step(function, x)
        step(function, x)
    times = [[step(function, x) for function in functions] for _ in range(rounds)]
    return 1e3 * statistics.median(t for t, _ in times), statistics.median(b / a for a, b in times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("case", nargs="?", default="", help="a part of the names of cases")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"CPU Inductor, {args.threads} threads, torch {torch.__version__}, {args.rounds} interleaved rounds")
    print(f"{'convolution':<40} {'input':<20} {'float32 ms':>10} {'FP4 / float32':>13}")
    for name, (make, shape) in CASES.items():
        if args.case in name:
            torch._dynamo.reset()
            milliseconds, ratio = ratios(make, shape, args.rounds)
            print(f"{name:<40} {[*shape]!s:<20} {milliseconds:>10.1f} {ratio:>13.2f}", flush=True)


if __name__ == "__main__":
    main()
