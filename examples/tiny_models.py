"""Any architecture of the installed transformers as a tiny random model with random inputs; nothing is downloaded.

    model, inputs = tiny_model("llama")
    model(**inputs)

A configuration is the class's default with its sizes shrunk by the names of its fields. No one way of shrinking suits every
architecture (one divides a width by another, one wants a power of two), so several are tried until a forward pass runs.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import model_type_to_module_name

HEADS = (
    "IMAGE_TEXT_TO_TEXT", "SPEECH_SEQ_2_SEQ", "SEQ_TO_SEQ_CAUSAL_LM", "MASKED_LM", "CAUSAL_LM", "MULTIMODAL_LM", "CTC",
    "IMAGE_CLASSIFICATION", "VIDEO_CLASSIFICATION", "AUDIO_CLASSIFICATION", "OBJECT_DETECTION", "SEMANTIC_SEGMENTATION",
    "UNIVERSAL_SEGMENTATION", "DEPTH_ESTIMATION", "ZERO_SHOT_IMAGE_CLASSIFICATION", "ZERO_SHOT_OBJECT_DETECTION",
    "TEXT_TO_WAVEFORM", "TEXT_TO_SPECTROGRAM", "TIME_SERIES_PREDICTION", "PRETRAINING", "SEQUENCE_CLASSIFICATION",
    "QUESTION_ANSWERING", "IMAGE_TO_IMAGE", "KEYPOINT_DETECTION", "IMAGE", "MASK_GENERATION", "RETRIEVAL",
)  # fmt: skip
"""Which class stands for an architecture: that of the first of these tasks that it has one for, else its base model."""

BATCH, TOKENS, VOCABULARY, LARGEST = 2, 16, 256, 40_000_000


class CannotBuild(Exception):
    """No way of shrinking an architecture gives a model that runs; the message has each way's error."""


@functools.cache
def architectures() -> dict[str, list[tuple[str, str]]]:
    """Each architecture, by the folder of its code, with its (model type, class name) in order of preference."""
    found: dict[str, list[tuple[str, str]]] = {}
    mappings = [getattr(modeling_auto, f"MODEL_FOR_{head}_MAPPING_NAMES") for head in HEADS]
    for mapping in (*mappings, modeling_auto.MODEL_MAPPING_NAMES):
        for kind, names in mapping.items():
            for name in (names,) if isinstance(names, str) else names:
                found.setdefault(model_type_to_module_name(kind), []).append((kind, name))
    return dict(sorted(found.items()))


def tiny_model(architecture: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The model, in training mode without dropout, and the keywords of its forward. Raises `CannotBuild`."""
    errors: dict[str, None] = {}
    for kind, name in architectures()[architecture][:2]:
        for way in (same_widths, divided_widths, own_widths):
            try:
                return _try(kind, name, way)
            except Exception as error:  # whatever a model's code raises for a configuration it can't have
                errors[f"{name}, {way.__name__}: {type(error).__name__}: {str(error).strip()[:160]!r}"] = None
    raise CannotBuild("; ".join(errors))


def seed(number: int) -> None:
    """Seed every generator that models draw from."""
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def _try(kind: str, name: str, way: Callable) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    import transformers

    config = shrunk(CONFIG_MAPPING[kind](), way)
    cls = getattr(transformers, name)
    with torch.device("meta"), contextlib.suppress(NotImplementedError, RuntimeError):
        count = sum(parameter.numel() for parameter in cls(config).parameters())
        if count > LARGEST:
            raise CannotBuild(f"{count / 1e6:.0f} million parameters")
    seed(0)
    model = without_dropout(cls(config).float().train())
    _fill_uninitialized(model)
    errors = []
    for inputs in candidate_inputs(model):
        try:
            seed(1)
            if not floats(model(**inputs)):
                raise CannotBuild("no output with a gradient")
            return model, inputs
        except Exception as error:  # whatever a model's code raises for inputs it can't have
            errors.append(error)
            for again in _with_counted_tokens(model, inputs, error):
                with contextlib.suppress(Exception):
                    if floats(model(**again)):
                        return model, again
    raise errors[0]


def floats(output: Any) -> list[torch.Tensor]:
    """The tensors of a model's output that have a gradient."""
    leaves = torch.utils._pytree.tree_leaves(dict(output) if isinstance(output, dict) else output)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.requires_grad and leaf.numel()]


