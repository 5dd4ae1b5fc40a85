"""The table of docs/scale.md is what its command prints, and its arithmetic."""

from __future__ import annotations

import pathlib

import predict_traffic
import pytest

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "scale.md"


def test_the_page_has_what_the_command_prints(capsys):
    predict_traffic.main([])
    assert capsys.readouterr().out in PAGE.read_text()


def test_parameters_are_those_of_the_models():
    sizes = [(model.linears + model.others) / 1e9 for model in predict_traffic.MODELS]
    assert sizes == pytest.approx([8.03, 70.55], abs=0.01)


def test_a_weight_takes_five_and_a_quarter_bits():
    assert 8 * predict_traffic.CODES == 5.25


@pytest.mark.parametrize("gpus", [64, 1024])
@pytest.mark.parametrize("model, saved", zip(predict_traffic.MODELS, (0.39, 0.43), strict=True))
def test_what_the_page_says_is_saved(model, saved, gpus):
    assert predict_traffic.step(model, gpus).saved == pytest.approx(saved, abs=0.005)


def test_one_gpu_receives_nothing():
    assert predict_traffic.step(predict_traffic.MODELS[0], 1).gathers == 0
