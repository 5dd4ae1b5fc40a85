"""`quantize`, as a user calls it: shapes, attributes, random bits, errors; and the figures of docs/numerics.md."""

import pytest
import quantizer_errors
import torch

from quartet_compile.errors import QuantizerError
from quartet_compile.formats import QUANTIZERS, Quantizer
from quartet_compile.kernels import philox, reference
from quartet_compile.quantized import QuantizedTensor, quantize

ALL = pytest.mark.parametrize("name", list(QUANTIZERS))
FP4 = pytest.mark.parametrize("name", ["mxfp4-quest", "mxfp4-rtn", "mxfp4-sr"])


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def same(a: QuantizedTensor, b: QuantizedTensor) -> bool:
    return torch.equal(a.codes, b.codes) and torch.equal(a.scales, b.scales)


@FP4
def test_attributes(name):
    x = gaussian(6, 100)
    q = quantize(x, name, seed=1)
    assert (q.codes.dtype, q.codes.shape) == (torch.uint8, (6, 64))
    assert (q.scales.dtype, q.scales.shape) == (torch.uint8, (6, 4))
    assert q.shape == x.shape and q.quantizer is QUANTIZERS[name] and q.tensor_scale.shape == (0,)
    if name == "mxfp4-quest":
        assert (q.mask.dtype, q.mask.shape) == (torch.uint8, (6, 16))
    else:
        assert q.mask is None
    assert q.dequantize().dtype == torch.float32 and q.dequantize().shape == (6, 128)
    assert quantize(x[:, :96], name).dequantize().shape == (6, 96)


@ALL
def test_equals_the_reference(name):
    x = gaussian(6, 100)
    q = quantize(x, name, seed=11)
    key, quantizer = torch.tensor(11), QUANTIZERS[name]
    signs = philox.signs(key, 0, 32) if quantizer.random_signs else None
    blocks = reference.quantize(x, quantizer, mask=True, seed=key, signs=signs)
    assert torch.equal(q.codes, blocks.codes) and torch.equal(q.scales, blocks.scales)
    assert q.mask is None or torch.equal(q.mask, blocks.mask)
    assert torch.equal(q.dequantize(), reference.decode(blocks, quantizer))
    assert (q.signs is None) == (signs is None) and (signs is None or torch.equal(q.signs, signs))


