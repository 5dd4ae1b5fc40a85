"""The kernels that Inductor generates for every quantizer but plain MXFP4 (`test_generated_ops.py` has that), run in
Triton's interpreter: bit for bit the reference on codes, scales, tensor scale and mask."""

from __future__ import annotations

import pytest
from block_cases import CASES, SLOW
from generated_ops import expected_templates

pytest.importorskip("triton")
from interpreted_module import in_interpreter


def run(cases):
    return in_interpreter(
        "generated_ops:run_all", {key: ("run_codes", *case) for key, case in cases.items()}, timeout=900
    )


@pytest.fixture(scope="module")
def made(once):
    return once("generated_blocks", lambda: run(CASES))


@pytest.fixture(scope="module")
def made_slowly(once):
    return once("generated_blocks, slow", lambda: run(SLOW))


def check(result, op, arguments):
    assert not isinstance(result, str), result
    assert result["wrong"] == {}
    assert result["templates"] == expected_templates(op, arguments)


@pytest.mark.parametrize("case", CASES)
def test_bits(made, case):
    check(made[case], *CASES[case][:2])


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW)
def test_bits_of_variants_and_extremes(made_slowly, case):
    check(made_slowly[case], *SLOW[case][:2])
