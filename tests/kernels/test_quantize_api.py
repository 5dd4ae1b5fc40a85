"""`quantize`, as a user calls it: shapes, attributes, random bits, errors."""

import pytest
import torch

from quartet_compile.errors import QuantizerError
from quartet_compile.kernels.numerics import philox, reference
from quartet_compile.kernels.quantizer import QUANTIZERS, Quantizer
from quartet_compile.quantized import QuantizedTensor, quantize

ALL = pytest.mark.parametrize("name", list(QUANTIZERS))


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype == torch.float8_e4m3fn:
        a, b = a.view(torch.uint8), b.view(torch.uint8)
    return torch.equal(a, b)


def same(a: QuantizedTensor, b: QuantizedTensor) -> bool:
    return same_bits(a.codes, b.codes) and same_bits(a.scales, b.scales) and torch.equal(a.tensor_scale, b.tensor_scale)


BYTE, E4M3, FLOAT = torch.uint8, torch.float8_e4m3fn, torch.float32


@ALL
def test_attributes(name):
    """Layouts of 100 columns: padded to the group, or to the rotation where that is larger."""
    x, quantizer = gaussian(6, 100), QUANTIZERS[name]
    q = quantize(x, name, seed=1)
    codes, scales, width = {
        "mx": ((BYTE, (6, 64)), (BYTE, (6, 4)), 128),
        "nv": ((BYTE, (6, 56)), (E4M3, (6, 7)), 112),
        "nvfp4-eden": ((BYTE, (6, 64)), (E4M3, (6, 8)), 128),
        "mxfp8": ((E4M3, (6, 128)), (BYTE, (6, 4)), 128),
        "ex": ((FLOAT, (6, 128)), (BYTE, (6, 0)), 128),
    }[name if name in ("nvfp4-eden", "mxfp8") else name[:2]]
    assert (q.codes.dtype, q.codes.shape) == codes and (q.scales.dtype, q.scales.shape) == scales
    assert q.shape == x.shape and q.quantizer is quantizer
    assert q.tensor_scale.dtype == FLOAT and q.tensor_scale.shape == (int(name.startswith("nvfp4")),)
    if name == "mxfp4-quest":
        assert (q.mask.dtype, q.mask.shape) == (BYTE, (6, 16))
    else:
        assert q.mask is None
    assert (None if q.signs is None else q.signs.shape) == ((quantizer.rotation,) if quantizer.random_signs else None)
    assert q.dequantize().dtype == torch.float32 and q.dequantize().shape == (6, width)
    whole = quantize(x[:, :96], name, seed=1).dequantize().shape
    assert whole == (6, 128 if quantizer.rotation == 128 else 96)


@ALL
def test_equals_the_reference(name):
    x = gaussian(6, 100)
    q = quantize(x, name, seed=11)
    key, quantizer = torch.tensor(11), QUANTIZERS[name]
    signs = philox.signs(key, 0, quantizer.rotation) if quantizer.random_signs else None
    blocks = reference.quantize(x, quantizer, mask=True, seed=key, signs=signs)
    assert same_bits(q.codes, blocks.codes) and same_bits(q.scales, blocks.scales)
    assert torch.equal(q.tensor_scale, blocks.tensor_scale)
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
    block = QUANTIZERS[name].block
    assert q.dequantize().shape == (*shape[:-1], -(-shape[-1] // block) * block)
    bound = 1e-6 if QUANTIZERS[name].exact else 0.3
    assert (restored - x).norm() <= bound * x.norm()


@pytest.mark.parametrize("rotation", [0, 16, 32, 64, 128])
@pytest.mark.parametrize("base", ["mxfp4-rtn", "nvfp4-rtn", "mxfp8", "exact-random"])
def test_restore_undoes_every_rotation(base, rotation):
    """Of random signs and without any; the error is that of the format."""
    x = gaussian(5, 200)
    for random in (False, True) if rotation else (False,):
        name = f"{base},rotation={rotation},random_signs={random}"
        error = ((quantize(x, name, seed=2).restore() - x).norm() / x.norm()).item()
        assert error < {"mxfp4-rtn": 0.13, "nvfp4-rtn": 0.11, "mxfp8": 0.03, "exact-random": 1e-6}[base]


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


@ALL
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


def test_eden_takes_its_signs_and_its_noise_from_the_seed():
    """With the signs given, only scales change with the seed: elements are rounded to nearest."""
    x = gaussian(8, 256)
    for name in ("nvfp4-eden", "mxfp4-eden"):
        a, b = (quantize(x, name, seed=s, signs=quantize(x, name, seed=0).signs) for s in (5, 6))
        assert torch.equal(a.codes, b.codes) and not same_bits(a.scales, b.scales)
        drawn = quantize(x, name, signs=a.signs)
        assert drawn.seed is not None and same(quantize(x, name, seed=drawn.seed, signs=a.signs), drawn)


@pytest.mark.parametrize("size", [16, 64, 128])
def test_signs_are_as_many_as_the_rotation(size):
    x = gaussian(4, 256)
    name = f"nvfp4-sr,random_signs=True,rotation={size}"
    q = quantize(x, name, seed=3)
    assert q.signs.shape == (size,) and torch.equal(q.signs, philox.signs(torch.tensor(3), 0, size))
    assert same(quantize(x, name, seed=3, signs=q.signs), q)
    with pytest.raises(QuantizerError, match=rf"\(32,\); expected \({size},\)"):
        quantize(x, name, signs=torch.ones(32))


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
    text = repr(quantize(x, "nvfp4-rtn"))
    assert "scales=float8_e4m3fn[4, 3], tensor_scale=0.00" in text and "nan_groups=1" in text and "mask" not in text
    assert "nan_groups=8" in repr(quantize(x, "nvfp4-eden", seed=0))  # the whole block of the rotation
    assert "codes=float8_e4m3fn[4, 64]" in repr(quantize(x, "mxfp8")) and "nan_groups=1" in repr(quantize(x, "mxfp8"))
    assert "nan_groups" not in repr(quantize(x[2:], "nvfp4-rtn")) + repr(quantize(x, "exact-fixed"))


def test_infinity_is_visible_after_restoring():
    """In all of its block: the group, the rows of a square, or what is rotated together."""
    x = gaussian(4, 256)
    x[1, 40] = torch.inf
    for name, count in {"mxfp4-quest": 32, "nvfp4-rtn": 16, "nvfp4-rtn-2d": 64, "nvfp4-eden": 128, "mxfp8": 32}.items():
        nan = quantize(x, name, seed=0).restore().isnan()
        assert nan[1, 32:48].all() and nan.sum() == count, name


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
