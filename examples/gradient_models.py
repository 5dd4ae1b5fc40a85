"""Hugging Face models at a width and depth of one's choice, with the library's own random weights, and batches of real data
for them; nothing is downloaded.

Text is the Python standard library's source, as bytes. Images are crops of the photograph that comes with Matplotlib, with
the crop's place in it as the class.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import text
import torch
import transformers as hf
from torch import Tensor, nn

VOCABULARY, HEAD, POSITIONS = 256, 64, 512
MASK_TOKEN, MASKED = 3, 0.3
IMAGE, GRID = 112, 8
"""Pixels of an image's side; crops are told apart on a grid of 8 x 8 places."""

SPECIAL = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
NO_DROPOUT = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def _sizes(hidden: int, layers: int, heads_of: int = HEAD) -> dict[str, Any]:
    return dict(hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=max(1, hidden // heads_of))


def llama(hidden: int, layers: int) -> nn.Module:
    sizes = dict(**_sizes(hidden, layers), intermediate_size=hidden * 11 // 4, vocab_size=VOCABULARY)
    return hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, **SPECIAL))


def olmo2(hidden: int, layers: int) -> nn.Module:
    sizes = dict(**_sizes(hidden, layers), intermediate_size=hidden * 11 // 4, vocab_size=VOCABULARY)
    return hf.Olmo2ForCausalLM(hf.Olmo2Config(**sizes, **SPECIAL))


def gemma3n(hidden: int, layers: int, sparsity: float = 0.95) -> nn.Module:
    """The text part. Its first layers keep the largest 5 % of the gate's activations, as the library's default has it."""
    head = min(128, hidden)
    config = hf.Gemma3nTextConfig(
        **_sizes(hidden, layers, head), intermediate_size=hidden * 4, vocab_size=VOCABULARY, head_dim=head,
        vocab_size_per_layer_input=VOCABULARY, hidden_size_per_layer_input=max(32, hidden // 8), num_kv_shared_layers=0,
        num_key_value_heads=max(1, hidden // head // 4), layer_types=["full_attention"] * layers,
        activation_sparsity_pattern=[sparsity] * layers, **SPECIAL,
    )  # fmt: skip
    return hf.Gemma3nForCausalLM(config)


def gpt2(hidden: int, layers: int) -> nn.Module:
    config = hf.GPT2Config(
        vocab_size=VOCABULARY, n_embd=hidden, n_layer=layers, n_head=max(1, hidden // HEAD), n_positions=POSITIONS,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **SPECIAL,
    )  # fmt: skip
    return hf.GPT2LMHeadModel(config)


def bert(hidden: int, layers: int) -> nn.Module:
    sizes = dict(**_sizes(hidden, layers), intermediate_size=hidden * 4, vocab_size=VOCABULARY)
    return hf.BertForMaskedLM(hf.BertConfig(**sizes, **NO_DROPOUT, pad_token_id=0))


def modernbert(hidden: int, layers: int) -> nn.Module:
    sizes = dict(**_sizes(hidden, layers), intermediate_size=hidden * 3 // 2, vocab_size=VOCABULARY)
    config = hf.ModernBertConfig(**sizes, **SPECIAL, cls_token_id=1, sep_token_id=2)
    return hf.ModernBertForMaskedLM(config)


def dinov2(hidden: int, layers: int, layer_scale: float = 1.0) -> nn.Module:
    config = hf.Dinov2Config(
        **_sizes(hidden, layers), image_size=IMAGE, num_labels=GRID * GRID, layerscale_value=layer_scale, **NO_DROPOUT
    )
    return hf.Dinov2ForImageClassification(config)


MODELS: dict[str, Callable[[int, int], nn.Module]] = {
    "llama": llama,
    "gpt2": gpt2,
    "bert": bert,
    "modernbert": modernbert,
    "olmo2": olmo2,
    "gemma3n": gemma3n,
    "gemma3n, dense": functools.partial(gemma3n, sparsity=0.0),
    "dinov2": dinov2,
    "dinov2, LayerScale 1e-5": functools.partial(dinov2, layer_scale=1e-5),
}


def build(name: str, hidden: int, layers: int, seed: int) -> nn.Module:
    """The model of this name in `MODELS`, in training mode."""
    torch.manual_seed(seed)
    return MODELS[name](hidden, layers).train()


def batches(name: str, batch: int, tokens: int, seed: int) -> Iterator[dict[str, Tensor]]:
    """Arguments of a training step, with labels, without end. tokens: of a sequence; images have 64 patches and one more."""
    generator = torch.Generator().manual_seed(seed)
    if name.startswith("dinov2"):
        yield from _crops(max(1, batch * tokens // 64), generator)
    windows = text.Batches(text.load(), batch=batch, seq=tokens, seed=seed)
    while True:
        x, _ = windows.draw()
        hidden = torch.rand(x.shape, generator=generator) < MASKED
        if name in ("bert", "modernbert"):
            yield {"input_ids": x.masked_fill(hidden, MASK_TOKEN), "labels": torch.where(hidden, x, -100)}
        else:
            yield {"input_ids": x, "labels": x}


def _crops(count: int, generator: torch.Generator) -> Iterator[dict[str, Tensor]]:
    from matplotlib import cbook, image

    photograph = torch.from_numpy(image.imread(cbook.get_sample_data("grace_hopper.jpg")).copy())
    pixels = photograph.permute(2, 0, 1).float() / 127.5 - 1.0
    room = torch.tensor(pixels.shape[1:]) - IMAGE
    while True:
        at = (torch.rand(count, 2, generator=generator) * room).long()
        places = at * GRID // room
        crops = [pixels[:, row : row + IMAGE, column : column + IMAGE] for row, column in at.tolist()]
        yield {"pixel_values": torch.stack(crops), "labels": places[:, 0] * GRID + places[:, 1]}
