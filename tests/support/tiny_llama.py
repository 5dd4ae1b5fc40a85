"""Configurations of the smallest models of transformers that are exported and packed."""

from __future__ import annotations

import torch
import transformers as hf

SIZES = dict(vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2)
LLAMA = hf.LlamaConfig(**SIZES, num_key_value_heads=1)
INPUTS = {"input_ids": torch.zeros(2, 64, dtype=torch.int64), "use_cache": False}
"""What it is called with to see which matmuls run in FP4."""

GPT_OSS = hf.GptOssConfig(
    **SIZES,
    num_key_value_heads=1,
    head_dim=32,
    num_local_experts=4,
    num_experts_per_tok=2,
    max_position_embeddings=131072,
)


def gpt_oss() -> torch.nn.Module:
    """A gpt-oss with random weights, whose experts are grouped products."""
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(GPT_OSS, dtype=torch.bfloat16)
    model.set_experts_implementation("grouped_mm")
    for parameter in model.model.layers[0].mlp.experts.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return model
