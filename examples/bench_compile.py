"""First call, the pass's share of it, and how the pass grows with the number of layers.

    python examples/bench_compile.py                 first calls in new processes with cold caches, then the growth
    python examples/bench_compile.py --no-first-call only the growth

The first call is forward and backward of the first step: Dynamo, AOTAutograd, the pass, Inductor, the C++ compiler. The
growth is measured without Inductor, on the joint graph of models with 2 to 64 layers: the pass must be linear, and the
number of distinct kernels (an op with its constant arguments) must not grow.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import torch
from bench_step import DTYPES
from llama import SIZES, Llama, Size
from torch import fx

from quartet_compile.capture.capture import Capture
from quartet_compile.config.options import configure
from quartet_compile.kernels.cpu.loader import library
from quartet_compile.passes.joint import QuartetPass


class PassTimer:
    """While active, adds up the seconds spent in the pass and keeps the last rewritten graph's nodes."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.kernels: set[tuple] = set()

    def __enter__(self) -> PassTimer:
        self._original = QuartetPass.__call__

        def timed(run: QuartetPass, graph: fx.Graph) -> None:
            start = time.perf_counter()
            self._original(run, graph)
            self.seconds += time.perf_counter() - start
            self.kernels |= distinct_kernels(graph)

        QuartetPass.__call__ = timed
        return self

    def __exit__(self, *_: object) -> None:
        QuartetPass.__call__ = self._original


def distinct_kernels(graph: fx.Graph) -> set[tuple]:
    """Every quartet op of a graph with its constant arguments: what a compiler would generate one kernel for."""
    found = set()
    for node in graph.nodes:
        if getattr(node.target, "namespace", "") == "quartet" and node.target is not torch.ops.quartet.seed.default:
            found.add((str(node.target), tuple(str(a) for a in node.args if not isinstance(a, fx.Node))))
    return found


def first_call(backend: str, size: str, tokens: int, dtype: str) -> dict[str, float]:
    """Seconds of the first forward and backward in this process, and of the pass in it; the C++ kernels are built
    before, and timed apart."""
    start = time.perf_counter()
    if backend == "quartet":
        library()
    build = time.perf_counter() - start
    torch.manual_seed(0)
    model = Llama(SIZES[size], positions=tokens)
    batch = tuple(torch.randint(256, (2, 1, tokens)))
    start = time.perf_counter()
    low = DTYPES[dtype]
    with PassTimer() as timer, torch.autocast("cpu", low) if low else contextlib.nullcontext():
        torch.compile(model, backend=backend, dynamic=False)(*batch).backward()
    return {"first_call": time.perf_counter() - start, "pass": timer.seconds, "build": build}


def in_new_process(backend: str, args: argparse.Namespace) -> dict[str, float]:
    """`first_call` in a new process with an empty cache folder, and the processor time of all of that process and its
    compilers: other processes change it less than they change seconds."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--one", backend, "--size", args.size, "--tokens", str(args.tokens)]
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder}
        before = os.times()
        done = subprocess.run(
            [*command, "--dtype", args.dtype], env=environment, check=True, stdout=subprocess.PIPE, text=True
        )
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return {**json.loads(done.stdout.splitlines()[-1]), "process": used}


def compare(args: argparse.Namespace) -> None:
    """Print the first calls of both backends, taken in turn, and the ratios of each pair."""
    pairs = [[in_new_process(backend, args) for backend in ("inductor", "quartet")] for _ in range(args.runs)]
    print(
        f"First call, {args.size} Llama, {args.tokens} tokens, {args.dtype}, {args.runs} pairs of new processes, caches cold"
    )
    for key, what in (("first_call", "seconds"), ("process", "processor time of the whole process")):
        plain, ours = ([pair[i][key] for pair in pairs] for i in range(2))
        ratios = sorted(b / a for a, b in zip(plain, ours, strict=True))
        print(
            f"  {what}: Inductor {statistics.median(plain):.1f}; quartet {statistics.median(ours):.1f}; "
            f"ratio of a pair {statistics.median(ratios):.2f}x, {ratios[0]:.2f} to {ratios[-1]:.2f}"
        )
    for name, what in (("pass", "the pass in it"), ("build", "the C++ kernels, once a machine")):
        print(f"  {what}: {statistics.median(pair[1][name] for pair in pairs):.2f} s")


def growth(layers: int) -> tuple[float, int, int]:
    """Seconds in the pass, rewritten matmuls, and distinct kernels, for a narrow Llama with so many layers."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Llama(Size(layers=layers, width=64, heads=2, lr=1e-3, seq=32), positions=32)
    capture = Capture(configure({}), text=False)
    with PassTimer() as timer:
        torch.compile(model, backend=capture, dynamic=False)(*torch.randint(256, (2, 1, 32)))
    return timer.seconds, sum(site.rewritten for graph in capture.graphs for site in graph.sites), len(timer.kernels)


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="30M")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="bfloat16 is autocast, of both")
    parser.add_argument("--no-first-call", action="store_true")
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4, 8, 16, 32, 64])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one:
        print(json.dumps(first_call(args.one, args.size, args.tokens, args.dtype)))
        return
    if not args.no_first_call:
        compare(args)
    print(f"{'layers':>6} {'matmuls':>8} {'pass s':>7} {'ms/matmul':>10} {'distinct kernels':>17}")
    for layers in args.layers:
        seconds, matmuls, kernels = growth(layers)
        print(f"{layers:>6} {matmuls:>8} {seconds:>7.3f} {1e3 * seconds / matmuls:>10.2f} {kernels:>17}")


if __name__ == "__main__":
    main()
