"""What the pass makes of the smallest models that show one fact each. EXPECTTEST_ACCEPT=1 updates the texts."""

from __future__ import annotations

import importlib
import pathlib
import re
from collections import OrderedDict

import torch
from expecttest import assert_expected_inline
from torch import nn
from torch.utils.checkpoint import checkpoint

from quartet_compile import fp4, graph_diff, no_fp4


def linear(inputs: int = 64, outputs: int = 96, bias: bool = False) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=bias)


X = torch.randn(32, 64)


def test_one_linear():
    assert_expected_inline(
        graph_diff(linear(), X.clone().requires_grad_()),
        """\
--- before
+++ after
@@ -1,3 +1,9 @@
-fwd  mm: f32[32, 96] = mm(input, weight.T) -> output
-bwd  mm_1: f32[96, 64] = mm(output.grad.T, input) -> weight.grad
-bwd  mm_2: f32[32, 64] = mm(output.grad, weight) -> input.grad
+fwd  input.q = quantize[mxfp4-quest, mask](input)
+fwd  weight.q = quantize[mxfp4-quest, mask](weight)
+fwd  scaled_mm: f32[32, 96] = scaled_mm(input.q, weight.q) -> output
+bwd  seed: i64[1] = seed(1)
+bwd  output.grad.q = quantize_pair[mxfp4-sr](output.grad, seed[0])
+bwd  input.qt = requantize[mxfp4-sr](input.q.T, seed[0])
+bwd  scaled_mm_1: f32[96, 64] = scaled_mm[unrotate](output.grad.q.columns, input.qt, weight.q.mask) * 16/9 -> weight.grad
+bwd  weight.qt = requantize[mxfp4-sr](weight.q.T, seed[0])
+bwd  scaled_mm_2: f32[32, 64] = scaled_mm[unrotate](output.grad.q.rows, weight.qt, input.q.mask) * 16/9 -> input.grad
""",
    )


def test_without_a_gradient_of_the_input_there_is_no_dgrad():
    assert_expected_inline(
        graph_diff(linear(), X),
        """\
--- before
+++ after
@@ -1,2 +1,7 @@
-fwd  mm: f32[32, 96] = mm(input, weight.T) -> output
-bwd  mm_1: f32[96, 64] = mm(output.grad.T, input) -> weight.grad
+fwd  input.q = quantize[mxfp4-quest](input)
+fwd  weight.q = quantize[mxfp4-quest, mask](weight)
+fwd  scaled_mm: f32[32, 96] = scaled_mm(input.q, weight.q) -> output
+bwd  seed: i64[1] = seed(1)
+bwd  output.grad.q = quantize[mxfp4-sr](output.grad.T, seed[0])
+bwd  input.qt = requantize[mxfp4-sr](input.q.T, seed[0])
+bwd  scaled_mm_1: f32[96, 64] = scaled_mm[unrotate](output.grad.q, input.qt, weight.q.mask) * 16/9 -> weight.grad
""",
    )


def test_a_bias_is_added_after_the_product():
    assert_expected_inline(
        graph_diff(linear(bias=True), X),
        """\
--- before
+++ after
@@ -1,3 +1,9 @@
-fwd  addmm: f32[32, 96] = addmm(bias, input, weight.T) -> output
-bwd  mm: f32[96, 64] = mm(output.grad.T, input) -> weight.grad
+fwd  input.q = quantize[mxfp4-quest](input)
+fwd  weight.q = quantize[mxfp4-quest, mask](weight)
+fwd  scaled_mm: f32[32, 96] = scaled_mm(input.q, weight.q)
+fwd  add: f32[32, 96] = add(scaled_mm, bias) -> output
+bwd  seed: i64[1] = seed(1)
+bwd  output.grad.q = quantize[mxfp4-sr](output.grad.T, seed[0])
+bwd  input.qt = requantize[mxfp4-sr](input.q.T, seed[0])
+bwd  scaled_mm_1: f32[96, 64] = scaled_mm[unrotate](output.grad.q, input.qt, weight.q.mask) * 16/9 -> weight.grad
 bwd  sum_1: f32[1, 96] = sum(output.grad, [0], True) -> bias.grad
""",
    )


