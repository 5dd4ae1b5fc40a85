"""How close is a recipe's gradient to the full-precision one, on real architectures; and is it the forward or the backward?

    python examples/gradient_cosines.py --out cosines.csv                              # every model and recipe below
    python examples/gradient_cosines.py --models olmo2 llama --recipes quartet mxfp8   # some of them
    python examples/gradient_cosines.py --models olmo2 --steps 0 100                   # also after 100 steps of AdamW
    python examples/gradient_cosines.py --models olmo2 llama --embedding 50            # a larger residual stream

One batch; the gradient of all parameters in float32 by eager PyTorch; then the same under each recipe, several times with
other random bits. The backend captures and rewrites the model as in training, and the graphs run op by op on the C++
kernels, without Inductor. Columns of the table:

    one       cosine of one backward pass's gradient with the full-precision one: mean and standard deviation over --seeds
    mean      the same of the gradient averaged over all seeds: what is left is bias
    norm      of the averaged gradient, as a ratio
    states    relative error of the residual stream after each block, and of the logits

The CSV has the cosines by kind of parameter and by block too.

Recipes `fwd ...` quantize the forward product only: their backward is exact, on what the forward rounded (and masked).
`bwd ...` quantize the two backward products only. Probes are no recipes: `W` and `X` round one operand of each product with
`mxfp4-quest`, `W and X` both, gradients passing straight through; `W and X, rms` takes QuEST's scale from the root mean
square of a group in place of its standard deviation; and `noise` adds Gaussian noise to each product, of the relative size
that the product's error has under `quartet`. They run in eager PyTorch, and leave convolutions alone.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import csv
import dataclasses
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from gradient_models import MODELS, batches, build
from torch import Tensor, nn

import quartet_compile as qc
from quartet_compile.capture.capture import Capture
from quartet_compile.config.options import configure
from quartet_compile.kernels.numerics.codes import decode_e2m1, encode_e2m1
from quartet_compile.kernels.numerics.reference import hadamard
from quartet_compile.kernels.quantizer import E2M1_MAX, QUEST_GAUSSIAN_CLIP
from quartet_compile.passes.plan import HEADS

COLUMNS = ("model", "hidden", "layers", "embedding", "steps", "recipe", "matmuls", "draws", "seeds",
           "measure", "part", "one",
           "spread", "mean")  # fmt: skip
EMBEDDING = r"embed_tokens\.weight|wte|word_embeddings|tok_embeddings"
PRODUCT_ERROR = 0.236
"""Of one product under `quartet`: the square root of its relative squared error (docs/recipes.md)."""


def variant(name: str, forward: str | None, backward: str, *, trust_mask: bool = False) -> qc.Recipe:
    """A recipe of one quantizer for the forward product, None for full precision, and one for the backward ones."""
    gemm = {q: qc.Gemm(a=qc.quantizer(q), b=qc.quantizer(q)) for q in (forward, backward) if q}
    source = "requantized" if forward else "original"
    return qc.Recipe(
        name=name,
        fprop=gemm[forward] if forward else None,
        dgrad=gemm[backward],
        wgrad=gemm[backward],
        trust_mask=trust_mask,
        w_from=source,
        x_from=source,
    )


FORWARDS = {
    "quest": "mxfp4-quest",
    "quest nearest": "mxfp4-quest,scale_rounding=nearest",
    "quest error": "mxfp4-quest,scale_rounding=error",
    "absmax down": "scale_rounding=down",
    "absmax up": "scale_rounding=up",
    "absmax error": "scale_rounding=error",
    "nvfp4": "nvfp4-rtn",
    "nvfp4 4/6": "nvfp4-rtn-4over6",
    "mxfp8": "mxfp8",
}
VARIANTS = (
    *(variant(f"fwd {name}", q, "exact-random") for name, q in FORWARDS.items()),
    *(variant(f"fwd {n}, mask", q, "exact-random", trust_mask=True) for n, q in FORWARDS.items() if n[:5] == "quest"),
    variant("bwd sr", None, "mxfp4-sr"),
    variant("bwd rtn", None, "mxfp4-rtn"),
)
PRESETS = ("quartet", "quartet-rtn", "quartet2", "nvfp4", "nvfp4-4over6", "tetrajet2", "mxfp4-bwd", "mxfp8")
RECIPES = {**{name: qc.recipe(name) for name in PRESETS}, **{recipe.name: recipe for recipe in VARIANTS}}

KINDS = {
    "norms and biases": r"norm|ln_|LayerNorm|lambda1|\.bias$|scale",
    "embeddings": r"embed|wte|wpe|cls_token",
    "head": r"lm_head|classifier|decoder|head\.|predictions",
    "qkv": r"q_proj|k_proj|v_proj|query|key|value|c_attn|Wqkv",
    "o": r"o_proj|attention\.output|attn\.c_proj|attn\.Wo|attention.*dense",
    "up": r"gate_proj|up_proj|c_fc|intermediate|fc1|Wi",
    "down": r"down_proj|mlp\.c_proj|fc2|mlp\.Wo|output\.dense",
    "other": r"",
}
"""Of parameters, by their names; the first match wins."""


def parts(name: str) -> list[str]:
    """The groups that a parameter's gradient counts in."""
    kind = next(kind for kind, pattern in KINDS.items() if re.search(pattern, name))
    block = re.search(r"\.(\d+)\.", name)
    return ["all", kind, *([f"block {block[1]}"] if block else [])]


