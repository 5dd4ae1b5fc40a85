"""`set_recipe`: what a switch computes is what a model compiled from the start with that recipe computes, each recipe is
compiled once, and nothing else changes."""

from __future__ import annotations

import copy
import dataclasses
import itertools

import pytest
import torch
from models import Block, Net, gradients
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from ways_in import HOW, by_name, by_quartet, class_by_name, compiled_forward, decorated_class, function, regions

import quartet_compile as qc
from quartet_compile import _compat
from quartet_compile.capture.capture import compile_plainly
from quartet_compile.process import process

X = torch.randn(2, 16, 64, generator=torch.Generator().manual_seed(1))
RECIPES = ["quartet", "quartet-rtn", "bf16"]


@pytest.fixture(autouse=True)
def _apart(monkeypatch):
    """Each test with Dynamo's caches and limits as a process has them at its start."""
    torch._dynamo.reset()
    monkeypatch.setattr(process, "limits", {})
    monkeypatch.setattr(process, "configs", set())
    with torch._dynamo.config.patch(recompile_limit=8, accumulated_recompile_limit=256):
        yield


class Compiled(list):
    """The recipe of each graph that the backend was asked to compile, in order; `reports`, what was done."""

    def __init__(self):
        self.reports = []


@pytest.fixture
def graphs(monkeypatch):
    """Compile by Capture instead of Inductor."""
    compiled = Compiled()

    def compile_fx(gm, inputs, config_patches):
        run = config_patches["joint_custom_pre_pass"]
        compiled.append(run.policy.recipe.name)
        run.record = compiled.reports.append
        return compile_plainly(gm, inputs, run)

    monkeypatch.setattr(_compat, "compile_fx", compile_fx)
    return compiled


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """A gloo group of one."""
    store = tmp_path_factory.mktemp("gloo") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def net(seed=0, **settings):
    torch.manual_seed(seed)
    return Net(**settings)


def same(ours, theirs):
    """Whether outputs and gradients have the same bits."""
    (y, g), (y0, g0) = ours, theirs
    return torch.equal(y, y0) and g.keys() == g0.keys() and all(torch.equal(g[name], g0[name]) for name in g)


def numbered(count):
    """Recipes that differ in name only."""
    return [dataclasses.replace(qc.recipe("quartet"), name=f"number {i}") for i in range(count)]


def of(*chosen):
    return pytest.mark.parametrize("how", chosen, ids=lambda how: how.__name__)


CASES = [*((how, False) for how in HOW), (by_name, True), (function, True)]


@pytest.mark.parametrize(
    "how, break_graph", CASES, ids=lambda given: getattr(given, "__name__", "break" * (given is True))
)
def test_a_switch_computes_what_a_compilation_from_the_start_does(graphs, how, break_graph):
    expected = {}
    for recipe in ("bf16", "quartet"):
        torch._dynamo.reset()
        graphs.clear()
        model = net(blocks=1, break_graph=break_graph)
        compiled = how(model, recipe=recipe)
        expected[recipe] = gradients(model, X, function=compiled)
    once = len(graphs)
    for recipe in ("quartet", "bf16", "quartet", "bf16"):
        qc.set_recipe(compiled, recipe)
        assert same(gradients(model, X, function=compiled), expected[recipe]), recipe
    assert once > 0 and graphs == ["quartet"] * once + ["bf16"] * once


def test_the_recipes_differ(graphs):
    """What the test above compares could not be equal by chance."""
    model = net()
    compiled = qc.quartet(model)
    found = []
    for recipe in RECIPES:
        qc.set_recipe(compiled, recipe)
        found.append(gradients(model, X, function=compiled))
    assert not any(same(a, b) for a, b in itertools.combinations(found, 2))


def test_it_returns_what_was_in_force_to_go_back_to(graphs):
    rules = [("layers.1", "bf16"), ("*", "quartet2")]
    model = net()
    compiled = qc.quartet(model, recipe=rules)
    first = gradients(model, X, function=compiled)
    before = qc.set_recipe(compiled, "bf16")
    assert before == [("layers.1", qc.recipe("bf16")), ("*", qc.recipe("quartet2"))]
    gradients(model, X, function=compiled)
    assert qc.set_recipe(compiled, before) == qc.recipe("bf16")
    count = len(graphs)
    assert same(gradients(model, X, function=compiled), first) and len(graphs) == count


