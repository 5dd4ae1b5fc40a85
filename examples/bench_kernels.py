"""Time of each op at the shapes of Llama's linear layers, beside the bandwidth of a copy and a bf16 product.

    python examples/bench_kernels.py                  on a GPU: 1B and 8B shapes, 8192 tokens, bf16
    python examples/bench_kernels.py --device cpu     tiny shapes: tries the script itself; its times say nothing

Each op is compiled by Inductor. Its inputs rotate through buffers that together exceed twice the L2 cache, and each
call has outputs of its own, so that every byte comes from memory and goes there. On a GPU one CUDA graph holds several
turns over the buffers, and the median of its replays, by CUDA events, is what is shown: launches cost next to nothing
then.

Bytes are those of the inputs, each read once, and of the outputs, each written once. The share is of the bandwidth of a
large device-to-device copy (bytes read and written), measured first. A product is beside `torch.mm` on bf16 operands of the
same shape.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quartet_compile.kernels import lowering  # noqa: F401  (registers the templates with Inductor)

SHAPES = {
    "1B": [(8192, 2048, 8192), (8192, 8192, 2048)],
    "8B": [(8192, 4096, 14336), (8192, 14336, 4096)],
    "tiny": [(96, 64, 128)],
}
"""(tokens, K, N) of linear layers `[tokens, K] @ [K, N]`: up and down projection of the MLP."""

quartet = torch.ops.quartet


@dataclasses.dataclass
class Row:
    """One measurement. `timed`: by replays of a CUDA graph, by CUDA events around calls, or by the host's clock."""

    op: str
    shape: tuple[int, ...]
    seconds: float = math.nan
    bytes: int = 0
    flops: float = 0.0
    bf16_seconds: float | None = None
    share_of_copy: float | None = None
    timed: str = ""
    error: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times the speed of the bf16 product."""
        return self.bf16_seconds / self.seconds if self.bf16_seconds else None


class Clock:
    """Seconds of one call, on one device. cache_bytes: what the buffers must exceed."""

    def __init__(self, device: torch.device, replays: int) -> None:
        self.device, self.replays = device, replays
        self.cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0

    def sets(self, make: Callable[[], tuple]) -> list[tuple]:
        """Sets of operands that together exceed twice the cache; at least two."""
        first = make()
        count = max(2, math.ceil(2 * self.cache_bytes / sum(t.nbytes for t in tensors(first))) + 1)
        return [first, *(make() for _ in range(count - 1))]

    def seconds(self, function: Callable, sets: list[tuple]) -> tuple[float, str]:
        """Median seconds of a call, over the sets of operands in turn, and how it was timed."""
        for operands in sets[:2] * 2:
            function(*operands)
        if self.device.type == "cpu":
            return self._host(function, sets), "host clock"
        torch.cuda.synchronize()
        turns = max(1, math.ceil(16 / len(sets)))
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                kept = [function(*operands) for _ in range(turns) for operands in sets]
        except RuntimeError as error:
            torch.cuda.synchronize()
            print(f"  not captured in a CUDA graph: {str(error).splitlines()[0][:100]}")
            return self._events(lambda: [function(*operands) for operands in sets], len(sets)), "events"
        median = self._events(graph.replay, turns * len(sets))
        del kept
        return median, "graph"

    def _events(self, run: Callable, calls: int) -> float:
        run()
        pairs = []
        for _ in range(self.replays):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            pairs.append((start, end))
        torch.cuda.synchronize()
        return statistics.median(start.elapsed_time(end) for start, end in pairs) / 1e3 / calls

    def _host(self, function: Callable, sets: list[tuple]) -> float:
        times = []
        for turn in range(self.replays):
            start = time.perf_counter()
            function(*sets[turn % len(sets)])
            times.append(time.perf_counter() - start)
        return statistics.median(times)


def copy_rate(clock: Clock, bytes_: int) -> float:
    """Bytes a second, read and written, of a copy of so many bytes, between pairs of buffers in turn."""
    sources = [torch.randint(256, (bytes_,), dtype=torch.uint8, device=clock.device) for _ in range(2)]
    pairs = [(torch.empty_like(source), source) for source in sources]
    seconds, _ = clock.seconds(lambda target, source: target.copy_(source), pairs)
    return 2 * bytes_ / seconds


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of nested tuples and lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)


def measure(clock: Clock, op: str, shape: tuple[int, ...], function: Callable, make: Callable[[], tuple]) -> Row:
    """Compile `function` for the operands that `make()` draws, and time it."""
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=False)
    sets = clock.sets(make)
    moved = sum(t.nbytes for t in tensors((sets[0], compiled(*sets[0]))))
    seconds, timed = clock.seconds(compiled, sets)
    return Row(op, shape, seconds=seconds, bytes=moved, timed=timed)


def ops(clock: Clock, tokens: int, k: int, n: int) -> Iterator[Row]:
    """The memory-bound ops of one linear layer's step: forward quantization of X, both directions of dY, the transposes
    of X and W quantized again, mask and inverse rotation of dX; and X rounded stochastically, by itself."""
    device = clock.device
    seeds = [torch.randint(2**62, (), device=device) for _ in range(2)]

    def normal(rows: int, columns: int) -> Callable[[], tuple]:
        return lambda: (torch.randn(rows, columns, device=device, dtype=torch.bfloat16),)

    def packed(rows: int, columns: int) -> Callable[[], tuple]:
        return lambda: (*random_blocks(rows, columns, device),)

    def masked() -> tuple:
        return (*normal(tokens, k)(), torch.randint(256, (tokens, k // 8), dtype=torch.uint8, device=device))

    def quantize(x):
        return quartet.quantize(x, "mxfp4-quest", False, True, 0, None, None)

    def quantize_stochastic(x):
        return quartet.quantize(x, "mxfp4-sr", False, False, 2, *seeds)

    def quantize_pair(dy):
        return quartet.quantize_pair(dy, "mxfp4-sr", "mxfp4-sr", *seeds)

    def requantize(codes, scales, tensor_scale):
        return quartet.requantize(codes, scales, tensor_scale, "mxfp4-quest", "mxfp4-sr", 3, *seeds)

    def unrotate(dx, mask):
        return quartet.unrotate(dx, mask, 32, dx.shape[1])

    yield from attempt(clock, "quantize X, mask", (tokens, k), quantize, normal(tokens, k))
    yield from attempt(clock, "quantize X, stochastic", (tokens, k), quantize_stochastic, normal(tokens, k))
    yield from attempt(clock, "quantize dY, both directions", (tokens, n), quantize_pair, normal(tokens, n))
    yield from attempt(clock, "requantize X^T", (tokens, k), requantize, packed(tokens, k))
    yield from attempt(clock, "requantize W^T", (n, k), requantize, packed(n, k))
    yield from attempt(clock, "unrotate dX, mask", (tokens, k), unrotate, masked)


def products(clock: Clock, tokens: int, k: int, n: int) -> Iterator[Row]:
    """The three products of one linear layer, as (M, N, K), each beside a bf16 product."""
    device = clock.device
    for role, (m, n_, k_) in {"fprop": (tokens, n, k), "dgrad": (tokens, k, n), "wgrad": (n, k, tokens)}.items():
        alpha = 1.0 if role == "fprop" else 16 / 9

        def scaled_mm(a, a_scales, a_tensor_scale, b, b_scales, b_tensor_scale, alpha=alpha):
            left, right = (a, a_scales, a_tensor_scale, "mxfp4"), (b, b_scales, b_tensor_scale, "mxfp4")
            return quartet.scaled_mm(*left, *right, alpha, torch.bfloat16)

        def factors(m=m, n=n_, k=k_) -> tuple:
            return (*random_blocks(m, k, device), *random_blocks(n, k, device))

        def plain(m=m, n=n_, k=k_) -> tuple:
            return tuple(torch.randn(rows, k, device=device, dtype=torch.bfloat16) for rows in (m, n))

        for name, chosen in ways(device, role).items():
            with multiplying(**chosen):
                for row in attempt(clock, f"{name}, {role}", (m, n_, k_), scaled_mm, factors):
                    row.flops = 2.0 * m * n_ * k_
                    row.bf16_seconds, _ = clock.seconds(lambda a, b: torch.mm(a, b.t()), clock.sets(plain))
                    yield row


def ways(device: torch.device, role: str) -> dict[str, dict[str, str]]:
    """The ways in which the device can multiply, by the name of the row: Ada and Hopper in FP8 or in bf16; Hopper, and in
    the forward pass a B200 or B300, also by torch's own product."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    found = {"scaled_mm": {}}
    if capability in ((8, 9), (9, 0)):
        found = {"scaled_mm, FP8": {"products": "fp8"}, "scaled_mm, bf16": {"products": "bf16"}}
    if capability == (9, 0) or (capability[0] == 10 and role == "fprop"):
        found["scaled_mm, library"] = {"library": "always"}
    return found


