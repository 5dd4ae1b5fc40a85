"""What `weight_cache=True` spends and saves for one weight on a CPU: `python examples/bench_weight_cache.py --size 4096`.

Milliseconds of processor time of one thread, the best of some rounds in which all take turns: to quantize the weight with a
trust mask, to know it again by its bytes, to copy what was kept, and to transpose the codes of square blocks.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from quartet_compile.kernels import cpu
from quartet_compile.kernels.cpu.fingerprint import fingerprint
from quartet_compile.kernels.quantizer import quantizer
from quartet_compile.tables import aligned


def work(weight: torch.Tensor) -> dict[str, Callable[[], object]]:
    """What is timed."""
    quest, square = quantizer("mxfp4-quest"), quantizer("nvfp4-rtn-2d")
    kept, blocks = cpu.quantize(weight, quest, mask=True), cpu.quantize(weight, square)
    return {
        "quantize, mxfp4-quest with mask": lambda: cpu.quantize(weight, quest, mask=True),
        "fingerprint of the weight": lambda: fingerprint(weight),
        "copy of codes, scales and mask": lambda: [part.clone() for part in (kept.codes, kept.scales, kept.mask)],
        "quantize, nvfp4-rtn-2d": lambda: cpu.quantize(weight, square),
        "transpose its codes": lambda: cpu.transposed(blocks, square),
    }


def best(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Milliseconds of each."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, call in ways.items():
            start = time.process_time()
            call()
            taken[name].append(1e3 * (time.process_time() - start))
    return {name: min(times) for name, times in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=4096, help="rows and columns of the weight")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    weight = torch.randn(options.size, options.size)
    found = {str(dtype)[6:]: best(work(weight.to(dtype)), options.rounds) for dtype in (torch.float32, torch.bfloat16)}
    rows = [(name, *(f"{times[name]:.1f}" for times in found.values())) for name in found["float32"]]
    print("\n".join(aligned([("ms", *found), *rows])))


if __name__ == "__main__":
    main()
