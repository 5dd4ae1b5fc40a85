"""Tokens a second of greedy generation: full precision, FP4 with weights that every forward quantizes, FP4 with weights
that are quantized once (`weight_cache=True`), and FP4 with packed weights (`qc.pack`), turn by turn in one run.

    python examples/generate_packed.py --size demo --window 1
    python examples/generate_packed.py --size demo --cache static      a Llama of transformers, by its `generate`
    python examples/generate_packed.py --size demo --cache dynamic

Without a cache of keys and values each token is one forward of the last `--window` tokens of a model of examples/llama.py,
so M is the window. With one, `model.generate` reads a prompt of `--window` tokens, and M is 1 for each token after the
first.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from llama import SIZES, VOCABULARY, Llama
from torch import Tensor, nn

import quartet_compile as qc

CACHES = ("none", "static", "dynamic")
PLAIN, EACH, ONCE, PACKED = (
    "full precision, plain Inductor",
    "FP4, weights quantized by each forward",
    "FP4, weights quantized once: weight_cache",
    "FP4, weights packed",
)


def model_of(size: str, cache: str, positions: int) -> nn.Module:
    """A model with random weights: of examples/llama.py, or for a cache of keys and values the same of transformers."""
    torch.manual_seed(0)
    if cache == "none":
        return Llama(SIZES[size])
    from transformers import LlamaConfig, LlamaForCausalLM  # which the other way doesn't need

    shape = SIZES[size]
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.width,
        intermediate_size=shape.mlp_width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=positions,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def generate(model: Callable[[Tensor], Tensor], window: int, tokens: int, cache: str = "none") -> Tensor:
    """`tokens` bytes after some zeros, each the likeliest."""
    text = torch.zeros(1, window, dtype=torch.int64, device="cpu")
    if cache != "none":
        how = {"cache_implementation": "static"} if cache == "static" else {}
        mask = torch.ones_like(text)
        text = model.generate(text, attention_mask=mask, max_new_tokens=tokens, do_sample=False, **how)
        return text[:, window:]
    for _ in range(tokens):
        following = model(text[:, -window:])[:, -1].argmax(-1, keepdim=True)
        text = torch.cat([text, following], dim=1)
    return text[:, window:]


def ways(model: nn.Module) -> dict[str, nn.Module]:
    """The compiled models, by what their weights are; compiled in place, since `generate` calls the model itself."""
    made = {name: copy.deepcopy(model) for name in (PLAIN, EACH, ONCE, PACKED)}
    qc.pack(made[PACKED])
    made[PLAIN].compile()
    made[EACH].compile(backend="quartet")
    made[ONCE].compile(backend="quartet", options={"weight_cache": True})
    made[PACKED].compile(backend="quartet")
    return made


@torch.no_grad()
def measure(size: str, window: int, tokens: int, turns: int, cache: str = "none") -> dict[str, float]:
    """Tokens a second, the median over turns. Raises `AssertionError` if what the weights are kept as changes the text."""
    models, texts = ways(model_of(size, cache, window + tokens).eval().requires_grad_(False)), {}
    for name, each in models.items():
        texts[name] = generate(each, window, tokens, cache)
    assert all(torch.equal(texts[name], texts[EACH]) for name in (ONCE, PACKED))
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(turns):
        for name, each in models.items():
            start = time.perf_counter()
            generate(each, window, tokens, cache)
            seconds[name].append(time.perf_counter() - start)
    return {name: tokens / statistics.median(took) for name, took in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="demo")
    parser.add_argument("--window", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--cache", choices=CACHES, default="none", help="of keys and values")
    given = parser.parse_args()
    with torch._dynamo.config.patch(recompile_limit=32):  # four models of one class, with two or three graphs each
        found = measure(given.size, given.window, given.tokens, given.turns, given.cache)
    for name, rate in found.items():
        print(f"{name}: {rate:.1f} tokens a second, {rate / found[EACH]:.2f}x")


if __name__ == "__main__":
    main()
