"""Decide which matmuls are rewritten: the user's rules first, then the default policy, then what is possible.

Every matmul gets a `Decision` with a reason in the user's terms; nothing is skipped silently.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import fx

from ..config.marks import mark_of
from ..config.names import matches
from ..config.options import OUTSIDE, Policy
from ..config.recipe import Recipe
from ..config.rules import Rules
from ..errors import StrictError
from ..machines.targets import Target
from .graph import aten, module_of, strip
from .match import ELEMENTWISE
from .packed import is_gathered, recipe_of, unread
from .products.kind import SMALLEST
from .profit import chip_of, profit
from .site import Decision, MatmulSite, quantized
from .weights import Weights, without_weight
from .work import Work

HEADS = ("lm_head", "head", "classifier", "score", "embed_out", "output_projection")
ROUTERS = ("router", "gate")
_LOST_TAILS = {1: 1.0, 2: 0.13, 3: 0.046}
"""Relative squared error of QuEST on a group with so many columns and zeros after them (Gaussian data, reference); four
columns have .028, as much as a full group of unit variance."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EXCLUDED, MARKED = "excluded by", "marked no_fp4"
"""How the reasons start of what the user named to be kept."""

NESTED = "inside a higher-order op (as cond or flex attention), where its backward can't be seen"


def name_of(site: MatmulSite, parameters: Mapping[fx.Node, str], module: str) -> tuple[str, tuple[str, ...]]:
    """The display name of a site and every name that a pattern may match."""
    sources = [parameters[source] for source in site.sources]
    parameter = sources[0] if len(sources) == 1 else ""
    owner, _, leaf = parameter.rpartition(".")
    if parameter and (not module or f".{module}." in f".{owner}."):
        name = owner if leaf == "weight" and owner else parameter
    else:
        name = module or " + ".join(sources) or site.node.name
    owners = [source.rpartition(".")[0] for source in sources]
    return name, tuple(dict.fromkeys(n for n in (name, *owners, *sources, module) if n))


def apply(work: Work) -> None:
    """Decide about every site. Raises `StrictError` for one that should be rewritten and can't, under `strict`."""
    nodes = [site.node for site in work.sites]
    work.decisions = decide(
        work.sites,
        work.weights,
        {node: module_of(node) for node in nodes},
        {node: mark_of(node.meta) for node in nodes},
        work.policy,
        work.rules,
        nested=work.nested,
    )
    for decision in work.decisions if work.policy.strict else ():
        if decision.eligible and not decision.rewrite:
            raise StrictError(
                f"strict=True, and the matmul {decision.name!r} stays in high precision: {decision.reason}. "
                f"Exclude it (exclude=[{decision.name!r}]) or set strict=False."
            )


def decide(
    sites: list[MatmulSite],
    weights: Weights,
    modules: dict[fx.Node, str],
    marks: dict[fx.Node, str | None],
    policy: Policy,
    recipes: Rules,
    nested: bool = False,
) -> list[Decision]:
    """One decision a site, in order. `modules` and `marks` give the module path and the innermost mark of each node.

    recipes: those of this kind of graph, training or inference.
    nested: the graph is the body of a higher-order op.
    """
    decisions = []
    readers = Counter(site.x.key for site in sites)
    for site in sites:
        name, names = name_of(site, weights.names, modules.get(site.node, ""))
        recipe = recipes.of(names)
        if nested:
            wanted, reason = False, NESTED
        elif site.weight is None:
            wanted, reason = False, without_weight(site.x.node, site.w.node, weights)
        else:
            wanted, reason = _policy(site, names, marks.get(site.node), policy, recipe, readers[site.x.key])
        packed = [weights.packed[source] for source in site.sources if source in weights.packed]
        gathered = any(map(is_gathered, site.sources))
        if packed and wanted and site.packed is None:
            wanted, reason = False, f"it reads the packed weight {packed[0]!r} in part or transposed"
            if gathered:
                reason = "it is read in part, transposed, or cast before the quantizer"
        elif packed and wanted:
            recipe = recipe_of(packed[0], recipe, site)
        obstacle = site.problem if wanted and (recipe.dgrad or recipe.wgrad) else None
        reason = obstacle or reason
        if packed and (obstacle or not wanted):
            if gathered:
                raise unread(packed[0], reason)
            reason = f"{reason}; its packed weight is decoded for it"
        decisions.append(
            Decision(
                site=site,
                name=name,
                names=names,
                recipe=recipe,
                rewrite=wanted and obstacle is None,
                reason=reason,
                eligible=wanted,
            )
        )
    return decisions


def _policy(
    site: MatmulSite, names: tuple[str, ...], mark: str | None, policy: Policy, recipe: Recipe | None, readers: int
) -> tuple[bool, str]:
    refusal = refused(names, mark, policy, recipe)
    if refusal:
        return False, refusal
    if not quantized(site, recipe):
        roles = " and ".join(role for role, _ in recipe.gemms())
        return False, f"recipe {recipe.name!r} quantizes {roles} only, which this matmul hasn't here"
    if site.node.meta["val"].dtype not in DTYPES:
        dtype = str(site.node.meta["val"].dtype).removeprefix("torch.")
        return False, f"dtype {dtype}; FP4 replaces float32, bfloat16 and float16 only"
    obstacle = site.kind.obstacle(site) or _too_small(site, names) or sparse_tail(site.shape[2], recipe)
    if obstacle:
        return False, obstacle
    wanted, reason = chosen(names, mark, policy)
    if reason:
        return wanted, reason
    kept = _tied(site) or _unprofitable(site)
    if kept:
        return False, kept
    chip = chip_of(policy, site.node.meta["val"].device)
    return (True, _kind(site)) if chip is None else _if_it_pays(site, recipe, chip, readers)


