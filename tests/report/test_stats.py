"""Statistics in the graph: the numbers are those of an independent computation, gradients keep every bit, and a graph
without the option has nothing of it."""

from __future__ import annotations

import pytest
import torch
from captured import compiled
from models import Attention, Block, Net, gradients
from spellings import ALL, Spelled
from torch import nn
from torch.utils.checkpoint import checkpoint

import quartet_compile as qc
from quartet_compile.kernels import stats as statistics
from quartet_compile.kernels.numerics import philox, reference
from quartet_compile.kernels.quantizer import E2M1_MAX, E2M1_VALUES, E4M3_MAX
from quartet_compile.passes.stats import TRANSPOSED
from quartet_compile.process import process
from quartet_compile.report import records

RECIPES = ["quartet", "quartet2", "nvfp4", "mxfp4-bwd", "mxfp8"]


@pytest.fixture(autouse=True)
def _tables(monkeypatch):
    """No numbers of earlier tests."""
    monkeypatch.setattr(process, "tables", {})


def observed(model, x, **options):
    """A training step without Inductor; and its numbers by matmul, GEMM and operand, and the backend."""
    function, backend = compiled(model, stats=True, **options)
    result = gradients(model, x, function=function)
    return result, numbers(backend), backend


def numbers(backend):
    """What the graphs wrote; a later one wins over an earlier one with the same matmul."""
    found = {}
    for report, key in zip((g for g in backend.graphs if g.observed), process.tables, strict=True):
        rows = statistics.read(key).values.tolist()
        for item in report.observed:
            row = None if item.row is None else dict(zip(statistics.FIELDS, rows[item.row], strict=True))
            found[item.matmul, item.gemm, item.operand] = row
    return found


def cosine(a, b):
    a, b = a.double().flatten(), b.double().flatten()
    return ((a @ b) / (a.norm() * b.norm())).item()


def rotated(x, rotation, signs=None):
    """By matrices that are built from their definition, in float64."""
    if not rotation:
        return x.double()
    h = torch.ones(1, 1, dtype=torch.float64)
    while len(h) < rotation:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    x = torch.nn.functional.pad(x.double(), (0, -x.shape[1] % rotation)).unflatten(1, (-1, rotation))
    return ((x if signs is None else x * signs) @ h / rotation**0.5).flatten(1)


def shares(v, q, limits):
    """underflow, clipped and error."""
    counted = v.abs() > 1e-12
    count = counted.sum()
    error = (q - v).square().sum() / v.square().sum()
    return [(counted & (q == 0)).sum() / count, (v.abs() > limits).sum() / count, error]


def assert_row(row, amax, underflow, clipped, error):
    assert row["amax"] == pytest.approx(amax.item(), rel=1e-6)
    assert row["underflow"] == pytest.approx(underflow.item(), abs=2e-4)
    assert row["clipped"] == pytest.approx(clipped.item(), abs=1e-3)  # an element on the edge
    assert row["error"] == pytest.approx(error.item(), rel=1e-3, abs=1e-9)
    assert row["cosine"] == statistics.UNWRITTEN


