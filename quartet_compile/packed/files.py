"""What files of FP4 weights hold, by the `quantization_config` of their config.json.

    gpt-oss             X_blocks uint8[E, N, K / 32, 16], X_scales uint8[E, N, K / 32] of X [E, K, N]: MXFP4
    compressed-tensors  X_packed uint8[N, K / 2], X_scale uint8[N, K / 32] of X [N, K]: MXFP4, rotated where a
                        transform_config says so; X_scale float8_e4m3fn[N, K / 16] and X_global_scale float32[1], a
                        divisor: NVFP4

Source: transformers 5.24, `integrations/mxfp4.py`; compressed-tensors 0.20, `compressors/mxfp4`, `compressors/nvfp4`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from ..errors import PackError
from ..kernels.quantizer import E4M3_NAN, E8M0_NAN, Quantizer, quantizer
from .module import Codes, codes_of


@dataclasses.dataclass(frozen=True)
class Layout:
    """How FP4 weights lie in a file. codes, scales, divisor: the suffixes of their tensors after the weight's name; divisor
    is empty in MXFP4. grouped: codes are [..., K / 32, 16]. turned: the model has them transposed."""

    codes: str
    scales: str
    quantizer: Quantizer
    divisor: str = ""
    grouped: bool = False
    turned: bool = False

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Of the tensors of one weight, longer ones before their own ends."""
        return tuple(filter(None, (self.divisor, self.codes, self.scales)))

    def weight(self, name: str) -> str | None:
        """The name of the weight that a tensor is a part of; None of other tensors."""
        return next((name.removesuffix(suffix) for suffix in self.suffixes if name.endswith(suffix)), None)

    def shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]] | None:
        """The shapes of the tensors of a weight `[..., N, K]`, by suffix; None if rows don't fill their last group."""
        *leading, columns = shape
        group = self.quantizer.group
        if columns % self.quantizer.block:
            return None
        codes = (*leading, columns // group, group // 2) if self.grouped else (*leading, columns // 2)
        known = {self.codes: codes, self.scales: (*leading, columns // group)}
        return {**known, self.divisor: (1,)} if self.divisor else known

    def codes_of(self, name: str, parts: Mapping[str, torch.Tensor], dtype: torch.dtype) -> Codes:
        """The buffers of a weight from the tensors of the file, by suffix. Raises `PackError` for a NaN."""
        codes, scales = parts[self.codes], parts[self.scales]
        nan = E4M3_NAN if self.divisor else E8M0_NAN
        tensor_scale = torch.empty(0, dtype=torch.float32, device=codes.device)
        if self.divisor:
            tensor_scale = parts[self.divisor].float().reciprocal()
        if bool((scales.view(torch.uint8) & (0x7F if self.divisor else 0xFF) == nan).any()) or not bool(
            tensor_scale.isfinite().all()
        ):
            raise PackError(
                f"The file has a NaN among the scales of {name!r}; expected numbers. Copy the checkpoint again."
            )
        codes = codes.flatten(-2) if self.grouped else codes
        columns = 2 * codes.shape[-1]
        return codes_of(codes, scales, tensor_scale, self.quantizer, columns, self.turned, dtype)


MXFP4 = quantizer("mxfp4-rtn-2d,group_rows=1")
"""What reads MXFP4 without a rotation, whoever rounded it."""

GPT_OSS = Layout("_blocks", "_scales", MXFP4, grouped=True, turned=True)
_NVFP4 = Layout("_packed", "_scale", quantizer("nvfp4-rtn"), divisor="_global_scale")
_ROTATED = {0: MXFP4, 32: quantizer("mxfp4-quest")}
_EXPECTED = "gpt-oss' MXFP4, or compressed-tensors' mxfp4-pack-quantized or nvfp4-pack-quantized"


def layout_of(config: Mapping[str, Any]) -> Layout:
    """The layout that a checkpoint's config.json tells. Raises `PackError` for one that isn't known."""
    settings = config.get("quantization_config")
    if not isinstance(settings, Mapping):
        raise PackError(
            f"The checkpoint's config.json has no quantization_config; expected that of {_EXPECTED}. Weights in high "
            "precision are loaded as ever, and packed with quartet_compile.pack."
        )
    method, held = settings.get("quant_method"), settings.get("format")
    if method == "mxfp4":
        return GPT_OSS
    if method == "compressed-tensors" and held == "mxfp4-pack-quantized":
        rotation = _rotation(settings.get("transform_config") or {})
        if rotation in _ROTATED:
            return Layout("_packed", "_scale", _ROTATED[rotation])
        raise PackError(
            f"The checkpoint's weights are rotated by {rotation or 'another transform'}; expected MXFP4 with none, or 32."
        )
    if method == "compressed-tensors" and held == "nvfp4-pack-quantized" and not settings.get("transform_config"):
        return _NVFP4
    raise PackError(f"The checkpoint is quantized by {method!r} in format {held!r}; expected {_EXPECTED}.")


def _rotation(transforms: Mapping[str, Any]) -> int | None:
    """The size of the Hadamard rotation of inputs that a transform_config asks for; 0 for none, None for another one."""
    groups = list((transforms.get("config_groups") or {}).values())
    if not groups:
        return 0
    applied = [each.get("location") for group in groups for each in group.get("apply", ())]
    if len(groups) > 1 or groups[0].get("type") != "hadamard" or applied != ["input"]:
        return None
    size = groups[0].get("head_dim")
    return size if isinstance(size, int) else None
