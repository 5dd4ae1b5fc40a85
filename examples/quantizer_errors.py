"""How far each quantizer is from what it quantizes: relative squared error, clipping and misalignment, as a table.

    python examples/quantizer_errors.py [--groups 131072] [--device cpu] [--seed 0]

With `h` a rotated group of 32 and `Q` its quantized values:

* error: `|Q - h|^2 / |h|^2`, the mean over groups; and of the whole, the sums over all groups divided.
* misalignment: `1 - <h, Q> / |h|^2`, the mean over groups: `1 - E[1/S]` of arXiv 2505.14669, section 4.3. An unbiased
  rounding has none.
* clipped: elements whose gradient the trust mask stops.

Data: `log-uniform` is Gaussian groups whose scales spread over one binade, so that every position between two powers of
two is equally likely; `unit` has unit variance; `outlier first` and `outlier other` have one element of 40 standard
deviations, the first of its group or another one; in `tail of n` only the first n columns are not 0, as in the last
group of a K that is not a multiple of 32.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from torch import Tensor

from quartet_compile.quantized import quantize

GROUP = 32
QUANTIZERS = ("mxfp4-quest", "mxfp4-rtn", "mxfp4-sr")
DATA = ("log-uniform", "unit", "outlier first", "outlier other", "tail of 1", "tail of 2", "tail of 3", "tail of 4")


@dataclass(frozen=True, kw_only=True)
class Figures:
    """See the module docstring."""

    error: float
    whole: float
    misalignment: float
    clipped: float


def draw(data: str, groups: int, seed: int, device: str) -> Tensor:
    """float32[groups, 32] of one of `DATA`."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, GROUP, generator=generator)
    if data.startswith("tail"):
        x[:, int(data.split()[-1]) :] = 0.0
    if data == "log-uniform" or data.startswith("tail"):
        x = x * 2.0 ** torch.rand(groups, 1, generator=generator)
    elif data.startswith("outlier"):
        x[:, 0 if data == "outlier first" else 5] = 40.0
    return x.to(device)


def measure(quantizer: str, x: Tensor, seed: int) -> Figures:
    """Errors of `quantizer` on `x: [groups, 32]`; `seed` fixes signs and noise."""
    blocks = quantize(x, quantizer, seed=seed)
    rotated = quantize(x, "exact-fixed" if blocks.signs is None else "exact-random", signs=blocks.signs).codes.double()
    values = blocks.dequantize().double()
    energy, squares = (rotated**2).sum(1), ((values - rotated) ** 2).sum(1)
    clipped = 0.0
    if blocks.mask is not None:
        kept = sum(((blocks.mask >> bit) & 1).double().mean().item() for bit in range(8)) / 8
        clipped = 1.0 - kept
    return Figures(
        error=(squares / energy).mean().item(),
        whole=(squares.sum() / energy.sum()).item(),
        misalignment=1.0 - ((values * rotated).sum(1) / energy).mean().item(),
        clipped=clipped,
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=131072, help="groups of 32 values (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of data, signs and noise (default: %(default)s)")
    options = parser.parse_args(argv)
    print("| data | quantizer | error | of the whole | misalignment | clipped |")
    print("|-|-|-|-|-|-|")
    for data in DATA:
        x = draw(data, options.groups, options.seed, options.device)
        for quantizer in QUANTIZERS:
            f = measure(quantizer, x, options.seed)
            figures = f"{f.error:.3e} | {f.whole:.3e} | {f.misalignment:.1e} | {f.clipped:.1%}"
            print(f"| {data} | `{quantizer}` | {figures} |", flush=True)


if __name__ == "__main__":
    main()
