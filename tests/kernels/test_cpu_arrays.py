"""What reaches C++: nothing but what it was told of."""

from __future__ import annotations

import pytest
import torch

from quartet_compile import quantize
from quartet_compile.errors import QuartetError
from quartet_compile.kernels import cpu
from quartet_compile.kernels.cpu import decoded
from quartet_compile.kernels.cpu.arrays import Address, Array, matrix_address
from quartet_compile.kernels.numerics import reference
from quartet_compile.kernels.quantizer import QUANTIZERS

CODES = Array("codes", torch.uint8, (4, 16))


def test_an_array_is_made_and_found():
    made, address = CODES.empty()
    assert (made.shape, made.dtype, made.device.type) == ((4, 16), torch.uint8, "cpu")
    assert isinstance(address, Address) and address == made.data_ptr() == CODES.address(made)


@pytest.mark.parametrize(
    "x, words",
    [
        (None, "got None as codes; expected torch.uint8 of shape (4, 16)"),
        (torch.zeros(4, 15, dtype=torch.uint8), "shape (4, 15)"),
        (torch.zeros(64, dtype=torch.uint8), "shape (64,)"),
        (torch.zeros(4, 16, dtype=torch.int8), "torch.int8"),
        (torch.zeros(16, 4, dtype=torch.uint8).t(), "strides (1, 4)"),
        (torch.zeros(4, 16, dtype=torch.uint8, device="meta"), "on meta"),
    ],
    ids=["none", "size", "rank", "dtype", "strides", "device"],
)
def test_anything_else_is_refused(x, words):
    with pytest.raises(QuartetError) as caught:
        CODES.address(x)
    assert words in str(caught.value) and "Pass the parts of a quantized operand together" in str(caught.value)


@pytest.mark.parametrize(
    "x",
    [torch.zeros(8), torch.zeros(4, 8, dtype=torch.float64), torch.zeros(8, 4).t(), torch.zeros(4, 8, device="meta")],
    ids=["rank", "dtype", "strides", "device"],
)
def test_a_matrix_has_contiguous_rows(x):
    assert matrix_address(torch.zeros(9, 8)[::2, 3:]) > 0 and matrix_address(torch.zeros(9, 8)[:1, ::3][:, :1]) > 0
    with pytest.raises(QuartetError, match="two dimensions, the last contiguous.*x.float"):
        matrix_address(x)


@pytest.mark.parametrize("name", ["mxfp4-sr", "nvfp4-sr"])
@pytest.mark.parametrize("seed", [None, torch.tensor(3, dtype=torch.int32), torch.tensor([3, 4])], ids=str)
def test_a_seed_is_one_int64(name, seed):
    with pytest.raises(QuartetError, match="as a seed; expected torch.int64"):
        cpu.quantize(torch.zeros(4, 32), QUANTIZERS[name], seed=seed, sign_seed=torch.tensor(1))


@pytest.mark.parametrize("signs", [torch.ones(31), torch.ones(32, dtype=torch.float64), torch.ones(64)[::2]], ids=str)
def test_signs_are_as_many_floats_as_the_rotation(signs):
    with pytest.raises(QuartetError, match=r"as signs; expected torch.float32 of shape \(32,\)"):
        cpu.quantize(torch.zeros(4, 32), QUANTIZERS["mxfp4-rtn"], signs=signs)


@pytest.mark.parametrize("name", ["mxfp4-quest", "nvfp4-rtn"])
def test_one_element_row_or_column_with_any_strides(name):
    """PyTorch calls them contiguous whatever their strides are, so that a copy would be as they are."""
    x = torch.randn(40, 60)
    for view in (x[:0, ::2], x[::3, ::7][:1, :1], x[::3, ::7][:, :1], x[::3, ::7][:1], x.t()[::3, ::7][:, :1]):
        ours, wanted = (f.quantize(view, QUANTIZERS[name]) for f in (cpu, reference))
        assert torch.equal(ours.codes, wanted.codes)


@pytest.mark.parametrize("name", ["mxfp4-rtn", "nvfp4-rtn", "mxfp8"])
def test_parts_that_do_not_belong_together_are_refused(name):
    """In products and in decoding: codes of fewer columns or rows than there are scales, a tensor scale that isn't one."""
    spec, sign_seed = QUANTIZERS[name], torch.tensor(1)
    whole = cpu.quantize(torch.randn(8, 64), spec, sign_seed=sign_seed)
    broken = [whole._replace(codes=whole.codes[:, :-8]), whole._replace(codes=whole.codes[:4])]
    if spec.two_level:
        broken += [whole._replace(tensor_scale=s) for s in (torch.empty(0), whole.tensor_scale.double())]
    for part in broken:
        for left, right in ((part, whole), (whole, part)):
            with pytest.raises(QuartetError, match="A CPU kernel got"):
                cpu.scaled_mm(left, right, 1.0, torch.float32)
        with pytest.raises(QuartetError, match="A CPU kernel got"):
            decoded.decode(part)


@pytest.mark.parametrize("name", ["mxfp4-quest", "nvfp4-rtn"])
def test_lazily_negated_inputs_are_negated(name):
    """The imaginary part of a conjugate is a view whose sign is in a bit of the tensor, not in its memory."""
    x, spec = torch.randn(64, 64, dtype=torch.complex64).conj().imag, QUANTIZERS[name]
    contiguous = torch._neg_view(torch.randn(32, 64))
    assert x.is_neg() and contiguous.is_neg()
    for view in (x, x.t(), contiguous, contiguous.t()):
        ours, wanted = cpu.quantize(view, spec), reference.quantize(view.resolve_neg(), spec)
        assert torch.equal(ours.codes, wanted.codes) and torch.equal(quantize(view, spec).codes, wanted.codes)
        assert torch.equal(*(backend.unrotate(view, None, 32, 32) for backend in (cpu, reference)))