class Projections(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = linear(), linear(), linear()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.q(x), self.k(x), self.v(x)


def test_q_k_and_v_share_one_quantized_input_and_one_transpose():
    assert_expected_inline(
        graph_diff(Projections(), X),
        """\
--- before
+++ after
@@ -1,6 +1,15 @@
-fwd  mm: f32[32, 96] = mm(x, q.weight.T) -> output[0]
-fwd  mm_1: f32[32, 96] = mm(x, k.weight.T) -> output[1]
-fwd  mm_2: f32[32, 96] = mm(x, v.weight.T) -> output[2]
-bwd  mm_3: f32[96, 64] = mm(output[2].grad.T, x) -> v.weight.grad
-bwd  mm_4: f32[96, 64] = mm(output[1].grad.T, x) -> k.weight.grad
-bwd  mm_5: f32[96, 64] = mm(output[0].grad.T, x) -> q.weight.grad
+fwd  x.q = quantize[mxfp4-quest](x)
+fwd  q.weight.q = quantize[mxfp4-quest, mask](q.weight)
+fwd  scaled_mm: f32[32, 96] = scaled_mm(x.q, q.weight.q) -> output[0]
+fwd  k.weight.q = quantize[mxfp4-quest, mask](k.weight)
+fwd  scaled_mm_1: f32[32, 96] = scaled_mm(x.q, k.weight.q) -> output[1]
+fwd  v.weight.q = quantize[mxfp4-quest, mask](v.weight)
+fwd  scaled_mm_2: f32[32, 96] = scaled_mm(x.q, v.weight.q) -> output[2]
+bwd  seed: i64[3] = seed(3)
+bwd  output[2].grad.q = quantize[mxfp4-sr](output[2].grad.T, seed[2], signs seed[0])
+bwd  x.qt = requantize[mxfp4-sr](x.q.T, seed[0])
+bwd  scaled_mm_3: f32[96, 64] = scaled_mm[unrotate](output[2].grad.q, x.qt, v.weight.q.mask) * 16/9 -> v.weight.grad
+bwd  output[1].grad.q = quantize[mxfp4-sr](output[1].grad.T, seed[1], signs seed[0])
+bwd  scaled_mm_4: f32[96, 64] = scaled_mm[unrotate](output[1].grad.q, x.qt, k.weight.q.mask) * 16/9 -> k.weight.grad
+bwd  output[0].grad.q = quantize[mxfp4-sr](output[0].grad.T, seed[0])
+bwd  scaled_mm_5: f32[96, 64] = scaled_mm[unrotate](output[0].grad.q, x.qt, q.weight.q.mask) * 16/9 -> q.weight.grad
""",
    )


def test_a_checkpointed_region_stays_recomputed():
    class Region(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = linear()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return checkpoint(lambda x: self.up(x).cos(), x, use_reentrant=False)

    assert_expected_inline(
        graph_diff(Region(), X),
        """\
--- before
+++ after
@@ -1,6 +1,11 @@
-ckpt mm: f32[32, 96] = mm(x, up.weight.T)
-ckpt cos: f32[32, 96] = cos(mm) -> output
-bwd  sin: f32[32, 96] = sin(mm)
+ckpt x.q = quantize[mxfp4-quest](x)
+ckpt up.weight.q = quantize[mxfp4-quest, mask](up.weight)
+ckpt scaled_mm: f32[32, 96] = scaled_mm(x.q, up.weight.q)
+ckpt cos: f32[32, 96] = cos(scaled_mm) -> output
+bwd  sin: f32[32, 96] = sin(scaled_mm)
 bwd  neg: f32[32, 96] = neg(sin)
 bwd  mul: f32[32, 96] = mul(output.grad, neg)
-bwd  mm_1: f32[96, 64] = mm(mul.T, x) -> up.weight.grad
+bwd  seed: i64[1] = seed(1)
+bwd  mul.q = quantize[mxfp4-sr](mul.T, seed[0])
+bwd  x.qt = requantize[mxfp4-sr](x.q.T, seed[0])
+bwd  scaled_mm_1: f32[96, 64] = scaled_mm[unrotate](mul.q, x.qt, up.weight.q.mask) * 16/9 -> up.weight.grad
""",
    )


def test_a_frozen_weight_has_no_wgrad_and_no_mask():
    model = linear()
    model.weight.requires_grad_(False)
    assert_expected_inline(
        graph_diff(model, X.clone().requires_grad_()),
        """\
--- before
+++ after
@@ -1,2 +1,7 @@
-fwd  mm: f32[32, 96] = mm(input, weight.T) -> output
-bwd  mm_1: f32[32, 64] = mm(output.grad, weight) -> input.grad
+fwd  input.q = quantize[mxfp4-quest, mask](input)
+fwd  weight.q = quantize[mxfp4-quest](weight)
+fwd  scaled_mm: f32[32, 96] = scaled_mm(input.q, weight.q) -> output
+bwd  seed: i64[1] = seed(1)
+bwd  output.grad.q = quantize[mxfp4-sr](output.grad, seed[0])
+bwd  weight.qt = requantize[mxfp4-sr](weight.q.T, seed[0])
+bwd  scaled_mm_1: f32[32, 64] = scaled_mm[unrotate](output.grad.q, weight.qt, input.q.mask) * 16/9 -> input.grad
""",
    )


def test_inference_has_no_masks():
    with torch.no_grad():
        assert_expected_inline(
            graph_diff(linear(bias=True), X),
            """\
--- before
+++ after
@@ -1 +1,4 @@
-fwd  addmm: f32[32, 96] = addmm(bias, input, weight.T) -> output
+fwd  input.q = quantize[mxfp4-quest](input)
+fwd  weight.q = quantize[mxfp4-quest](weight)
+fwd  scaled_mm: f32[32, 96] = scaled_mm(input.q, weight.q)
+fwd  add: f32[32, 96] = add(scaled_mm, bias) -> output
""",
        )


def test_an_output_head_is_kept_by_its_name():
    model = nn.Sequential(OrderedDict(body=linear(), lm_head=linear(96, 128)))
    with torch.no_grad():
        assert_expected_inline(
            graph_diff(model, X),
            """\
--- before
+++ after
@@ -1,2 +1,4 @@
-fwd  mm: f32[32, 96] = mm(input, body.weight.T)
-fwd  mm_1: f32[32, 128] = mm(mm, lm_head.weight.T) -> output
+fwd  input.q = quantize[mxfp4-quest](input)
+fwd  body.weight.q = quantize[mxfp4-quest](body.weight)
+fwd  scaled_mm: f32[32, 96] = scaled_mm(input.q, body.weight.q)
+fwd  mm_1: f32[32, 128] = mm(scaled_mm, lm_head.weight.T) -> output
""",
        )


def test_an_excluded_module_is_kept():
    model = nn.Sequential(OrderedDict(first=linear(), second=linear(96, 64)))
    with torch.no_grad():
        assert_expected_inline(
            graph_diff(model, X, exclude=["first"]),
            """\
--- before
+++ after
@@ -1,2 +1,4 @@
 fwd  mm: f32[32, 96] = mm(input, first.weight.T)
-fwd  mm_1: f32[32, 64] = mm(mm, second.weight.T) -> output
+fwd  mm.q = quantize[mxfp4-quest](mm)
+fwd  second.weight.q = quantize[mxfp4-quest](second.weight)
+fwd  scaled_mm: f32[32, 64] = scaled_mm(mm.q, second.weight.q) -> output
""",
        )


def test_only_the_marked_region_is_rewritten():
    class Marked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.outside, self.inside = linear(), linear(96, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.outside(x)
            with fp4():
                return self.inside(x)

    with torch.no_grad():
        assert_expected_inline(
            graph_diff(Marked(), X, scope="marked"),
            """\
--- before
+++ after
@@ -1,2 +1,4 @@
 fwd  mm: f32[32, 96] = mm(x, outside.weight.T)
-fwd  mm_1: f32[32, 64] = mm(mm, inside.weight.T) -> output
+fwd  mm.q = quantize[mxfp4-quest](mm)
+fwd  inside.weight.q = quantize[mxfp4-quest](inside.weight)
+fwd  scaled_mm: f32[32, 64] = scaled_mm(mm.q, inside.weight.q) -> output
""",
        )


def test_a_forbidden_region_is_kept():
    class Marked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.outside, self.inside = linear(), linear(96, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.outside(x)
            with no_fp4():
                return self.inside(x)

    with torch.no_grad():
        assert_expected_inline(
            graph_diff(Marked(), X),
            """\
--- before
+++ after
@@ -1,2 +1,4 @@
-fwd  mm: f32[32, 96] = mm(x, outside.weight.T)
-fwd  mm_1: f32[32, 64] = mm(mm, inside.weight.T) -> output
+fwd  x.q = quantize[mxfp4-quest](x)
+fwd  outside.weight.q = quantize[mxfp4-quest](outside.weight)
+fwd  scaled_mm: f32[32, 96] = scaled_mm(x.q, outside.weight.q)
+fwd  mm_1: f32[32, 64] = mm(scaled_mm, inside.weight.T) -> output
""",
        )


def test_a_head_that_is_tied_to_the_embedding_is_kept():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.body, self.out = nn.Embedding(80, 64), linear(64, 64), linear(64, 80)
            self.out.weight = self.embed.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.out(self.body(self.embed(ids)))

    with torch.no_grad():
        assert_expected_inline(
            graph_diff(Tied(), torch.zeros(32, dtype=torch.long)),
            """\
--- before
+++ after
@@ -1,3 +1,5 @@
 fwd  embedding: f32[32, 64] = embedding(embed.weight, ids)
-fwd  mm: f32[32, 64] = mm(embedding, body.weight.T)
-fwd  mm_1: f32[32, 80] = mm(mm, embed.weight.T) -> output
+fwd  embedding.q = quantize[mxfp4-quest](embedding)
+fwd  body.weight.q = quantize[mxfp4-quest](body.weight)
+fwd  scaled_mm: f32[32, 64] = scaled_mm(embedding.q, body.weight.q)
+fwd  mm_1: f32[32, 80] = mm(scaled_mm, embed.weight.T) -> output
""",
        )


def test_autocast_quantizes_what_the_matmul_read():
    with torch.autocast("cpu", torch.bfloat16):
        assert_expected_inline(
            graph_diff(linear(), X),
            """\
--- before
+++ after
@@ -2,4 +2,9 @@
 fwd  input.bf16: bf16[32, 64] = cast(input)
-fwd  mm: bf16[32, 96] = mm(input.bf16, weight.bf16.T) -> output
-bwd  mm_1: bf16[96, 64] = mm(output.grad.T, input.bf16)
-bwd  mm_1.f32: f32[96, 64] = cast(mm_1) -> weight.grad
+fwd  input.bf16.q = quantize[mxfp4-quest](input.bf16)
+fwd  weight.bf16.q = quantize[mxfp4-quest, mask](weight.bf16)
+fwd  scaled_mm: bf16[32, 96] = scaled_mm(input.bf16.q, weight.bf16.q) -> output
+bwd  seed: i64[1] = seed(1)
+bwd  output.grad.q = quantize[mxfp4-sr](output.grad.T, seed[0])
+bwd  input.bf16.qt = requantize[mxfp4-sr](input.bf16.q.T, seed[0])
+bwd  scaled_mm_1: bf16[96, 64] = scaled_mm[unrotate](output.grad.q, input.bf16.qt, weight.bf16.q.mask) * 16/9
+bwd  scaled_mm_1.f32: f32[96, 64] = cast(scaled_mm_1) -> weight.grad
""",
        )


def test_a_parameter_used_by_an_operator():
    diff = graph_diff(lambda x, w: x @ w, X, nn.Parameter(torch.randn(64, 96)))
    assert_expected_inline(
        diff,
        """\
--- before
+++ after
@@ -1,2 +1,8 @@
-fwd  mm: f32[32, 96] = mm(x, w) -> output
-bwd  mm_1: f32[64, 96] = mm(x.T, output.grad) -> w.grad
+fwd  x.q = quantize[mxfp4-quest](x)
+fwd  w.q = quantize[mxfp4-quest, mask](w.T)
+fwd  scaled_mm: f32[32, 96] = scaled_mm(x.q, w.q) -> output
+bwd  seed: i64[1] = seed(1)
+bwd  output.grad.q = quantize[mxfp4-sr](output.grad.T, seed[0])
+bwd  x.qt = requantize[mxfp4-sr](x.q.T, seed[0])
+bwd  scaled_mm_1: f32[96, 64] = scaled_mm[unrotate](output.grad.q, x.qt, w.q.mask) * 16/9
+bwd  clone: f32[64, 96] = clone(scaled_mm_1.T, torch.contiguous_format) -> w.grad
""",
    )


def test_stacked_tokens_are_one_matrix():
    with torch.no_grad():
        assert_expected_inline(
            graph_diff(linear(), X.view(2, 16, 64)),
            """\
--- before
+++ after
@@ -1 +1,3 @@
-fwd  mm: f32[32, 96] = mm(input, weight.T) -> output
+fwd  input.q = quantize[mxfp4-quest](input)
+fwd  weight.q = quantize[mxfp4-quest](weight)
+fwd  scaled_mm: f32[32, 96] = scaled_mm(input.q, weight.q) -> output
""",
        )


def test_a_linear_reads_the_rewritten_one_before_it():
    model = nn.Sequential(OrderedDict(a=linear(64, 64), b=linear(64, 64)))
    assert_expected_inline(
        graph_diff(model, X),
        """\
--- before
+++ after
@@ -1,5 +1,15 @@
-fwd  mm: f32[32, 64] = mm(input, a.weight.T)
-fwd  mm_1: f32[32, 64] = mm(mm, b.weight.T) -> output
-bwd  mm_2: f32[64, 64] = mm(output.grad.T, mm) -> b.weight.grad
-bwd  mm_3: f32[32, 64] = mm(output.grad, b.weight)
-bwd  mm_4: f32[64, 64] = mm(mm_3.T, input) -> a.weight.grad
+fwd  input.q = quantize[mxfp4-quest](input)
+fwd  a.weight.q = quantize[mxfp4-quest, mask](a.weight)
+fwd  scaled_mm: f32[32, 64] = scaled_mm(input.q, a.weight.q)
+fwd  scaled_mm.q = quantize[mxfp4-quest, mask](scaled_mm)
+fwd  b.weight.q = quantize[mxfp4-quest, mask](b.weight)
+fwd  scaled_mm_1: f32[32, 64] = scaled_mm(scaled_mm.q, b.weight.q) -> output
+bwd  seed: i64[2] = seed(2)
+bwd  output.grad.q = quantize_pair[mxfp4-sr](output.grad, seed[1])
+bwd  scaled_mm.qt = requantize[mxfp4-sr](scaled_mm.q.T, seed[1])
+bwd  scaled_mm_2: f32[64, 64] = scaled_mm[unrotate](output.grad.q.columns, scaled_mm.qt, b.weight.q.mask) * 16/9 -> b.weight.grad
+bwd  b.weight.qt = requantize[mxfp4-sr](b.weight.q.T, seed[1])
+bwd  scaled_mm_3: f32[32, 64] = scaled_mm[unrotate](output.grad.q.rows, b.weight.qt, scaled_mm.q.mask) * 16/9
+bwd  scaled_mm_3.q = quantize[mxfp4-sr](scaled_mm_3.T, seed[0])
+bwd  input.qt = requantize[mxfp4-sr](input.q.T, seed[0])
+bwd  scaled_mm_4: f32[64, 64] = scaled_mm[unrotate](scaled_mm_3.q, input.qt, a.weight.q.mask) * 16/9 -> a.weight.grad
""",  # noqa: E501  a line of the graph
    )


def test_attention_itself_is_kept():
    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(q, k, v)

    q = torch.randn(1, 2, 32, 64)
    assert graph_diff(attend, q, q, q) == ""


def test_the_examples_of_the_documentation(tmp_path, monkeypatch):
    """The code of docs/snapshot_testing.md is a test file that passes."""
    page = (pathlib.Path(__file__).parents[2] / "docs" / "snapshot_testing.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "documented_examples.py").write_text("\n\n".join(blocks))
    monkeypatch.syspath_prepend(tmp_path)
    examples = importlib.import_module("documented_examples")
    tests = [getattr(examples, name) for name in dir(examples) if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()