def step(model: nn.Module, function: Callable, inputs: dict[str, Tensor], seed: int) -> tuple[dict, list[Tensor]]:
    """Gradients by parameter, and the residual stream after each block with the logits last."""
    torch.manual_seed(seed)
    out = function(**inputs, output_hidden_states=True)
    out.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return gradients, [state.detach() for state in (*out.hidden_states[1:], out.logits)]


def cosines(ours: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, tuple[float, float]]:
    """Of each part of the parameters, the cosine of two gradients and the ratio of their norms."""
    sums: dict[str, Tensor] = {}
    for name, theirs in exact.items():
        a, b = ours[name].flatten(), theirs.flatten()
        products = torch.stack([torch.dot(a, b), torch.dot(a, a), torch.dot(b, b)]).double()
        for part in parts(name):
            sums[part] = sums.get(part, 0.0) + products
    return {part: ((ab / (aa * bb).sqrt()).item(), (aa / bb).sqrt().item()) for part, (ab, aa, bb) in sums.items()}


def errors(ours: list[Tensor], exact: list[Tensor]) -> dict[str, float]:
    """Relative errors of the states."""
    names = [*(f"block {index}" for index in range(len(exact) - 1)), "logits"]
    return {name: ((a - b).norm() / b.norm()).item() for name, a, b in zip(names, ours, exact, strict=True)}


def inner_products(model: nn.Module) -> list[nn.Module]:
    """The layers whose products a recipe rewrites in these models, apart from convolutions."""
    tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    named = [(name.rpartition(".")[2], m) for name, m in model.named_modules()]
    products = [m for leaf, m in named if type(m).__name__ in ("Linear", "Conv1D") and leaf not in HEADS]
    return [m for m in products if all(m.weight is not table for table in tables)]


def rounded(x: Tensor, quantize: Callable[[Tensor], Tensor]) -> Tensor:
    """x through a quantizer and back, with the gradient of x itself."""
    with torch.no_grad():
        moved = quantize(x) - x
    return x + moved


def by_deviation(x: Tensor) -> Tensor:
    """`mxfp4-quest`."""
    return qc.quantize(x, "mxfp4-quest").restore()


