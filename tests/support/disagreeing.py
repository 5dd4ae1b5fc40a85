"""What the ranks of test_disagreeing.py run: training in which one rank does otherwise than the rest."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from gathered_weights import Blocks, mine
from gathered_weights import sharded as fully_sharded
from sharded import batch, recorded
from told import told
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from wired import Blocks as Rows
from wired import sharded as sharded_by_rows

import quartet_compile as qc
from quartet_compile import _compat
from quartet_compile.process import process

PATIENT, SHORT = 120, 6
"""Seconds of the store: of those that are there in time, and where a rank is waited for in vain."""


@contextlib.contextmanager
def group_of_its_own(name: str, seconds: int = PATIENT) -> Iterator[None]:
    """Nothing that ranks have told one another before holds inside."""
    dist.barrier()
    torch._dynamo.reset()
    store = dist.PrefixStore(name, dist.distributed_c10d._get_default_store())
    store.set_timeout(datetime.timedelta(seconds=seconds))
    own = _compat.default_store, _compat.distributed.default_store, process.switched
    _compat.default_store = _compat.distributed.default_store = lambda: store
    process.talk, process.switched = None, {}
    try:
        with recorded():
            yield
    finally:
        _compat.default_store, _compat.distributed.default_store, process.switched = own
        process.talk = None


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))


def other_options() -> dict[str, str]:
    """By the way in, the errors of ranks of which one has other options than the rest. Under FSDP2 no forward pass runs."""
    recipe = "exact" if dist.get_rank() else "quartet"
    named = {"recipe": recipe, "exclude": ["1"]}
    wired = {"wire": "quantized" if dist.get_rank() else "high"}

    def enabled() -> None:
        with qc.enable(**named):
            torch.compile(small())(batch())

    ways = {
        "by name": lambda: torch.compile(small(), backend="quartet", options=named)(batch()),
        "quartet": lambda: qc.quartet(small(), **named)(batch()),
        "regions": lambda: qc.quartet(small(), regions=["0"], **named)(batch()),
        "enable": enabled,
        "gather_codes": lambda: qc.gather_codes(fully_sharded(small()), recipe=recipe),
        "ddp": lambda: DistributedDataParallel(torch.compile(small(), backend="quartet", options=named))(batch()),
        "fsdp": lambda: qc.quartet(fully_sharded(small()), **wired),
        "dtensor": lambda: qc.quartet(sharded_by_rows(Rows()), **wired)(mine()),
    }
    found = {}
    for way, run in ways.items():
        with group_of_its_own(f"options/{way}"):
            found[way] = told(run)
    return found


STEPS = 6


def trained(model: nn.Module, switch: Callable[[Any, int], None], function: Any, step: Callable[[], None]) -> list[Any]:
    """The steps that were done, and the error that ended them."""
    done, optimizer = 0, torch.optim.SGD(model.parameters(), lr=1e-4)

    def run() -> None:
        nonlocal done
        for number in range(STEPS):
            switch(function, number)
            optimizer.zero_grad()
            step()
            optimizer.step()
            done += 1

    return [told(run), done]


def later() -> dict[str, list[Any]]:
    """`set_recipe` between two steps under DDP, as each rank does it."""
    first = dist.get_rank() == 0

    def at(rank_0: dict[int, str], rank_1: dict[int, str]) -> Callable[[Any, int], None]:
        chosen = rank_0 if first else rank_1

        def switch(function: Any, step: int) -> None:
            if step in chosen:
                qc.set_recipe(function, chosen[step])

        return switch

    def to_evaluate(function: Any, step: int) -> None:
        """As at `at({}, {})`, but that rank 0 evaluates between steps."""
        if first and step == 2:
            before = qc.set_recipe(function, "exact")
            with torch.no_grad():
                function.module(batch())
            qc.set_recipe(function, before)

    ways = {
        "alike": at({2: "exact", 4: "quartet"}, {2: "exact", 4: "quartet"}),
        "evaluation": to_evaluate,
        "one alone": at({2: "exact"}, {}),
        "the others alone": at({}, {1: "exact"}),
        "another recipe": at({2: "exact"}, {2: "quartet-rtn"}),
        "another step": at({2: "exact"}, {3: "exact"}),
    }
    found = {}
    for way, switch in ways.items():
        with group_of_its_own(f"later/{way}"):
            model = small()
            replica = DistributedDataParallel(torch.compile(model, backend="quartet"))
            found[way] = trained(
                model, switch, replica, lambda replica=replica: replica(batch()).square().sum().backward()
            )
    return found


def later_on_the_wire() -> dict[str, list[Any]]:
    """The same where the recipe decides what a graph gathers. In the last way rank 1 never switches."""
    rank = dist.get_rank()

    def at(*steps_and_recipes: tuple[int, str] | None) -> Callable[[Any, int], None]:
        chosen = steps_and_recipes[rank]

        def switch(function: Any, step: int) -> None:
            if chosen is not None and chosen[0] == step:
                qc.set_recipe(function, chosen[1])

        return switch

    ways = {
        "alike": (at((1, "mxfp8"), (1, "mxfp8")), PATIENT),
        "another recipe": (at((1, "mxfp8"), (1, "exact")), PATIENT),
        "one alone": (at((1, "mxfp8"), None), SHORT),
    }
    found = {}
    for way, (switch, seconds) in ways.items():
        with group_of_its_own(f"wire/{way}", seconds):
            model = sharded_by_rows(Rows())
            function = qc.quartet(model, wire="quantized")
            found[way] = trained(
                model, switch, function, lambda function=function: function(mine()).square().sum().backward()
            )
    return found


def codes() -> dict[str, str]:
    """FSDP2 where one rank asks for codes: the other compiles without, and, in the last way, does nothing at all."""
    found = {}
    with group_of_its_own("codes/blocks"):
        model = Blocks()
        with qc.enable(model):
            for layer in model.layers:
                layer.compile()
        fully_sharded(model)
        ask = qc.gather_codes if dist.get_rank() == 0 else nn.Module.eval
        found["never asked"] = told(lambda: ask(model)(mine()))
    with group_of_its_own("codes/other"):
        model = fully_sharded(Blocks())
        found["by quartet"] = told(lambda: qc.quartet(model, wire="high" if dist.get_rank() else "quantized"))
    with group_of_its_own("codes/alike"):
        model = qc.quartet(fully_sharded(Blocks()), wire="quantized")
        found["alike"] = told(lambda: model(mine()).sum().backward())
    with group_of_its_own("codes/silent", SHORT):
        model = fully_sharded(Blocks())
        found["silent"] = told(lambda: qc.gather_codes(model)(mine())) if dist.get_rank() == 0 else ""
    return found


def two() -> dict[str, Any]:
    """What is quick."""
    return {"options": other_options(), "later": later(), "codes": codes()}


def four() -> dict[str, Any]:
    """Of more ranks that agree."""
    return {"later": later()}