def test_a_recipe_is_what_the_option_takes(graphs, tmp_path):
    mine = dataclasses.replace(qc.recipe("quartet-rtn"), name="mine")
    qc.save_recipe(mine, tmp_path / "mine.toml")
    model = net()
    compiled = qc.quartet(model)
    for given in (mine, str(tmp_path / "mine.toml"), [("*", mine)], {"*": mine}):
        qc.set_recipe(compiled, given)
        gradients(model, X, function=compiled)
    assert graphs == ["mine"]  # four spellings of one
    qc.set_recipe(compiled, {"layers.1.*": "bf16", "*": mine})
    gradients(model, X, function=compiled)
    assert [site.recipe for site in graphs.reports[-1].sites] == ["mine", "mine", "", "", "mine"]


@of(by_quartet, by_name, function)
def test_more_recipes_than_dynamo_recompiles_for(graphs, how):
    recipes = numbered(12)
    model = nn.Linear(64, 64)
    compiled = how(model, recipe=recipes[0])
    with torch.no_grad():
        for recipe in (*recipes, *recipes):
            qc.set_recipe(compiled, recipe)
            compiled(X)
    assert graphs == [recipe.name for recipe in recipes]


def test_more_recipes_than_dynamo_recompiles_for_in_blocks(graphs):
    """Blocks share their code object, and so its limit, whether calls or rules give each block a recipe of its own."""
    recipes = numbered(9)
    rules = [(f"layers.{i}", recipe) for i, recipe in enumerate(recipes)]
    model = regions(net(blocks=9))
    with torch.no_grad():
        for block, recipe in zip(model.layers, recipes, strict=True):
            qc.set_recipe(block, recipe)
        model(X)
        assert graphs == [recipe.name for recipe in recipes]
        qc.set_recipe(model, rules)
        model(X)
        assert len(graphs) == 18
        graphs.reports.clear()
        regions(net(blocks=9), recipe=rules)(X)  # without a switch, in the same process
    assert len(graphs) == 27
    used = {site.name: site.recipe for report in graphs.reports for site in report.sites}
    assert used == {f"layers.{i}.{name}": f"number {i}" for i in range(9) for name in ("up", "down")}


def test_dynamos_limit_is_why(graphs, monkeypatch):
    monkeypatch.setattr(_compat, "allow_variants", lambda count: None)
    compiled = qc.quartet(nn.Linear(64, 64))
    with torch.no_grad():
        for recipe in numbered(10):
            qc.set_recipe(compiled, recipe)
            compiled(X)
    assert len(graphs) == 8


def test_code_that_hit_the_limit_before_is_compiled_under_a_new_recipe(graphs):
    compiled = qc.quartet(nn.Linear(64, 64), dynamic=False)
    with torch.no_grad():
        for rows in range(32, 43):
            compiled(torch.randn(rows, 64))
        assert len(graphs) == 8
        qc.set_recipe(compiled, "quartet-rtn")
        compiled(X)
    assert graphs[8:] == ["quartet-rtn"]


class Training:
    """A model, its optimizer and its data."""

    def __init__(self, how=by_quartet, **options):
        self.model = net(dropout=0.2)
        self.step = how(self.model, **options)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.data = torch.Generator().manual_seed(7)

    def run(self, steps):
        losses = []
        for _ in range(steps):
            x = torch.randn(2, 16, 64, generator=self.data)
            self.optimizer.zero_grad()
            loss = (self.step(x) - x[..., :40]).square().mean()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
        return losses

    def state(self):
        parts = (self.model.state_dict(), self.optimizer.state_dict(), self.data.get_state(), torch.get_rng_state())
        return copy.deepcopy(parts)

    def load(self, state):
        model, optimizer, data, random = copy.deepcopy(state)
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)
        self.data.set_state(data)
        torch.set_rng_state(random)


