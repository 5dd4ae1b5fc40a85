"""A Llama block as it is generated for a GPU, forward and backward in Triton's interpreter, beside the same rewritten
graphs run op by op on the CPU (see interpreted_module and captured)."""

from __future__ import annotations

from typing import Any

import torch
from captured import compiled
from generated_ops import templates
from interpreted_module import compile_interpreted
from llama import Llama, Size

TOKENS, BATCH = 20, 2


def model(dtype: torch.dtype) -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    module = Llama(Size(layers=1, width=64, heads=2, lr=0.0, seq=TOKENS)).to(dtype)
    return module, torch.randint(0, 256, (BATCH, TOKENS))


def step(forward: Any, module: torch.nn.Module, tokens: torch.Tensor) -> dict[str, Any]:
    """Loss and gradients, with the noise of a fixed seed."""
    module.zero_grad()
    torch.manual_seed(3)
    loss = torch.nn.functional.cross_entropy(forward(tokens).flatten(0, 1).float(), tokens.flatten())
    loss.backward()
    return {"loss": loss.item(), "gradients": {name: p.grad.float() for name, p in module.named_parameters()}}


def run(target: str, dtype: torch.dtype, dynamic: bool = False) -> dict[str, Any]:
    module, tokens = model(dtype)
    generated = compile_interpreted(module, target, dynamic)
    made = step(generated, module, tokens)
    again = step(generated, module, tokens)
    expected = step(compiled(module)[0], module, tokens)
    plain = step(module, module, tokens)
    return {"made": made, "again": again, "expected": expected, "plain": plain, "templates": templates(generated)}
