"""FP-Quant, the published inference format of QuEST's rotated MXFP4: its kernels rotate the inputs themselves.

    X.qweight                  uint8[N, K / 2]     low nibble = even column
    X.scales                   uint8[N, K / 32]    E8M0
    X.weight_global_scale, X.act_global_scale      bfloat16[1], 1.0 with the method `quest`
    X.forward_hadamard_matrix, X.backward_hadamard_matrix    bfloat16[32, 32], Sylvester over sqrt(32)

Source: fp_quant 0.3.2, `module/linear.py`.
"""

from __future__ import annotations

from typing import Any

import torch

from ..errors import ExportError
from ..kernels.numerics.reference import hadamard
from .format import Format, Job, Tensors, only_linears, safetensors_writer
from .packing import Packed

_SIZE = 32


def tensors(weight: Packed) -> Tensors:
    """The tensors of one linear layer."""
    module = weight.assignment.name.removesuffix(".weight")
    one = torch.ones(1, dtype=torch.bfloat16)
    rotation = hadamard(torch.eye(_SIZE)).to(torch.bfloat16)
    return {
        f"{module}.qweight": weight.codes(),
        f"{module}.scales": weight.scales(),
        f"{module}.weight_global_scale": one,
        f"{module}.act_global_scale": one.clone(),
        f"{module}.forward_hadamard_matrix": rotation,
        f"{module}.backward_hadamard_matrix": rotation.clone(),
    }


def check(job: Job) -> None:
    """The format's kernels quantize activations by QuEST: so must have the recipe."""
    only_linears(job, "fp-quant")
    quantizer = job.quantizer
    assert quantizer is not None
    if quantizer.scale != "quest" or quantizer.scale_rounding != "down":
        raise ExportError(
            f"Format 'fp-quant' quantizes the inputs by QuEST with scales rounded down, as 'mxfp4-quest'; the recipe "
            f"{job.plan.recipe!r} has {quantizer.name}. Use format='compressed-tensors'."
        )


def settings(job: Job) -> dict[str, Any]:
    """The `quantization_config` of config.json."""
    return {
        "quant_method": "fp_quant",
        "forward_dtype": "mxfp4",
        "forward_method": "quest",
        "backward_dtype": "bf16",
        "hadamard_group_size": _SIZE,
        "pseudoquantization": False,
        "store_master_weights": False,
        "transform_init": "hadamard",
        "modules_to_not_convert": job.plan.kept_linears,
    }


FORMAT = Format(
    name="fp-quant",
    holds="MXFP4 rotated by 32 under QuEST, for FP-Quant's kernels (transformers with fp_quant, on a GPU)",
    operands=("mxfp4",),
    rotations=(_SIZE,),
    check=check,
    writer=safetensors_writer(tensors, lambda weight: "fp_quant mxfp4"),
    tensors=tensors,
    settings=settings,
    warnings=lambda job: ["transformers (5.24) loads fp_quant on a GPU only, and vLLM is about to drop it"],
)
