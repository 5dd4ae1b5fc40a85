"""What runs eagerly though it was to run in FP4 is told of, whichever way the model was compiled; never what was kept."""

from __future__ import annotations

import contextlib
import warnings

import pytest
import torch
from models import Block, Net, gradients, relative
from rounding import assert_same_step
from torch import nn

import quartet_compile as qc
from quartet_compile import StrictError
from quartet_compile.passes.products.eager import products

X = torch.randn(2, 16, 64)


class Broken(nn.Module):
    """Breaks the graph in a loop: `first`, `last` and the loop run eagerly."""

    def __init__(self, block: type[nn.Module] = Block) -> None:
        super().__init__()
        self.first, self.last, self.lm_head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)
        self.layers = nn.ModuleList(block() for _ in range(2))

    def forward(self, x):
        x = self.first(x)
        for layer in self.layers:
            torch._dynamo.graph_break()
            x = layer(x)
        return self.lm_head(self.last(x))


class Encoder(nn.TransformerEncoderLayer):
    def __init__(self) -> None:
        super().__init__(64, 2, 64, dropout=0.0, batch_first=True)


def torchs_own() -> nn.Module:
    return nn.TransformerEncoderLayer(64, 2, 64, dropout=0.0, batch_first=True)


def in_place(model, **options):
    model.compile(backend="quartet", options=options)
    return model


def decorated(model, **options):
    @qc.quartet(**options)
    def run(x):
        return model(x)

    return run


