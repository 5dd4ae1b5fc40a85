"""The C++ quantizers against the reference, bit for bit, built for every instruction set that this CPU has."""

import dataclasses

import pytest
import torch

from quartet_compile.errors import QuartetError
from quartet_compile.formats import E2M1_MAX, QUANTIZERS, QUEST_GAUSSIAN_CLIP, Quantizer, padded
from quartet_compile.kernels import philox, reference
from quartet_compile.kernels.cpu import loader, native, toolchain
from quartet_compile.kernels.reference import Blocks

SEED, SIGN_SEED = torch.tensor([0x123456789ABCDEF, -77])  # views into a vector, as in a graph
STREAM = philox.WGRAD_X
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((0, 32), (32, 0), (1, 1), (31, 33), (33, 100), (64, 32), (64, 128), (100, 1000), (257, 65))
ROUNDING = {
    **{name: q for name, q in QUANTIZERS.items() if not q.exact},
    "absmax": Quantizer(),
    "absmax-3/4": Quantizer(shrink=0.75),
    "quest-random": Quantizer(scale="quest", random_signs=True),
    "unrotated": Quantizer(rotation=0),
    "unrotated-quest": Quantizer(rotation=0, scale="quest"),
    "unrotated-sr": Quantizer(rotation=0, shrink=0.75, rounding="stochastic"),
}
every_quantizer = pytest.mark.parametrize("quantizer", ROUNDING.values(), ids=ROUNDING.keys())


@pytest.fixture(scope="module", autouse=True, params=toolchain.supported_isas())
def isa(request):
    def forget() -> None:
        for cached in (toolchain.isa, loader._library, loader.function):
            cached.cache_clear()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(toolchain.ISA_VARIABLE, request.param)
        forget()
        yield
    forget()


