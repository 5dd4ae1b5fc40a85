"""Time and memory of a training step of the Llama, FP4 beside full precision, interleaved in one run.

    python examples/bench_step.py                     steps of the 6-layer, 640-wide model, 512 tokens, 2 threads, in
                                                      float32 and under bf16 autocast
    python examples/bench_step.py --threads 1 --clock processor      where other work is on the machine
    python examples/bench_step.py --no-swap --accumulate 8 --weight-cache      steps of 8 microbatches, each of 512 tokens,
                                                      with weights that are quantized once a step too
    python examples/bench_step.py --swap-compiled     also module swap under torch.compile (compiles for minutes)
    python examples/bench_step.py --device cuda       on a GPU: bf16 autocast, 4 layers of width 2048, 4 x 2048 tokens
    python examples/bench_compile.py                  first call, the pass's share of it, growth with the layers

Each variant has its own copy of the model and its own AdamW; the variants take turns, so that a change of the machine's
speed meets them all. Figures are medians; ratios are to plain Inductor of the same dtype, taken round by round.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from llama import SIZES, Llama, Size
from module_swap import BackwardSeeds, swap_linears
from torch import Tensor, nn

import quartet_compile as qc
from quartet_compile._compat import graph_nodes, saved_bytes, saved_tensors

DTYPES = {"float32": None, "bfloat16": torch.bfloat16}
"""What the model computes in: as it is, or under autocast."""

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
"""Processor time leaves out what other work takes of the machine, and is of all threads together."""


@dataclasses.dataclass
class Variant:
    """One way to train the model: the module that owns the weights, and the function that computes its loss."""

    name: str
    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    seeds: BackwardSeeds | None = None
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.first_call = 0.0
        self.gradient_seconds: list[float] = []
        self.step_seconds: list[float] = []
        self.saved = 0
        self.packed = 0

    def step(
        self,
        tokens: Tensor,
        targets: Tensor,
        record: bool,
        now: Callable[[], float] = time.perf_counter,
        accumulate: int = 1,
    ) -> None:
        """Forward and backward of so many microbatches, and the optimizer step, timed by `now`."""
        start = now()
        for _ in range(accumulate):
            self.microbatch(tokens, targets)
        synchronize(tokens.device)
        middle = now()
        self.optimizer.step()
        self.optimizer.zero_grad()
        synchronize(tokens.device)
        end = now()
        if record:
            self.gradient_seconds.append(middle - start)
            self.step_seconds.append(end - start)
        elif not self.first_call:
            self.first_call = end - start

    def microbatch(self, tokens: Tensor, targets: Tensor) -> None:
        if self.seeds is not None:
            self.seeds.reset()
        torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(tokens.device.type, self.dtype) if self.dtype else contextlib.nullcontext():
            loss = self.loss(tokens, targets)
        if not self.saved:
            self.saved, self.packed = saved_bytes(loss, self.model), packed_bytes(loss)
        loss.backward()


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def packed_bytes(loss: Tensor) -> int:
    """Bytes of codes, scales and mask bits saved for backward: the tensors of bytes."""
    saved = [tensor for node in graph_nodes(loss.grad_fn) for tensor in saved_tensors(node)]
    return sum({t.data_ptr(): t.nbytes for t in saved if t.dtype in (torch.uint8, torch.float8_e4m3fn)}.values())


def operand_elements(model: Llama, tokens: int) -> int:
    """Elements of the distinct X and W of all rewritten matmuls: four X and seven W a block."""
    block = model.layers[0]
    width, hidden = block.mlp.gate_proj.in_features, block.mlp.gate_proj.out_features
    weights = sum(m.weight.numel() for m in block.modules() if isinstance(m, nn.Linear))
    return len(model.layers) * (weights + tokens * (3 * width + hidden))


def variants(
    model: Llama,
    recipes: list[str],
    swap_eager: bool = False,
    swap_compiled: bool = False,
    *,
    dtype: str = "float32",
    mode: str | None = None,
    weight_cache: bool = False,
) -> list[Variant]:
    """The variants, the baseline first. mode: of `torch.compile`, for the baseline and the backend. weight_cache: the
    backend with that option too."""
    made = []
    precision = "full precision" if dtype == "float32" else "bf16"
    ours = "" if dtype == "float32" else ", bf16"

    def add(name: str, compile_: Callable | None, recipe: str | None = None) -> None:
        copied = copy.deepcopy(model)
        seeds = swap_linears(copied, qc.recipe(recipe)) if recipe else None
        made.append(Variant(name, copied, compile_(copied) if compile_ else copied, seeds, DTYPES[dtype]))

    add(f"Inductor, {precision}", lambda m: torch.compile(_own_code(m), dynamic=False, mode=mode))
    for recipe in recipes:
        how = {"recipe": recipe, **({"mode": mode} if mode else {})}
        add(f"quartet backend, {recipe}{ours}", functools.partial(_with_quartet, options=how))
        if weight_cache:
            add(f"  with weight_cache{ours}", functools.partial(_with_quartet, options={**how, "weight_cache": True}))
    add(f"eager, {precision}", None)
    if swap_eager:
        add(f"module swap, eager reference{ours}", None, recipes[0])
    if swap_compiled:
        add(f"module swap, Inductor{ours}", lambda m: torch.compile(_own_code(m), dynamic=False), recipes[0])
    return made


def _with_quartet(model: nn.Module, options: dict[str, object]) -> Callable:
    return torch.compile(_own_code(model), backend="quartet", dynamic=False, options=options)


def _own_code(model: nn.Module) -> Callable:
    """A function with its own code object, so that the variants share no compilation cache and no recompile limit."""

    def loss(tokens: Tensor, targets: Tensor) -> Tensor:
        return model(tokens, targets)

    return type(loss)(loss.__code__.replace(), loss.__globals__, "loss", None, loss.__closure__)


def measure(
    made: list[Variant], batch: tuple[Tensor, Tensor], rounds: int, clock: str = "wall", accumulate: int = 1
) -> None:
    """Warm-up steps, enough to capture a CUDA graph, then `rounds` rounds in which the variants take turns."""
    for variant in made:
        for _ in range(2 if batch[0].device.type == "cpu" else 4):
            variant.step(*batch, record=False, now=CLOCKS[clock])
    for number in range(rounds):
        for variant in made[number % len(made) :] + made[: number % len(made)]:
            variant.step(*batch, record=True, now=CLOCKS[clock], accumulate=accumulate)


def table(made: list[Variant], elements: int) -> str:
    """One line a variant."""
    lines = [
        f"{'variant':<32} {'fwd+bwd ms':>10} {'ratio':>6} {'step ms':>8} {'ratio':>6} {'saved MB':>9} "
        f"{'packed B/elem':>13}"
    ]
    for v in made:
        base = _base(v, made)
        lines.append(
            f"{v.name:<32} {1e3 * statistics.median(v.gradient_seconds):>10.1f} "
            f"{_ratio(v.gradient_seconds, base.gradient_seconds):>6.2f} "
            f"{1e3 * statistics.median(v.step_seconds):>8.1f} {_ratio(v.step_seconds, base.step_seconds):>6.2f} "
            f"{v.saved / 1e6:>9.1f} "
            f"{v.packed / elements if v.packed else float('nan'):>13.3f}"
        )
    return "\n".join(lines)


def _base(variant: Variant, made: list[Variant]) -> Variant:
    """What a variant is compared with: the first of its dtype."""
    return next(v for v in made if v.dtype == variant.dtype)


def _ratio(times: list[float], base: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(times, base, strict=True))


def describe(args: argparse.Namespace, size: Size) -> str:
    """What was measured, in one line."""
    model = f"{args.size} Llama" if size == SIZES[args.size] else f"Llama of {size.layers} layers of width {size.width}"
    where = f"cpu, {args.threads} threads"
    if args.device != "cpu":
        graphs = "with CUDA graphs" if args.cudagraphs else "without CUDA graphs"
        where = f"{torch.cuda.get_device_name(args.device)}, {graphs}"
    dtype = " and ".join("float32" if name == "float32" else "bf16 autocast" for name in args.dtype)
    tokens = f"{args.accumulate} microbatches of {args.tokens}" if args.accumulate > 1 else f"{args.tokens}"
    return (
        f"{model}, {tokens} tokens a step, {dtype}, {where}, torch {torch.__version__}, {args.clock} time, "
        f"medians of {args.rounds} interleaved rounds"
    )


def record(made: list[Variant], what: str) -> dict:
    """Every time that was measured, and the ratios of the table."""
    fields = ("name", "first_call", "gradient_seconds", "step_seconds", "saved", "packed")
    return {
        "what": what,
        "variants": [
            {
                **{field: getattr(v, field) for field in fields},
                "gradient_ratio": _ratio(v.gradient_seconds, _base(v, made).gradient_seconds),
                "step_ratio": _ratio(v.step_seconds, _base(v, made).step_seconds),
            }
            for v in made
        ],
    }


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments, with the defaults of the device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, help="default: 30M; on a GPU 800M with 4 of its 16 layers")
    parser.add_argument("--layers", type=int, help="so many layers of that size")
    parser.add_argument("--tokens", type=int, help="tokens a step (512; 8192 on a GPU)")
    parser.add_argument("--seq", type=int, help="in sequences of so many (all in one; 2048 on a GPU)")
    parser.add_argument("--recipe", nargs="+", default=["quartet"])
    parser.add_argument("--accumulate", type=int, default=1, help="microbatches of --tokens a step (1)")
    parser.add_argument("--weight-cache", action="store_true", help="also with weight_cache=True")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, help="default: both; on a GPU bfloat16, by autocast")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="processor time is of all threads together")
    parser.add_argument("--cudagraphs", action="store_true", help="compile with mode='reduce-overhead'")
    parser.add_argument("--no-swap", action="store_true", help="leave out the slow baseline by module swap")
    parser.add_argument("--swap-compiled", action="store_true", help="also compile it (minutes)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    on_cpu = args.device == "cpu"
    if not on_cpu and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: this PyTorch ({torch.__version__}) sees no GPU")
    if not on_cpu and args.size is None:
        args.layers = args.layers or 4
    args.size = args.size or ("30M" if on_cpu else "800M")
    args.tokens = args.tokens or (512 if on_cpu else 8192)
    args.seq = args.seq or (args.tokens if on_cpu else min(2048, args.tokens))
    args.dtype = args.dtype or (list(DTYPES) if on_cpu else ["bfloat16"])
    args.no_swap = args.no_swap or not on_cpu
    if args.clock == "processor" and (not on_cpu or args.threads > 1):
        parser.error(
            "--clock processor needs --device cpu and --threads 1: threads that wait for others count, a GPU doesn't"
        )
    if args.tokens % args.seq:
        parser.error(f"--tokens {args.tokens} is no multiple of --seq {args.seq}")
    return args


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and print the table."""
    args = parse(argv)
    size = dataclasses.replace(SIZES[args.size], layers=args.layers or SIZES[args.size].layers)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = Llama(size, positions=args.seq).to(args.device)
    batch = tuple(torch.randint(256, (2, args.tokens // args.seq, args.seq), device=args.device))
    mode = "reduce-overhead" if args.cudagraphs else None
    made = [
        variant
        for dtype in args.dtype
        for variant in variants(
            model,
            args.recipe,
            not args.no_swap,
            args.swap_compiled,
            dtype=dtype,
            mode=mode,
            weight_cache=args.weight_cache,
        )
    ]
    measure(made, batch, args.rounds, args.clock, args.accumulate)
    what = describe(args, size)
    print(what)
    print(table(made, operand_elements(model, args.tokens)))
    if args.json:
        args.json.write_text(json.dumps(record(made, what), indent=1))


if __name__ == "__main__":
    main()
