"""Tokens a second of greedy generation with a model of examples/llama.py: full precision, FP4 with weights that every
forward quantizes, and FP4 with packed weights (`qc.pack`), turn by turn in one run.

    python examples/generate_packed.py --size demo --window 1

Each token is one forward of the last `--window` tokens, without a cache of keys and values, so M is the window.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from llama import SIZES, Llama
from torch import Tensor, nn

import quartet_compile as qc


def generate(model: Callable[[Tensor], Tensor], window: int, tokens: int) -> Tensor:
    """`tokens` bytes after some zeros, each the likeliest."""
    text = torch.zeros(1, window, dtype=torch.int64, device="cpu")
    for _ in range(tokens):
        following = model(text[:, -window:])[:, -1].argmax(-1, keepdim=True)
        text = torch.cat([text, following], dim=1)
    return text[:, window:]


def ways(model: nn.Module) -> dict[str, Callable[[Tensor], Tensor]]:
    """The compiled models, by what their weights are."""
    return {
        "full precision, plain Inductor": torch.compile(copy.deepcopy(model)),
        "FP4, weights quantized by each forward": qc.quartet(copy.deepcopy(model)),
        "FP4, weights packed": qc.quartet(qc.pack(copy.deepcopy(model))),
    }


@torch.no_grad()
def measure(size: str, window: int, tokens: int, turns: int) -> dict[str, float]:
    """Tokens a second, the median over turns. Raises `AssertionError` if packing changes the text."""
    torch.manual_seed(0)
    model = Llama(SIZES[size]).eval().requires_grad_(False)
    models, texts = ways(model), {}
    for name, each in models.items():
        texts[name] = generate(each, window, tokens)
    assert torch.equal(texts["FP4, weights packed"], texts["FP4, weights quantized by each forward"])
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(turns):
        for name, each in models.items():
            start = time.perf_counter()
            generate(each, window, tokens)
            seconds[name].append(time.perf_counter() - start)
    return {name: tokens / statistics.median(took) for name, took in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="demo")
    parser.add_argument("--window", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--turns", type=int, default=7)
    given = parser.parse_args()
    found = measure(given.size, given.window, given.tokens, given.turns)
    base = found["FP4, weights quantized by each forward"]
    for name, rate in found.items():
        print(f"{name}: {rate:.1f} tokens a second, {rate / base:.2f}x")


if __name__ == "__main__":
    main()
