"""The table of recipes: errors of products follow from those of their operands."""

from __future__ import annotations

import pytest
import recipe_errors
import torch

import quartet_compile as qc


@pytest.fixture(scope="module")
def operands():
    torch.manual_seed(0)
    return [torch.randn(256, 256) for _ in range(3)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("quartet2", (2 * 7.56e-3, 2 * 9.73e-3 + 7.56e-3, 2 * 9.73e-3 + 7.56e-3)),
        ("tetrajet2", (2 * 9.0e-3, 2 * 2.35e-2 + 9.0e-3, 2 * 2.35e-2 + 9.0e-3)),
        ("nvfp4", (9.0e-3 + 1.24e-2, 2.35e-2 + 1.24e-2, 2.35e-2 + 9.0e-3)),
        ("mxfp4-bwd", (0, 2 * 2.78e-2, 2 * 2.78e-2)),
        ("bf16", (0, 0, 0)),
    ],
)
def test_errors_of_operands_add_up(name, expected, operands):
    """The published errors of the quantizers, of operands that are independent; products of errors are within 5 %."""
    assert recipe_errors.errors(qc.recipe(name), *operands) == pytest.approx(expected, rel=0.05)


def test_bits_that_are_saved():
    bits = {name: recipe_errors.saved_bits(recipe) for name, recipe in qc.recipes().items()}
    assert (bits["quartet"], bits["quartet2"], bits["nvfp4"], bits["mxfp8"], bits["bf16"]) == (5.25, 4.5, 10.25, 16, 16)


def test_the_table_has_every_recipe(capsys):
    recipe_errors.main(["--size", "64"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("`")[1] for line in lines[2:]] == list(qc.recipes())
