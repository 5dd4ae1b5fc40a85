"""`gather_codes`: FSDP2 gathers the codes of weights, instead of weights that are then quantized.

Each rank quantizes its own rows before the gather. The bits are those of quantizing the whole weight, since a quantizer
that looks along the rows makes of a row what it makes of it among others. The second level of NVFP4's scales is of the
largest magnitude of all rows: ranks agree on it first, and each quantizes its rows with one more, which holds it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from .. import _compat
from ..config.listed import lists_options
from ..config.marks import class_mark
from ..config.options import Policy, configure
from ..config.recipe import Recipe
from ..config.weights import Weight, weights_of
from ..errors import OptionError
from ..kernels.numerics import philox
from ..kernels.operand_formats import OPERAND_FORMATS
from ..kernels.quantizer import quantizer
from ..passes.plan import DTYPES, chosen, refused, sparse_tail
from ..passes.products.kind import SMALLEST
from ..ranks import check_gathers, check_ranks, say_gathers
from ..report.report import Gathered
from ..tables import aligned, ruled
from .weight import GatheredWeight, Made

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..config.listed import Options

log = logging.getLogger("quartet_compile")

_Module = TypeVar("_Module", bound=nn.Module)


@lists_options
def gather_codes(model: _Module, **options: Unpack[Options]) -> _Module:
    """Let FSDP2 gather codes, scales and trust masks of a model's weights: 5.25 bits an element in MXFP4. In place; returns
    the model. It computes what it did before, bit for bit; the state dict and checkpoints stay as they are.

        for block in model.layers:
            fully_shard(block)
        fully_shard(model)
        qc.quartet(model, wire="quantized")      # does it too, with its own options

    By itself it is for trainers that compile blocks themselves: `qc.enable(model, ...)`, then their sharding and their
    compilation, then `qc.gather_codes(model, ...)` with the same options, before the first forward pass.

    Gathered as codes are the weights of linear layers that these options want in FP4, by a recipe that computes with codes
    of W alone, quantized along its rows. The rest is gathered as it is: `explain(model, *inputs).gathered` tells why, and
    so does `TORCH_LOGS=quartet_compile`. A weight
    whose codes are gathered must be read by compiled matmuls alone; `WireError` says where it isn't.

    Raises `OptionError` for a model that FSDP2 hasn't sharded or that has run, and for weights whose codes are gathered for
    other options; `RecipeError`.
    """
    if not isinstance(model, nn.Module) or not any(map(_compat.is_fully_sharded, model.modules())):
        raise OptionError(
            f"gather_codes got {type(model).__name__}; expected a Module that FSDP2 shards. Call "
            "torch.distributed.fsdp.fully_shard on it first."
        )
    config = configure(options)
    check_ranks(config)
    say_gathers(config.policy)
    gather(model, config.policy)
    return model


def gather(model: nn.Module, policy: Policy) -> None:
    """Let FSDP2 gather the codes that this policy makes."""
    jobs, kept = [], []
    for weight, record, reason, parcel in _decided(model, policy):
        if parcel is None:
            kept.append((weight.name, reason))
        elif _compat.parcel_of(record) != parcel:
            _check(weight.name, record)
            jobs.append((record, parcel))
    for record, parcel in jobs:
        _compat.send_parcel(record, parcel)
    lines = ruled(aligned([("gathered as it is", "why"), *kept])) if kept else []
    log.info("FSDP2 gathers the codes of %d weights\n%s", len(jobs), "\n".join(lines))


def gathered(model: nn.Module, policy: Policy) -> tuple[Gathered, ...]:
    """What FSDP2 gathers of each weight of a model, for a report; nothing where no codes are asked for.

    Of a model that hasn't been asked for codes, and a policy with `wire="quantized"`, what it would gather.
    """
    decided = list(_decided(model, policy))
    if policy.wire != "quantized" and all(_compat.parcel_of(record) is None for _, record, _, _ in decided):
        return ()
    found = []
    for weight, record, reason, parcel in decided:
        sent = _compat.parcel_of(record) or (parcel if policy.wire == "quantized" else None)
        size = torch.Size(weight.shape).numel() * _compat.gathered_dtype(record).itemsize
        found.append(
            Gathered(
                matmul=weight.names[0],
                operand="W",
                shape=weight.shape,
                ranks=_compat.shard_ranks(record),
                bytes_before=size,
                bytes_after=sent.bytes_of(weight.shape) if isinstance(sent, Codes) else size,
                reason="" if sent is not None else reason or "its codes were not asked for",
            )
        )
    return tuple(found)


def _decided(model: nn.Module, policy: Policy) -> Iterator[tuple[Weight, Any, str, Codes | None]]:
    """Each weight that FSDP2 gathers, its record, and what is sent of it, or why it is sent as it is."""
    records = _compat.fsdp_parameters(model)
    for weight in weights_of(model) if records else ():
        record = records.get((weight.module, weight.attribute))
        if record is not None:
            yield weight, record, *_parcel(weight, record, policy)


@dataclasses.dataclass(frozen=True)
class Codes:
    """What is sent of a weight `[..., N, K]` by its rows: codes, scales and, if `masked`, the trust mask. quantizer: its
    name."""

    quantizer: str
    masked: bool

    def sent(self, part: torch.Tensor, group: Any) -> tuple[torch.Tensor, ...]:
        """`part [..., rows, K]` quantized, each result with the leading dimensions of the part; in NVFP4 also the tensor
        scale."""
        check_gathers(torch.distributed.get_process_group_ranks(group) if group is not None else ())
        rows, spec = part.flatten(0, -2), quantizer(self.quantizer)
        given = _with_largest(rows, spec.group, group) if spec.two_level else rows
        how = (self.quantizer, False, self.masked, philox.FPROP_W, None, None)
        codes, scales, tensor_scale, mask = torch.ops.quartet.quantize(given, *how)
        parts = (codes, scales.view(torch.uint8), *[mask] * self.masked)
        parts = tuple(each[: len(rows)].unflatten(0, part.shape[:-1]) for each in parts)
        return (*parts, tensor_scale) if spec.two_level else parts

    def bytes_of(self, shape: tuple[int, ...]) -> int:
        """What is sent of a weight of this shape, all ranks together."""
        a_row = torch.empty((1, shape[-1]), device="meta", dtype=torch.bfloat16)
        codes, scales, _, mask = torch.ops.quartet.quantize(
            a_row, self.quantizer, False, self.masked, philox.FPROP_W, None, None
        )
        return torch.Size(shape[:-1]).numel() * sum(each.nbytes for each in (codes, scales, *[mask] * self.masked))

    def received(self, gathered: tuple[torch.Tensor, ...], size: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        """The weight of all rows; the last ranks may have sent more."""
        facts = OPERAND_FORMATS[quantizer(self.quantizer).format]
        codes, scales, *mask = (each.narrow(0, 0, size[0]) for each in gathered[: 2 + self.masked])
        scale_of_all = gathered[-1][:1] if facts.two_level else codes.new_empty((0,), dtype=torch.float32)
        parts = {
            "codes": codes,
            "scales": scales.view(facts.scales),
            "tensor_scale": scale_of_all,
            "mask": mask[0] if mask else codes.new_empty((*codes.shape[:-1], 0)),
        }
        return GatheredWeight(parts, Made(self.quantizer, tuple(size), dtype))


def _with_largest(rows: torch.Tensor, columns: int, group: Any) -> torch.Tensor:
    """Rows, and one more, with the largest magnitude of all ranks. Groups with a NaN or an infinity do not count."""
    padded = torch.nn.functional.pad(rows.abs(), (0, -rows.shape[1] % columns))
    largest = padded.unflatten(1, (-1, columns)).amax(-1)
    largest = torch.where(largest.isfinite(), largest, 0).amax().float()
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX, group)
    more = rows.new_zeros((1, rows.shape[1]))
    more[0, 0] = largest
    return torch.cat([rows, more])


def _parcel(weight: Weight, record: Any, policy: Policy) -> tuple[str, Codes | None]:
    """What is sent of a weight; None with the reason for one that is gathered as it is."""
    recipe = policy.recipe.of(weight.names)
    mark = class_mark(type(weight.module))
    wanted, why = chosen(weight.names, mark, policy)
    obstacles = _obstacles(weight, record, policy, recipe) if recipe is not None else iter(())
    reason = refused(weight.names, mark, policy, recipe) or ("" if wanted else why) or next(obstacles, "")
    if reason or recipe is None or recipe.fprop is None:
        return reason, None
    return "", Codes(recipe.fprop.b.name, recipe.trust_mask and recipe.wgrad is not None)


def _obstacles(weight: Weight, record: Any, policy: Policy, recipe: Recipe) -> Iterator[str]:
    """Why a weight that is wanted in FP4 can't be gathered as codes."""
    spec = recipe.fprop.b if recipe.fprop is not None else None
    if spec is None or recipe.dgrad is None or recipe.w_from == "original":
        yield f"the recipe {recipe.name!r} computes with the weight itself"
        return
    if reason := _compat.why_no_parcel(record):
        yield reason
    if weight.turned is not False:
        yield "its module doesn't say that its rows are contracted"
    if spec.group_rows > 1:
        yield f"{spec.name} has blocks of several rows"
    if spec.two_level and spec.rotation:
        yield f"{spec.name} has a scale of the whole tensor, of what is rotated"
    if spec.exact or spec.elements != "e2m1":
        yield f"{spec.name} makes no FP4 codes"
    evaluated = policy.eval_recipe.of(weight.names)
    if evaluated is None or evaluated.fprop is None or evaluated.fprop.b != spec:
        yield "evaluation quantizes it in another way"
    if policy.stats:
        yield "stats=True measures against the weight itself"
    *_, n, k = weight.shape
    if min(n, k) < SMALLEST:
        yield f"its sizes are {tuple(weight.shape)}, and matmuls with N or K below {SMALLEST} stay in high precision"
    if lost := sparse_tail(k, recipe):
        yield lost
    if len(weight.shape) > 2 and n % recipe.block:
        yield f"its matrices have {n} rows; expected a multiple of {recipe.block}"
    dtype = _compat.gathered_dtype(record)
    if dtype not in DTYPES:
        yield f"its dtype is {dtype}"


def _check(name: str, record: Any) -> None:
    """Raise `OptionError` for a weight of which something else was gathered before."""
    if _compat.parcel_of(record) is not None:
        raise OptionError(
            f"FSDP2 gathers the codes of {name!r} for other options; expected the same. Shard the model anew, or give the "
            "options once."
        )
    if _compat.was_gathered(record):
        raise OptionError(
            f"FSDP2 has gathered the weight {name!r} already; expected a model that hasn't run. Ask for wire='quantized' "
            "after fully_shard and before the first forward pass."
        )
