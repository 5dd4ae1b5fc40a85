"""GGUF with MXFP4 weights, as llama.cpp reads it: one file `model.gguf`, through the package gguf.

MXFP4 is type 39, 17 bytes a group of 32: the E8M0 byte, then byte j with element j in its low and element j + 16 in its
high nibble. Matrices that stay in high precision are BF16, vectors F32. Names and hyperparameters are those of the
architecture; Llama's rotary embedding pairs neighbouring rows there and halves of a head in transformers, so the rows of
its q and k are reordered. Source: gguf 0.19, `quants.py`, `tensor_mapping.py`; llama.cpp's converter for the reordering.
"""

from __future__ import annotations

import contextlib
import pathlib
from typing import Any

import torch

from ..errors import ExportError
from ..held import Held
from ..optional import needed
from .format import Format, Job, in_bf16, only_linears
from .packing import Packed

_ARCHITECTURES = {"llama": "LLAMA", "mistral": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3"}
"""The model types of transformers, and what gguf calls each architecture."""

_NEIGHBOURS = ("llama", "mistral")
"""Model types whose rotary embedding pairs neighbouring rows in GGUF."""

_GROUP_BYTES = 17


def _gguf() -> Any:
    return needed("gguf", "Format 'gguf'", ExportError, "export")


def groups(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """uint8[N, 17 K / 32] of codes uint8[N, K / 2] and scales uint8[N, K / 32]."""
    pairs = codes.reshape(*scales.shape, 16)
    elements = torch.stack([pairs & 15, pairs >> 4], -1).flatten(-2)
    nibbles = elements[..., :16] | elements[..., 16:] << 4
    return torch.cat([scales[..., None], nibbles], -1).flatten(-2)


def neighbours(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """The rows of each head, the first half and the second half in turn."""
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def check(job: Job) -> None:
    """The model has an architecture of the table, with nothing that its hyperparameters can't say."""
    kind = job.config.get("model_type")
    if kind not in _ARCHITECTURES:
        raise ExportError(
            f"Format 'gguf' knows models of type {', '.join(_ARCHITECTURES)}; this one is {kind!r}. Use "
            "format='bf16', and llama.cpp's own converter."
        )
    rope = _rope(job.config)
    if rope.get("rope_type", "default") != "default":
        raise ExportError(
            "Format 'gguf' writes plain rotary embeddings; this model has "
            f"rope_type={rope['rope_type']!r}. Use format='bf16', "
            "and llama.cpp's own converter."
        )
    only_linears(job, "gguf")


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    return config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 10000.0)}


class _Writer:
    """Tensors in the order of the source; gguf wants their sizes before their data."""

    def __init__(self, job: Job, folder: pathlib.Path) -> None:
        gguf = _gguf()
        self._gguf, self._job, self._config = gguf, job, job.config
        self._kind = self._config["model_type"]
        self._arch = getattr(gguf.MODEL_ARCH, _ARCHITECTURES[self._kind])
        self._names = gguf.get_tensor_name_map(self._arch, self._config["num_hidden_layers"])
        self._path = folder / "model.gguf"
        self._file = gguf.GGUFWriter(self._path, gguf.MODEL_ARCH_NAMES[self._arch])
        self._hyperparameters()
        for name, tensor in job.source.tensors():
            self._declare(name, tensor)
        self._file.write_header_to_file()
        self._file.write_kv_data_to_file()
        self._file.write_ti_data_to_file()

    def keep(self, name: str, tensor: torch.Tensor | Held) -> tuple[str, int]:
        tensor = self._reordered(name, tensor.values() if isinstance(tensor, Held) else tensor)
        if tensor.dim() > 1:
            data = in_bf16(tensor).contiguous().view(torch.uint8)
            became = "BF16"
        else:
            data, became = tensor.float(), "F32"
        self._file.write_tensor_data(data.cpu().numpy())
        return became, data.nbytes

    def packed(self, weight: Packed) -> tuple[str, int]:
        name = weight.assignment.name
        codes, scales = (self._reordered(name, tensor) for tensor in (weight.codes(), weight.scales()))
        data = groups(codes, scales)
        self._file.write_tensor_data(data.cpu().numpy())
        return "MXFP4", data.nbytes

    def close(self) -> None:
        self._file.close()

    def abandon(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()

    def _declare(self, name: str, tensor: torch.Tensor | Held) -> None:
        types, shape = self._gguf.GGMLQuantizationType, list(tensor.shape)
        if self._job.plan.assignments[name].quantizer is not None:
            kind, bytes_ = types.MXFP4, tensor.numel() // 32 * _GROUP_BYTES
        elif tensor.dim() > 1:
            kind, bytes_ = types.BF16, 2 * tensor.numel()
        else:
            kind, bytes_ = types.F32, 4 * tensor.numel()
        self._file.add_tensor_info(self._name(name), shape, _ANY, bytes_, raw_dtype=kind)

    def _name(self, name: str) -> str:
        found = self._names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ExportError(
                f"Format 'gguf' has no name for the tensor {name!r} in the architecture {self._kind!r}. "
                "Use format='bf16', and "
                "llama.cpp's own converter."
            )
        return str(found)

    def _reordered(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        heads = self._config["num_attention_heads"]
        keys = self._config.get("num_key_value_heads") or heads
        owner = name.rpartition(".")[0]
        if self._kind in _NEIGHBOURS and owner.endswith((".q_proj", ".k_proj")):
            return neighbours(tensor, heads if owner.endswith(".q_proj") else keys)
        return tensor

    def _hyperparameters(self) -> None:
        config, file = self._config, self._file
        heads = config["num_attention_heads"]
        head = config.get("head_dim") or config["hidden_size"] // heads
        file.add_name(config.get("_name_or_path") or self._kind)
        file.add_file_type(self._gguf.LlamaFileType.MOSTLY_MXFP4_MOE)
        file.add_quantization_version(self._gguf.GGML_QUANT_VERSION)
        file.add_vocab_size(config["vocab_size"])
        file.add_context_length(config["max_position_embeddings"])
        file.add_embedding_length(config["hidden_size"])
        file.add_block_count(config["num_hidden_layers"])
        file.add_feed_forward_length(config["intermediate_size"])
        file.add_head_count(heads)
        file.add_head_count_kv(config.get("num_key_value_heads") or heads)
        file.add_key_length(head)
        file.add_value_length(head)
        file.add_rope_dimension_count(head)
        file.add_rope_freq_base(float(_rope(config)["rope_theta"]))
        file.add_layer_norm_rms_eps(config["rms_norm_eps"])


_ANY: Any = None
"""A dtype of numpy's, which gguf doesn't look at where the type of its own is given."""


FORMAT = Format(
    name="gguf",
    holds="MXFP4 weights of a Llama, Mistral or Qwen in one GGUF file, for llama.cpp",
    operands=("mxfp4",),
    rotations=(0,),
    check=check,
    writer=_Writer,
    warnings=lambda job: ["the file holds weights and hyperparameters; llama.cpp also needs the tokenizer in it"],
)
