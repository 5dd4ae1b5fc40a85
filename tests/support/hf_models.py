"""Small Hugging Face models of six kinds, with random weights and a batch of random data; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf

VOCABULARY, TOKENS, BATCH = 128, 24, 2
COMMON: dict[str, Any] = dict(
    vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2
)


def _tokens() -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (BATCH, TOKENS))


def _causal(model: Any) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    tokens = _tokens()
    return model, {"input_ids": tokens, "labels": tokens}


def llama():
    return _causal(hf.LlamaForCausalLM(hf.LlamaConfig(**COMMON, num_key_value_heads=1)))


def gpt2():
    config = hf.GPT2Config(
        vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return _causal(hf.GPT2LMHeadModel(config))


def bert():
    config = hf.BertConfig(**COMMON, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return _causal(hf.BertForMaskedLM(config))


def mixtral():
    config = hf.MixtralConfig(**COMMON, num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2)
    return _causal(hf.MixtralForCausalLM(config))


def t5():
    config = hf.T5Config(
        vocab_size=VOCABULARY, d_model=64, d_kv=32, d_ff=96, num_layers=2, num_heads=2, dropout_rate=0.0,
        decoder_start_token_id=0, pad_token_id=0, initializer_factor=0.3,
    )  # fmt: skip
    return hf.T5ForConditionalGeneration(config), {"input_ids": _tokens(), "labels": _tokens()}


def vit():
    sizes = {key: value for key, value in COMMON.items() if key != "vocab_size"}
    config = hf.ViTConfig(
        **sizes, image_size=32, patch_size=8, num_labels=10, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    images, labels = torch.randn(4, 3, 32, 32), torch.randint(10, (4,))
    return hf.ViTForImageClassification(config), {"pixel_values": images, "labels": labels}


MODELS: dict[str, Callable] = {made.__name__: made for made in (llama, gpt2, bert, mixtral, t5, vit)}


def build(name: str) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """The model, in training mode, and its arguments, with labels."""
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    return model.train(), inputs


def step(model: torch.nn.Module, function: Callable, inputs: dict) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one step, with the noise of a fixed seed."""
    model.zero_grad()
    torch.manual_seed(7)
    loss = function(**inputs).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