def _if_it_pays(site: MatmulSite, recipe: Recipe, chip: Target, readers: int) -> tuple[bool, str]:
    """Under `policy="profitable"`: a site that doesn't pay is kept, one of which that isn't known is not."""
    found = profit(site, recipe, chip, readers)
    if isinstance(found, str):
        return True, f"{_kind(site)}; {found}, so whether it pays isn't known"
    return found.pays, f"{'pays' if found.pays else 'does not pay'}, {found}"


def refused(names: tuple[str, ...], mark: str | None, policy: Policy, recipe: Recipe | None) -> str | None:
    """What the user wrote that keeps a matmul of these names in high precision whatever its size; None if nothing."""
    if policy.leaves_out(names):
        return OUTSIDE
    if recipe is None:
        return "no rule of the option 'recipe' matches it; end the list with ('*', 'quartet') for the rest"
    if not recipe.rewrites:
        return f"recipe {recipe.name!r} keeps high precision"
    if mark == "no_fp4":
        return MARKED
    for pattern in policy.exclude:
        if matches(pattern, names):
            return f"{EXCLUDED} {pattern!r}"
    return None


def chosen(names: tuple[str, ...], mark: str | None, policy: Policy) -> tuple[bool, str]:
    """Whether a matmul of these names that nothing refuses is wanted in low precision, and by what the user wrote; an
    empty reason if by default."""
    if mark == "fp4":
        return True, "marked fp4"
    if policy.scope == "marked":
        return False, "not marked fp4 (scope='marked')"
    if policy.include:
        for pattern in policy.include:
            if matches(pattern, names):
                return True, f"included by {pattern!r}"
        return False, "not in include"
    last = {name.rpartition(".")[2] for name in names}
    for kind, known in (("output head", HEADS), ("router", ROUTERS)):
        hit = last & set(known)
        if hit:
            return False, f"{kind} by its name {min(hit)!r}; include=['*'] rewrites it too"
    return True, ""


def _tied(site: MatmulSite) -> str | None:
    for source in site.sources:
        if any(strip(user.args[0]) is source for user in _embeddings(source)):
            return "output head: its weight is an embedding table too; include=['*'] rewrites it too"
    return None


def _unprofitable(site: MatmulSite) -> str | None:
    """Why FP4 would be slower; `include` rewrites it all the same."""
    m, reason = site.shape[0], None
    if site.problem == ELEMENTWISE:
        return ELEMENTWISE  # whatever `include` says
    if isinstance(m, int) and m < SMALLEST // 2 and (site.backward or site.problem):
        reason = f"M is {m} in training, and backward has groups of {SMALLEST} rows"
    else:
        reason = site.kind.unprofitable(site)
    return f"{reason}; include=['*'] rewrites it too" if reason else None


def _kind(site: MatmulSite) -> str:
    what = site.kind.noun(site)
    how_many = f"{site.matrices} matrices of a" if site.matrices != 1 else "a"
    if strip(site.weight) not in site.sources:
        return (
            f"{what} with {how_many} weight computed from {len(site.sources)} parameter{'s' * (len(site.sources) > 1)}"
        )
    return f"{what} with {how_many} parameter"


def _embeddings(weight: fx.Node) -> list[fx.Node]:
    found, stack = [], [weight]
    while stack:
        for user in stack.pop().users:
            if user.target is aten.embedding.default:
                found.append(user)
            elif strip(user) is weight and user is not weight:
                stack.append(user)
    return found


def _too_small(site: MatmulSite, names: tuple[str, ...]) -> str | None:
    _, n, k = site.shape
    for letter, size in (("K", k), ("N", n)):
        if not isinstance(size, int):
            return f"{letter} is dynamic ({size}); mark it static with torch._dynamo.mark_static"
        if size < SMALLEST:
            adapter = "; a LoRA adapter of such a rank stays, what it adapts doesn't" if _is_adapter(names) else ""
            return f"{letter} is {size}, below the group of {SMALLEST}{adapter}"
    return None


def _is_adapter(names: tuple[str, ...]) -> bool:
    """Whether names say that a matmul is half of a low-rank adapter, as peft's `lora_A` and `lora_B`."""
    return any(part.lower().startswith("lora_") for name in names for part in name.split("."))


def sparse_tail(k: int, recipe: Recipe) -> str | None:
    """QuEST's scale is a standard deviation: a last group with one column rotates to a constant, and is lost."""
    if recipe.fprop is None or "quest" not in (recipe.fprop.a.scale, recipe.fprop.b.scale):
        return None
    tail = k % recipe.fprop.a.block
    if tail not in _LOST_TAILS:
        return None
    return (
        f"K is {k}: {tail} column{'s' * (tail > 1)} would be left for the last group of {recipe.fprop.a.block}, where "
        f"QuEST's error is {_LOST_TAILS[tail]}; make K a multiple of {recipe.fprop.a.block}"
    )