def by_rms(x: Tensor) -> Tensor:
    """The same with the root mean square of a rotated group where QuEST has its standard deviation."""
    columns = x.shape[-1]
    groups = hadamard(nn.functional.pad(x.float(), (0, -columns % 32)).unflatten(-1, (-1, 32)))
    spread = groups.square().mean(-1, keepdim=True).sqrt() * (QUEST_GAUSSIAN_CLIP / E2M1_MAX) + 1e-8
    scale = torch.exp2(torch.frexp(spread).exponent - 1.0)
    return hadamard(decode_e2m1(encode_e2m1(groups / scale)) * scale).flatten(-2)[..., :columns].to(x.dtype)


@contextlib.contextmanager
def probe(model: nn.Module, kind: str) -> Iterator[None]:
    """Within it, eager calls of the model have one kind of error in each of the products."""
    hooks, before = [], {}
    quantize = by_rms if kind.endswith("rms") else by_deviation
    for module in inner_products(model):
        if "W" in kind:
            before[module] = module.weight.detach().clone()
            transposed = type(module).__name__ == "Conv1D"  # its weight is [in, out]
            w = before[module].t() if transposed else before[module]
            w = quantize(w.contiguous())
            module.weight.data.copy_(w.t() if transposed else w)
        if "X" in kind:
            hooks.append(module.register_forward_pre_hook(lambda _, args: (rounded(args[0], quantize),)))
        if kind == "noise":
            hooks.append(module.register_forward_hook(lambda _, args, y: y + _noise(y)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, weight in before.items():
            module.weight.data.copy_(weight)


def _noise(y: Tensor) -> Tensor:
    return torch.randn_like(y) * y.detach().square().mean(-1, keepdim=True).sqrt() * PRODUCT_ERROR


PROBES = ("W", "X", "W and X", "W and X, rms", "noise")


@dataclasses.dataclass(frozen=True)
class Draw:
    """Weights, a batch, and the gradients and states of them in full precision."""

    weights: dict[str, Tensor]
    inputs: dict[str, Tensor]
    gradients: dict[str, Tensor]
    states: list[Tensor]


def draw(model: nn.Module, weights: dict[str, Tensor], inputs: dict[str, Tensor]) -> Draw:
    model.load_state_dict(weights)
    return Draw(weights, inputs, *step(model, model, inputs, seed=0))


def measure(model: nn.Module, name: str, draws: list[Draw], seeds: int) -> list[dict]:
    """Rows of the CSV, of one recipe or probe."""
    function, capture = model, None
    if name not in PROBES:
        torch._dynamo.reset()
        capture = Capture(configure({"recipe": RECIPES[name]}), text=False)
        function = torch.compile(model, backend=capture, dynamic=False)
    seeds = 1 if name in PROBES[:-1] or name.startswith("fwd") else seeds
    single, averaged, states = [], [], []
    for each in draws:
        model.load_state_dict(each.weights)
        total: dict[str, Tensor] = {}
        with contextlib.nullcontext() if capture else probe(model, name):
            for seed in range(seeds):
                gradients, reached = step(model, function, each.inputs, seed)
                single.append(cosines(gradients, each.gradients))
                total = {key: total[key] + g if total else g for key, g in gradients.items()}
        averaged.append(cosines(total, each.gradients))
        states.append(errors(reached, each.states))
    sites = [] if capture is None else [site for graph in capture.graphs for site in graph.sites]
    common = {"recipe": name, "matmuls": sum(site.rewritten for site in sites), "draws": len(draws), "seeds": seeds}
    rows = []
    for part in averaged[0]:
        ones, means = ([found[part][0] for found in each] for each in (single, averaged))
        spread = statistics.stdev(ones) if len(ones) > 1 else 0.0
        figures = {"one": statistics.mean(ones), "spread": spread, "mean": statistics.mean(means)}
        norm = statistics.mean(found[part][1] for found in averaged) / seeds
        rows.append({**common, "measure": "cosine", "part": part, **figures})
        rows.append({**common, "measure": "norm", "part": part, "mean": norm})
    for part in states[0]:
        rows.append({**common, "measure": "error", "part": part, "mean": statistics.mean(s[part] for s in states)})
    return rows


def line(rows: Iterable[dict]) -> str:
    """A line of the table, of the rows of one recipe on one model."""
    rows = list(rows)
    whole = {row["measure"]: row for row in rows if row["part"] == "all"}
    cosine, states = whole["cosine"], [f"{row['mean']:.2f}" for row in rows if row["measure"] == "error"]
    one = f"{cosine['one']:.3f} ± {cosine['spread']:.3f}"
    cells = (cosine["recipe"], one, f"{cosine['mean']:.3f}", f"{whole['norm']['mean']:.2f}", " ".join(states))
    return f"| {' | '.join(cells)} |"


def train(model: nn.Module, data: Iterator[dict], steps: int, rate: float) -> None:
    """AdamW in full precision, warmed up over 20 steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: min(1.0, (done + 1) / 20))
    for _ in range(steps):
        model(**next(data)).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS), metavar="MODEL")
    names = [*RECIPES, *PROBES]
    p.add_argument("--recipes", nargs="+", default=names, choices=names, metavar="RECIPE")
    p.add_argument("--hidden", type=int, default=1024)
    p.add_argument("--layers", type=int, default=2)
    p.add_argument("--batch", type=int, default=2)
    p.add_argument("--tokens", type=int, default=128, help="of a sequence")
    p.add_argument("--draws", type=int, default=2, help="of weights and batch; after training, of the batch")
    p.add_argument("--seeds", type=int, default=4, help="of random bits, for recipes that have any")
    p.add_argument("--steps", type=int, nargs="+", default=[0], help="training steps before measuring, ascending")
    p.add_argument("--rate", type=float, default=3e-4, help="learning rate")
    p.add_argument("--embedding", type=float, default=1.0, help="what the token embeddings are multiplied by")
    p.add_argument("--out", type=Path, help="a CSV file; rows are appended")
    args = p.parse_args(argv)
    for name in args.models:
        model, data = build(name, args.hidden, args.layers, 0), batches(name, args.batch, args.tokens, seed=1)
        held_out, done = batches(name, args.batch, args.tokens, seed=2), 0
        for steps in args.steps:
            train(model, data, steps - done, args.rate)
            done = steps
            weights = [copy.deepcopy(model.state_dict())] * args.draws
            if not steps:
                weights = [build(name, args.hidden, args.layers, seed).state_dict() for seed in range(args.draws)]
            weights = [enlarged(each, args.embedding) for each in weights]
            draws = [draw(model, each, next(held_out)) for each in weights]
            stream = " ".join(f"{state.square().mean().sqrt():.2g}" for state in draws[0].states)
            loss = model(**draws[-1].inputs).loss.item()
            size = f"width {args.hidden}, {args.layers} blocks"
            print(f"\n{name}, {size}, {steps} steps: loss {loss:.3f}, rms of states {stream}")
            print("\n| recipe | one | mean | norm | states |\n|-|-|-|-|-|")
            for recipe in args.recipes:
                rows = measure(model, recipe, draws, args.seeds)
                print(line(rows), flush=True)
                where = {"model": name, "hidden": args.hidden, "layers": args.layers, "embedding": args.embedding}
                write(args.out, [{**where, "steps": steps, **row} for row in rows])
            model.load_state_dict(weights[0])
    return 0


def enlarged(weights: dict[str, Tensor], factor: float) -> dict[str, Tensor]:
    """With the token embeddings times `factor`."""
    return {key: w * factor if re.search(EMBEDDING, key) else w for key, w in weights.items()}


def write(path: Path | None, rows: list[dict[str, Any]]) -> None:
    """Append rows to the CSV."""
    if path is None:
        return
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if fresh:
            writer.writeheader()
        writer.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


if __name__ == "__main__":
    sys.exit(main())