def without_dropout(model: nn.Module) -> nn.Module:
    """The model, with every probability of dropping something set to zero."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if re.search("drop", name) and isinstance(value, float):
                setattr(module, name, 0.0)
    return model


def _fill_uninitialized(model: nn.Module) -> None:
    """Parameters that no initializer of the architecture reaches are zeros or whatever memory held."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.isfinite().all() or ((parameter == 0).all() and parameter.dim() > 1):
                parameter.normal_(0, 0.02)


# Configurations.

LAYERS = re.compile(r"(num|n)_(\w+_)?(layers?|blocks)$|^depth$|_layers$|_depth$|^num_stages_layers$")
NUMBER_OF_HEADS = re.compile(r"heads?$|^n_head$|num_head\w*$")
WIDTH = re.compile(
    r"(size|dim|dims|width|channels?|features|embd|d_model|d_ff|d_kv|d_inner|d_state|inner|rank)$|_dim_|^dim_|ff\w*_dim"
)
FEED_FORWARD = re.compile(r"intermediate|ffn|ff_dim|d_ff|n_inner|mlp_(dim|hidden)|feedforward")
HEAD_WIDTH = re.compile(r"head_dim|d_kv|head_size|key_length|kv_channels|attention_head_size")
NO_WIDTH = re.compile(
    r"image|patch|kernel|stride|window|vocab|batch|pool|chunk|num_channels|in_chan|out_channels|crop|pad|group|max_|block_size|codebook_size|input_size|temporal|bucket|prediction|scale|num_mel|feature_size|tile|grid|sample|anchor"
)
EXPERTS = re.compile(r"num_(local_)?experts$|n_routed_experts|moe_num_experts|num_routed_experts")
ACTIVE_EXPERTS = re.compile(r"experts_per_tok|moe_topk|moe_k$|top_k_experts|num_selected_experts")


