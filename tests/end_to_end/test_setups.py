"""Ways to train: each with the pass, and equal to the same training without it under the recipe `exact`."""

from __future__ import annotations

import copy

import pytest
import torch
from captured import compiled, sites
from models import Attention, Block, Net, gradients, relative
from rounding import assert_rounding, assert_same_step, step
from torch import nn
from torch.nn.attention.flex_attention import flex_attention

import quartet_compile as qc
from quartet_compile.capture.capture import Capture
from quartet_compile.config.options import configure
from quartet_compile.passes.plan import NESTED


def net(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(Attention(), Block(dropout=dropout), nn.LayerNorm(64), nn.Linear(64, 40))


def test_gradient_accumulation_adds_up_with_fresh_noise():
    model, x = net(), torch.randn(4, 24, 64)
    function, _ = compiled(model, recipe="exact")

    def accumulated(f):
        model.zero_grad()
        for part in x.split(2):
            (f(part) ** 2).sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    assert_rounding(accumulated(function), lambda: accumulated(model))

    function, _ = compiled(model)
    torch.manual_seed(0)
    micro = []
    for _ in range(2):
        model.zero_grad()
        (function(x) ** 2).sum().backward()
        micro.append(model[3].weight.grad.clone())
    assert 0.01 < relative(*micro) < 1


def test_frozen_layers_get_no_gradient_and_the_others_all_of_it():
    model = net()
    for part in (model[0], model[1].up):
        part.requires_grad_(False)
    function, backend = compiled(model, recipe="exact")
    assert_same_step(model, torch.randn(2, 24, 64), function)
    assert model[0].q_proj.weight.grad is None
    by_name = {site.name: site.gemms for site in sites(backend)}
    assert by_name["0.q_proj"]["wgrad"] is None and by_name["0.q_proj"]["dgrad"] is None
    assert by_name["1.up"]["wgrad"] is None and by_name["1.down"]["wgrad"] == "exact-random"


@pytest.mark.skipif(torch.__version__ < "2.12", reason="torch 2.11 itself goes on with the graph of the frozen model")
def test_unfreezing_compiles_again():
    model, x = net(), torch.randn(2, 24, 64)
    model[1].requires_grad_(False)
    function, backend = compiled(model, recipe="exact")
    assert_same_step(model, x, function)
    model[1].requires_grad_(True)
    assert_same_step(model, x, function)
    assert model[1].up.weight.grad is not None and len(backend.graphs) == 2


@pytest.mark.parametrize("rank", [32, 8])
def test_lora_by_peft(rank):
    """Adapters of a rank below 32 are kept, and say what they are."""
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    sizes = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2, vocab_size=96)
    base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    model = peft.get_peft_model(base, peft.LoraConfig(r=rank, lora_alpha=64, target_modules=["q_proj", "down_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    ids = torch.randint(0, 96, (2, 24))

    def loss(ids):
        return model(input_ids=ids, labels=ids).loss

    def grads(function):
        model.zero_grad()
        function(ids).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    backend = Capture(configure({"recipe": "exact"}), text=False)
    torch._dynamo.reset()
    ours = grads(torch.compile(loss, backend=backend))
    assert_rounding(ours, lambda: grads(loss))
    assert len(ours) == 4
    adapters = [site for site in sites(backend) if "lora" in site.name]
    assert [site.name for site in adapters] == [
        f"base_model.model.model.layers.0.{layer}.lora_{part}.default"
        for layer in ("self_attn.q_proj", "mlp.down_proj")
        for part in "AB"
    ]
    assert [site.rewritten for site in adapters] == [rank == 32] * 4
    assert sum(site.rewritten for site in sites(backend)) == 7 + (4 if rank == 32 else 0)
    if rank == 8:
        assert adapters[0].reason.startswith("N is 8, below the group of 32; a LoRA adapter of such a rank stays")
        assert adapters[1].reason.startswith("K is 8, below the group of 32; a LoRA adapter")


def test_train_eval_train():
    """A graph each, made once; what evaluation computes is what training does, and neither disturbs the other."""
    model, x = net(dropout=0.3), torch.randn(2, 24, 64)
    function, backend = compiled(model)
    before = gradients(model, x, function=function)
    model.eval()
    with torch.no_grad():
        evaluated = function(x)
    with torch.inference_mode():
        assert torch.equal(function(x), evaluated)
    model.train()
    after = gradients(model, x, function=function)
    assert all(torch.equal(before[1][name], after[1][name]) for name in before[1])
    assert [graph.training for graph in backend.graphs] == [True, False, False]
    assert all(sum(site.rewritten for site in graph.sites) == 7 for graph in backend.graphs)


def test_dropout_draws_what_it_draws_without_us():
    """Our seeds are drawn in backward, so the same masks fall in the forward of a step."""
    model, x = net(dropout=0.5), torch.randn(2, 24, 64)
    plain = step(model, x, compiled(model, recipe="bf16")[0])
    function, backend = compiled(model, recipe="exact")
    ours = step(model, x, function)
    assert sum(site.rewritten for site in sites(backend)) == 7
    assert_rounding(ours, lambda: step(model, x), expected=plain)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b, self.last = (nn.Linear(64, 64) for _ in range(4))

    def forward(self, x):
        x = self.first(x)
        return self.last(torch.cond(x.sum() > 0, lambda x: self.a(x), lambda x: self.b(x), (x,)))


def test_cond_is_left_alone_inside_and_right_outside():
    torch.manual_seed(1)
    model, x = Branches(), torch.randn(32, 64)
    function, backend = compiled(model, recipe="exact")
    ours = step(model, x, function)

    def branch(x):
        first = model.first(x)
        return model.last(model.a(first) if first.sum() > 0 else model.b(first))

    unused = {name: p.grad.clone() for name, p in model.named_parameters() if not p.grad.any()}
    assert_rounding(ours, lambda: {**step(model, x, branch), **unused})
    assert [site.name for site in sites(backend) if site.rewritten] == ["first", "last"]
    assert [(site.name, site.reason) for site in sites(backend) if not site.rewritten] == [("a", NESTED), ("b", NESTED)]


class Flex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(64, 192), nn.Linear(64, 64)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 32)).permute(2, 0, 3, 1, 4)
        y = flex_attention(q, k, v, score_mod=lambda score, b, h, i, j: score + (i - j))
        return self.out(y.transpose(1, 2).flatten(2))

    def plain(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 32)).permute(2, 0, 3, 1, 4)
        i = torch.arange(x.shape[1])
        y = torch.softmax(q @ k.transpose(-1, -2) / 32**0.5 + (i[:, None] - i), -1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


def test_flex_attention():
    """Torch has no backward of it on a CPU, so this is the forward; the training graph is what `explain` sees."""
    torch.manual_seed(1)
    model, x = Flex(), torch.randn(2, 32, 64)
    function, backend = compiled(model, recipe="exact")
    with torch.no_grad():
        assert_rounding({"y": function(x)}, lambda: {"y": model.plain(x)})
    assert [site.name for site in sites(backend) if site.rewritten] == ["qkv", "out"]


class Straight(torch.autograd.Function):
    """A rounding with a straight-through gradient, between two layers."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, dy):
        return dy


def test_a_custom_function_between_layers():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x):
            return self.b(Straight.apply(self.a(x)))

    torch.manual_seed(1)
    model = Model()
    function, backend = compiled(model, recipe="exact")
    assert_same_step(model, torch.randn(32, 64), function)
    assert [site.rewritten for site in sites(backend)] == [True, True]


def test_a_graph_break_loses_nothing():
    """Blocks share their compiled code, so there are fewer graphs than blocks. A break in a loop leaves the frame itself to
    Python, and with it the product after the loop, which the report counts."""
    torch.manual_seed(1)
    model, x = Net(blocks=3, break_graph=True), torch.randn(2, 24, 64)
    function, backend = compiled(model, recipe="exact")
    assert_same_step(model, x, function)
    assert len(backend.graphs) > 1 and all(site.rewritten for site in sites(backend))
    report = qc.explain(model, x)
    assert [line.partition(": ")[2] for line in report.eager] == ["Call to `torch._dynamo.graph_break()`"]
    assert [(site.name.partition(":")[0], site.rewritten) for site in report.eager_sites] == [
        ("tests/support/models.py", False)
    ]


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.mlp = Attention(), Block()

    def forward(self, x):
        return self.mlp(self.attention(x))


def test_blocks_compiled_one_by_one_share_their_code():
    torch.manual_seed(1)
    model = nn.Sequential(*(Layer() for _ in range(4)))
    reference = copy.deepcopy(model)
    backend = Capture(configure({"recipe": "exact"}), text=False)
    torch._dynamo.reset()
    for block in model:
        block.compile(backend=backend)
    x = torch.randn(2, 24, 64)
    assert_rounding(step(model, x), lambda: step(reference, x))
    assert len(backend.graphs) == 2  # the first needs no gradient of its input
    assert all(sum(site.rewritten for site in graph.sites) == 6 for graph in backend.graphs)


def test_compiled_autograd():
    model, x = net(), torch.randn(2, 24, 64)
    function, _ = compiled(model)
    plain = step(model, x, function)
    with torch._dynamo.config.patch(compiled_autograd=True):
        function, backend = compiled(model)
        ours = step(model, x, function)
    assert sum(site.rewritten for graph in backend.graphs for site in graph.sites) >= 7
    assert all(torch.equal(ours[name], plain[name]) for name in plain)


def test_a_compiled_optimizer():
    model, x = net(), torch.randn(2, 24, 64)
    start, (ours, backend) = copy.deepcopy(model.state_dict()), compiled(model, recipe="exact")

    def trained(function, compiler=lambda update: update):
        model.load_state_dict(start)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-3)
        update, losses = compiler(optimizer.step), []
        for _ in range(3):
            optimizer.zero_grad()
            losses.append(function(x).square().mean())
            losses[-1].backward()
            update()
        return {"losses": torch.stack(losses).detach(), **copy.deepcopy(model.state_dict())}

    found = trained(ours, lambda update: torch.compile(update, backend="aot_eager", fullgraph=False))
    assert_rounding(found, lambda: trained(model))
    assert sum(site.rewritten for site in sites(backend)) == 7


def test_a_whole_step_as_one_function():
    """Forward, backward and update in one function: `backward()` runs outside of its graphs, the products inside."""
    model, x = net(), torch.randn(2, 24, 64)
    start, optimizer = copy.deepcopy(model.state_dict()), torch.optim.SGD(model.parameters(), lr=0.1)

    def whole_step(x):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    def trained(function):
        model.load_state_dict(start)
        losses = torch.stack([function(x) for _ in range(3)])
        return {"losses": losses, **copy.deepcopy(model.state_dict())}

    function, backend = compiled(whole_step, recipe="exact")
    assert_rounding(trained(function), lambda: trained(whole_step))
    assert sum(site.rewritten for site in sites(backend)) == 7


def test_double_backward_is_an_error():
    """AOTAutograd's own, and clear; nothing wrong is computed."""
    model, x = net(), torch.randn(2, 24, 64, requires_grad=True)
    function, _ = compiled(model)
    (dx,) = torch.autograd.grad(function(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        dx.square().sum().backward()


def test_functional_gradients_are_traced():
    """`torch.func.grad` inside of a compiled function has no tangents: its backward is part of an inference graph, and
    what is rewritten there has no wrong gradient."""
    model, x = nn.Linear(64, 64), torch.randn(32, 64)
    parameters = dict(model.named_parameters())

    def loss(parameters):
        return torch.func.functional_call(model, parameters, (x,)).square().sum()

    function, _ = compiled(lambda p: torch.func.grad(loss)(p), recipe="exact")
    assert_rounding(function(parameters), lambda: torch.func.grad(loss)(parameters))


def test_vmap_over_models():
    """An ensemble by `vmap`: each weight becomes a batch."""
    models = [nn.Linear(64, 64, bias=False) for _ in range(3)]
    stacked = nn.Parameter(torch.stack([m.weight.detach() for m in models]))
    x = torch.randn(3, 40, 64)

    class Ensemble(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = stacked

        def forward(self, x):
            return torch.vmap(nn.functional.linear)(x, self.w)

    model = Ensemble()
    function, backend = compiled(model, recipe="exact")
    assert_same_step(model, x, function)
    assert [site.reason for site in sites(backend)] == ["matmul with 3 matrices of a parameter"]
