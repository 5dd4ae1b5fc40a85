"""Which steps of which optimizers are counted."""

from __future__ import annotations

import gc
import itertools

import pytest
import torch

from quartet_compile import _compat
from quartet_compile.ranks.steps import Steps


@pytest.fixture
def steps(monkeypatch):
    total = itertools.count(1)
    monkeypatch.setattr(_compat, "count", lambda key, change: next(total))
    return Steps("'quartet'")


def optimizers(names):
    return {name: torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1) for name in names}


@pytest.mark.parametrize(
    ("order", "counted"),
    [
        ("aaa", [1, 2, 3]),
        ("ababab", [1, 1, 2, 2, 3, 3]),  # in turn
        ("abcabc", [1, 1, 1, 2, 2, 2]),
        ("aabbb", [1, 2, 2, 3, 4]),  # a second phase
        ("abbab", [1, 1, 2, 2, 3]),  # several steps of one for each of the other
    ],
)
def test_of_several_optimizers_one_is_counted(steps, order, counted):
    made, found = optimizers(set(order)), []
    for name in order:
        steps.before(made[name])
        found.append(steps.number)
    assert found == counted


def test_the_next_of_one_that_is_gone_is_counted_at_once(steps):
    made = optimizers("ab")
    steps.before(made.pop("a"))
    gc.collect()
    steps.before(made["b"])
    assert steps.number == 2
