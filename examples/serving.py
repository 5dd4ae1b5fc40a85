"""Measure what a trained model loses when it is served: export it, load it back with transformers, and compare.

    python examples/train_hf.py --steps 300 --bf16 --out runs/hf
    python examples/serving.py runs/hf/checkpoint-300 --recipe quartet

One line a file: its bytes, and the loss on held-out text of the model that transformers made of it. The first two lines
are the trained model itself, in FP4 as it was trained and in bfloat16. The last tells what a refit costs: reading
`qc.export_state` once, against a copy of the bfloat16 weights.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import text
import torch
from torch import nn
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

import quartet_compile as qc

FILES = {
    "bf16": ("bf16", False),
    "compressed-tensors": ("compressed-tensors", False),
    "compressed-tensors, unrotated": ("compressed-tensors", True),
}
"""Each file, its format, and whether its weights are quantized without rotation."""


@torch.no_grad()
def loss(model: nn.Module, data: torch.Tensor, length: int, windows: int) -> float:
    """The mean loss a byte over consecutive windows of a text."""
    rows = data[: length * windows].view(-1, 16, length).long()
    losses = [float(model(input_ids=batch, labels=batch).loss) for batch in rows]
    return statistics.fmean(losses)


def load(folder: Path) -> nn.Module:
    """What transformers makes of a checkpoint, with dense weights."""
    quantized = "quantization_config" in (folder / "config.json").read_text()
    how = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if quantized else {}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **how)


def seconds(action: Callable[[], object], times: int) -> float:
    """The median time of an action."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        action()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def main(argv: list[str] | None = None) -> dict:
    """Print the table; returns losses and sizes by line, and the times of a refit."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("checkpoint", type=Path)
    p.add_argument("--recipe", default="quartet", help="that it was trained with")
    p.add_argument("--length", type=int, default=64)
    p.add_argument("--windows", type=int, default=512, help="a multiple of 16")
    p.add_argument("--times", type=int, default=9, help="repetitions of a refit")
    args = p.parse_args(argv)
    data = text.load().validation
    trained = AutoModelForCausalLM.from_pretrained(args.checkpoint, dtype=torch.bfloat16)
    measure = dict(data=data, length=args.length, windows=args.windows)
    made: dict = {"bfloat16, not quantized": {"loss": loss(trained, **measure)}}
    made[f"trained with {args.recipe}"] = {"loss": loss(qc.quartet(trained, recipe=args.recipe), **measure)}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="quartet: exported as")
        for name, (format, unrotated) in FILES.items():
            rotation = qc.recipe(args.recipe).fprop.b.rotation
            if bool(rotation) != unrotated and format != "bf16":
                continue  # transformers ignores the rotation of a file, and there is none to leave out
            served = Path(folder, "served")
            exported = qc.export(args.checkpoint, served, format=format, unrotated=unrotated, recipe=args.recipe)
            size = sum(each.bytes for each in exported.tensors)
            made[f"{name}, by transformers"] = {"loss": loss(load(served), **measure), "bytes": size}
            shutil.rmtree(served)
    for name, figures in made.items():
        print(f"{name:46s} loss {figures['loss']:.4f}   {figures.get('bytes', 0):>12,}".rstrip(" ,"))
    state = qc.export_state(trained, recipe=args.recipe)
    refit = seconds(lambda: [tensor for _, tensor in state], args.times)
    copy = seconds(lambda: [tensor.clone() for tensor in trained.state_dict().values()], args.times)
    sent = sum(tensor.nbytes for _, tensor in state)
    held = sum(tensor.nbytes for tensor in trained.state_dict().values())
    print(
        f"a refit takes {refit:.4f} s and gives {sent:,} bytes; a copy of all weights {copy:.4f} s and {held:,} bytes"
    )
    return {"lines": made, "refit": {"seconds": refit, "copy_seconds": copy, "bytes": sent, "copy_bytes": held}}


if __name__ == "__main__":
    main()
