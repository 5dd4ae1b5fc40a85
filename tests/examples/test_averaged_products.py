"""The averages of docs/numerics.md, on fewer and smaller products: 8 random bits are unbiased."""

import averaged_products
import pytest
import torch

from quartet_compile.kernels.quantizer import quantizer


@pytest.mark.parametrize("again", [True, False], ids=("again", "Gaussian"))
def test_8_bits_shorten_no_product(again):
    """Spread of the mean: 4e-4. Rounding to nearest shortens the products by 1.3e-2."""
    exact, product = averaged_products.products(again, quantizer("mxfp4-sr"), 64, "cpu")
    assert averaged_products.figures(exact, map(product, range(256)))[2] == pytest.approx(0, abs=1e-3)


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