@ALL
@pytest.mark.parametrize("shape", [(5, 96), (5, 70), (7,), (2, 3, 40), (1, 1, 1, 56), (0, 40), (2, 0, 40), (3, 0)])
def test_restore_approximates_the_input_in_its_own_shape(name, shape):
    x = gaussian(*shape)
    q = quantize(x, name, seed=3)
    restored = q.restore()
    assert restored.shape == x.shape and restored.dtype == torch.float32
    assert q.dequantize().shape == (*shape[:-1], -(-shape[-1] // 32) * 32)
    bound = 1e-6 if QUANTIZERS[name].exact else 0.3
    assert (restored - x).norm() <= bound * x.norm()


def test_quest_and_a_one_hot_first_element():
    """It rotates to a constant, whose std is 0: all 32 values clip. At any other place all is well. As published."""
    q = quantize(torch.eye(32), "mxfp4-quest")
    error = ((q.restore() - torch.eye(32)) ** 2).sum(1)
    assert q.scales[0] == 100 and not q.mask[0].any() and error[0] > 0.999  # 2^-27, from the 1e-8
    assert (q.mask[1:] == 255).all() and error[1:].max() < 0.004


def test_quest_loses_the_33rd_column():
    """One column more than whole groups is a one-hot first element: constant after rotation, so QuEST's scale is 0."""
    x = gaussian(4, 33)
    assert quantize(x, "mxfp4-quest").restore()[:, 32].abs().max() < 1e-6
    for name in ("mxfp4-rtn", "mxfp4-sr"):
        last = quantize(x, name, seed=0).restore()[:, 32]
        assert (last - x[:, 32]).norm() < 0.25 * x[:, 32].norm()


def test_leading_dimensions_are_rows():
    x = gaussian(2, 3, 64)
    assert same(quantize(x, "mxfp4-sr", seed=5), quantize(x.reshape(6, 64), "mxfp4-sr", seed=5))


@FP4
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_strides_and_autograd(name, dtype):
    x = gaussian(8, 64).to(dtype)
    wide = quantize(x.float(), name, seed=5)
    assert same(quantize(x, name, seed=5), wide)
    assert same(quantize(x.t().contiguous().t(), name, seed=5), wide)
    q = quantize(torch.nn.Parameter(x), name, seed=5)
    assert same(q, wide) and not q.restore().requires_grad


def test_a_quantizer_that_is_not_registered():
    q = quantize(gaussian(4, 64), Quantizer(rotation=0, shrink=0.75))
    assert q.signs is None and q.seed is None and q.mask is None
    assert torch.equal(q.restore(), q.dequantize())
    assert "rotation=0" in repr(q)


def test_a_seed_fixes_signs_and_noise():
    x = gaussian(8, 64)
    a, b, c = (quantize(x, "mxfp4-sr", seed=s) for s in (5, 5, 6))
    assert same(a, b) and not same(a, c) and a.seed == 5
    assert not torch.equal(a.signs, c.signs)
    given = quantize(x, "mxfp4-sr", signs=a.signs, seed=6)
    assert torch.equal(given.signs, a.signs) and not same(given, a) and not same(given, c)
    assert same(quantize(x, "mxfp4-rtn", signs=a.signs), quantize(x, "mxfp4-rtn", seed=5))
    assert same(quantize(x, "mxfp4-rtn", signs=a.signs.int().tolist()), quantize(x, "mxfp4-rtn", seed=5))
    assert same(quantize(x, "mxfp4-quest", seed=5), quantize(x, "mxfp4-quest"))
    assert same(quantize(x, "mxfp4-sr", seed=-1), quantize(x, "mxfp4-sr", seed=2**64 - 1))
    assert not same(quantize(x, "mxfp4-sr", seed=-1), quantize(x, "mxfp4-sr", seed=2**63 - 1))


def test_without_a_seed_one_is_drawn_from_torch_only_if_it_is_needed():
    x, signs = gaussian(8, 64), torch.ones(32)
    torch.manual_seed(0)
    a, b = quantize(x, "mxfp4-sr"), quantize(x, "mxfp4-sr")
    assert a.seed != b.seed and not same(a, b)
    torch.manual_seed(0)
    again = quantize(x, "mxfp4-sr")
    assert again.seed == a.seed and same(again, a) and same(quantize(x, "mxfp4-sr", seed=a.seed), a)
    assert quantize(x, "mxfp4-sr", signs=signs).seed is not None
    state = torch.get_rng_state()
    assert quantize(x, "mxfp4-quest").seed is None and quantize(x, "mxfp4-rtn", signs=signs).seed is None
    quantize(x, "mxfp4-sr", seed=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_repr():
    x = gaussian(4, 40)
    assert repr(quantize(x, "mxfp4-sr", seed=7)) == (
        "QuantizedTensor(mxfp4-sr, shape=(4, 40), codes=uint8[4, 32], scales=uint8[4, 2], seed=7)"
    )
    x[1, 3] = torch.inf
    text = repr(quantize(x, "mxfp4-quest"))
    assert "mask=uint8[4, 8]" in text and "clipped=" in text and "nan_groups=1" in text
    assert "clipped" not in repr(quantize(x[:0], "mxfp4-quest"))


def test_infinity_is_visible_after_restoring():
    x = gaussian(4, 96)
    x[1, 40] = torch.inf
    nan = quantize(x, "mxfp4-quest").restore().isnan()
    assert nan[1, 32:64].all() and nan.sum() == 32


X, SIGNS = torch.ones(2, 32), torch.ones(32)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((X.double(), "mxfp4-quest"), ["torch.float64", "torch.bfloat16", "x.float()"]),
        ((X.int(), "mxfp4-quest"), ["torch.int32", "torch.float32", "x.float()"]),
        ((X.bool(), "mxfp4-quest"), ["torch.bool", "torch.float32"]),
        ((X.cfloat(), "mxfp4-quest"), ["torch.complex64", "x.real"]),
        ((X[0, 0], "mxfp4-quest"), ["0-dimensional", "reshape"]),
        ((X.to_sparse(), "mxfp4-quest"), ["sparse", "to_dense"]),
        (([1.0], "mxfp4-quest"), ["list", "torch.Tensor", "as_tensor"]),
        ((X, "mxfp4-qest"), ["'mxfp4-qest'", "did you mean 'mxfp4-quest'"]),
        ((X, 4), ["int", "Quantizer", "mxfp4-quest"]),
        ((X, "mxfp4-quest", SIGNS), ["'mxfp4-quest'", "no random rotation", "random_signs=True"]),
        ((X, "mxfp4-sr", torch.ones(16)), ["(16,)", "(32,)", "seed"]),
        ((X, "mxfp4-sr", torch.ones(32, 1)), ["(32, 1)", "(32,)"]),
        ((X, "mxfp4-sr", torch.zeros(32)), ["sign 0", "+1 or -1"]),
        ((X, "mxfp4-sr", torch.full((32,), torch.nan)), ["sign nan", "+1 or -1"]),
        ((X, "mxfp4-sr", "+-" * 16), ["str", "torch.randint"]),
        ((X, "mxfp4-sr", None, 1.5), ["1.5", "int of 64 bits"]),
        ((X, "mxfp4-sr", None, True), ["True", "int of 64 bits"]),
        ((X, "mxfp4-sr", None, 2**64), [str(2**64), "int of 64 bits"]),
        ((X, "mxfp4-quest", None, "0"), ["'0'", "int of 64 bits"]),
    ],
)
def test_what_the_user_wrote_wrong(arguments, words):
    with pytest.raises(QuantizerError) as error:
        quantize(*arguments)
    assert all(word in str(error.value) for word in words), str(error.value)


# The figures of docs/numerics.md, on fewer groups: the spread over seeds is below 1 %


@pytest.mark.parametrize(
    ("data", "name", "error", "clipped"),
    [
        ("log-uniform", "mxfp4-quest", 2.24e-2, 0.053),
        ("log-uniform", "mxfp4-rtn", 1.37e-2, 0),
        ("log-uniform", "mxfp4-sr", 2.78e-2, 0),
        ("unit", "mxfp4-quest", 2.81e-2, 0.073),
        ("outlier first", "mxfp4-quest", 0.532, 1),
        ("outlier other", "mxfp4-quest", 7.3e-3, 0),
        ("tail of 1", "mxfp4-quest", 1.0, 1),
        ("tail of 1", "mxfp4-rtn", 1.07e-2, 0),
    ],
)
def test_relative_squared_errors(data, name, error, clipped):
    figures = quantizer_errors.measure(name, quantizer_errors.draw(data, 8192, 1, "cpu"), 1)
    assert figures.error == pytest.approx(error, rel=0.02)
    assert figures.clipped == pytest.approx(clipped, abs=0.003)
    if (data, name) == ("unit", "mxfp4-quest"):
        assert figures.whole == pytest.approx(2.7e-2, rel=0.02)


def test_misalignment():
    """Nearest rounding shortens a vector by 0.94 %, stochastic rounding by nothing (3 standard errors: 3e-4)."""
    x = quantizer_errors.draw("log-uniform", 8192, 1, "cpu")
    assert quantizer_errors.measure("mxfp4-rtn", x, 1).misalignment == pytest.approx(9.4e-3, rel=0.04)
    assert quantizer_errors.measure("mxfp4-sr", x, 1).misalignment == pytest.approx(0, abs=6e-4)


def test_the_example_prints_its_table(capsys):
    quantizer_errors.main(["--groups", "64"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 3 * len(quantizer_errors.DATA) and all(line.count("|") == 7 for line in lines)