def test_operands_of_quest_by_its_formula():
    """Both operands of both layers, with a last group that is partly padding, from the paper's formulas alone."""
    torch.manual_seed(1)
    model, x = nn.Sequential(nn.Linear(72, 96, bias=False), nn.ReLU(), nn.Linear(96, 40)), torch.randn(50, 72)
    x[:7] = 0  # rows that nothing is counted of
    _, found, _ = observed(model, x)
    grid = torch.tensor([*E2M1_VALUES, *(-v for v in E2M1_VALUES)], dtype=torch.float64)

    def quantized(x):
        v = rotated(x, 32)
        groups = v.unflatten(1, (-1, 32))
        std = groups.var(-1, correction=0, keepdim=True).sqrt()
        scale = 2.0 ** torch.floor(torch.log2(2.92247856 / 6 * std + 1e-8))
        q = grid[(groups[..., None] / scale[..., None] - grid).abs().argmin(-1)] * scale
        return v, q.flatten(1), (6 * scale).expand_as(groups).flatten(1)

    (vx, qx, lx), (vw, qw, lw) = quantized(x), quantized(model[0].weight)
    hidden = (qx @ qw.t()).relu()
    (vh, qh, lh), (vv, qv, lv) = quantized(hidden), quantized(model[2].weight)
    assert_row(found["0", "fprop", "X"], x.abs().max(), *shares(vx, qx, lx))
    assert_row(found["0", "fprop", "W"], model[0].weight.abs().max(), *shares(vw, qw, lw))
    assert_row(found["2", "fprop", "X"], hidden.max(), *shares(vh, qh, lh))
    assert_row(found["2", "fprop", "W"], model[2].weight.abs().max(), *shares(vv, qv, lv))
    assert 0.01 < found["0", "fprop", "X"]["clipped"] < 0.2 and 0.01 < found["0", "fprop", "X"]["underflow"] < 0.2


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_operand_and_gradient_of_a_recipe(recipe):
    """Each operand from the reference's codes of it and a rotation in float64; each gradient against its own product."""
    torch.manual_seed(1)
    model, x = nn.Sequential(nn.Linear(72, 104, bias=False)), torch.randn(50, 72).requires_grad_()
    (y, grads), found, _ = observed(model, x, recipe=recipe)
    rule, w, dy = qc.recipe(recipe), model[0].weight.detach(), 2 * y
    assert found["0", "dgrad", "dX"]["cosine"] == pytest.approx(cosine(x.grad, dy @ w), abs=1e-5)
    assert found["0", "wgrad", "dW"]["cosine"] == pytest.approx(cosine(grads["0.weight"], dy.t() @ x), abs=1e-5)
    assert 0.85 < found["0", "dgrad", "dX"]["cosine"] < 1
    torch.manual_seed(0)
    seed = torch.randint(0, 2**63 - 1, (1,))[0]
    x = x.detach()

    def blocks(x, spec, stream):
        return reference.quantize(x, spec, stream=stream, seed=seed, sign_seed=seed)

    def expected(x, spec, stream):
        made = blocks(x, spec, stream)
        scales = made.scales.float() * made.tensor_scale if spec.two_level else 2.0 ** (made.scales.double() - 127)
        limits = scales.double() * (E4M3_MAX if spec.elements == "e4m3" else E2M1_MAX) / spec.shrink
        v = rotated(x, spec.rotation, philox.signs(seed, stream, spec.rotation) if spec.random_signs else None)
        q = reference.decode(made, spec).double()
        v = torch.nn.functional.pad(v, (0, q.shape[1] - v.shape[1]))
        return x.abs().max(), *shares(v, q, limits.repeat_interleave(spec.group, 1))

    def second(role, original, fprop, stream):
        """What W^T or X^T is made of."""
        if rule.source(role) == "original":
            return original.t()
        return reference.decode(blocks(original, fprop, stream), fprop).t()

    operands = {}
    if rule.fprop:
        operands["fprop", "X"] = (x, rule.fprop.a, philox.FPROP_X)
        operands["fprop", "W"] = (w, rule.fprop.b, philox.FPROP_W)
    operands["dgrad", "dY"] = (dy, rule.dgrad.a, philox.DGRAD_DY)
    operands["wgrad", "dY^T"] = (dy.t(), rule.wgrad.a, philox.WGRAD_DY)
    if rule.w_from != "codes":
        wt = second("dgrad", w, rule.fprop and rule.fprop.b, philox.FPROP_W)
        operands["dgrad", "W^T"] = (wt, rule.dgrad.b, philox.DGRAD_W)
    xt = second("wgrad", x, rule.fprop and rule.fprop.a, philox.FPROP_X)
    operands["wgrad", "X^T"] = (xt, rule.wgrad.b, philox.WGRAD_X)
    for (role, letter), how in operands.items():
        assert_row(found["0", role, letter], *expected(*how))
    assert len(found) == 8 - 2 * (rule.fprop is None)
    assert (found["0", "dgrad", "W^T"] is None) == (rule.w_from == "codes")


