"""How far each quantizer is from what it quantizes: relative squared error, misalignment and clipping, as two tables.

    python examples/quantizer_errors.py [--groups 131072] [--device cpu] [--seed 0]

With `h` a rotated block (a group, where that is larger) and `Q` its quantized values:

* error: `|Q - h|^2 / |h|^2`, the mean over blocks; and of the whole, the sums over all blocks divided.
* misalignment: `1 - <h, Q> / |h|^2`, the mean over blocks: `1 - E[1/S]` of arXiv 2505.14669, section 4.3. An unbiased
  rounding has none.
* clipped: elements whose gradient the trust mask stops.
* bits: of storage an element, scales included.

The first table has every registered quantizer, and roundings of E8M0 scales that are not registered, beside the figures
stated in the papers (arXiv 2505.14669, 2601.22813) or measured before by this project. The second has QuEST and the two
quantizers of Quartet's backward on data that are not Gaussian.

Data: `log-uniform` is Gaussian rows whose scales spread over one binade, so that every position between two powers of
two is equally likely; `unit` has unit variance; `outlier first` and `outlier other` have one element of 40 standard
deviations, the first of its group or another one; in `tail of n` only the first n columns are not 0, as in the last
group of a K that is not a multiple of 32.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from torch import Tensor

from quartet_compile.kernels.quantizer import Quantizer, quantizer
from quartet_compile.quantized import quantize

GROUP = 32
QUARTET = ("mxfp4-quest", "mxfp4-rtn", "mxfp4-sr")
DATA = ("log-uniform", "unit", "outlier first", "outlier other", "tail of 1", "tail of 2", "tail of 3", "tail of 4")


@dataclass(frozen=True, kw_only=True)
class Figures:
    """See the module docstring."""

    error: float
    whole: float
    misalignment: float
    clipped: float


@dataclass(frozen=True)
class Stated:
    """A published figure: of which quantizer, on which data, the error (`of` names the kind) and the misalignment."""

    name: str
    data: str
    error: float | None = None
    of: str = "error"
    misalignment: float | None = None


STATED = (
    Stated("mxfp4-quest", "log-uniform", 2.24e-2),
    Stated("mxfp4-quest", "unit", 2.7e-2, "whole"),
    Stated("mxfp4-quest,scale_rounding=nearest", "log-uniform", 1.34e-2),
    Stated("mxfp4-quest,scale_rounding=nearest", "unit", 1.27e-2, "whole"),
    Stated("mxfp4-quest,scale_rounding=error", "log-uniform", 1.25e-2),
    Stated("mxfp4-quest,scale_rounding=error", "unit", 1.25e-2),
    Stated("scale_rounding=down", "unit", 1.32e-2, "whole"),
    Stated("scale_rounding=up", "unit"),
    Stated("scale_rounding=error", "unit"),
    Stated("mxfp4-rtn", "log-uniform", 1.37e-2, misalignment=9.4e-3),
    Stated("mxfp4-sr", "log-uniform", 2.78e-2, misalignment=0.0),
    Stated("mxfp4-eden", "log-uniform"),
    Stated("mxfp4-rtn-2d", "unit"),
    Stated("nvfp4-rtn", "unit", 9.0e-3),
    Stated("nvfp4-rtn-4over6", "unit", 7.56e-3),
    Stated("nvfp4-rtn-2d", "unit", 1.24e-2, "whole"),
    Stated("nvfp4-rtn-2d-4over6", "unit"),
    Stated("nvfp4-sr", "unit", 2.35e-2, misalignment=0.0),
    Stated("nvfp4-eden", "unit", 9.73e-3, misalignment=5.6e-4),
    Stated("nvfp4-eden,rotation=16", "unit", 9.32e-3),
    Stated("mxfp8", "unit"),
)
"""`scale_rounding=down` is OCP's MXFP4 of absmax, after a rotation. With a rotation of 16, EDEN's S is of one group, as in
the published fused kernels."""


def draw(data: str, groups: int, seed: int, device: str, columns: int = GROUP) -> Tensor:
    """float32[groups * 32 / columns, columns] of one of `DATA`."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups * GROUP // columns, columns, generator=generator)
    if data.startswith("tail"):
        x[:, int(data.split()[-1]) :] = 0.0
    if data == "log-uniform" or data.startswith("tail"):
        x = x * 2.0 ** torch.rand(len(x), 1, generator=generator)
    elif data.startswith("outlier"):
        x[:, 0 if data == "outlier first" else 5] = 40.0
    return x.to(device)


def measure(name: str, x: Tensor, seed: int) -> Figures:
    """Errors of a quantizer on `x: [rows, columns]`, whole blocks; `seed` fixes signs and noise."""
    chosen = quantizer(name)
    blocks = quantize(x, chosen, seed=seed)
    exact = Quantizer(elements="float32", rotation=chosen.rotation, random_signs=chosen.random_signs)
    rotated = quantize(x, exact, signs=blocks.signs).dequantize().double().reshape(-1, chosen.block)
    values = blocks.dequantize().double().reshape(-1, chosen.block)
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


def print_all(groups: int, device: str, seed: int) -> None:
    """Every registered quantizer, and some others, beside what was stated."""
    print("| quantizer | bits | data | error | of the whole | stated | misalignment | stated |")
    print("|-|-|-|-|-|-|-|-|")
    for s in STATED:
        chosen = quantizer(s.name)
        f = measure(s.name, draw(s.data, groups, seed, device, max(GROUP, chosen.block)), seed)
        error = "" if s.error is None else f"{s.error:.3g}" + (" (whole)" if s.of == "whole" else "")
        misalignment = "" if s.misalignment is None else f"{s.misalignment:.1e}" if s.misalignment else "0"
        figures = f"{f.error:.3e} | {f.whole:.3e} | {error} | {f.misalignment:.1e} | {misalignment}"
        print(f"| `{s.name}` | {chosen.bits} | {s.data} | {figures} |", flush=True)


def print_clipping(groups: int, device: str, seed: int) -> None:
    """Quartet's three quantizers on all of `DATA`."""
    print("| data | quantizer | error | of the whole | misalignment | clipped |")
    print("|-|-|-|-|-|-|")
    for data in DATA:
        x = draw(data, groups, seed, device)
        for name in QUARTET:
            f = measure(name, x, seed)
            figures = f"{f.error:.3e} | {f.whole:.3e} | {f.misalignment:.1e} | {f.clipped:.1%}"
            print(f"| {data} | `{name}` | {figures} |", flush=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=131072, help="groups of 32 values (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of data, signs and noise (default: %(default)s)")
    options = parser.parse_args(argv)
    print_all(options.groups, options.device, options.seed)
    print()
    print_clipping(options.groups, options.device, options.seed)


if __name__ == "__main__":
    main()
