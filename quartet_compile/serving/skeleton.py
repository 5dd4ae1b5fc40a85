"""The model of a checkpoint folder without its weights, and inputs to look at it with."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..errors import ExportError
from ..optional import needed

_BATCH = (2, 64)
"""Enough tokens that no matmul is kept for having few rows."""

INPUTS = "Give inputs of training, as inputs=(tokens,) or kwargs=batch (shapes matter, values don't)."


def skeleton(folder: pathlib.Path) -> nn.Module:
    """The causal language model that `config.json` describes, on the meta device. Raises `ExportError`."""
    if not (folder / "config.json").is_file():
        raise ExportError(
            f"{str(folder)!r} has no config.json, so what model it is of is not known. Give it in Python, as "
            "qc.export(folder, ..., of=build()): its weights are not read, and may be on the meta device."
        )
    transformers: Any = needed("transformers", "Reading a Hugging Face checkpoint", ExportError)
    try:
        automatic: Any = transformers.AutoModelForCausalLM
        config = transformers.AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            made: nn.Module = automatic.from_config(config, dtype=torch.bfloat16)
    except (OSError, ValueError) as error:
        raise ExportError(
            f"config.json in {str(folder)!r} is of no causal language model that transformers knows: "
            f"{error} Give the model in Python, as qc.export(folder, ..., of=build())."
        ) from None
    return made


def call(
    model: nn.Module, inputs: tuple[Any, ...], kwargs: Mapping[str, Any] | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inputs that a model is looked at with: those given, or a batch of tokens for a language model of transformers."""
    if inputs or kwargs:
        return inputs, dict(kwargs or {})
    config = getattr(model, "config", None)
    if getattr(model, "main_input_name", None) != "input_ids" or getattr(config, "is_encoder_decoder", False):
        raise ExportError(f"Which weights of {type(model).__name__} are in FP4 depends on how it runs. {INPUTS}")
    device = next(model.parameters()).device
    return (), {"input_ids": torch.zeros(_BATCH, dtype=torch.int64, device=device), "use_cache": False}