def test_nan_and_infinity_leave_the_other_blocks_their_numbers():
    model, x = nn.Sequential(nn.Linear(64, 64, bias=False)), torch.randn(32, 64)
    _, clean, _ = observed(model, x[1:])
    x[0, 3], x[0, 40] = torch.inf, torch.nan
    process.tables.clear()
    _, found, _ = observed(model, x)
    row = found["0", "fprop", "X"]
    assert row["amax"] != row["amax"]
    assert [row[name] for name in statistics.FIELDS[1:4]] == pytest.approx(
        [clean["0", "fprop", "X"][name] for name in statistics.FIELDS[1:4]], rel=1e-5
    )


def test_gradients_that_are_tiny_and_none_at_all():
    """Squares that are no float32 numbers; and a step in which no gradient arrives."""
    model, x = nn.Sequential(nn.Linear(64, 64, bias=False)), torch.randn(32, 64)
    function, backend = compiled(model, stats=True)
    for size, expected in ((1e-28, 0.9), (0.0, None)):
        (function(x) * size).sum().backward()
        found = numbers(backend)
        assert found["0", "wgrad", "dY^T"]["amax"] == pytest.approx(size)
        value = found["0", "wgrad", "dW"]["cosine"]
        assert value > expected if expected else value != value
    assert [found["0", "wgrad", "dY^T"][name] for name in statistics.FIELDS[:4]] == [0, 0, 0, 0]


def test_a_graph_without_the_option_has_nothing_of_it():
    model, x = Net(), torch.randn(2, 24, 64)
    plain, off, on = (qc.graph_diff(model, x, **options) for options in ({}, {"stats": False}, {"stats": True}))
    assert plain == off and "observe" not in off

    def ops(text):
        return [line for line in text.splitlines() if line[:1] == "+" and "observe[" not in line]

    assert ops(on) == ops(off) and len(on) > len(off)
    assert "observe[0](x.q)" in on and "observe[1](layers.0.up.weight.q)" in on


def test_codes_that_are_transposed_as_they_are_have_no_row():
    _, _, backend = observed(nn.Sequential(nn.Linear(64, 64, bias=False)), torch.randn(32, 64), recipe="jetfire-fp4")
    (report,) = backend.graphs
    assert {item.operand: item.reason for item in report.observed if item.row is None} == {"X^T": TRANSPOSED}


def test_matmuls_that_share_an_operand_share_its_row():
    _, found, backend = observed(Attention(), torch.randn(2, 24, 64))
    (report,) = backend.graphs
    rows = {(item.matmul, item.gemm, item.operand): item.row for item in report.observed}
    for gemm, operand in (("fprop", "X"), ("wgrad", "X^T")):
        q, k, v, o = (rows[f"{name}_proj", gemm, operand] for name in "qkvo")
        assert q == k == v != o
    assert len({rows[f"{name}_proj", "fprop", "W"] for name in "qkvo"}) == 4
    assert all(found[f"{name}_proj", "wgrad", "dW"]["cosine"] > 0.8 for name in "qkvo")
    assert sorted(set(rows.values())) == list(range(len(set(rows.values()))))


class Checkpointed(nn.Module):
    def __init__(self, on: bool) -> None:
        super().__init__()
        self.layers, self.on = nn.ModuleList(Attention() for _ in range(2)), on

    def forward(self, x):
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.on else layer(x)
        return x