@contextlib.contextmanager
def multiplying(products: str = "", library: str = "") -> Iterator[None]:
    """Compile products so. Inductor's caches don't know of it when an op is compiled by itself."""
    chosen = {"QUARTET_GPU_PRODUCTS": products, "QUARTET_GPU_LIBRARY": library or "never"}
    before = {name: os.environ.get(name) for name in chosen}
    os.environ.update(chosen)
    try:
        with torch._inductor.config.patch(force_disable_caches=True):
            yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def random_blocks(rows: int, k: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, E8M0 scales about 1, and no tensor scale."""
    codes = torch.randint(256, (rows, k // 2), dtype=torch.uint8, device=device)
    scales = torch.randint(124, 130, (rows, k // 32), dtype=torch.uint8, device=device)
    return codes, scales, torch.empty(0, device=device)


def attempt(clock: Clock, op: str, shape: tuple[int, ...], function: Callable, make: Callable) -> Iterator[Row]:
    """`measure`; an op that fails is a row that says so, so that the others are still measured."""
    try:
        yield measure(clock, op, shape, function, make)
    except Exception as error:
        yield Row(op, shape, error=f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}")


def line(row: Row) -> str:
    """One line of the table."""
    name = f"{row.op:<29} {'x'.join(map(str, row.shape)):<17}"
    if row.error:
        return f"{name} failed: {row.error}"
    text = f"{name} {1e6 * row.seconds:>9.1f} {row.bytes / 1e6:>8.1f} {row.bytes / row.seconds / 1e12:>6.2f}"
    text += f" {100 * row.share_of_copy:>6.1f}%" if row.share_of_copy is not None else f" {'':>7}"
    if row.bf16_seconds:
        text += f" {row.flops / row.seconds / 1e12:>8.1f} {1e6 * row.bf16_seconds:>9.1f} {row.ratio:>6.2f}x"
    return text + ("" if row.timed in ("graph", "host clock") else f"  ({row.timed})")


HEADER = (
    f"{'op':<29} {'shape':<17} {'us':>9} {'MB':>8} {'TB/s':>6} {'% copy':>7} {'TFLOP/s':>8} {'bf16 us':>9} {'speed':>7}"
)


def versions() -> dict[str, str]:
    """What ran."""
    try:
        import triton
    except ImportError:
        return {"torch": torch.__version__, "triton": "none"}
    return {"torch": torch.__version__, "triton": triton.__version__}


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark, print the table as it grows, and return 1 if an op failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", nargs="+", choices=SHAPES, help="default: 1B 8B on a GPU, tiny on a CPU")
    parser.add_argument("--replays", type=int, help="measurements, of which the median counts (20; 3 on a CPU)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: this PyTorch ({torch.__version__}) sees no GPU")
    on_gpu = device.type == "cuda"
    sizes = args.size or (["1B", "8B"] if on_gpu else ["tiny"])
    torch.manual_seed(0)
    clock = Clock(device, args.replays or (20 if on_gpu else 3))

    rate = copy_rate(clock, 2**30 if on_gpu else 2**20)
    name = torch.cuda.get_device_name(device) if on_gpu else "CPU"
    what = {"device": name, **versions(), "copy_bytes_a_second": rate, "cache_bytes": clock.cache_bytes}
    print(f"{name}, torch {what['torch']}, triton {what['triton']}; copy {rate / 1e12:.2f} TB/s, read and written")
    rows: list[Row] = []
    for size in sizes:
        print(f"\n{size}\n{HEADER}")
        for shape in SHAPES[size]:
            for kind in (ops, products):
                for row in kind(clock, *shape):
                    if kind is ops and not row.error:
                        row.share_of_copy = row.bytes / row.seconds / rate
                    rows.append(row)
                    print(line(row), flush=True)
                    if args.json:
                        write(args.json, what, rows)
    return int(any(row.error for row in rows))


def write(path: Path, what: dict[str, Any], rows: list[Row]) -> None:
    """All rows so far."""
    made = [{**dataclasses.asdict(row), "ratio": row.ratio} for row in rows]
    for row in made:
        row["seconds"] = None if math.isnan(row["seconds"]) else row["seconds"]
    path.write_text(json.dumps({**what, "rows": made}, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
