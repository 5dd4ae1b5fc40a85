"""What the tests of the C++ quantizers share: inputs, the quantizers that they try, and the instruction sets."""

import contextlib

import pytest
import torch

from quartet_compile.kernels.cpu import loader, native, toolchain
from quartet_compile.kernels.numerics import philox, reference
from quartet_compile.kernels.numerics.reference import Blocks
from quartet_compile.kernels.quantizer import QUANTIZERS, Quantizer

SEED, SIGN_SEED = torch.tensor([0x123456789ABCDEF, -77])  # views into a vector, as in a graph
STREAM = philox.WGRAD_X
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((1, 1), (31, 33), (33, 100), (64, 32), (64, 128), (100, 260), (257, 65))
ROUNDING = {
    **{name: q for name, q in QUANTIZERS.items() if not q.exact},
    "absmax": Quantizer(),
    "quest-random": Quantizer(scale="quest", random_signs=True),
    "quest-64": Quantizer(scale="quest", rotation=64),
    "unrotated-quest": Quantizer(rotation=0, scale="quest"),
    "unrotated-sr": Quantizer(rotation=0, shrink=0.75, rounding="stochastic"),
}
every_quantizer = pytest.mark.parametrize("quantizer", ROUNDING.values(), ids=ROUNDING.keys())


@contextlib.contextmanager
def built_for(isa: str):
    """The kernels of this instruction set inside."""

    def forget() -> None:
        for cached in (toolchain.isa, loader._library, loader.function):
            cached.cache_clear()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(toolchain.ISA_VARIABLE, isa)
        forget()
        yield
    forget()


@pytest.fixture(scope="module", autouse=True, params=toolchain.supported_isas())
def isa(request):
    with built_for(request.param):
        yield


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


def calm(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """What E4M3 scales can tell from zero next to the rest of a tensor, and values below it."""
    x = awkward(rows, columns)
    x = torch.where(x.abs() > 100, 0.25, x)
    return (x * 2.0 ** -(torch.arange(rows) % 24)[:, None]).to(dtype)


def expected(x: torch.Tensor, quantizer: Quantizer, stream: int = STREAM, sign_seed=SIGN_SEED, **options) -> Blocks:
    signs = philox.signs(sign_seed, stream, quantizer.rotation) if quantizer.random_signs else None
    return reference.quantize(x, quantizer, stream=stream, seed=SEED, signs=signs, **options)


def quantize(x: torch.Tensor, quantizer: Quantizer, **options) -> Blocks:
    return native.quantize(x, quantizer, stream=STREAM, seed=SEED, sign_seed=SIGN_SEED, **options)


def requantize(source: Blocks, before: Quantizer, after: Quantizer) -> Blocks:
    return native.requantize(source, before, after, stream=STREAM, seed=SEED, sign_seed=SIGN_SEED)


def assert_same(actual: Blocks, wanted: Blocks) -> None:
    assert actual.format == wanted.format
    for name, a, b in zip(Blocks._fields[:4], actual.tensors, wanted.tensors, strict=True):
        if a is b is None:
            continue
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        if name != "tensor_scale":
            a, b = a.view(torch.uint8), b.view(torch.uint8)
        assert torch.equal(a, b), f"{name} differ in {(a != b).sum()} of {a.numel()}, first {(a != b).nonzero()[0]}"
