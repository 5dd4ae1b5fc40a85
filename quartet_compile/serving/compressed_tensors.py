"""compressed-tensors, as transformers, vLLM and SGLang load it: MXFP4 and NVFP4 weights of linear layers.

    X.weight_packed        uint8[N, K / 2]          low nibble = even column
    X.weight_scale         uint8[N, K / 32]         E8M0; NVFP4: float8_e4m3fn[N, K / 16]
    X.weight_global_scale  float32[1]               NVFP4 only: values are code * weight_scale / weight_global_scale

A rotated weight needs its input rotated when it is read, by the Sylvester matrix over the square root of its size: the
`transform_config` says so. Source: compressed-tensors 0.20, `compressors/mxfp4`, `compressors/nvfp4`, `transform`.
"""

from __future__ import annotations

from typing import Any

from .format import Format, Job, Tensors, only_linears, safetensors_writer
from .packing import Packed

NAMES = {"mxfp4": "mxfp4-pack-quantized", "nvfp4": "nvfp4-pack-quantized"}
_WEIGHTS = {
    "mxfp4": {"strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"},
    "nvfp4": {"strategy": "tensor_group", "group_size": 16, "scale_dtype": "torch.float8_e4m3fn"},
}


def tensors(weight: Packed) -> Tensors:
    """The tensors of one linear layer."""
    module = weight.assignment.name.removesuffix(".weight")
    made = {f"{module}.weight_packed": weight.codes(), f"{module}.weight_scale": weight.scales()}
    if weight.blocks.quantizer.two_level:
        made[f"{module}.weight_global_scale"] = weight.blocks.tensor_scale.reciprocal()
    return made


def settings(job: Job) -> dict[str, Any]:
    """The `quantization_config` of config.json."""
    assert job.quantizer is not None
    operand, ignore = job.quantizer.format, job.plan.kept_linears
    weights = {"num_bits": 4, "type": "float", "symmetric": True, "dynamic": False, **_WEIGHTS[operand]}
    inputs = None if job.activations is None else {**weights, "dynamic": True}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": None}
    made: dict[str, Any] = {
        "quant_method": "compressed-tensors",
        "format": NAMES[operand],
        "quantization_status": "compressed",
        "ignore": ignore,
        "config_groups": {"group_0": group},
    }
    if job.quantizer.rotation:
        rotate = {"targets": ["Linear"], "location": "input", "ignore": ignore}
        scheme = {"type": "hadamard", "head_dim": job.quantizer.rotation, "apply": [rotate]}
        made["transform_config"] = {"config_groups": {"R": scheme}}
    return made


def warnings(job: Job) -> list[str]:
    """Which loaders read such a file rightly."""
    assert job.quantizer is not None
    found = []
    if job.quantizer.rotation:
        found.append(
            "the weights are rotated, and right only where the inputs are too: compressed-tensors' "
            "apply_transform_config does "
            "that (0.20); vLLM does without biases and tensor parallelism; transformers (5.24) ignores transform_config and "
            "computes wrong outputs without a word. For every loader: unrotated=True, or format='bf16'"
        )
    if job.quantizer.two_level:
        found.append(
            "the file divides by weight_global_scale, the rounded reciprocal of the tensor scale: some "
            "weights are read one step "
            "of bfloat16 off"
        )
        found.append(
            "vLLM multiplies q, k and v, and gate and up, as one layer with the largest of their "
            "weight_global_scale; weights of "
            "another tensor scale are then read off by the ratio's rounding to E4M3"
        )
    return found


FORMAT = Format(
    name="compressed-tensors",
    holds="MXFP4 or NVFP4 weights of linear layers, for transformers, vLLM and SGLang",
    operands=("mxfp4", "nvfp4"),
    rotations=(0, 16, 32, 64, 128),
    activations=("mxfp4",),
    check=lambda job: only_linears(job, "compressed-tensors"),
    writer=safetensors_writer(tensors, lambda weight: NAMES[weight.blocks.quantizer.format]),
    tensors=tensors,
    settings=settings,
    warnings=warnings,
)
