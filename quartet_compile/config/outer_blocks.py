"""The first and last blocks of a model by name, to be kept in high precision as FP4 recipes of large models do."""

from __future__ import annotations

from torch import nn

from .._compat import original_of
from ..errors import OptionError
from .names import clean


def first_and_last_blocks(model: nn.Module, *, first: int = 0, last: int = 0) -> list[str]:
    """Names of the first and last blocks, for `exclude`: `exclude=qc.first_and_last_blocks(model, first=1, last=2)`.

    Blocks are the children of the outermost ModuleLists and Sequentials that have two or more, all of one class and with
    parameters; of an encoder and a decoder, each has its own first and last. Raises `OptionError` if there are none, or
    fewer than asked for.
    """
    for what, count in (("first", first), ("last", last)):
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise OptionError(f"{what}={count!r}: expected a number of blocks, 0 or more.")
    stacks = _stacks(model)
    if not stacks:
        raise OptionError(
            f"{type(model).__name__} has no blocks: no ModuleList or Sequential with two or more children of one class. "
            "Name the modules in exclude=[...] instead."
        )
    chosen = []
    for stack, blocks in stacks.items():
        if first + last > len(blocks):
            raise OptionError(
                f"first={first} and last={last} are more than the {len(blocks)} blocks of {stack!r} in "
                f"{type(model).__name__}; ask for at most {len(blocks)} together."
            )
        chosen += blocks[:first] + blocks[len(blocks) - last :]
    return chosen


def _stacks(model: nn.Module) -> dict[str, list[str]]:
    """The blocks of each outermost stack, by the stack's name."""
    found: dict[str, list[str]] = {}
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if module in inside or not _is_stack(module):
            continue
        inside.update(module.modules())
        found[clean(name)] = [clean(f"{name}.{child}".lstrip(".")) for child, _ in module.named_children()]
    return found


def _is_stack(module: nn.Module) -> bool:
    children = list(module.children())
    alike = len({type(original_of(child)) for child in children}) == 1
    blocks = alike and not isinstance(children[0], (nn.Linear, nn.Embedding))
    return (
        isinstance(module, (nn.ModuleList, nn.Sequential))
        and len(children) > 1
        and blocks
        and all(any(True for _ in child.parameters()) for child in children)
    )