@pytest.mark.parametrize("recipe", ["quartet", "nvfp4"])
def test_checkpointing_changes_no_number(recipe):
    results = []
    for on in (False, True):
        torch.manual_seed(1)
        process.tables.clear()
        model, x = Checkpointed(on), torch.randn(2, 24, 64)
        result, found, _ = observed(model, x, recipe=recipe)
        results.append((result[1], found))
    (plain, expected), (ours, found) = results
    assert found == expected
    assert all(torch.equal(ours[name], plain[name]) for name in plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    model, x = Net(blocks=1), torch.randn(2, 24, 64)
    function, backend = compiled(model, stats=True)
    with torch.autocast("cpu", dtype=dtype):
        y = function(x)
    y.float().square().sum().backward()
    found = numbers(backend)
    assert found["layers.0.up", "fprop", "X"]["amax"] == x.to(dtype).abs().max()
    gradient, expected = model.out.grad, found["out", "wgrad", "dW"]["cosine"]
    assert 0.85 < expected < 1 and gradient is not None


@pytest.mark.parametrize(
    "name", ["bmm", "bmm, odd sizes", "baddbmm", "patches", "1-D convolution", "used twice", "addmm"]
)
@pytest.mark.parametrize("recipe", ["exact", "quartet"])
def test_batches_convolutions_and_other_spellings(name, recipe):
    spell, shapes = ALL[name]
    torch.manual_seed(1)
    model, x = Spelled(spell, **shapes), torch.randn(2, 48, 64).requires_grad_()
    _, found, _ = observed(model, x, recipe=recipe)
    assert found and all(row is not None for row in found.values())
    lowest = 0.9999 if recipe == "exact" else 0.8
    cosines = [row["cosine"] for (_, _, operand), row in found.items() if operand in ("dX", "dW")]
    assert len(cosines) == 2 and min(cosines) > lowest


def test_groups_of_rows_and_a_dynamic_batch():
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(3, 64, 96) / 8)

        def forward(self, x, ends):
            return torch._grouped_mm(x, self.w, offs=ends)

    model, x = Experts().bfloat16(), torch.randn(100, 64, dtype=torch.bfloat16).requires_grad_()
    function, backend = compiled(model, stats=True, recipe="exact")
    y = function(x, torch.tensor([10, 10, 100], dtype=torch.int32))
    (y.float() ** 2).sum().backward()
    found = numbers(backend)
    assert found["w", "dgrad", "dX"]["cosine"] > 0.999 and found["w", "wgrad", "dW"]["cosine"] > 0.999
    assert found["w", "fprop", "X"]["amax"] == x.abs().max()


# Under Inductor


def model_and_input():
    torch.manual_seed(1)
    return nn.Sequential(Attention(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 40)), torch.randn(2, 24, 64)


def test_stats_of_a_model():
    """Bits as without the option; training and evaluation; the table, its columns, and scalars for loggers."""
    model, x = model_and_input()
    torch._dynamo.reset()
    y, expected = gradients(model, x, function=qc.quartet(model))
    function = qc.quartet(model, stats=True)
    ours, grads = gradients(model, x, function=function)
    assert torch.equal(y, ours) and all(torch.equal(grads[name], expected[name]) for name in expected)
    stats = qc.stats(function)
    assert {record.graph for record in stats.records} == {"training"}
    assert [(r.gemm, r.operand) for r in stats.records if r.matmul == "3"] == [
        ("fprop", "X"), ("fprop", "W"), ("dgrad", "dY"), ("dgrad", "W^T"), ("dgrad", "dX"), ("wgrad", "dY^T"),
        ("wgrad", "X^T"), ("wgrad", "dW"),
    ]  # fmt: skip
    last = {(r.gemm, r.operand): r for r in stats.records if r.matmul == "3"}
    assert last["dgrad", "dY"].amax == (2 * y).abs().max()
    assert last["fprop", "W"].amax == model[3].weight.abs().max() and last["fprop", "W"].quantizer == "mxfp4-quest"
    assert last["dgrad", "dX"].cosine > 0.85 and last["dgrad", "dX"].amax is None

    model.eval()
    with torch.inference_mode():
        function(2 * x)
    stats = qc.stats(model)
    both = {r.graph: r for r in stats.records if (r.matmul, r.operand) == ("0.q_proj", "X")}
    assert both["inference"].amax == 2 * both["training"].amax == (2 * x).abs().max()

    columns = stats.to_dict()
    assert list(columns)[:5] == ["matmul", "graph", "gemm", "operand", "quantizer"]
    assert {len(column) for column in columns.values()} == {len(stats.records)}
    scalars = stats.scalars()
    assert scalars["0.q_proj/fprop/X/amax"] == x.abs().max()
    assert "inference/0.q_proj/fprop/X/error" in scalars and all(isinstance(v, float) for v in scalars.values())
    lines = str(stats).splitlines()
    (line,) = [line.split() for line in lines if line.startswith("3 ") and " dgrad " in line]
    assert line[:4] == ["3", "dgrad", "dY,", "W^T"] and line[-1] == f"{last['dgrad', 'dX'].cosine:.4f}"
    assert "inference graph" in str(stats)


