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
from quartet_compile.cross.artifact import AT_SHARE
from quartet_compile.tables import aligned, ruled


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    size = SIZES[options.size]
    with torch.device("meta"):
        block = Block(size).bfloat16()
        x = torch.empty(options.batch, size.seq, size.width, dtype=torch.bfloat16, requires_grad=True)
        cos, sin = rotary_table(size.seq, size.width // size.heads)
    artifact = qc.cross_compile(block, x, cos.bfloat16(), sin.bfloat16(), target=options.target, recipe=options.recipe)
    print(f"One block of a Llama of width {size.width}, {options.batch * size.seq} tokens, recipe {options.recipe!r}\n")
    if not options.by_op:
        print(artifact, end="\n\n")
    print(by_op(artifact))
    if options.out:
        artifact.write(options.out)
        print(f"\nSources, PTX and cubins are in {options.out}")


HEAD = ("op", "launches", "matrix instruction", "registers", "stack", "instr/el", "MB", "by bytes us", "predicted us",
        f"{AT_SHARE} us", "bound by")  # fmt: skip


def by_op(artifact: qc.Artifact) -> str:
    """The kernels by what they do: launches, most registers and stack of a thread, most instructions an element, traffic,
    and predicted time: by bytes alone, with matrix operations and instructions, and at a part of the issue rate."""
    groups: dict[str, list] = {}
    for kernel in artifact.kernels:
        name = kernel.op.removesuffix("_transposed").removesuffix("_tma").removesuffix("_fp8") if kernel.op else ""
        name = "decode_fp8" if kernel.op == "decode_fp8" else name
        groups.setdefault(name or "Inductor's own", []).append(kernel)
    if artifact.library_calls:
        groups["library calls"] = list(artifact.library_calls)
    rows = [HEAD]
    for name in sorted(groups, key=lambda name: (name[0].isupper(), name == "library calls", name)):
        items = groups[name]
        kernels = [] if name == "library calls" else items
        rows.append(
            (
                name,
                str(sum(sum(item.launches.values()) for item in items)),
                ", ".join(dict.fromkeys(kind for kernel in kernels for kind in kernel.mma)),
                str(max(kernel.registers for kernel in kernels)) if kernels else "",
                str(max(kernel.stack_bytes for kernel in kernels)) if kernels else "",
                f"{most:.1f}"
                if (most := max([k.instructions_an_element or 0.0 for k in kernels], default=0.0))
                else "",
                f"{sum(item.bytes for item in items) / 1e6:.1f}",
                f"{sum(item.bytes for item in items) / artifact.target.bandwidth * 1e6:.1f}",
                f"{sum(item.predicted_seconds or 0 for item in items) * 1e6:.1f}",
                f"{sum(getattr(item, 'realistic_seconds', item.predicted_seconds) or 0 for item in items) * 1e6:.1f}",
                ", ".join(dict.fromkeys(item.bound for item in items if item.bound)),
            )
        )
    return "\n".join([*ruled(aligned(rows, left={0, 2, 10})), "", *comparison(artifact)])


def comparison(artifact: qc.Artifact) -> list[str]:
    """What the artifact says of the linear layers: beside bf16, and how much of their time is quantization."""
    whole = artifact.quantized
    if whole is None:
        return []
    return [
        f"The linear layers on a {artifact.target.chip}, predicted: {whole.speedup:.2f}x bf16, "
        f"{whole.realistic_speedup:.2f}x {AT_SHARE} of the issue rate. "
        f"Quantization is {whole.quantizing_share:.0%} of their time."
    ]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="30M")
    parser.add_argument("--batch", type=int, default=16, help="sequences")
    parser.add_argument("--target", choices=qc.TARGETS, default="sm_100")
    parser.add_argument("--recipe", choices=qc.recipes(), default="quartet")
    parser.add_argument("--by-op", action="store_true", help="only the short table")
    parser.add_argument("--out", help="a folder for the sources, PTX and cubins")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