def awkward(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Normal values, and rows and columns of everything that has a rule of its own."""
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows * 1009 + columns))
    ties = torch.arange(columns) % 53 * 0.25 - 6.5  # every tie of the grid, and values beyond it
    one_hot = torch.zeros(columns)
    one_hot[::32] = 3.0
    special = [
        torch.zeros(columns),
        torch.full((columns,), -0.0),
        ties,
        ties * 2.0**-120,
        one_hot,
        one_hot.roll(5) * -(2.0**-126),
        torch.full((columns,), 2.0**-63),
        torch.full((columns,), 2.0**-63 * (1 - 2**-24)),
        2.0 ** (torch.arange(columns) % 60 - 127.0),  # around the thresholds 2^-126, 2^-100 and 2^-63
        2.0 ** (127.0 - torch.arange(columns) % 16),
        *(
            x.new_empty(columns).normal_(generator=torch.Generator().manual_seed(i)) * 10.0**i
            for i in range(-45, 40, 6)
        ),
    ]
    for row, values in zip(range(rows // 4, rows), special, strict=False):
        x[row] = values
    if x.numel() > 1:
        x[:, columns // 3] *= 1e-4
        x[rows // 2, columns - 1] = torch.nan
        x[rows - 1, columns // 2] = -torch.inf
        x[0, 0] = torch.inf
    return x.to(dtype)


def expected(x: torch.Tensor, quantizer: Quantizer, stream: int = STREAM, sign_seed=SIGN_SEED, **options) -> Blocks:
    signs = philox.signs(sign_seed, stream, 32) if quantizer.random_signs else None
    return reference.quantize(x, quantizer, stream=stream, seed=SEED, signs=signs, **options)


def quantize(x: torch.Tensor, quantizer: Quantizer, **options) -> Blocks:
    return native.quantize(x, quantizer, stream=STREAM, seed=SEED, sign_seed=SIGN_SEED, **options)


def assert_same(actual: Blocks, wanted: Blocks) -> None:
    for name, a, b in zip(Blocks._fields, actual, wanted, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        assert torch.equal(a, b), (
            f"{name} differ in {(a != b).sum()} of {a.numel()} bytes, first {(a != b).nonzero()[0]}"
        )


@every_quantizer
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("transpose", [False, True])
def test_quantize(quantizer, dtype, transpose):
    for shape in SHAPES:
        x = awkward(*shape, dtype)
        assert_same(
            quantize(x, quantizer, transpose=transpose, mask=True),
            expected(x, quantizer, transpose=transpose, mask=True),
        )


@every_quantizer
def test_strides(quantizer):
    x = awkward(130, 200)
    views = (x.t(), x[:, 7:139], x[3::2], x[:, ::3], x.t()[5:, 2:70], x[4].expand(40, 200), x[:1].t(), x[:, 9:10])
    for view in views:
        assert_same(quantize(view, quantizer), expected(view.contiguous(), quantizer))
        assert_same(quantize(view, quantizer, transpose=True), expected(view.contiguous(), quantizer, transpose=True))


@every_quantizer
def test_one_nan_or_infinity_spoils_only_its_group(quantizer):
    for value in (torch.nan, torch.inf, -torch.inf):
        for place in range(0, 96, 5):
            x = torch.ones(40, 96)
            x[17, place] = value
            blocks = quantize(x, quantizer, mask=True)
            assert (blocks.scales == 255).nonzero().tolist() == [[17, place // 32]]
            assert_same(blocks, expected(x, quantizer, mask=True))


@every_quantizer
def test_groups_around_the_lift(quantizer):
    """Pairs of inputs too small to count cancel to a zero with a sign, but only in groups that are not lifted."""
    x = torch.full((64, 64), 2.0**-63)
    x[:32] *= 1 - 2.0**-24  # lifted
    x[:, 6::32], x[:, 7::32] = -(2.0**-110), 2.0**-111
    x[1::2] *= -1
    for signs in (torch.ones(32), -torch.ones(32)):
        options = dict(mask=True, seed=SEED, signs=signs)
        assert_same(native.quantize(x, quantizer, **options), reference.quantize(x, quantizer, **options))


def test_quest_scales_to_the_last_bit():
    """Groups whose scale is a rounding error from a power of two, and groups that rotate to almost a constant."""
    quantizer, generator = QUANTIZERS["mxfp4-quest"], torch.Generator().manual_seed(3)
    x = torch.randn(4000, 32, generator=generator)
    deviation = reference.hadamard(x.double()).std(-1, correction=0, keepdim=True)
    near_one = (x / (deviation * (QUEST_GAUSSIAN_CLIP / E2M1_MAX))).float()
    constant = x * 10.0 ** -torch.randint(3, 9, (4000, 1), generator=generator)
    constant[:, 0] = x[:, 0]
    assert 100 < (quantize(near_one, quantizer).scales == 127).sum() < 3900
    for values in (near_one, constant):
        assert_same(quantize(values, quantizer), expected(values, quantizer))


def test_explicit_signs():
    quantizer = QUANTIZERS["mxfp4-rtn"]
    x = torch.cat((awkward(40, 70), torch.zeros(1, 70)))  # times -1, zeros are negative
    for signs in (philox.signs(torch.tensor(5), 0, 32), -torch.ones(32)):
        assert_same(native.quantize(x, quantizer, signs=signs), reference.quantize(x, quantizer, signs=signs))


def test_exact_formats_are_the_reference():
    for name in ("exact-fixed", "exact-random"):
        x = torch.randn(33, 40)
        assert_same(quantize(x, QUANTIZERS[name], mask=True), expected(x, QUANTIZERS[name], mask=True))


@pytest.mark.parametrize(
    "rows, columns", [("mxfp4-sr", "mxfp4-sr"), ("mxfp4-rtn", "mxfp4-sr"), ("exact-random", "mxfp4-rtn")]
)
def test_pair_is_two_calls(rows, columns):
    row, column = QUANTIZERS[rows], QUANTIZERS[columns]
    for shape in SHAPES:
        for dtype in DTYPES:
            x = awkward(*shape, dtype) if not row.exact else torch.randn(shape, dtype=dtype)
            for dy in (x, x.t()):
                by_row, by_column = native.quantize_pair(dy, row, column, seed=SEED, sign_seed=SIGN_SEED)
                assert_same(by_row, expected(dy, row, philox.DGRAD_DY, SEED))
                assert_same(by_column, expected(dy, column, philox.WGRAD_DY, SIGN_SEED, transpose=True))


@every_quantizer
@pytest.mark.parametrize("shrink", [1.0, 0.75])
def test_requantize(quantizer, shrink):
    """Of random codes under every scale, the subnormal, the overflowing and the NaN ones among them."""
    source_quantizer = Quantizer(shrink=shrink)
    generator = torch.Generator().manual_seed(1)
    for rows, groups in ((0, 2), (1, 1), (31, 3), (64, 8), (260, 5)):
        codes = torch.randint(0, 256, (rows, groups * 16), generator=generator, dtype=torch.uint8)
        near = torch.randint(118, 130, (rows, groups), generator=generator, dtype=torch.uint8)
        extreme = torch.arange(rows * groups).reshape(rows, groups).to(torch.uint8)
        tiny = torch.arange(rows * groups).reshape(rows, groups).to(torch.uint8) % 3
        for scales in (near, extreme, tiny, tiny * 0, torch.where(extreme % 16 == 0, extreme, near)):
            source = Blocks(codes, scales, torch.empty(0), scales[:, :0])
            signs = philox.signs(SIGN_SEED, STREAM, 32) if quantizer.random_signs else None
            assert_same(
                native.requantize(source, source_quantizer, quantizer, stream=STREAM, seed=SEED, sign_seed=SIGN_SEED),
                reference.requantize(source, source_quantizer, quantizer, stream=STREAM, seed=SEED, signs=signs),
            )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rotation", [0, 32])
def test_unrotate(dtype, rotation):
    generator = torch.Generator().manual_seed(2)
    for rows, columns in (*SHAPES, (600, 1000)):  # large enough for ties in the rounding to bfloat16
        x = awkward(rows, padded(columns, 32), dtype)
        mask = torch.randint(0, 256, (rows, x.shape[1] // 8), generator=generator, dtype=torch.uint8)
        actual, wanted = (f(x, mask, rotation, columns) for f in (native.unrotate, reference.unrotate))
        torch.testing.assert_close(actual, wanted, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(actual.signbit() | actual.isnan(), wanted.signbit() | wanted.isnan())


def test_other_dtypes_become_float32():
    x, quantizer = torch.randn(40, 70, dtype=torch.float64), QUANTIZERS["mxfp4-quest"]
    assert_same(quantize(x, quantizer), expected(x, quantizer))
    assert native.unrotate(x[:, :64], torch.full((40, 8), 255, dtype=torch.uint8), 32, 64).dtype == torch.float64


def test_wrong_shapes_are_refused():
    mask = torch.zeros(4, 8, dtype=torch.uint8)
    for x, columns in ((torch.ones(4, 60), 60), (torch.ones(4, 64), 65), (torch.ones(5, 64), 64)):
        with pytest.raises(QuartetError, match="expected"):
            native.unrotate(x, mask, 32, columns)
    source = Blocks(torch.zeros(4, 31, dtype=torch.uint8), mask[:, :2], torch.empty(0), mask)
    with pytest.raises(QuartetError, match=r"\(4, 31\); expected \(4, 32\)"):
        native.requantize(source, Quantizer(), Quantizer(), stream=0, seed=None)


def test_masked_nan_is_zero():
    x = torch.full((2, 32), torch.nan)
    x[:, 3] = 1.0
    out = native.unrotate(x, torch.tensor([[8, 0, 0, 0], [255, 0, 0, 0]], dtype=torch.uint8), 32, 32)
    assert torch.equal(out[0].abs(), torch.full((32,), 32**-0.5)) and out[1].isnan().all()


@pytest.fixture
def flush_to_zero():
    assert torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)


def test_flush_to_zero_mode_changes_nothing(flush_to_zero):
    x = awkward(100, 1000)
    for quantizer in ROUNDING.values():
        flushed = quantize(x, quantizer, mask=True), quantize(x.half(), quantizer)
        torch.set_flush_denormal(False)
        assert_same(flushed[0], expected(x, quantizer, mask=True))
        assert_same(flushed[1], expected(x.half(), quantizer))
        torch.set_flush_denormal(True)


def test_threads_change_nothing():
    x, quantizer = awkward(300, 1024), QUANTIZERS["mxfp4-sr"]
    source = quantize(x, quantizer)
    mask = torch.randint(0, 256, (300, 128), dtype=torch.uint8)

    def everything() -> list[Blocks]:
        pair = native.quantize_pair(x, quantizer, quantizer, seed=SEED, sign_seed=SIGN_SEED)
        again = native.requantize(source, quantizer, quantizer, stream=0, seed=SEED, sign_seed=SIGN_SEED)
        return [quantize(x, quantizer), *pair, again, native.unrotate(torch.ones(300, 1024), mask, 32, 1000)]

    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(everything())
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        for blocks, wanted in zip(result[:-1], results[0][:-1], strict=True):
            assert_same(blocks, wanted)
        assert torch.equal(result[-1], results[0][-1])


def test_every_field_of_a_quantizer_changes_the_result():
    """So that none is dropped on its way to C++."""
    x, base = torch.randn(64, 64), Quantizer(random_signs=True, shrink=0.75)
    for change in ({"scale": "quest"}, {"shrink": 1.0}, {"rounding": "stochastic"}, {"random_signs": False},
                   {"rotation": 0, "random_signs": False}):  # fmt: skip
        changed = dataclasses.replace(base, **change)
        assert not torch.equal(quantize(x, changed).codes, quantize(x, base).codes), change
