"""Whether rounding is unbiased: products of operands that are rounded afresh each time, averaged.

    python examples/averaged_products.py [--draws 16384] [--size 128] [--device cpu]

Two Gaussian matrices are multiplied, both operands rounded with the signs and noise of seeds 0, 1, 2, ... With error the
squared distance from the exact product over its square:

* one product: the error of a single product, the mean over all draws.
* B = ...: B times the error of the mean of B products, over that of one; the mean over disjoint means of B, and its
  standard error. 1 if nothing is biased.
* short: 1 - <mean of all products, exact> / <exact, exact>.

`again by` is the transpose of an operand in `mxfp4-quest`, quantized again; its exact product is that of what it stands for.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from quartet_compile.kernels import cpu
from quartet_compile.kernels.numerics import philox, reference
from quartet_compile.kernels.quantizer import Quantizer, quantizer

BATCHES = (256, 1024, 4096)
STREAMS = (philox.WGRAD_DY, philox.WGRAD_X)
AGAIN = "mxfp4-quest"
CASES = (
    (True, "mxfp4-sr"),
    (True, "mxfp4-sr,noise_bits=16"),
    (True, "mxfp4-rtn"),
    (False, "mxfp4-sr"),
    (False, "mxfp4-sr,noise_bits=16"),
    (False, "nvfp4-sr,rotation=128,random_signs=True"),
    (False, "nvfp4-sr,rotation=128,random_signs=True,noise_bits=16"),
)
"""Whether the operands are quantized again, and the quantizer."""


def products(again: bool, chosen: Quantizer, size: int, device: str) -> tuple[Tensor, Callable[[int], Tensor]]:
    """The exact `A^T B`, and what gives the product of a seed."""
    kernels = cpu if device == "cpu" else reference
    generator = torch.Generator().manual_seed(2)
    sources = [torch.randn(size, size, generator=generator).to(device) for _ in STREAMS]
    source_quantizer = quantizer(AGAIN)
    held = [reference.quantize(x, source_quantizer) for x in sources]
    exact_operands = [reference.decode(blocks, source_quantizer) for blocks in held] if again else sources

    def product(seed: int) -> Tensor:
        key = torch.tensor(seed, device=device)
        operands = [
            kernels.requantize(held[i], source_quantizer, chosen, stream=stream, seed=key, sign_seed=key)
            if again
            else kernels.quantize(sources[i], chosen, transpose=True, stream=stream, seed=key, sign_seed=key)
            for i, stream in enumerate(STREAMS)
        ]
        return reference.scaled_mm(*operands, chosen.gain**2, torch.float32).double()

    left, right = (x.double() for x in exact_operands)
    return left.t() @ right, product


def figures(exact: Tensor, drawn: Iterator[Tensor]) -> tuple[float, dict[int, list[float]], float]:
    """The error of one product, those of the disjoint means of each of `BATCHES`, and how short the mean of all is."""
    single, sums, errors = [], {size: torch.zeros_like(exact) for size in BATCHES}, {size: [] for size in BATCHES}
    total, energy = torch.zeros_like(exact), exact.square().sum()
    for count, y in enumerate(drawn, 1):
        single.append(((y - exact).square().sum() / energy).item())
        total += y
        for size in BATCHES:
            sums[size] += y
            if count % size == 0:
                errors[size].append(((sums[size] / size - exact).square().sum() / energy).item())
                sums[size].zero_()
    short = 1 - ((total / len(single) * exact).sum() / energy).item()
    return statistics.fmean(single), errors, short


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--draws", type=int, default=4 * BATCHES[-1], help="products (default: %(default)s)")
    p.add_argument("--size", type=int, default=128, help="of the square operands (default: %(default)s)")
    p.add_argument("--device", default="cpu", help="default: %(default)s; another runs the reference")
    args = p.parse_args(argv)
    print(f"| operands | one product | {' | '.join(f'B = {size}' for size in BATCHES)} | short |")
    print("|-|-|" + "-|" * len(BATCHES) + "-|")
    for again, name in CASES:
        chosen = quantizer(name)
        exact, product = products(again, chosen, args.size, args.device)
        single, errors, short = figures(exact, map(product, range(args.draws)))
        cells = [_cell([size * error / single for error in errors[size]]) for size in BATCHES]
        label = "again by" if again else "Gaussian by"
        print(f"| {label} `{name}` | {single:.4f} | {' | '.join(cells)} | {short:.1e} |", flush=True)


def _cell(ratios: list[float]) -> str:
    if not ratios:
        return ""
    error = f" ± {statistics.stdev(ratios) / len(ratios) ** 0.5:.3f}" if len(ratios) > 1 else ""
    return f"{statistics.fmean(ratios):.3f}{error}"


if __name__ == "__main__":
    main()
