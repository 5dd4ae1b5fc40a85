"""Resident memory of a model's frozen weights in bfloat16, and packed as FP4 codes (`qc.pack`): Linux only.

    python examples/packed_memory.py --size 30M
    python examples/packed_memory.py --size 430M

Anonymous memory of this process, as Linux counts it, before the model, with it, and once it is packed. The output head is
packed too, the embedding table isn't.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
from pathlib import Path
from typing import NamedTuple

import torch
import transformers as hf

import quartet_compile as qc

SIZES = {
    "test": dict(vocab_size=512, hidden_size=512, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=8),
    "30M": dict(vocab_size=2048, hidden_size=640, intermediate_size=1792, num_hidden_layers=6, num_attention_heads=10),
    "430M": dict(
        vocab_size=16384, hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16
    ),
}


class Resident(NamedTuple):
    """MiB of a model's weights in bfloat16 and packed; parameters: how many."""

    parameters: int
    before: float
    packed: float


def resident() -> float:
    """MiB of anonymous memory of this process, without what it has freed."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


@torch.no_grad()
def llama(sizes: dict[str, int]) -> torch.nn.Module:
    """A frozen Llama in bfloat16, each page of its weights written to."""
    model = hf.AutoModelForCausalLM.from_config(hf.LlamaConfig(**sizes), dtype=torch.bfloat16).requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0)
    return model


def measure(size: str) -> Resident:
    qc.pack(llama({**SIZES["test"], "num_hidden_layers": 1}), include=["*"])  # loads what packing needs
    start = resident()
    model = llama(SIZES[size])
    count, before = sum(parameter.numel() for parameter in model.parameters()), resident() - start
    qc.pack(model, include=["*"])
    return Resident(count, before, resident() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="30M")
    size = parser.parse_args().size
    found = measure(size)
    ratio = found.packed / found.before
    print(
        f"{found.parameters / 1e6:.0f}M parameters: bfloat16 {found.before:.0f} MiB, packed {found.packed:.0f}, {ratio:.3f}"
    )


if __name__ == "__main__":
    main()
