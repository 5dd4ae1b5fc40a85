"""gpt-oss' checkpoints: MXFP4 experts, everything else in bfloat16.

    ...experts.gate_up_proj_blocks   uint8[E, N, K / 32, 16]    low nibble = even column; N = 2 * intermediate size
    ...experts.gate_up_proj_scales   uint8[E, N, K / 32]        E8M0
    ...experts.down_proj_blocks, ...experts.down_proj_scales    the same

Weights of other FP4 matmuls (attention) become what the forward pass computes with, in bfloat16. In transformers the
parameters are [E, K, N]. Source: transformers 5.24, `integrations/mxfp4.py`.
"""

from __future__ import annotations

from typing import Any

from ..errors import ExportError
from . import bf16
from .format import Format, Job, Tensors, safetensors_writer
from .packing import Packed

_EXPERTS = ("experts.gate_up_proj", "experts.down_proj")
_KEPT = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]


def tensors(weight: Packed) -> Tensors:
    """The two tensors of all experts' matrices, or the bfloat16 of another weight."""
    name = weight.assignment.name
    if not name.endswith(_EXPERTS):
        return bf16.tensors(weight)
    scales = weight.scales()
    return {f"{name}_blocks": weight.codes().reshape(*scales.shape, 16), f"{name}_scales": scales}


def check(job: Job) -> None:
    """The model is a gpt-oss, and all of its experts are FP4."""
    kind = job.config.get("model_type")
    if kind != "gpt_oss":
        raise ExportError(
            f"Format 'gpt-oss' holds models of type 'gpt_oss'; this one is {kind!r}. Use format='compressed-tensors'."
        )
    packed = {each.name for each in job.plan.quantized}
    kept = [name for name in job.plan.assignments if name.endswith(_EXPERTS) and name not in packed]
    if kept:
        raise ExportError(
            f"Format 'gpt-oss' has all experts in MXFP4, and {kept[0]!r} stays in high precision: "
            f"{job.plan.assignments[kept[0]].reason}. Export with the options of training, or use format='bf16'."
        )


def settings(job: Job) -> dict[str, Any]:
    """The `quantization_config` of config.json."""
    return {"quant_method": "mxfp4", "modules_to_not_convert": _KEPT}


def became(weight: Packed) -> str:
    """What is written, in words."""
    return "mxfp4 blocks and scales" if weight.assignment.name.endswith(_EXPERTS) else bf16.became(weight)


FORMAT = Format(
    name="gpt-oss",
    holds="a gpt-oss with its experts in MXFP4, as OpenAI ships it, for transformers and vLLM",
    operands=("mxfp4",),
    rotations=(0,),
    check=check,
    writer=safetensors_writer(tensors, became),
    tensors=tensors,
    settings=settings,
)
