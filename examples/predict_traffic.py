"""What ranks send under FSDP by DTensor, with `wire="quantized"` and without: `python examples/predict_traffic.py`.

On paper: bytes are counted, times are bytes over a bandwidth, and nothing is run. docs/scale.md has the table and says what
it assumes.
"""

from __future__ import annotations

import argparse
import dataclasses

from quartet_compile.kernels.quantizer import quantizer
from quartet_compile.machines.targets import find_target

BF16, CODES = 2.0, (quantizer("mxfp4-quest").bits + 1) / 8
"""Bytes an element: a weight in bf16; its codes and scales, with a bit of the trust mask."""

GATHERS = 2
"""In a step: for the forward and for the backward pass, between which the weights are freed."""

CHIP = find_target("b200")


@dataclasses.dataclass(frozen=True)
class Model:
    """A Llama: its sizes."""

    name: str
    width: int
    hidden: int
    layers: int
    keys: int
    words: int = 128256

    @property
    def linears(self) -> int:
        """Weights of the blocks' linear layers, which are quantized."""
        return self.layers * (2 * self.width**2 + 2 * self.width * self.keys + 3 * self.width * self.hidden)

    @property
    def others(self) -> int:
        """Embedding, output head and norms, which are not."""
        return 2 * self.words * self.width + (2 * self.layers + 1) * self.width


MODELS = (Model("Llama 3 8B", 4096, 14336, 32, 1024), Model("Llama 3 70B", 8192, 28672, 80, 1024))


@dataclasses.dataclass(frozen=True)
class Step:
    """What a GPU receives in a step, in bytes: gathers as they are and in codes; gradients, reduced in bf16."""

    gathers: float
    codes: float
    gradients: float

    @property
    def saved(self) -> float:
        """The part of all bytes that codes save."""
        return (self.gathers - self.codes) / (self.gathers + self.gradients)


def step(model: Model, gpus: int) -> Step:
    """Of a model that is sharded over all GPUs: a ring gives each the parts of all others."""
    received = (gpus - 1) / gpus
    whole = BF16 * (model.linears + model.others)
    return Step(
        gathers=received * GATHERS * whole,
        codes=received * GATHERS * (CODES * model.linears + BF16 * model.others),
        gradients=received * whole,
    )


def matmul_seconds(model: Model, tokens: int, busy: float) -> float:
    """Of the three GEMMs of a step in FP4, those of the head in bf16, without attention. busy: the part of the peak rate."""
    head = model.words * model.width
    return 6 * tokens / busy * (model.linears / CHIP.rates["fp4"] + head / CHIP.rates["bf16"])


def hidden_from(model: Model, sent: float, bandwidth: float, busy: float) -> int:
    """Tokens a GPU and step from which the matmuls take longer than what is sent."""
    return round(sent / bandwidth / matmul_seconds(model, 1, busy))


def table(bandwidth: float, busy: float) -> list[str]:
    """Rows of Markdown. bandwidth: bytes a second of each GPU to other nodes."""
    lines = [
        "| model | GPUs | gathered, bf16 | codes | with gradients, bf16 | codes | at "
        f"{bandwidth / 1e9:g} GB/s, bf16 | codes | hidden from, bf16 | codes |",
        "|-|-|-|-|-|-|-|-|-|-|",
    ]
    for model in MODELS:
        for gpus in (64, 1024):
            sent = step(model, gpus)
            totals = [each + sent.gradients for each in (sent.gathers, sent.codes)]
            cells = [model.name, str(gpus)]
            cells += [f"{each / 1e9:.1f} GB" for each in (sent.gathers, sent.codes, *totals)]
            cells += [f"{each / bandwidth:.2f} s" for each in totals]
            cells += [f"{hidden_from(model, each, bandwidth, busy):,} tokens" for each in totals]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--bandwidth", type=float, default=50, help="GB/s of each GPU to other nodes (default: %(default)s)"
    )
    parser.add_argument(
        "--busy", type=float, default=0.5, help="part of the peak rate of matmuls (default: %(default)s)"
    )
    options = parser.parse_args(argv)
    print("\n".join(table(1e9 * options.bandwidth, options.busy)))


if __name__ == "__main__":
    main()
