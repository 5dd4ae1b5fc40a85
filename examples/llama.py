"""A Llama-2 style decoder in plain PyTorch: RMSNorm, rotary attention, SwiGLU. It knows nothing of quantization.

Modules are named as in Hugging Face's Llama (`layers.0.self_attn.q_proj`, `layers.0.mlp.gate_proj`, `lm_head`), so that
patterns such as `exclude=["layers.0.*", "*.down_proj"]` read the same here and there.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY = 256
"""Text is read as bytes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """A model's shape, and the training defaults that go with it. `batch` is in sequences, `seq` in tokens."""

    layers: int
    width: int
    heads: int
    lr: float
    batch: int = 16
    seq: int = 512
    steps: int = 1000
    eval_every: int = 100

    @property
    def mlp_width(self) -> int:
        return math.ceil(8 / 3 * self.width / 256) * 256


SIZES: dict[str, Size] = {
    "test": Size(layers=2, width=64, heads=2, lr=3e-3, batch=4, seq=32, steps=20, eval_every=10),
    "demo": Size(layers=3, width=192, heads=3, lr=2e-3, batch=8, seq=128, steps=800, eval_every=80),
    # Many runs on a CPU, to compare recipes over seeds. Every dimension is a multiple of 128: a rotation that pads codes
    # more numbers than there are, and looks better than it is.
    "study": Size(layers=2, width=128, heads=2, lr=3e-3, batch=16, seq=128, steps=800),
    # The published series (Quartet, arXiv 2505.14669): named for the parameters outside embedding and head, trained
    # there with 512 sequences of 512 tokens a step. `--batch 512 --accumulate N` is that step in N pieces.
    "30M": Size(layers=6, width=640, heads=5, lr=1.2e-3),
    "50M": Size(layers=7, width=768, heads=6, lr=1.2e-3),
    "100M": Size(layers=8, width=1024, heads=8, lr=6e-4),
    "200M": Size(layers=10, width=1280, heads=10, lr=3e-4),
    "430M": Size(layers=13, width=1664, heads=13, lr=1.5e-4),
    "800M": Size(layers=16, width=2048, heads=16, lr=7.5e-5),
    "7B": Size(layers=32, width=4096, heads=32, lr=9.375e-6),
}


def rotary_table(positions: int, head_dim: int, base: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Cosine and sine of `position * base^(-2i / head_dim)`: two float32[positions, head_dim], the halves repeated."""
    frequencies = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = torch.outer(torch.arange(positions, dtype=torch.float64), frequencies).repeat(1, 2)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: [batch, heads, positions, head_dim], turned pairwise (i with i + head_dim / 2) by its position's angles."""
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.heads
        self.q_proj = nn.Linear(size.width, size.width, bias=False)
        self.k_proj = nn.Linear(size.width, size.width, bias=False)
        self.v_proj = nn.Linear(size.width, size.width, bias=False)
        self.o_proj = nn.Linear(size.width, size.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, positions, width = x.shape

        def by_head(t: Tensor) -> Tensor:
            return t.view(batch, positions, self.heads, width // self.heads).transpose(1, 2)

        q, k, v = (by_head(projection(x)) for projection in (self.q_proj, self.k_proj, self.v_proj))
        mixed = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, positions, width))


class MLP(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(size.width, size.mlp_width, bias=False)
        self.up_proj = nn.Linear(size.width, size.mlp_width, bias=False)
        self.down_proj = nn.Linear(size.mlp_width, size.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(size.width, eps=1e-5)
        self.self_attn = Attention(size)
        self.post_attention_layernorm = nn.RMSNorm(size.width, eps=1e-5)
        self.mlp = MLP(size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """tokens: int64[batch, positions] -> logits, or with targets of the same shape the mean cross entropy in nats."""

    def __init__(self, size: Size, *, positions: int | None = None) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, size.width)
        self.layers = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.norm = nn.RMSNorm(size.width, eps=1e-5)
        self.lm_head = nn.Linear(size.width, VOCABULARY, bias=False)
        cos, sin = rotary_table(positions or size.seq, size.width // size.heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.initialize()

    @torch.no_grad()
    def initialize(self) -> None:
        """N(0, .02); the two projections of a block that write to the residual stream .02 / sqrt(2 layers)."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                writes_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * len(self.layers)) if writes_residual else 0.02)

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        positions = tokens.shape[1]
        cos, sin = self.cos[:positions], self.sin[:positions]
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, cos, sin)
        logits = self.lm_head(self.norm(x))
        if targets is None:
            return logits
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
