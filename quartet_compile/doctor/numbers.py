"""Whether this machine computes the bits of the reference, and how fast it multiplies."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn

from ..kernels.cpu import native, scaled_mm
from ..kernels.numerics import reference
from ..kernels.quantizer import quantizer

SIZES = (512, 1792, 640)
"""M, N and K of the product that is timed: gate or up of a Llama of 30M."""

ROUNDS = 15


def bits() -> tuple[bool, str]:
    """The C++ kernels build, and quantize a matrix to the bits of the reference."""
    x = torch.randn(64, 128, generator=_drawn())
    names = ["mxfp4-quest", "mxfp4-sr", "nvfp4-rtn", "mxfp8"]
    wrong = [name for name in names if not all(_equal_parts(x, name))]
    if wrong:
        return False, f"the CPU kernels differ from the reference: {', '.join(wrong)}"
    return True, f"the CPU kernels equal the reference, 64x128 by {', '.join(names)}; on a GPU: make gpu-check"


def products() -> tuple[bool, str]:
    """Products of few enough terms to be exact in any order: with scales alike, and far enough apart for AMX's bf16."""
    drawn = _drawn()
    for span in (1, 6):
        a, b = (
            reference.Blocks(
                torch.randint(0, 256, (rows, 64), generator=drawn, dtype=torch.uint8),
                torch.randint(120, 120 + wide, (rows, 4), generator=drawn, dtype=torch.uint8),
                torch.empty(0),
                None,
                "mxfp4",
            )
            for rows, wide in ((40, span), (70, 1))
        )
        if not torch.equal(scaled_mm(a, b, 1.0, torch.float32), reference.scaled_mm(a, b, 1.0, torch.float32)):
            return False, f"the CPU's product differs from the reference, scales {span - 1} binades apart"
    return True, "the CPU's product equals the reference, 40x70x128 of MXFP4, scales alike and 5 binades apart"


def linear() -> tuple[bool, str]:
    """A compiled linear layer of two groups, whose sums are the same in any order."""
    from ..frontend.said import log  # here, since it loads torch's compiler

    drawn, layer = _drawn(), nn.Linear(64, 64, bias=False)
    x, weight = (torch.randn(64, 64, generator=drawn) for _ in range(2))
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with torch.no_grad():
            layer.weight.copy_(weight)
            found = torch.compile(layer, backend="quartet")(x)
    except RuntimeError as error:  # Dynamo's, Inductor's, the C++ compiler's
        said = [line for line in str(error).splitlines() if line.strip()]
        return False, f"a linear layer can't be compiled: {said[0] if said else type(error).__name__}"
    finally:
        log.setLevel(level)
    a, b = (reference.quantize(operand, quantizer("mxfp4-quest")) for operand in (x, weight))
    if not torch.equal(found, reference.scaled_mm(a, b, 1.0, torch.float32)):
        return False, "a compiled linear layer differs from the reference, 64x64x64"
    return True, "a compiled linear layer equals the reference, 64x64x64 by quartet"


def speed() -> str:
    """Products of MXFP4 over those of float32 and bf16 on this CPU, in turn, and what quantizing X takes of one."""
    m, n, k = SIZES
    drawn, quest = _drawn(), quantizer("mxfp4-quest")
    x, w = torch.randn(m, k, generator=drawn), torch.randn(n, k, generator=drawn)
    low, a, b = (x.bfloat16(), w.bfloat16()), native.quantize(x, quest), native.quantize(w, quest)
    times = _best(
        {
            "float32": lambda: x @ w.T,
            "bf16": lambda: low[0] @ low[1].T,
            "MXFP4": lambda: scaled_mm(a, b, 1.0, torch.float32),
            "quantizing": lambda: native.quantize(x, quest),
        }
    )
    own = times["MXFP4"]
    return (
        f"a product of MXFP4 is {times['float32'] / own:.2f}x as fast as float32's here and {times['bf16'] / own:.2f}x as "
        f"fast as bf16's ({m}x{n}x{k}, {1e3 * own:.2f} ms, threads: {torch.get_num_threads()}, best of {ROUNDS}); "
        f"quantizing X takes {times['quantizing'] / own:.2f} of it. A training step of your model: advise --measure"
    )


def _best(ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of each, the least of rounds in which all take turns: other work on the machine only adds to them."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, call in ways.items():
            start = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - start)
    return {name: min(seconds) for name, seconds in taken.items()}


def _drawn() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _equal_parts(x: torch.Tensor, name: str) -> Iterator[bool]:
    chosen, seed = quantizer(name), torch.tensor(1)
    ours = native.quantize(x, chosen, seed=seed, sign_seed=seed)
    expected = reference.quantize(x, chosen, seed=seed, sign_seed=seed)
    for part in ("codes", "scales"):
        yield torch.equal(getattr(ours, part).view(torch.uint8), getattr(expected, part).view(torch.uint8))
