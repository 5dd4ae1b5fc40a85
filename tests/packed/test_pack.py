"""`pack`: a model whose frozen weights are codes computes, compiled, what it did before, bit for bit."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from captured import compiled, reasons, sites
from models import Block, Net, gradients
from torch import nn

import quartet_compile as qc
from quartet_compile.packed.module import packed_names

CODES = ("quartet", "quartet-rtn", "quartet2", "nvfp4", "tetrajet2", "jetfire-fp4")
"""The recipes whose dgrad reads the codes of fprop."""


class Odd(nn.Module):
    """Frozen blocks between trained weights; 48 and 40 fill no group of 32."""

    def __init__(self):
        super().__init__()
        self.first, self.blocks, self.last = nn.Linear(48, 64), Net(), nn.Linear(40, 70)
        self.blocks.layers.requires_grad_(False)
        self.last.requires_grad_(False)

    def forward(self, x):
        return self.last(self.blocks(self.first(x)))


class Experts(nn.Module):
    """As transformers' experts: [E, K, N] if transposed, else [E, N, K]."""

    def __init__(self, is_transposed, rows=96):
        super().__init__()
        self.is_transposed = is_transposed
        self.up = nn.Parameter(torch.randn(3, 64, rows) / 8 if is_transposed else torch.randn(3, rows, 64) / 8)

    def forward(self, x, ends):
        w = self.up if self.is_transposed else self.up.transpose(-2, -1)
        return torch._grouped_mm(x, w, ends)


def frozen(model):
    return model.requires_grad_(False)


def linear(n=64, k=64):
    torch.manual_seed(0)
    return frozen(nn.Sequential(nn.Linear(k, n), nn.ReLU()))


def ops_of(backend):
    """The ops of all captured graphs, by name."""
    return " ".join(graph.after for graph in backend.graphs)