def equal(one, other):
    """Whether two nested states have the same keys and bits."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


@of(by_quartet, by_name)
def test_a_schedule_under_inductor_is_one_resumed_with_the_new_recipe(how):
    """Bit for bit: losses, weights, optimizer, random state. What a switch itself leaves untouched is all of it."""
    torch._dynamo.reset()
    run = Training(how, recipe="quartet")
    parameters, keys = [*map(id, run.model.parameters())], list(run.step.state_dict())
    torch.manual_seed(11)
    losses, states = [], []
    for recipe in ("quartet", "quartet-rtn", "bf16", "quartet"):
        before = run.state()
        qc.set_recipe(run.step, recipe)
        assert equal(run.state(), before)
        losses.append(run.run(3))
        states.append(run.state())
    assert [*map(id, run.model.parameters())] == parameters and list(run.step.state_dict()) == keys

    for i, recipe in enumerate(("quartet-rtn", "bf16", "quartet"), start=1):
        torch._dynamo.reset()
        resumed = Training(how, recipe=recipe)
        resumed.load(states[i - 1])
        assert resumed.run(3) == losses[i], recipe
        assert equal(resumed.state(), states[i]), recipe


@pytest.mark.parametrize("inductor", [False, True], ids=["captured", "inductor"])
def test_a_forward_before_the_switch_has_its_own_backward(inductor, request):
    """Between micro-batches, and also where AOTAutograd has yet to compile the backward graph."""
    if not inductor:
        request.getfixturevalue("graphs")
    expected = {}
    for recipe in ("quartet", "bf16"):
        torch._dynamo.reset()
        model = net()
        expected[recipe] = gradients(model, X, function=qc.quartet(model, recipe=recipe))[1]
    torch._dynamo.reset()
    model = net()
    compiled = qc.quartet(model)
    torch.manual_seed(0)
    loss = (compiled(X) ** 2).sum()
    qc.set_recipe(compiled, "bf16")
    loss.backward()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, expected["quartet"][name]), name
    (compiled(X) ** 2).sum().backward()  # accumulates; it draws nothing
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, expected["quartet"][name] + expected["bf16"][name]), name


def test_a_dynamic_number_of_tokens_is_one_graph_a_recipe(graphs):
    compiled = qc.quartet(nn.Linear(64, 64), dynamic=True)
    for recipe in ("quartet", "quartet-rtn", "quartet", "bf16", "quartet-rtn"):
        qc.set_recipe(compiled, recipe)
        for rows in (33, 50, 70):
            compiled(torch.randn(2, rows, 64)).sum().backward()
    assert graphs == ["quartet", "quartet-rtn", "bf16"]


def test_lengths_that_turned_dynamic_are_so_for_every_recipe(graphs):
    compiled = qc.quartet(nn.Linear(64, 64))
    for rows in (33, 50, 70):
        compiled(torch.randn(2, rows, 64))
    assert len(graphs) == 2
    qc.set_recipe(compiled, "bf16")
    for rows in (34, 51, 71):
        compiled(torch.randn(2, rows, 64))
    assert len(graphs) == 3


@of(*HOW)
def test_a_wrong_recipe_or_pattern_changes_nothing(graphs, how):
    model = net()
    compiled = how(model)
    before = gradients(model, X, function=compiled)
    count = len(graphs)
    with pytest.raises(qc.RecipeError, match="Option 'recipe': Unknown recipe 'quartett'.*did you mean 'quartet'"):
        qc.set_recipe(compiled, "quartett")
    with pytest.raises(qc.RecipeError, match="Option 'eval': Unknown recipe 'b16'"):
        qc.set_recipe(compiled, "bf16", eval="b16")
    with pytest.raises(qc.OptionError, match="has no rules"):
        qc.set_recipe(compiled, [])
    if how not in (class_by_name, decorated_class, compiled_forward):
        with pytest.raises(qc.PatternError, match=r"The recipe pattern 'nowhere.\*' matches no module"):
            qc.set_recipe(compiled, [("nowhere.*", "bf16"), ("*", "quartet")])
        with pytest.raises(qc.PatternError, match="The eval pattern 'nowhere' matches no module"):
            qc.set_recipe(compiled, "bf16", eval=[("nowhere", "bf16"), ("*", "quartet")])
    assert same(gradients(model, X, function=compiled), before) and len(graphs) == count


def test_patterns_of_a_function_that_was_never_called_are_checked_at_its_first_call(graphs):
    model = net()
    compiled = qc.quartet(lambda m, x: m(x))
    qc.set_recipe(compiled, [("nowhere", "bf16"), ("*", "quartet")])
    with pytest.raises(qc.PatternError, match="'nowhere'"):
        compiled(model, X)
    assert graphs == []


@pytest.mark.parametrize(
    "model, message",
    [
        (Block(), "set_recipe got a Block, which is not compiled, nor a part of it; expected what qc.quartet"),
        (torch.compile(Block()), "got a OptimizedModule, which is compiled by 'inductor'"),
        (torch.compile(Block(), backend="eager"), "compiled by 'eager'"),
        (torch.compile(Block(), disable=True), "is not compiled"),
        (Block, "got Block of type type, which is not compiled"),
        (len, "got len of type builtin_function_or_method"),
        ("model", "got 'model' of type str"),
        (None, "got None of type NoneType"),
    ],
    ids=lambda value: value[-20:] if isinstance(value, str) else "",
)
def test_what_is_not_compiled_by_quartet(model, message):
    with pytest.raises(qc.OptionError, match=message) as caught:
        qc.set_recipe(model, "bf16")
    assert "model.compile(backend='quartet')" in str(caught.value)


def test_the_original_of_a_compiled_model_does_not_know_of_it():
    model = net()
    qc.quartet(model)
    with pytest.raises(qc.OptionError, match="leave the original model as it is"):
        qc.set_recipe(model, "bf16")


def test_a_torch_without_the_private_part_is_named(monkeypatch):
    compiled = torch.compile(lambda x: x, backend="quartet")
    monkeypatch.setattr(_compat.compiled, "_BACKEND", "_not_there")
    with pytest.raises(ImportError, match="_not_there of a compiled object, which torch .* lacks. It is tested with"):
        qc.set_recipe(compiled, "bf16")


def test_strict_stays(graphs):
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 24), nn.Linear(24, 64))
    compiled = qc.quartet(model, recipe="bf16", strict=True)
    compiled(X).sum().backward()  # nothing should be rewritten, so nothing can't
    qc.set_recipe(compiled, [("0", "quartet"), ("*", "bf16")])
    compiled(X).sum().backward()
    assert [site.rewritten for site in graphs.reports[-1].sites] == [True, False, False]


@of(by_quartet, by_name)
def test_the_other_options_stay(graphs, how):
    model = net()
    compiled = how(model, exclude=["layers.0"], include=["layers.*"], inductor={"max_autotune": False})
    for recipe in ("bf16", "quartet2"):
        qc.set_recipe(compiled, recipe)
        compiled(X).sum().backward()
    done = {site.name: site.recipe for site in graphs.reports[-1].sites}
    assert done == {
        "layers.0.up": "",
        "layers.0.down": "",
        "layers.1.up": "quartet2",
        "layers.1.down": "quartet2",
        "out": "",
    }


@of(by_quartet, by_name, regions)
def test_evaluation_follows_unless_it_was_given(graphs, how):
    def in_use(compiled):
        graphs.reports.clear()
        torch._dynamo.reset()
        compiled(X).sum().backward()
        with torch.no_grad():
            compiled(X)
        chosen = {report.training: {site.recipe for site in report.sites} - {""} for report in graphs.reports}
        return [", ".join(chosen[training]) for training in (True, False)]

    follows = how(net(blocks=1), recipe="quartet")
    qc.set_recipe(follows, "quartet2")
    assert in_use(follows) == ["quartet2", "quartet2"]
    qc.set_recipe(follows, "nvfp4", eval="quartet")
    assert in_use(follows) == ["nvfp4", "quartet"]
    qc.set_recipe(follows, "quartet")
    qc.set_recipe(follows, "quartet2")
    assert in_use(follows) == ["quartet2", "quartet"]

    given = how(net(blocks=1), recipe="quartet", eval="bf16")
    for recipe in ("bf16", "quartet2"):  # the first is what evaluation has
        qc.set_recipe(given, recipe)
    assert in_use(given) == ["quartet2", ""]


def test_some_blocks_switch_and_share_what_they_compile(graphs):
    model = net(blocks=4)
    qc.quartet(model, regions=["layers.*"])
    before = gradients(model, X)
    once = len(graphs)
    assert qc.set_recipe(model.layers[2:], "bf16") == qc.recipe("quartet")
    mixed = gradients(model, X)
    kinds = len(graphs) - once
    assert kinds == 1 and not same(mixed, before)
    assert qc.set_recipe(model, "quartet") is None  # the blocks had different ones
    assert same(gradients(model, X), before)
    qc.set_recipe(model.layers[1], "bf16")
    gradients(model, X)
    qc.set_recipe(model.layers[2:], "bf16")
    gradients(model, X)
    assert len(graphs) == once + kinds


@pytest.mark.parametrize("from_start", [False, True], ids=["switched", "from start"])
def test_equal_blocks_that_rules_treat_differently_do_not_share_code(graphs, from_start):
    rules = [("layers.2.*", "bf16"), ("*", "quartet2")]
    model = regions(net(blocks=3), recipe=rules if from_start else "quartet2")
    if not from_start:
        qc.set_recipe(model, rules)
    gradients(model, X)
    assert {(site.name, site.recipe) for report in graphs.reports for site in report.sites} == {
        (f"layers.{i}.{name}", "quartet2" if i < 2 else "") for i in range(3) for name in ("up", "down")
    }


def test_two_instances_of_a_decorated_class_switch_together(graphs):
    @qc.quartet
    class Decorated(Block):
        def forward(self, x):
            return self.down(self.up(x))

    first, second = Decorated(), Decorated()
    qc.set_recipe(Decorated, "quartet2")
    first(X)
    qc.set_recipe(first, "bf16")
    second(X)
    assert graphs == ["quartet2", "bf16"]


def test_two_models_of_one_class_switch_apart(graphs):
    first, second = qc.quartet(net()), qc.quartet(net())
    first(X), second(X)
    qc.set_recipe(first, "bf16")
    first(X), second(X)
    assert graphs == ["quartet", "quartet", "bf16"]


@pytest.mark.parametrize("outside", [True, False], ids=["of DDP", "in DDP"])
def test_ddp(graphs, one_process, outside):
    def compiled(recipe):
        torch._dynamo.reset()
        model = net(blocks=1)
        if outside:
            return model, qc.quartet(DistributedDataParallel(model), recipe=recipe)
        return model, DistributedDataParallel(qc.quartet(model, recipe=recipe))

    expected = {recipe: gradients(model, X, function=f) for recipe in RECIPES for model, f in [compiled(recipe)]}
    model, function = compiled("quartet")
    graphs.clear()
    for recipe in ("quartet", "bf16", "quartet", "quartet-rtn", "bf16"):
        qc.set_recipe(function, recipe)
        assert same(gradients(model, X, function=function), expected[recipe]), recipe
    assert graphs == ["quartet", "bf16", "quartet-rtn"]


def test_fsdp_by_blocks(graphs, one_process):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))

    def sharded(recipe):
        torch._dynamo.reset()
        graphs.clear()
        model = regions(net(blocks=2), recipe=recipe)
        for module in (*model.layers, model):
            fully_shard(module, mesh=mesh)
        return model

    def whole(model):
        y, found = gradients(model, X)
        return y, {name: gradient.full_tensor() for name, gradient in found.items()}

    expected = {recipe: whole(sharded(recipe)) for recipe in RECIPES}
    once = len(graphs)
    model = sharded("quartet")
    for recipe in ("quartet", "bf16", "quartet", "quartet-rtn", "bf16"):
        qc.set_recipe(model, recipe)
        assert same(whole(model), expected[recipe]), recipe
    assert {recipe: graphs.count(recipe) for recipe in RECIPES} == dict.fromkeys(RECIPES, once)


def test_inductors_cache_tells_recipes_apart_and_knows_what_a_switch_compiled():
    from torch._dynamo.utils import counters
    from torch._inductor.utils import fresh_cache

    with fresh_cache():
        counters.clear()
        model = nn.Linear(64, 64)
        compiled = qc.quartet(model)
        for recipe in ("quartet", "bf16"):
            qc.set_recipe(compiled, recipe)
            gradients(model, X, function=compiled)
        assert counters["aot_autograd"]["autograd_cache_miss"] == 2
        torch._dynamo.reset()
        gradients(model, X, function=qc.quartet(model, recipe="bf16"))
        assert counters["aot_autograd"]["autograd_cache_hit"] == 1


def test_explain_is_of_what_is_in_force(graphs):
    model = net()
    compiled = qc.quartet(model)
    qc.set_recipe(compiled, "quartet2")
    gradients(model, X, function=compiled)
    assert tuple(qc.explain(compiled, X).sites) == graphs.reports[-1].sites
    assert not any(site.rewritten for site in qc.explain(model, X, recipe="bf16").sites)
    count = len(graphs)
    gradients(model, X, function=compiled)
    assert len(graphs) == count


def test_the_example_follows_its_schedule_also_after_a_restart(graphs, tmp_path):
    import text
    import train_llama
    import training

    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 600)
    corpus = text.load([tmp_path])
    args = train_llama.parser().parse_args(["--size", "test", "--steps", "4", "--schedule", "3:quartet", "1:bf16"])
    run = training.Trainer(train_llama.settings_of(args, "quartet"), corpus, tmp_path, "run")
    losses = [run.train_step()[0] for _ in range(2)]
    run.save(run.checkpoint)
    assert graphs == ["quartet", "bf16"]
    losses += [run.train_step()[0] for _ in range(2)]
    assert graphs == ["quartet", "bf16"]

    torch._dynamo.reset()  # as a new process; else both trainers share what was compiled
    graphs.clear()
    again = training.Trainer(train_llama.settings_of(args, "quartet"), corpus, tmp_path, "again")
    assert again.restore() == []
    assert [again.train_step()[0] for _ in range(2)] == losses[2:]
    assert graphs == ["bf16", "quartet"]