WAYS = {
    "by name": lambda model, **options: torch.compile(model, backend="quartet", options=options),
    "in place": in_place,
    "qc.quartet": qc.quartet,
    "a region": lambda model, **options: qc.quartet(nn.ModuleDict({"body": model}), regions=["body"], **options)[
        "body"
    ],
    "a function": decorated,
    "a method": lambda model, **options: qc.quartet(model.forward, **options),
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@contextlib.contextmanager
def told():
    """The warnings of ours that are given inside."""
    found = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield found
    found += [str(w.message) for w in caught if issubclass(w.category, qc.QuartetWarning)]


@ways
def test_eager_matmuls_are_told_of_once_with_place_reason_and_remedy(graphs, way):
    with told() as warned:
        function = way(Broken())
        for _ in range(4):
            function(X).sum().backward()
    (message,) = warned
    head, where, why, remedy = message.split("\n")
    named = head.rpartition(": ")[2].strip(".").replace("body.", "").replace("'", "").split(", ")
    assert named == ["first", "last"] and "2 weight matmuls ran eagerly" in head  # neither the blocks nor the head
    assert "test_watch.py:" in where and "in Broken.forward" in where
    assert "graph_break" in why and "in a loop" in why
    assert "explain" in remedy and "regions" in remedy
    assert sum(site.rewritten for graph in graphs for site in graph.sites) == 4 or len(graphs) == 1  # blocks share code


@ways
def test_strict_raises_in_our_words(graphs, way):
    with pytest.raises(StrictError, match="strict=True, and .*(ran eagerly|can't be compiled)"):
        way(Broken(), strict=True)(X)


@pytest.mark.parametrize(
    "options",
    [
        {"exclude": ["first", "last"]},
        {"include": ["layers.*"]},
        {"recipe": [("layers.*", "quartet"), ("*", "bf16")]},
        {"recipe": "bf16"},
        {"scope": "marked"},
    ],
    ids=str,
)
@pytest.mark.parametrize("strict", [False, True])
def test_what_the_options_keep_is_not_told_of(graphs, options, strict):
    with told() as warned:
        torch.compile(Broken(), backend="quartet", options={**options, "strict": strict})(X).sum().backward()
    assert not [message for message in warned if "ran eagerly" in message]


def test_the_recipe_of_evaluation_decides_without_gradients(graphs):
    function = torch.compile(Broken(), backend="quartet", options={"eval": "bf16"})
    with told() as warned, torch.no_grad():
        function(X)
    assert not warned


def test_training_is_looked_at_after_an_evaluation_that_left_nothing_to_compile(graphs):
    function = torch.compile(Broken(), backend="quartet", options={"eval": "bf16", "exclude": ["up", "down"]})
    with told() as early, torch.no_grad():
        function(X), function(X), function(X)
    with told() as late:
        function(X)
    assert not [m for m in early if "ran eagerly" in m] and "'first', 'last'" in late[0]


class Small(nn.Module):
    """Products that no graph would have in FP4: too small, of few rows, of another dtype, of two activations, by a table,
    by a mark."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.wide = nn.Linear(64, 16), nn.Linear(64, 64).double()
        self.table, self.marked, self.few = nn.Embedding(64, 64), _Marked(), nn.Linear(64, 64)

    def forward(self, x):
        torch._dynamo.graph_break()
        for _ in range(1):
            torch._dynamo.graph_break()
            y = self.small(x).sum() + self.wide(x.double()).sum() + (x @ x.transpose(1, 2)).sum()
            y = y + (x @ self.table.weight.t()).sum() + self.marked(x).sum()
            y = y + self.few(x[:, 0]).sum()
            with torch.no_grad():
                y = y + self.small(x).sum()
        return y


@qc.no_fp4
class _Marked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 64)

    def forward(self, x):
        return self.inner(x)


def test_what_no_graph_would_rewrite_is_not_told_of(graphs):
    with told() as warned:
        torch.compile(Small(), backend="quartet")(X)
    assert not warned


def test_a_model_that_is_compiled_whole_is_not_told_of_and_not_inspected_again(graphs):
    from quartet_compile.frontend import watch

    model = torch.compile(Net(), backend="quartet")
    with told() as warned:
        model(X).sum().backward(), model(X).sum().backward()
    made, plain = [], watch._Inspection.__init__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch._Inspection, "__init__", lambda *args: made.append(args) or plain(*args))
        model(X).sum().backward()
        assert not warned and not made
        torch._dynamo.reset()
        model(X), model(X)
    assert made


def test_a_cast_weight_is_a_weight(graphs):
    with told() as warned, torch.autocast("cpu", torch.bfloat16):
        torch.compile(Broken(), backend="quartet")(X)
    assert "'first', 'last'" in warned[0]


class Kinds(nn.Module):
    """Products of every kind outside of graphs: a patch convolution and a transposed one, experts, and a matmul. Beside
    them, those that a graph would keep: in groups, of windows that overlap, with too few channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.up = nn.Conv2d(64, 64, 2, 2), nn.ConvTranspose2d(64, 64, 2, 2)
        self.grouped, self.overlapping = nn.Conv2d(64, 64, 2, 2, groups=2), nn.Conv2d(64, 64, 3)
        self.narrow = nn.Conv2d(64, 8, 2, 2)
        self.experts, self.inner = nn.Parameter(torch.randn(2, 64, 64)), nn.Linear(64, 64)

    def forward(self, x):
        for _ in range(1):
            torch._dynamo.graph_break()
            image = x.transpose(1, 2).unflatten(2, (4, 4))
            for layer in (self.patch, self.up, self.grouped, self.overlapping, self.narrow):
                layer(image)
            y = self.inner(x).sum()
            ends = torch.tensor([8, 32], dtype=torch.int32)
            y = y + torch._grouped_mm(x.flatten(0, 1).bfloat16(), self.experts.bfloat16(), ends).sum()
        return y


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_products_of_every_kind_are_told_of(graphs, mode):
    model, x = Kinds(), torch.randn(4, 16, 64)
    with told() as warned, mode():
        torch.compile(model, backend="quartet")(x)
    assert "4 weight matmuls" in warned[0] and "precision: 'patch', 'up', 'inner', 'experts'." in warned[0]
    with mode():
        eager = {site.name: site.shape for site in qc.explain(model, x).eager_sites}
    sizes = {"patch": (16, 64, 256), "up": (64, 256, 64), "grouped": (16, 32, 128), "inner": (64, 64, 64)}
    assert sizes.items() <= eager.items() and (64, 64, 64) in [eager[name] for name in eager if name not in sizes]


def test_an_overlapping_convolution_is_told_of_where_it_is_included(graphs):
    with told() as warned:
        torch.compile(Kinds(), backend="quartet", options={"include": ["overlapping", "grouped"]})(X)
    assert "1 weight matmul ran" in warned[0] and "'overlapping'" in warned[0]


def test_torchs_own_modules_after_a_break(graphs):
    with told() as warned:
        torch.compile(Broken(torchs_own), backend="quartet", options={"exclude": ["first", "last"]})(X)
    assert "'layers.0.self_attn', 'layers.0.linear1', 'layers.0.linear2', 'layers.1.self_attn'" in warned[0]
    assert "Dynamo starts no graph in the code of torch.nn, as TransformerEncoderLayer.forward" in warned[0]


class Recurrent(nn.Module):
    """Dynamo starts no graph where a recurrent layer is called, unless it may go into one."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(64, 64), kind(64, 64, 2, batch_first=True), nn.Linear(64, 64)

    def forward(self, x):
        return self.last(self.layer(self.first(x))[0])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layer_is_told_of_with_its_remedy(graphs, kind):
    model, x = Recurrent(kind), torch.randn(16, 4, 64)
    with told() as warned:
        torch.compile(model, backend="quartet")(x)
    assert "'first', 'layer', 'last'" in warned[0] and "allow_rnn = True" in warned[0]
    report = qc.explain(model, x)
    found = [(site.name, site.shape[0]) for site in report.eager_sites]
    inputs, states = 2, len(found) - 4  # two layers; oneDNN's LSTM multiplies the states of all steps inside
    assert found.count(("layer", 64)) == inputs and found.count(("layer", 16)) == states
    assert states == (2 if kind is nn.LSTM else 2 * 4)
    assert "allow_rnn = True" in str(report)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layer_that_dynamo_may_go_into_is_rewritten(graphs, kind):
    model, x = Recurrent(kind), torch.randn(16, 4, 64)
    with torch._dynamo.config.patch(allow_rnn=True), told() as warned:
        assert_same_step(model, x, torch.compile(model, backend="quartet", options={"recipe": "exact", "strict": True}))
    assert warned == []
    assert [site.rewritten for site in graphs[0].sites] == [True] * (2 + 2 * (1 + 4))


def test_what_torchs_encoder_layer_does_in_one_op_is_told_of(graphs):
    model = Broken(torchs_own).eval()
    with told() as warned, torch.no_grad():
        torch.compile(model, backend="quartet", options={"exclude": ["first", "last"]})(X)
    assert "2 weight matmuls" in warned[0] and "'layers.0', 'layers.1'" in warned[0]
    with torch.no_grad():
        sites = [site for site in qc.explain(model, X).eager_sites if site.name == "layers.0"]
    assert [site.shape for site in sites] == [(32, 192, 64), (32, 64, 64), (32, 64, 64), (32, 64, 64)]


def test_products_inside_of_fused_ops_are_read():
    """cuDNN's layers and torch's attention by their signatures: the one runs on a GPU only."""
    x, square, wide = torch.randn(4, 8, 64), torch.randn(64, 64), torch.randn(192, 64)
    aten, bias = torch.ops.aten, torch.randn(64)
    heads = products(aten._native_multi_head_attention.default, (x, x, x, 64, 2, wide, bias, square, bias), None)
    weights = [wide, square, bias, bias] * 2
    layers = products(aten._cudnn_rnn.default, (x, weights, 4, None, torch.zeros(2, 8, 64)), None)
    assert [reading.shape for (reading,) in heads] == [(32, 192, 64), (32, 64, 64)]
    assert [reading.shape for (reading,) in layers] == [(32, 192, 64), (8, 64, 64)] * 2


def scaled():
    class Scaled(nn.Module):
        """Compiles again for each scale."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(64, 64)

        def forward(self, x, scale):
            return self.inner(x) * scale

    return Scaled()


@pytest.mark.parametrize("strict", [False, True])
def test_the_limit_of_recompilations(graphs, strict):
    model = torch.compile(scaled(), backend="quartet", dynamic=False, options={"strict": strict})
    expected = pytest.raises(StrictError) if strict else contextlib.nullcontext()
    with torch._dynamo.config.patch(recompile_limit=2), told() as warned, expected as caught:
        for scale in range(5):
            model(X, scale)
    (message,) = warned or [str(caught.value)]
    assert (
        "'inner'" in message and "limit of recompilations of Scaled.forward" in message and "recompile_limit" in message
    )


@pytest.mark.parametrize("stance", ["force_eager", "eager_on_recompile"])
def test_a_stance_under_which_calls_run_eagerly(graphs, stance):
    model = torch.compile(nn.Linear(64, 64), backend="quartet", dynamic=False)
    with told() as early:
        for _ in range(3):
            model(X)
    with told() as late, torch.compiler.set_stance(stance):
        for _ in range(3):
            model(X[:, :12])
    assert not early and len(late) == 1 and f"Why: torch.compiler.set_stance('{stance}') is in force" in late[0]


def test_a_change_to_other_matmuls_long_after_the_first_call_is_told_of(graphs):
    class Switch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other, self.late = nn.Linear(64, 64), nn.Linear(64, 64), False

        def forward(self, x):
            if self.late:
                for _ in range(1):
                    torch._dynamo.graph_break()
                    x = self.other(x)
            return self.one(x)

    switch = Switch()
    model = torch.compile(switch, backend="quartet")
    with told() as early:
        for _ in range(5):
            model(X)
    switch.late = True
    with told() as late:
        model(X), model(X)
    assert not early and "'other', 'one'" in late[0]


@torch._dynamo.config.patch(suppress_errors=True)
def test_suppressed_errors_of_ours_are_raised(graphs):
    with pytest.raises(qc.OptionError, match="recipee"):
        torch.compile(Net(), backend="quartet", options={"recipee": "quartet"})(X)
    with pytest.raises(StrictError, match="ran eagerly"):
        torch.compile(Broken(), backend="quartet", options={"strict": True})(X)


@torch._dynamo.config.patch(suppress_errors=True)
def test_other_errors_that_are_suppressed_are_the_reason(graphs, monkeypatch):
    from quartet_compile import _compat

    def fail(*_):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(_compat, "compile_fx", fail)
    with told() as warned:
        torch.compile(Block(), backend="quartet")(X)
    assert "'up', 'down'" in warned[0] and "suppress_errors hides: no such instruction" in warned[0]


def test_an_error_of_the_model_is_its_own(graphs):
    class Fails(Broken):
        def forward(self, x):
            super().forward(x)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        torch.compile(Fails(), backend="quartet", options={"strict": True})(X)
    torch.ops.quartet.seed(1, torch.device("cpu"), [])  # no dispatch mode is left behind


def test_watched_gradients_are_the_ones_without(graphs):
    model = Broken()
    _, first = gradients(model, X, function=(function := torch.compile(model, backend="quartet")))
    for _ in range(2):
        _, again = gradients(model, X, function=function)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert relative(again["layers.0.up.weight"], gradients(model, X)[1]["layers.0.up.weight"]) > 1e-3


# what another backend takes in

PARTS = {
    "qc.quartet": qc.quartet,
    "by name": lambda block: torch.compile(block, backend="quartet"),
    "in place": in_place,
    "a region": lambda block: qc.quartet(nn.ModuleDict({"body": block}), regions=["body"])["body"],
}


def of_parts(part):
    return nn.Sequential(part(Block()), nn.Linear(64, 64))


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_parts_inside_of_another_backends_are_told_of(graphs, part):
    model = of_parts(part)
    with told() as warned:
        torch.compile(model, backend="eager", fullgraph=True)(X)
    assert "runs inside of what torch.compile compiles with the backend 'eager'" in warned[0]
    assert "in high precision" in warned[0] and not graphs


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_parts_inside_of_our_own_are_one_graph(graphs, part):
    with told() as warned:
        torch.compile(of_parts(part), backend="quartet", fullgraph=True)(X).sum().backward()
    assert not warned
    assert [(site.name, site.rewritten) for site in graphs[0].sites] == [("0.up", True), ("0.down", True), ("1", True)]


def test_other_ways_into_another_backend(graphs):
    inner = qc.quartet(Block())
    with told() as warned:
        torch.compile(lambda x: inner(x) + 1, backend="eager")
    assert "'inner'" in warned[0]

    @qc.quartet
    def function(x, w):
        return x @ w

    with told() as warned:
        torch.compile(lambda x, w: function(x, w) + 1, backend="eager")(X, nn.Parameter(torch.randn(64, 64)))
    assert "test_other_ways_into_another_backend.<locals>.function" in warned[0]
    model = nn.Sequential(Block(), Block())
    outer = torch.compile(model, backend="eager")
    with told() as warned:
        model[0].compile(backend="quartet")
    assert "'Block'" in warned[0] and outer is not None
    with pytest.raises(StrictError, match="runs inside of what"):
        model[1].compile(backend="quartet", options={"strict": True})


def test_a_model_compiled_twice_side_by_side_is_no_part(graphs):
    model = Block()
    with told() as warned:
        plain, ours = torch.compile(model, backend="eager"), qc.quartet(model)
        plain(X), ours(X)
    assert not warned and graphs
