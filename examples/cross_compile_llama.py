"""What a Llama block becomes on a GPU, compiled on a machine without one: its kernels, their instructions and registers,
and predicted times.

    python examples/cross_compile_llama.py                                   a block of width 640 on a B200
    python examples/cross_compile_llama.py --size 7B --target sm_120 --out build

Nothing runs: weights and activations have no memory (device meta), kernels are compiled to PTX and cubin.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from llama import SIZES, Block, rotary_table

import quartet_compile as qc


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    size = SIZES[options.size]
    with torch.device("meta"):
        block = Block(size).bfloat16()
        x = torch.empty(options.batch, size.seq, size.width, dtype=torch.bfloat16, requires_grad=True)
        cos, sin = rotary_table(size.seq, size.width // size.heads)
    artifact = qc.cross_compile(block, x, cos.bfloat16(), sin.bfloat16(), target=options.target, recipe=options.recipe)
    print(f"One block of a Llama of width {size.width}, {options.batch * size.seq} tokens, recipe {options.recipe!r}\n")
    print(artifact)
    if options.out:
        artifact.write(options.out)
        print(f"\nSources, PTX and cubins are in {options.out}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="30M")
    parser.add_argument("--batch", type=int, default=16, help="sequences")
    parser.add_argument("--target", choices=qc.TARGETS, default="sm_100")
    parser.add_argument("--recipe", choices=qc.recipes(), default="quartet")
    parser.add_argument("--out", help="a folder for the sources, PTX and cubins")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
