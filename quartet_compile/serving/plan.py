"""What each tensor of a model becomes, as the report of `explain` decided it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from .. import _compat
from ..capture.eager import EAGER
from ..config.names import clean
from ..config.options import Policy
from ..config.recipe import Gemm, Recipe
from ..errors import ExportError
from ..held import Held, held, packed_names
from ..kernels.quantizer import Quantizer
from ..kernels.quantizer import quantizer as quantizer_named
from ..report.report import COLUMNS, ROWS, Report, Site

NO_MATMUL = "not a weight of a matmul"
UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assignment:
    """One tensor of the model, by its name in the state dict.

    quantizer: of its matmul's second operand in the forward pass; None if it stays in high precision.
    outputs: whether the N outputs of `X W^T` are its `"rows"`, as in `nn.Linear`, or its `"columns"`; leading dimensions
             are matrices of their own. `"unknown"` for a square one of which nothing says it.
    compute: the dtype that the matmul reads it in.
    linear:  whether it is the weight of an `nn.Linear`.
    shape:   of the tensor in the model.
    """

    name: str
    shape: tuple[int, ...] = ()
    quantizer: Quantizer | None = None
    outputs: str = ROWS
    compute: torch.dtype | None = None
    linear: bool = False
    reason: str = NO_MATMUL


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What becomes of all tensors. recipe: its name. linears: the names of all `nn.Linear` modules."""

    recipe: str
    assignments: Mapping[str, Assignment]
    linears: tuple[str, ...]

    @property
    def quantized(self) -> list[Assignment]:
        """The tensors that become FP4."""
        return [each for each in self.assignments.values() if each.quantizer is not None]

    @property
    def kept_linears(self) -> list[str]:
        """The `nn.Linear` modules whose weights stay in high precision."""
        packed = {each.name.removesuffix(".weight") for each in self.quantized if each.linear}
        return [name for name in self.linears if name not in packed]

    @property
    def quantizer(self) -> Quantizer:
        """That of the FP4 tensors. Raises `ExportError` where there are none, or several formats or rotations."""
        self.require_quantized()
        by_layout = {(q.quantizer.format, q.quantizer.rotation): q for q in self.quantized if q.quantizer}
        if len(by_layout) > 1:
            shown = "; ".join(f"{q.name} is {q.quantizer.name}" for q in by_layout.values() if q.quantizer)
            raise ExportError(
                f"The recipe {self.recipe!r} has weights in several formats ({shown}); a file of this kind "
                "has one. Keep the "
                "others in high precision with exclude=[...], or use format='bf16'."
            )
        return next(q.quantizer for q in by_layout.values() if q.quantizer)

    def require_quantized(self) -> None:
        """Raise `ExportError`, with the reasons, if no tensor becomes FP4."""
        if not self.quantized:
            reasons = {each.reason for each in self.assignments.values()} - {NO_MATMUL}
            raise ExportError(
                f"No matmul of this model computes its forward pass in FP4 (recipe {self.recipe!r}), so there is nothing to "
                f"write: {'; '.join(sorted(reasons)) or 'it has no matmul with a parameter'}. Give the recipe that it was "
                "trained with."
            )


def plan(report: Report, model: nn.Module, policy: Policy) -> Plan:
    """The plan of a model from its report. policy: of the options of that report.

    Raises `ExportError` for a report of other options, for a matmul in FP4 whose weight is no tensor of the state dict, or
    is read in high precision elsewhere, and for a model of which FSDP2 hides a part.
    """
    if report.gap:
        raise ExportError(
            f"Not all of the model could be seen, so which weights are in FP4 is not known: {report.gap}. Give inputs that "
            "it runs on without that, as inputs=(...) or kwargs={...}."
        )
    eager = dict.fromkeys(repr(site.name) for site in report.eager_sites if site.reason == EAGER)
    if eager and any(map(_compat.is_fully_sharded, model.modules())):
        outside = ", ".join(eager)
        raise ExportError(
            f"Of this sharded {type(model).__name__}, FSDP2's hooks keep {outside} outside of every graph, so whether they "
            "were trained in FP4 isn't known. Give the same model as it was before it was sharded, which may lie on the "
            f"meta device, as of=model; with exclude=[{outside}] if they were trained in high precision."
        )
    tensors = unshared(model)
    modules = {clean(name): module for name, module in model.named_modules()}
    recipes = {chosen.name: chosen for rules in (policy.recipe, policy.eval_recipe) for _, chosen in rules}
    found: dict[str, Assignment] = {}
    for site in report.sites:
        fprop = _fprop(site, recipes)
        known = (site.weight,) if fprop is not None else (site.weight, f"{site.name}.weight", site.name)
        name = next((n for n in known if n in tensors), None)
        if name is None:
            if fprop is not None:
                raise ExportError(_no_tensor(site, model))
            continue
        made = _assignment(site, name, tensors[name], modules, fprop)
        _check_alike(found.setdefault(name, made), made, site)
    _check_tables(found, tensors, model)
    assignments = {name: found.get(name, _unseen(name, modules)) for name in tensors}
    linears = tuple(name for name, module in modules.items() if isinstance(module, nn.Linear))
    return Plan(recipe=report.recipe, assignments=assignments, linears=linears)