@pytest.mark.parametrize("recipe", RECIPES[1:])
def test_no_bit_changes_under_inductor(recipe):
    model, x = model_and_input()
    torch._dynamo.reset()
    results = []
    for stats in (False, True):
        function = torch.compile(model, backend="quartet", options={"recipe": recipe, "stats": stats})
        results.append(gradients(model, x, function=function))
    (y, plain), (ours, grads) = results
    assert torch.equal(y, ours) and all(torch.equal(grads[name], plain[name]) for name in plain)
    assert {record.matmul for record in qc.stats(model).records} == {
        "0.q_proj",
        "0.k_proj",
        "0.v_proj",
        "0.o_proj",
        "1",
        "3",
    }


def test_two_models_of_a_class_a_recompilation_and_changing_lengths():
    torch._dynamo.reset()
    one, other = (nn.Sequential(nn.Linear(64, 64)) for _ in range(2))
    x = torch.randn(40, 64)
    for model, scale in ((one, 1), (other, 3)):
        qc.quartet(model, stats=True)(scale * x).sum().backward()
    amax = {model: qc.stats(model).records[0].amax for model in (one, other)}
    assert amax[one] == x.abs().max() and amax[other] == (3 * x).abs().max()
    assert len(qc.stats().records) == 10

    function = qc.quartet(one, stats=True, dynamic=True)
    for length in (40, 33):
        function(5 * x[:length]).sum().backward()
        found = qc.stats(one).records
        assert len(found) == 5 and found[0].amax == (5 * x[:length]).abs().max()
    assert found[-1].cosine > 0.85


def test_models_in_place_in_regions_and_in_functions():
    torch._dynamo.reset()
    x = torch.randn(32, 64)
    in_place, parts, inner = Block(), Net(blocks=1), nn.Linear(64, 64)
    in_place.compile(backend="quartet", options={"stats": True})
    in_place(x)
    assert {record.matmul for record in qc.stats(in_place).records} == {"up", "down"}
    qc.quartet(parts, stats=True, regions=["layers.*"])(x)
    assert {record.matmul for record in qc.stats(parts).records} == {"layers.0.up", "layers.0.down"}
    assert qc.stats(parts.layers[0]).records == qc.stats(parts).records

    @qc.quartet(stats=True)
    def step(x):
        return inner(x).sum()

    step(x).backward()
    assert qc.stats(step).records == qc.stats(inner).records
    assert len(qc.stats().records) > len(qc.stats(inner).records)


def test_another_recipe_has_its_own_numbers():
    torch._dynamo.reset()
    model, x = nn.Sequential(nn.Linear(64, 64)), torch.randn(32, 64)
    function = qc.quartet(model, stats=True)
    for recipe in ("quartet", "mxfp8"):
        qc.set_recipe(function, recipe)
        function(x)
        (quantizer_of_x,) = {r.quantizer for r in qc.stats(model).records if (r.gemm, r.operand) == ("fprop", "X")}
        assert quantizer_of_x == qc.recipe(recipe).fprop.a.name


def test_what_is_asked_too_early_or_of_something_else(monkeypatch):
    torch._dynamo.reset()
    model, x = nn.Sequential(nn.Linear(64, 64)), torch.randn(32, 64)
    function = torch.compile(model, backend="quartet", options={"stats": True})
    with pytest.raises(
        qc.StatsError, match=r"no statistics of this Sequential: no graph.*options=\{'stats': True\}.*step"
    ):
        qc.stats(function)
    qc.quartet(model)(x)
    with pytest.raises(qc.StatsError, match="no graph of it was compiled with stats=True"):
        qc.stats(model)
    function(x)
    assert qc.stats(model).records[2].amax is None  # no backward pass yet
    assert "-" in str(qc.stats(model)).splitlines()[3].split()
    monkeypatch.setattr(records, "read", lambda uuid: [])
    with pytest.raises(qc.StatsError, match="without its record"):
        qc.stats(model)


def test_the_option_is_validated():
    with pytest.raises(qc.OptionError, match="Option 'stats' is 1; expected True or False"):
        qc.quartet(nn.Linear(64, 64), stats=1)
