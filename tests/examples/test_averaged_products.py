"""The averages of docs/numerics.md, on fewer and smaller products: 8 random bits are unbiased with `gain`, not without."""

import averaged_products
import pytest
import torch

from quartet_compile.kernels.quantizer import quantizer


def short(again: bool, name: str, gain: float, draws: int = 256) -> float:
    """How much the mean of products of 64 x 64 operands is too short."""
    exact, product = averaged_products.products(again, quantizer(name), 64, gain, "cpu")
    return averaged_products.figures(exact, map(product, range(draws)))[2]


@pytest.mark.parametrize("again", [True, False], ids=("again", "Gaussian"))
def test_gain_makes_up_for_8_bits(again):
    """The same draws twice: without the gain both operands are 7.5e-4 shorter. Spread of the mean: 4e-4."""
    q = quantizer("mxfp4-sr")
    with_gain, without = (short(again, q.name, gain) for gain in (q.gain, 1 / q.shrink))
    assert with_gain == pytest.approx(0, abs=1e-3) and without - with_gain == pytest.approx(1.5e-3, abs=1e-5)


def test_figures_are_the_squared_errors_of_disjoint_means(monkeypatch):
    monkeypatch.setattr(averaged_products, "BATCHES", (2, 3))
    exact = torch.tensor([[2.0]], dtype=torch.float64)
    drawn = [torch.tensor([[y]], dtype=torch.float64) for y in (1.0, 3.0, 4.0, 2.0, 2.0)]
    single, errors, too_short = averaged_products.figures(exact, iter(drawn))
    assert single == pytest.approx((1 + 1 + 4) / 5 / 4) and too_short == pytest.approx(1 - 2.4 / 2)
    assert errors[2] == pytest.approx([0, 0.25]) and errors[3] == pytest.approx([(8 / 3 - 2) ** 2 / 4])


def test_the_example_prints_its_table(capsys):
    averaged_products.main(["--draws", "2", "--size", "32"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(averaged_products.CASES) and len({line.count("|") for line in lines}) == 1