@pytest.mark.parametrize("recipe", CODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_outputs_and_gradients_are_those_of_the_unpacked_model(recipe, dtype):
    torch.manual_seed(0)
    model = Odd().to(dtype)
    packed = qc.pack(copy.deepcopy(model), recipe=recipe)
    assert packed_names(packed.last) == packed_names(packed.blocks.layers[0].up) == ("weight",)
    x = torch.randn(2, 32, 48, dtype=dtype)
    y, expected = gradients(model, x, function=compiled(model, recipe=recipe)[0])
    z, got = gradients(packed, x, function=compiled(packed, recipe=recipe)[0])
    assert torch.equal(y, z) and got.keys() == expected.keys() == {"first.weight", "first.bias", "blocks.out"}
    assert all(torch.equal(got[name], expected[name]) for name in got)


@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("recipe", ["quartet", "nvfp4"])
def test_experts(turned, recipe):
    torch.manual_seed(0)
    model = frozen(Experts(turned).bfloat16())
    packed = qc.pack(copy.deepcopy(model), recipe=recipe)
    assert packed.up_packed.shape == (3, 96, 32) and packed.up.shape == model.up.shape
    ends = torch.tensor([16, 40, 64], dtype=torch.int32)
    found = []
    for each in (model, packed):
        torch.manual_seed(1)
        x = torch.randn(64, 64, dtype=torch.bfloat16).requires_grad_()
        function, backend = compiled(each, recipe=recipe)
        y = function(x, ends)
        torch.manual_seed(2)
        y.float().square().sum().backward()
        found.append((y, x.grad))
        assert [site.runs_in for site in sites(backend)] == ["fp4"]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_the_graph_reads_the_codes_and_never_the_weight():
    """Of W no `quantize`, no `decode`: its only reader besides the products makes W^T of the codes."""
    model = qc.pack(linear())
    after = qc.explain(model, torch.randn(32, 64, requires_grad=True)).graphs[0].after
    ops = [line.split(" = ")[1].partition("(")[0] for line in after.splitlines() if " = " in line]
    assert [op for op in ops if "quantize" in op or "mm" in op or "decode" in op] == [
        "quantize[mxfp4-quest, mask]",
        "scaled_mm",
        "quantize[mxfp4-sr]",
        "requantize[mxfp4-sr]",
        "scaled_mm[unrotate]",
    ]


def test_an_unpacked_weight_is_decoded_where_a_matmul_stays():
    report = qc.explain(qc.pack(linear()), torch.randn(32, 64), exclude=["*"])
    assert reasons(report) == {"0": "excluded by '*'; its packed weight is decoded for it"}
    assert " = decode" in report.graphs[0].after


def test_through_inductor():
    torch._dynamo.reset()
    model = linear()
    packed = qc.pack(copy.deepcopy(model))
    found = []
    for each in (model, packed):
        x = torch.linspace(-2, 3, 32 * 64).reshape(32, 64).requires_grad_()
        torch.manual_seed(1)
        y = torch.compile(each, backend="quartet")(x)
        y.square().sum().backward()
        found.append((y, x.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_checkpointed_blocks():
    torch.manual_seed(0)
    model = Net(checkpointing=True)
    frozen(model.layers)
    packed = qc.pack(copy.deepcopy(model))
    x = torch.randn(2, 16, 64, requires_grad=True)
    y, expected = gradients(model, x, function=compiled(model)[0])
    z, got = gradients(packed, x, function=compiled(packed)[0])
    assert torch.equal(y, z) and torch.equal(got["out"], expected["out"])


def test_blocks_that_are_compiled_one_by_one_have_full_names(graphs):
    model = nn.Sequential(*(frozen(Block()) for _ in range(2)))
    qc.pack(model, recipe="quartet2")
    qc.quartet(model, regions=["*"], recipe="quartet2", include=["1.up"])
    model(torch.randn(4, 32, 64))
    names = {site.name: site.rewritten for graph in graphs for site in graph.sites}
    assert names == {"0.up": False, "0.down": False, "1.up": True, "1.down": False}


def test_outside_of_graphs_a_use_decodes():
    model = linear()
    weight = model[0].weight
    packed = qc.pack(copy.deepcopy(model))
    expected = qc.quantize(weight, "mxfp4-quest").restore()
    assert torch.equal(packed[0].weight, expected)
    x = torch.randn(8, 64, requires_grad=True)
    y = packed(x)
    assert type(y) is torch.Tensor and torch.equal(y, torch.relu(x @ expected.T + model[0].bias))
    y.sum().backward()
    assert torch.equal(x.grad, (y > 0).float() @ expected)


def test_bits_an_element():
    model = frozen(nn.Linear(1024, 512, bias=False))
    for recipe, bits in (("quartet", 4.25), ("quartet2", 4.5)):
        held = qc.pack(copy.deepcopy(model), recipe=recipe)
        size = held.weight_packed.nbytes + held.weight_scale.nbytes
        assert 8 * size / model.weight.numel() == bits
        assert not list(held.parameters())


@pytest.mark.parametrize("recipe", ["quartet", "quartet2"])
def test_state_dict(recipe):
    model = qc.pack(linear(), recipe=recipe)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert {name: tensor.dtype for name, tensor in state.items()} == {
        "0.bias": torch.float32,
        "0.weight_packed": torch.uint8,
        "0.weight_scale": torch.uint8,
        "0.weight_tensor_scale": torch.int32,
        "0.weight_quantizer": torch.uint8,
    }
    torch.manual_seed(5)
    other = qc.pack(frozen(nn.Sequential(nn.Linear(64, 64), nn.ReLU())), recipe=recipe)
    assert not torch.equal(other[0].weight, model[0].weight)
    other.load_state_dict(state)
    assert torch.equal(other[0].weight, model[0].weight)


def test_a_state_dict_of_other_codes_is_refused():
    model = qc.pack(linear())
    other = qc.pack(linear(), recipe="quartet2")
    with pytest.raises(
        qc.PackError, match="has nvfp4-rtn-4over6 for '0.weight', and the model holds codes of mxfp4-quest"
    ):
        model.load_state_dict(other.state_dict())
    with pytest.raises(qc.PackError, match="has no codes for '0.weight'.*load them before quartet_compile.pack"):
        model.load_state_dict(linear().state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        linear().load_state_dict(model.state_dict())


@pytest.mark.parametrize("recipe", ["quartet", "quartet2"])
def test_unpack(recipe):
    model = linear()
    quantizer = qc.recipe(recipe).fprop.b
    expected = qc.quantize(model[0].weight, quantizer).restore()
    packed = qc.pack(model, recipe=recipe)
    assert qc.unpack(packed) is model and type(model[0]) is nn.Linear
    assert set(model.state_dict()) == {"0.weight", "0.bias"}
    assert isinstance(model[0].weight, nn.Parameter) and not model[0].weight.requires_grad
    assert torch.equal(model[0].weight, expected)
    with pytest.raises(qc.PackError, match="Nothing in Sequential is packed"):
        qc.unpack(model)


def test_casts_copies_and_pickles():
    model = qc.pack(linear(), recipe="quartet2")
    before = model[0].weight
    lower = copy.deepcopy(model).to(torch.bfloat16)
    assert lower[0].weight.dtype == torch.bfloat16 and model[0].weight.dtype == torch.float32
    assert torch.equal(lower[0].weight, before.bfloat16())
    again = pickle.loads(pickle.dumps(model))
    assert isinstance(again[0], nn.Linear) and torch.equal(again[0].weight, before)
    assert "weight packed as nvfp4-rtn-4over6" in repr(again)


def test_writing_to_a_packed_weight_is_an_error():
    layer = qc.pack(linear())[0]
    for write in (
        lambda: layer.weight.add_(1),
        lambda: layer.weight.data.mul_(2),
        lambda: layer.weight.__setitem__(0, 1.0),
        lambda: setattr(layer.weight, "data", torch.zeros(64, 64)),
        lambda: torch.add(torch.ones(64, 64), 1, out=layer.weight),
        lambda: nn.init.zeros_(layer.weight),
    ):
        with pytest.raises(qc.PackError, match="was written to.*quartet_compile.unpack"):
            write()
    with pytest.raises(qc.PackError):
        layer.weight.data += 1


class Parts(nn.Module):
    """Reads half of a weight, and all of it transposed."""

    def __init__(self):
        super().__init__()
        self.inner = frozen(nn.Linear(64, 64, bias=False))

    def forward(self, x):
        return x @ self.inner.weight[:32].T, x @ self.inner.weight


def test_a_part_of_a_weight_or_its_transpose_is_not_its_codes():
    model = qc.pack(Parts())
    x = torch.randn(32, 64)
    function, backend = compiled(model)
    half, turned = function(x)
    w = model.inner.weight
    assert torch.equal(half, x @ w[:32].T) and torch.equal(turned, x @ w)
    assert {site.reason for site in sites(backend)} == {
        "it reads the packed weight 'inner.weight' in part or transposed; its packed weight is decoded for it"
    }


def test_under_autocast():
    """The codes are those of the float32 weight."""
    model = qc.pack(linear(), recipe="jetfire-fp4")
    dense = qc.unpack(copy.deepcopy(model))
    x = torch.randn(32, 64)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        packed, backend = compiled(model, recipe="jetfire-fp4")
        y = packed(x)
        assert [site.runs_in for site in sites(backend)] == ["fp4"]
        assert torch.equal(y, compiled(dense, recipe="jetfire-fp4")[0](x))


def test_statistics_say_that_the_codes_are_not_measured():
    report = qc.explain(qc.pack(linear()), torch.randn(32, 64, requires_grad=True), stats=True)
    unmeasured = {item.operand: item.reason for item in report.graphs[0].observed if item.row is None}
    assert unmeasured == {"W": "the codes of a packed weight, as they are"}


@pytest.mark.parametrize(
    "make, options, expected",
    [
        (lambda: nn.Linear(64, 64), {}, "Nothing to pack in Linear.*requires_grad_"),
        (lambda: nn.Linear(64, 64), {"include": ["weight"]}, "'weight' can't be packed: it is trained"),
        (lambda: frozen(nn.Linear(64, 31)), {"include": ["*"]}, "N or K below 32"),
        (lambda: frozen(nn.Linear(16, 64)), {}, "Nothing to pack"),
        (lambda: frozen(Experts(True, rows=80)), {}, "'up' is 3 matrices of 80 rows; expected a multiple of 32"),
        (lambda: frozen(nn.Linear(64, 64)), {"recipe": "bf16"}, "Nothing to pack"),
        (lambda: frozen(nn.Linear(64, 64)), {"recipe": "mxfp4-bwd"}, "computes fprop in high precision"),
        (lambda: frozen(nn.Linear(64, 64)), {"recipe": "mxfp8"}, "has weights in mxfp8; expected one with FP4"),
        (lambda: frozen(nn.Linear(64, 64)), {"recipe": "exact"}, "has weights in float32"),
        (lambda: frozen(Net()), {"include": ["layers.7"]}, "include pattern 'layers.7' matches no weight"),
        (lambda: frozen(Net()), {"include": ["out"]}, "nothing says which dimension of .64, 40. is contracted"),
        (lambda: frozen(nn.Linear(64, 64).double()), {"include": ["*"]}, "dtype is torch.float64"),
        (lambda: frozen(nn.Linear(64, 64, device="meta")), {}, "meta device.*load_fp4"),
    ],
)
def test_refused(make, options, expected):
    model = make()
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(qc.PackError, match=expected):
        qc.pack(model, **options)
    assert {name: type(module) for name, module in model.named_modules()} == before


def test_a_nan_is_refused_before_anything_is_packed():
    model = frozen(Net())
    model.layers[1].up.weight[3, 5] = torch.inf
    with pytest.raises(qc.PackError, match="'layers.1.up.weight' has a NaN or an infinity"):
        qc.pack(model)
    assert not any(packed_names(module) for module in model.modules())


def test_a_tied_weight_is_refused():
    model = nn.ModuleDict({"table": nn.Embedding(64, 64), "out": nn.Linear(64, 64, bias=False)})
    model["out"].weight = model["table"].weight
    with pytest.raises(qc.PackError, match="'out.weight' can't be packed: it is tied"):
        qc.pack(frozen(model), include=["out"])


@pytest.mark.parametrize(
    "packed, recipe, expected",
    [
        ("jetfire-fp4", "quartet", r"X in rotation=32.*expected rotation=0.*quartet_compile.unrotated\('quartet'\)"),
        ("quartet", "quartet2", "X in scale_format='e4m3'.*expected scale_format='e8m0'.*packed with"),
        ("quartet", "mxfp4-bwd", "computes fprop in high precision; expected a recipe that reads codes"),
        ("quartet", qc.mix("half", fprop="quartet", dgrad="bf16", wgrad="quartet"), "dgrad from the weight in high"),
        ("quartet2", "nvfp4", "w_from='codes'"),
    ],
)
def test_a_recipe_that_cannot_read_the_codes(packed, recipe, expected):
    model = qc.pack(linear(), recipe=packed)
    with pytest.raises(qc.RecipeError, match=expected):
        compiled(model, recipe=recipe)[0](torch.randn(32, 64, requires_grad=True))


def test_matrices_that_blocks_of_the_recipe_would_cross():
    """An MS-EDEN backward has blocks of 128."""
    model = frozen(Experts(False).bfloat16())
    with pytest.raises(qc.PackError, match="3 matrices of 96 rows; expected a multiple of 128 rows"):
        qc.pack(model, recipe="quartet2")
    qc.pack(model, recipe=qc.mix("rtn", fprop="quartet2", dgrad="tetrajet2", wgrad="tetrajet2"))
    with pytest.raises(qc.RecipeError, match="blocks of 128; expected blocks that fill the 96 rows"):
        compiled(model, recipe="quartet2")[0](
            torch.randn(32, 64, dtype=torch.bfloat16), torch.tensor([8, 16, 32], dtype=torch.int32)
        )


def test_unrotated():
    recipe = qc.unrotated("quartet")
    assert recipe.name == "quartet-unrotated" and recipe.fprop.a.rotation == 0 and not recipe.fprop.a.clips
    assert recipe.dgrad == qc.recipe("quartet").dgrad and recipe.w_from == "requantized"
    for name, expected in (("quartet2", "nvfp4-rtn-4over6 in fprop"), ("bf16", "high precision")):
        with pytest.raises(qc.RecipeError, match=expected):
            qc.unrotated(name)
