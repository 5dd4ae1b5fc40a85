"""`pack` and `unpack`: frozen weights to FP4 codes in memory, and back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar

from torch import nn

from ..config.listed import lists_options
from ..config.marks import class_mark
from ..config.names import matches
from ..config.options import Policy, configure
from ..config.recipe import Recipe
from ..config.weights import Weight, weights_of
from ..errors import PackError
from ..held import packed_names
from ..kernels.quantizer import Quantizer
from ..passes.plan import DTYPES, chosen, refused
from ..passes.products.kind import SMALLEST
from ..quantized import quantize
from .module import codes_of, hold, release

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..config.listed import Options

_Module = TypeVar("_Module", bound=nn.Module)


@lists_options
def pack(model: _Module, **options: Unpack[Options]) -> _Module:
    """Replace frozen weights by the FP4 codes that their forward pass computes with: 4.25 bits an element in MXFP4, 4.5 in
    NVFP4. In place; returns the model. Compiled with the same options, it computes what it did before, bit for bit, and
    its graphs read the codes as they are. Outside of graphs each use of a weight decodes it.

        model.requires_grad_(False)
        qc.pack(model)                             # options as those of qc.quartet: recipe, include, exclude
        model = peft.get_peft_model(model, ...)    # adapters train beside it
        model = qc.quartet(model)

    Packed are the weights of `nn.Linear` and transformers' `Conv1D`, and the matrices `[E, N, K]` or `[E, K, N]` of
    transformers' experts, that are frozen and that the options want in FP4: by default not output heads, routers, weights
    with K or N below 32, nor tied ones. What `include` names has to be packable. packed/module.py says what the state dict
    holds instead.

    Raises `OptionError`, `RecipeError`, and `PackError`, before anything is changed: for a weight that is trained, is
    tied, has no two sizes of 32 or more, whose contracted dimension nothing says, or whose rows of one matrix don't fill
    their last block; for a recipe whose forward pass has no FP4 codes; for a NaN or an infinity; for nothing to pack.
    """
    policy = configure(options).policy
    jobs = [(weight, _quantizer(weight, recipe)) for weight, recipe in _chosen(model, policy)]
    if not jobs:
        raise PackError(
            f"Nothing to pack in {type(model).__name__}: expected frozen weights of linear layers that these options want "
            "in FP4. Freeze them first: model.requires_grad_(False)."
        )
    for weight, _ in jobs:
        _check_values(weight)
    for weight, quantizer in jobs:
        _pack(weight, quantizer)
    return model


def unpack(model: _Module) -> _Module:
    """Give a model its weights back, in place: parameters without gradient that hold the values of the codes, rounded to
    the dtype that they had. Returns the model. Raises `PackError` where nothing is packed."""
    packed = [module for module in model.modules() if packed_names(module)]
    if not packed:
        raise PackError(
            f"Nothing in {type(model).__name__} is packed; expected a model that quartet_compile.pack changed."
        )
    for module in packed:
        for name in packed_names(module):
            values = release(module, name).contiguous()
            module.register_parameter(name, nn.Parameter(values, requires_grad=False))
    return model


def _chosen(model: nn.Module, policy: Policy) -> Iterator[tuple[Weight, Recipe]]:
    """The weights that are packed, each with its recipe. Raises `PackError` for one that is asked for and can't be."""
    found = list(weights_of(model))
    for option, pattern in policy.patterns:
        if not any(matches(pattern, weight.names) for weight in found):
            known = ", ".join(weight.name for weight in found[:4])
            raise PackError(
                f"The {option} pattern {pattern!r} matches no weight of {type(model).__name__}; its weights are {known}, ..."
            )
    shared = _shared(model)
    for weight in found:
        recipe = policy.recipe.of(weight.names)
        mark = class_mark(type(weight.module))
        if refused(weight.names, mark, policy, recipe) or not chosen(weight.names, mark, policy)[0]:
            continue
        assert recipe is not None
        obstacle = _obstacle(weight, id(weight.tensor) in shared)
        if obstacle is None:
            yield weight, recipe
        elif any(matches(pattern, weight.names) for pattern in policy.include):
            raise PackError(
                f"The weight {weight.name!r} can't be packed: {obstacle}. Leave it out: exclude=[{weight.name!r}]."
            )


def _obstacle(weight: Weight, shared: bool) -> str | None:
    """Why a weight can't be packed; None if it can."""
    tensor = weight.tensor
    if tensor.requires_grad:
        return "it is trained; codes can't be. Freeze it (requires_grad_(False))"
    if weight.turned is None:
        return (
            f"nothing says which dimension of {tuple(tensor.shape)} is contracted; expected a linear layer, or experts"
        )
    if tensor.dtype not in DTYPES:
        return f"its dtype is {tensor.dtype}; expected one of {', '.join(map(str, DTYPES))}"
    if shared:
        return "it is tied to another parameter, as an output head to its embedding table"
    if min(weight.shape[-2:]) < SMALLEST:
        return f"its sizes are {tuple(tensor.shape)}, and matmuls with N or K below {SMALLEST} stay in high precision"
    return None


def _shared(model: nn.Module) -> set[int]:
    """The parameters with several names, by `id`."""
    count: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        count[id(parameter)] = count.get(id(parameter), 0) + 1
    return {key for key, times in count.items() if times > 1}


def _quantizer(weight: Weight, recipe: Recipe) -> Quantizer:
    """The quantizer of a weight's codes. Raises `PackError`."""
    quantizer = recipe.fprop.b if recipe.fprop is not None else None
    if quantizer is None or quantizer.elements != "e2m1":
        what = "computes fprop in high precision" if quantizer is None else f"has weights in {quantizer.format}"
        raise PackError(
            f"The recipe {recipe.name!r} of the weight {weight.name!r} {what}; expected one with FP4 weights, as 'quartet'."
        )
    check_rows(weight.name, weight.shape, recipe.block)
    return quantizer


def check_rows(name: str, shape: tuple[int, ...], block: int) -> None:
    """Raise `PackError` for matrices `[E, N, K]` of which one would end within a block of rows."""
    if len(shape) > 2 and shape[-2] % block:
        raise PackError(
            f"The weight {name!r} is {shape[0]} matrices of {shape[-2]} rows; expected a multiple of {block} rows, so that "
            f"one starts where a block does. Leave it out: exclude=[{name!r}]."
        )


def _check_values(weight: Weight) -> None:
    if weight.tensor.is_meta:
        raise PackError(
            f"The weight {weight.name!r} is on the meta device; expected values. quartet_compile.load_fp4 reads files."
        )
    if not bool(weight.tensor.detach().isfinite().all()):
        raise PackError(
            f"The weight {weight.name!r} has a NaN or an infinity; expected finite values, since their group would be NaN. "
            f"Load an earlier checkpoint, or leave it out: exclude=[{weight.name!r}]."
        )


def _pack(weight: Weight, quantizer: Quantizer) -> None:
    tensor = weight.tensor.detach()
    blocks = quantize(tensor.transpose(-1, -2) if weight.turned else tensor, quantizer)
    leading = tensor.shape[:-2]
    codes, scales = (part.unflatten(0, (*leading, -1)) if leading else part for part in (blocks.codes, blocks.scales))
    held = codes_of(codes, scales, blocks.tensor_scale, quantizer, weight.shape[-1], bool(weight.turned), tensor.dtype)
    hold(weight.module, weight.attribute, held)