def shrunk(config: PreTrainedConfig, way: Callable) -> PreTrainedConfig:
    """The configuration, and those inside it, with sizes by one of the ways below, made anew so that what is derived from
    the sizes follows."""
    divisor = max(1, _main_width(config) // 64)
    changed: dict[str, Any] = {}
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            changed[name] = shrunk(value, way)
        elif not name.startswith("_"):
            small = _rule(name, value, way, divisor)
            if small is not value and small != value:
                changed[name] = small
    made = type(config)(**{**_own(config), **changed})
    made.use_cache = False
    return made


def _own(config: PreTrainedConfig) -> dict[str, Any]:
    """What distinguishes this configuration from its class's default: a configuration inside another is seldom that."""
    default = type(config)()
    return {
        name: value
        for name, value in vars(config).items()
        if not name.startswith("_") and name in vars(default) and _differs(value, vars(default)[name])
    }


def _differs(a: Any, b: Any) -> bool:
    return a is not b and (not isinstance(a, PreTrainedConfig)) and a != b


def _main_width(config: PreTrainedConfig) -> int:
    for name in ("hidden_size", "d_model", "n_embd", "embed_dim", "dim", "hidden_dim", "encoder_hidden_size"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    return 512


def same_widths(name: str, value: int, divisor: int) -> int:
    """Every width 64, every hidden one of an MLP 96, 2 heads of 32."""
    if HEAD_WIDTH.search(name):
        return min(value, 32)
    if NUMBER_OF_HEADS.search(name):
        return min(value, 2)
    return min(value, 96 if FEED_FORWARD.search(name) else 64)


def divided_widths(name: str, value: int, divisor: int) -> int:
    """Every width by the same divisor, a multiple of 8; heads stay as wide as they are, where there is more than one."""
    if HEAD_WIDTH.search(name):
        return value
    if NUMBER_OF_HEADS.search(name):
        return max(1, value // divisor)
    return max(8, value // divisor // 8 * 8) if value >= 8 else value


def own_widths(name: str, value: int, divisor: int) -> int:
    """Widths as they are; only layers, tables and images are smaller."""
    return value


def _rule(name: str, value: Any, way: Callable, divisor: int) -> Any:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, float):
        return 0.0 if re.search(r"drop|mask_(time|feature)_prob|jitter", name) else value
    if isinstance(value, int):
        return _integer(name, value, way, divisor)
    if isinstance(value, (list, tuple)) and value:
        return _sequence(name, value, way, divisor)
    return value


def _integer(name: str, value: int, way: Callable, divisor: int) -> int:
    if name.endswith(("token_id", "token_index", "_idx", "_token")):
        return value if value < VOCABULARY else 200 + sum(name.encode()) % 50
    if re.search(r"vocab_size|_vocab$|num_embeddings|codebook_size", name):
        return min(value, VOCABULARY)
    if LAYERS.search(name) and not name.startswith("num_feat_extract"):
        return min(value, 2)
    if EXPERTS.search(name):
        return min(value, 4)
    if ACTIVE_EXPERTS.search(name):
        return min(value, 2)
    if re.search(r"num_quer|num_proposals|num_latents", name):
        return min(value, 20)
    if name in ("max_source_positions", "max_length_audio"):
        return min(value, 32)
    if name == "window_size":
        return min(value, 2)
    if name == "image_size":
        return min(value, 64)
    if NUMBER_OF_HEADS.search(name) or HEAD_WIDTH.search(name) or (WIDTH.search(name) and not NO_WIDTH.search(name)):
        return way(name, value, divisor)
    return value


def _sequence(name: str, value: Any, way: Callable, divisor: int) -> Any:
    kind = type(value)
    if name.endswith("layer_types"):
        kinds = list(dict.fromkeys(value))[:2]
        return kind((kinds * 2)[:2])
    if all(isinstance(item, int) and not isinstance(item, bool) for item in value):
        if name == "depths" or name.endswith(("_depths", "num_layers", "num_blocks")) or name == "layers":
            return kind(min(item, 1) for item in value)
        if name == "image_size":
            return kind(min(item, 64) for item in value)
        if NUMBER_OF_HEADS.search(name) and way is not own_widths:
            return kind(max(1, 2 * item // value[0]) if value[0] > 2 else item for item in value)
        if name in ("hidden_sizes", "conv_dim", "embed_dims", "embed_dim", "neck_hidden_sizes", "stage_channels"):
            divided = way is divided_widths
            return kind(max(16, item // divisor) if divided else way(name, item, divisor) for item in value)
    return value


# Inputs.


def candidate_inputs(model: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Keywords to try: the architecture's own dummies, what its signature names, and the tokens alone."""
    wanted = inspect.signature(model.forward).parameters
    main = model.main_input_name
    required = [n for n, p in wanted.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    made = {name: maker(model.config) for name, maker in MAKERS.items() if name in wanted}
    most = [n for n in made if n in required or n in ALWAYS or n == main]
    yield {n: made[n] for n in most}
    for name, shapes in OTHER_SHAPES.items():
        if name in most:
            for shape in shapes:
                yield {**{n: made[n] for n in most}, name: torch.randn(shape)}
    if main in made:
        yield {n: made[n] for n in {main, *(r for r in required if r in made)}}
    yield made
    tokens = [n for n in most if n not in ("pixel_values", "pixel_values_videos", "input_features")]
    if tokens and tokens != most:
        yield {n: made[n] for n in tokens}
    with contextlib.suppress(Exception):  # many have none that fits
        yield dict(model.dummy_inputs)


def _with_counted_tokens(model: nn.Module, inputs: dict, error: Exception) -> Iterator[dict[str, torch.Tensor]]:
    """The inputs with as many image tokens as an error says that there are image features."""
    found = [int(number) for number in re.findall(r"features:? ?(\d+)", str(error))]
    width = _field(model.config, ("hidden_size",), 64)  # some messages count numbers, not vectors
    for count in [*found, *(number // width for number in found if number % width == 0)]:
        for name in ("image_token_id", "image_token_index", "video_token_id", "audio_token_id", "audio_token_index"):
            token = getattr(model.config, name, None)
            if isinstance(token, int) and "input_ids" in inputs:
                each = count // BATCH if count % BATCH == 0 else count
                images = torch.full((BATCH, each), token)
                yield {**inputs, "input_ids": torch.cat([images, inputs["input_ids"]], 1)}


def _field(config: PreTrainedConfig, names: tuple[str, ...], default: Any) -> Any:
    """The first of the fields that the configuration, or one inside it, has."""
    inner = [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]
    for name in names:
        for place in (config, *inner):
            value = getattr(place, name, None)
            if isinstance(value, (int, list, tuple)) and not isinstance(value, bool) and value:
                return value
    return default


def _tokens(config: PreTrainedConfig) -> torch.Tensor:
    return torch.randint(5, min(_field(config, ("vocab_size",), VOCABULARY), 190), (BATCH, TOKENS))


def _image(config: PreTrainedConfig) -> tuple[int, int, int]:
    size = _field(config, ("image_size", "img_size", "input_size"), 64)
    sizes = tuple(size)[-2:] if isinstance(size, (list, tuple)) else (size, size)
    return (_field(config, ("num_channels", "in_channels", "in_chans"), 3), *(sizes if len(sizes) == 2 else sizes * 2))


def _frames(config: PreTrainedConfig) -> int:
    frames = _field(config, ("num_frames", "frames_per_clip", "max_video_length"), 4)
    return frames if isinstance(frames, int) else 4


def _features(config: PreTrainedConfig) -> torch.Tensor:
    bands = _field(config, ("num_mel_bins", "feature_size", "input_feat_per_channel", "input_dim"), 80)
    positions = _field(config, ("max_source_positions",), 0)
    return torch.randn(BATCH, bands, 2 * positions) if positions and positions <= 64 else torch.randn(BATCH, 64, bands)


MAKERS: dict[str, Callable[[PreTrainedConfig], torch.Tensor]] = {
    "input_ids": _tokens,
    "decoder_input_ids": _tokens,
    "pixel_values": lambda config: torch.randn(BATCH, *_image(config)),
    "pixel_values_videos": lambda config: torch.randn(BATCH, _frames(config), *_image(config)),
    "input_features": _features,
    "input_values": lambda config: torch.randn(BATCH, 8000),
    "bbox": lambda config: torch.arange(4).mul(5).repeat(BATCH, TOKENS, 1),
    "attention_mask": lambda config: torch.ones(BATCH, TOKENS, dtype=torch.long),
    "past_values": lambda config: torch.randn(BATCH, _field(config, ("context_length", "prediction_length"), 32), 1),
}
ALWAYS = ("input_ids", "decoder_input_ids", "pixel_values", "bbox")
OTHER_SHAPES = {
    "pixel_values": [(BATCH, 4, 3, 64, 64), (BATCH, 1, 64, 64), (BATCH, 8, 3, 224, 224), (BATCH, 3, 224, 224)],
    "input_values": [(BATCH, 1, 8000), (BATCH, 1024, 128), (BATCH, 64, 80)],
    "input_features": [(BATCH, 80, 64), (BATCH, 128, 64), (BATCH, 64, 160), (BATCH, 80, 3000)],
}