def unshared(model: nn.Module) -> dict[str, torch.Tensor | Held]:
    """The state dict, each tensor under its first name only, as a file with tied weights has it; a packed weight by its own
    name, in the place of its parts."""
    packed = {
        f"{path}.{name}".lstrip("."): held(module, name)
        for path, module in model.named_modules()
        for name in packed_names(module)
    }
    parts = {f"{name}_{part}": name for name in packed for part in ("packed", "scale", "tensor_scale", "quantizer")}
    tensors: dict[str, torch.Tensor | Held] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in parts:
            tensors[clean(parts[name])] = packed[parts[name]]
        elif isinstance(tensor, torch.Tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[clean(name)] = tensor
    return tensors


def _fprop(site: Site, recipes: Mapping[str, Recipe]) -> Gemm | None:
    """The quantizers of a matmul's forward pass; None if it runs in high precision."""
    if not site.rewritten:
        return None
    if site.recipe not in recipes:
        raise ExportError(
            f"The report says that {site.name!r} runs in recipe {site.recipe!r}, and the options have "
            f"{', '.join(map(repr, recipes))}. Give the options of the report too, as recipe={site.recipe!r}."
        )
    return recipes[site.recipe].fprop


def _assignment(
    site: Site, name: str, tensor: torch.Tensor | Held, modules: Mapping[str, nn.Module], fprop: Gemm | None
) -> Assignment:
    linear = _is_linear(name, modules)
    if fprop is None:
        reason = site.reason if not site.rewritten else f"recipe {site.recipe!r} computes fprop in high precision"
        return Assignment(name=name, shape=tuple(tensor.shape), reason=reason, linear=linear)
    if fprop.b.exact:
        raise ExportError(
            f"The recipe {site.recipe!r} rounds nothing, so {name!r} has no codes to write. Give a recipe with FP4 weights."
        )
    if site.outputs.startswith("some") and (fprop.b.two_level or fprop.b.square):
        raise ExportError(
            f"The matmul {site.name!r} reads a part of {name!r}, and {fprop.b.name!r} has a scale of more than one row, "
            f"which differs between the part and the whole. Keep it with exclude=[{name!r}]."
        )
    outputs = site.outputs.removeprefix("some ") or UNKNOWN
    if linear and outputs != ROWS:
        raise ExportError(
            f"The matmul {site.name!r} reads the nn.Linear weight {name!r} transposed, in codes of its columns, where who "
            f"loads it has codes of its rows. Keep it with exclude=[{name!r}]."
        )
    if isinstance(tensor, Held):
        outputs = COLUMNS if tensor.layout.turned else ROWS
    return Assignment(
        name=name,
        shape=tuple(tensor.shape),
        quantizer=quantizer_named(tensor.layout.quantizer) if isinstance(tensor, Held) else fprop.b,
        outputs=outputs,
        compute=getattr(torch, site.dtype),
        linear=linear,
        reason=site.reason,
    )


def _check_alike(before: Assignment, made: Assignment, site: Site) -> None:
    """Raise `ExportError` for two matmuls that read one weight in different ways."""
    if before.quantizer != made.quantizer:
        raise ExportError(
            f"The weight {made.name!r} is read by two matmuls, one in FP4 and one in another precision ({before.reason}; "
            f"{made.reason}); a served model has one weight. Keep both with exclude=[{site.name!r}]."
        )
    if before.quantizer is not None and (before.outputs, before.compute) != (made.outputs, made.compute):
        how = [
            f"in {str(each.compute).removeprefix('torch.')}, its {each.outputs} in groups" for each in (before, made)
        ]
        raise ExportError(
            f"The weight {made.name!r} is read by two matmuls in other codes: {how[0]}; {how[1]}; a served model has one "
            f"weight. Keep both with exclude=[{made.name!r}]."
        )


def _check_tables(
    found: Mapping[str, Assignment], tensors: Mapping[str, torch.Tensor | Held], model: nn.Module
) -> None:
    """Raise `ExportError` for an FP4 weight that is an embedding table too, which is read in high precision."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for each in found.values():
        if each.quantizer is not None and id(tensors[each.name]) in tables:
            raise ExportError(
                f"The weight {each.name!r} is read by a matmul in FP4, and as an embedding table in high precision; a "
                f"served model has one weight. Keep it with exclude=[{each.name!r}]."
            )


def _unseen(name: str, modules: Mapping[str, nn.Module]) -> Assignment:
    linear = _is_linear(name, modules)
    return Assignment(name=name, linear=linear, reason="not in the captured forward pass" if linear else NO_MATMUL)


def _is_linear(name: str, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a tensor is the weight of an `nn.Linear`."""
    return name.endswith(".weight") and isinstance(modules.get(name.rpartition(".")[0]), nn.Linear)


def _no_tensor(site: Site, model: nn.Module) -> str:
    return (
        f"The matmul {site.name!r} runs in FP4, and its weight is no tensor of the state dict of "
        f"{type(model).__name__}: it is "
        "computed from parameters, or tied to a table under another name. Merge it first (peft: merge_and_unload(); "
        f"torch.nn.utils.parametrize.remove_parametrizations), or keep it with exclude=[{site.name!r}]."
    )


def named(plan: Plan, names: Sequence[str]) -> dict[str, Assignment]:
    """The assignments of the tensors of a checkpoint; those that the model doesn't have stay as they are. Raises
    `ExportError` for an FP4 weight that the checkpoint lacks."""
    held = set(names)
    for each in plan.quantized:
        if each.name not in held:
            raise ExportError(
                f"The checkpoint has no tensor {each.name!r}, which the model computes with in FP4; it has "
                f"{len(names)} tensors, "
                f"as {', '.join(names[:4])}. Save the model with the names of its state dict."
            )
    return {name: plan.assignments.get(name, Assignment(name=name, reason="not in the model")) for name in names}
