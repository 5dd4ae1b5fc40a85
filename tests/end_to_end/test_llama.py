"""The Llama of the examples: exact under `exact`, close to the eager reference under `quartet`, in gradient and in
training."""

from __future__ import annotations

import copy

import pytest
import torch
from llama import SIZES, Llama
from module_swap import swap_linears
from rounding import assert_rounding

import quartet_compile as qc
from quartet_compile.capture.capture import Capture
from quartet_compile.config.options import configure


def tokens(count: int, length: int = 32, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch whose next token can be learned: each sequence counts up with its own step."""
    generator = torch.Generator().manual_seed(seed)
    start, step = (
        torch.randint(256, (count, 1), generator=generator),
        torch.randint(1, 4, (count, 1), generator=generator),
    )
    text = (start + step * torch.arange(length + 1)) % 256
    return text[:, :-1], text[:, 1:]


def llama() -> Llama:
    torch.manual_seed(0)
    return Llama(SIZES["test"])


def step(model, function, batch, seed=0):
    model.zero_grad()
    torch.manual_seed(seed)
    loss = function(*batch)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters()}


def flat(gradients):
    return torch.cat([g.flatten() for g in gradients.values()])


@pytest.mark.parametrize("backend", ["quartet", "pass only"])
def test_exact_recipe_changes_nothing(backend):
    torch._dynamo.reset()
    model, batch = llama(), tokens(4)
    if backend == "quartet":
        function = torch.compile(model, backend="quartet", options={"recipe": "exact"}, dynamic=False)
    else:
        function = torch.compile(model, backend=Capture(configure({"recipe": "exact"})))
    assert_rounding(step(model, function, batch)[1], lambda: step(model, model, batch)[1])


def test_gradient_equals_the_reference_with_the_same_seed():
    torch._dynamo.reset()
    model, batch = llama(), tokens(4)
    swapped = copy.deepcopy(model)
    seeds = swap_linears(swapped, qc.recipe("quartet"))
    seeds.reset()
    loss, gradients = step(swapped, swapped, batch)
    ours, our_gradients = step(model, torch.compile(model, backend="quartet", dynamic=False), batch)
    assert ours == pytest.approx(loss, rel=1e-4)
    a, b = flat(our_gradients), flat(gradients)
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.99
    _, high_precision = step(model, model, batch)
    assert torch.nn.functional.cosine_similarity(a, flat(high_precision), dim=0) < 0.99, "nothing was quantized"


def test_report_names_every_matmul():
    report = qc.explain(llama(), *tokens(4))
    kept = {site.name: site.reason for site in report.sites if not site.rewritten}
    assert sum(site.rewritten for site in report.sites) == 14
    assert set(kept) == {"lm_head", "layers.0.self_attn", "layers.1.self_attn"}
    assert kept["lm_head"].startswith("output head")


def train(model, function, steps, before_step=lambda: None):
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    torch.manual_seed(0)
    for number in range(steps):
        before_step()
        loss = function(*tokens(4, seed=number))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.slow
def test_200_steps_stay_within_noise_of_the_eager_reference():
    torch._dynamo.reset()
    compiled, swapped, plain = llama(), llama(), llama()
    seeds = swap_linears(swapped, qc.recipe("quartet"))
    ours = train(compiled, torch.compile(compiled, backend="quartet", dynamic=False), 200)
    reference = train(swapped, swapped, 200, seeds.reset)
    high_precision = train(plain, plain, 200)
    last = slice(-40, None)
    ours, reference, high_precision = (torch.tensor(losses[last]) for losses in (ours, reference, high_precision))
    noise = (reference.var() / len(reference) + ours.var() / len(ours)).sqrt()
    assert abs(ours.mean() - reference.mean()) < 4 * noise
    assert ours.mean() < 4.0 < 5.545, "the model did not learn"
    assert high_precision.mean() < ours.mean()
