"""Recipes as data: the presets are the papers' tables, what makes no sense is refused with the reason, TOML and mixing."""

from __future__ import annotations

import dataclasses

import pytest

import quartet_compile as qc
from quartet_compile.config.recipe import ROLES
from quartet_compile.errors import OptionError, PatternError, QuantizerError, RecipeError

RHT16 = ",rotation=16,random_signs=True"
RHT32 = ",rotation=32,random_signs=True"
PUBLISHED = {  # fprop X, W; dgrad dY, W^T; wgrad dY^T, X^T; what W^T and X^T are made of; trust mask
    "quartet": (["mxfp4-quest"] * 2, ["mxfp4-sr"] * 2, ["mxfp4-sr"] * 2, "requantized", "requantized", True),
    "quartet-rtn": (["mxfp4-quest"] * 2, ["mxfp4-rtn"] * 2, ["mxfp4-rtn"] * 2, "requantized", "requantized", True),
    "quartet2": (["nvfp4-rtn-4over6"] * 2, ["nvfp4-eden"] * 2, ["nvfp4-eden"] * 2, "requantized", "requantized", False),
    "nvfp4": (
        ["nvfp4-rtn", "nvfp4-rtn-2d"],
        ["nvfp4-sr", "nvfp4-rtn-2d"],
        ["nvfp4-sr" + RHT16, "nvfp4-rtn" + RHT16],
        "codes",
        "original",
        False,
    ),
    "nvfp4-4over6": (
        ["nvfp4-rtn-4over6", "nvfp4-rtn-2d-4over6"],
        ["nvfp4-sr", "nvfp4-rtn-2d-4over6"],
        ["nvfp4-sr" + RHT16, "nvfp4-rtn" + RHT16],
        "codes",
        "original",
        False,
    ),
    "tetrajet2": (["nvfp4-rtn"] * 2, ["nvfp4-sr" + RHT32] * 2, ["nvfp4-sr" + RHT32] * 2, *["requantized"] * 2, False),
    "mxfp4-bwd": (None, ["mxfp4-sr,rotation=64"] * 2, ["mxfp4-sr,rotation=64"] * 2, "original", "original", False),
    "mxfp8": (["mxfp8"] * 2, ["mxfp8"] * 2, ["mxfp8"] * 2, "original", "original", False),
    "bf16": (None, None, None, "requantized", "requantized", False),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_are_the_published_tables(name):
    recipe = qc.recipe(name)
    gemms = [gemm and [gemm.a.name, gemm.b.name] for gemm in (recipe.fprop, recipe.dgrad, recipe.wgrad)]
    assert (*gemms, recipe.w_from, recipe.x_from, recipe.trust_mask) == PUBLISHED[name]


def test_every_preset_is_under_test_here_or_made_of_parts():
    assert set(qc.recipes()) >= {*PUBLISHED, "jetfire-fp4", "exact"}


QUARTET, NVFP4 = qc.recipe("quartet"), qc.recipe("nvfp4")
EDEN = qc.recipe("quartet2").dgrad


def gemm(a, b=None):
    return qc.Gemm(a=qc.quantizer(a), b=qc.quantizer(b or a))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dgrad": gemm("mxfp4-quest")}, ["dgrad", "QuEST must not be used in backward", ".49", "mxfp4-sr"]),
        ({"fprop": gemm("mxfp4-sr")}, ["random quantizer", "mxfp4-sr", "fprop", "recomputed"]),
        ({"fprop": gemm("mxfp4-quest", "nvfp4-rtn")}, ["fprop", "'scale_format'", "'e8m0'", "'e4m3'"]),
        ({"fprop": gemm("mxfp4-quest", "mxfp4-quest,rotation=0")}, ["fprop", "'rotation'", "32", "0"]),
        ({"fprop": None, "trust_mask": False}, ["w_from='requantized'", "no fprop", "w_from='original'"]),
        ({"fprop": gemm("nvfp4-rtn")}, ["trust_mask=True", "clips nothing"]),
        ({"w_from": "codes"}, ["w_from='codes'", "square blocks", "nvfp4-rtn-2d", "'requantized'"]),
        ({"x_from": "code"}, ["x_from='code'", "'requantized'", "'original'", "'codes'"]),
        ({"x_from": "original"}, ["trust_mask=True", "wgrad", "rotated space"]),
        ({"wgrad": "mxfp4-sr"}, ["'mxfp4-sr' as wgrad", "Gemm"]),
        (
            {"dgrad": gemm("nvfp4-sr", "nvfp4-rtn-4over6")},
            ["four-over-six", "dgrad", "biased", ".11", "nvfp4-rtn"],
        ),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_what_makes_no_sense_is_refused_with_the_reason(change, words):
    with pytest.raises(RecipeError) as error:
        dataclasses.replace(QUARTET, name="mine", **change)
    assert all(word in str(error.value) for word in [*words, "'mine'"]), str(error.value)


def test_four_over_six_is_refused_with_stochastic_rounding_in_one_quantizer_too():
    with pytest.raises(QuantizerError, match="four-over-six.*stochastic.*biased"):
        qc.quantizer("nvfp4-sr,scale=four-over-six,largest_scale=256.0")


def test_square_blocks_are_refused_with_a_rotation_along_one_side():
    with pytest.raises(QuantizerError, match="square blocks with rotation=16"):
        qc.quantizer("nvfp4-rtn-2d,rotation=16")


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"a": "mxfp4-sr"}, ["operand 'a'", "'mxfp4-sr'", "quantizer("]), ({"output": "bf16"}, ["'bf16'", "'bfloat16'"])],
)
def test_a_gemm_says_what_it_expected(fields, words):
    with pytest.raises(RecipeError) as error:
        qc.Gemm(**{"a": qc.quantizer("mxfp4-sr"), "b": qc.quantizer("mxfp4-sr"), **fields})
    assert all(word in str(error.value) for word in words)


# As text


def test_a_recipe_prints_its_six_operands():
    lines = str(NVFP4).splitlines()
    assert lines[0] == "Recipe 'nvfp4'; no trust mask."
    assert [line.split()[:3] for line in lines[3:]] == [
        ["fprop", "X", "original"],
        ["fprop", "W", "original"],
        ["dgrad", "dY", "original"],
        ["dgrad", "W^T", "codes"],
        ["wgrad", "dY^T", "original"],
        ["wgrad", "X^T", "original"],
    ]
    assert "16x16" in lines[4] and "random 16" in lines[7] and "stochastic" in lines[7]
    assert "high precision" in str(qc.recipe("mxfp4-bwd")).splitlines()[3]


@pytest.mark.parametrize("name", sorted(qc.recipes()))
def test_toml_reads_back_what_it_wrote(name, tmp_path):
    path = tmp_path / "recipe.toml"
    qc.save_recipe(qc.recipe(name), path)
    assert qc.load_recipe(path) == qc.recipe(name)


def test_a_recipe_written_by_hand(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'name = "mine"\ntrust_mask = true\ndgrad = "mxfp4-rtn"\nwgrad = "high precision"\n'
        '[fprop]\na = "mxfp4-quest,scale_rounding=nearest"\noutput = "bfloat16"\n'
        '[fprop.b]\nscale = "quest"\nscale_rounding = "nearest"\n'
    )
    mine = qc.load_recipe(path)
    nearest = dataclasses.replace(qc.quantizer("mxfp4-quest"), scale_rounding="nearest")
    assert mine.fprop == qc.Gemm(a=nearest, b=nearest, output="bfloat16")
    assert mine.dgrad == gemm("mxfp4-rtn") and mine.wgrad is None and mine.trust_mask


HEAD = 'name = "x"\nfprop = "mxfp4-quest"\ndgrad = "mxfp4-sr"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name = ", ["not TOML", "Invalid value"]),
        ('name = "x"\n', ["No fprop, dgrad, wgrad", "high precision"]),
        (HEAD + 'wgrad = "mxfp4-srr"\n', ["'mxfp4-srr'", "did you mean 'mxfp4-sr'"]),
        (HEAD + 'wgrad = "mxfp4-sr"\ntrustmask = true\n', ["'trustmask'", "did you mean 'trust_mask'"]),
        (HEAD + 'wgrad = {a = "mxfp4-sr"}\n', ["wgrad is", "a table with a, b"]),
        (HEAD + 'wgrad = {a = "mxfp4-sr", b = {groups = 32}}\n', ["wgrad.b", "'groups'", "did you mean 'group'"]),
        (HEAD + 'wgrad = "mxfp4-sr"\ntrust_mask = "yes"\n', ["trust_mask is 'yes'", "boolean"]),
        (HEAD + 'wgrad = "mxfp4-quest"\n', ["clips in wgrad"]),
    ],
)
def test_a_wrong_file_says_where_and_what(text, words, tmp_path):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(RecipeError) as error:
        qc.load_recipe(path)
    assert all(word in str(error.value) for word in [*words, "wrong.toml"]), str(error.value)


def test_a_file_that_is_not_there():
    with pytest.raises(RecipeError, match="'nowhere.toml' can't be read: No such file"):
        qc.load_recipe("nowhere.toml")


# Mixing


def test_each_gemm_from_another_recipe():
    mixed = qc.mix("mine", fprop="bf16", dgrad="quartet", wgrad="quartet-rtn")
    assert mixed.fprop is None and mixed.dgrad == QUARTET.dgrad and mixed.wgrad == qc.recipe("quartet-rtn").wgrad
    assert (mixed.w_from, mixed.x_from, mixed.trust_mask) == ("original", "original", False)
    forward = qc.mix("forward", fprop="quartet", dgrad="bf16", wgrad="bf16")
    assert [role for role, _ in forward.gemms()] == ["fprop"] and not forward.trust_mask
    with pytest.raises(RecipeError, match="w_from='codes'"):
        qc.mix("wrong", fprop="quartet2", dgrad="nvfp4", wgrad="bf16")


@pytest.mark.parametrize("name", sorted(qc.recipes()))
def test_mixing_a_recipe_with_itself_is_itself(name):
    recipe = qc.recipe(name)
    mixed = qc.mix(name, **dict.fromkeys(ROLES, name))
    assert mixed == recipe or not recipe.rewrites


# Per module


def test_first_match_wins_and_the_report_says_which(mlp):
    model, x = mlp
    rules = [("layers.0", "bf16"), ("*.down", "nvfp4"), ("*", "quartet")]
    report = qc.explain(model, x, recipe=rules)
    assert {site.name: site.recipe for site in report.sites if site.name != "out"} == {
        "layers.0.up": "",
        "layers.0.down": "",
        "layers.1.up": "quartet",
        "layers.1.down": "nvfp4",
    }
    reasons = {site.name: site.reason for site in report.sites}
    assert reasons["layers.0.up"] == "recipe 'bf16' keeps high precision"
    assert report.recipe == "bf16, nvfp4, quartet"
    assert qc.explain(model, x, recipe=dict(rules)).sites == report.sites


def test_rules_without_a_last_one_keep_the_rest(mlp):
    model, x = mlp
    report = qc.explain(model, x, recipe=[("layers.0", "quartet")])
    kept = {site.name: site.reason for site in report.sites if not site.rewritten}
    assert set(kept) == {"layers.1.up", "layers.1.down", "out"}
    assert kept["layers.1.up"].startswith(
        "no rule of the option 'recipe' matches it; end the list with ('*', 'quartet')"
    )


def test_a_rule_that_matches_nothing_is_an_error(mlp):
    model, x = mlp
    with pytest.raises(PatternError, match="recipe pattern 'layer.0.*' matches no module.*did you mean"):
        qc.quartet(model, recipe=[("layer.0.*", "bf16"), ("*", "quartet")])
    assert qc.explain(model, x, recipe=[("layer.0.*", "bf16"), ("*", "quartet")]).unmatched == ("recipe='layer.0.*'",)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([("*", "quartet"), ("layers.0", "bf16")], ["'layers.0' after '*'", "move '*' to the end"]),
        ([], ["no rules", "('*', 'quartet')"]),
        ([("layers.0",)], ["('layers.0',)", "pairs of a glob and a recipe"]),
        ([("*", "quartett")], ["'quartett'", "did you mean 'quartet"]),
        ("nowhere.toml", ["'recipe'", "nowhere.toml"]),
    ],
)
def test_wrong_rules(value, words, mlp):
    model, x = mlp
    with pytest.raises((OptionError, RecipeError)) as error:
        qc.explain(model, x, recipe=value)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_toml_file_as_the_option(mlp, tmp_path):
    model, x = mlp
    mine = dataclasses.replace(qc.recipe("quartet2"), name="mine")
    qc.save_recipe(mine, tmp_path / "mine.toml")
    report = qc.explain(model, x, recipe=str(tmp_path / "mine.toml"))
    assert report.recipe == "mine" and report.sites[0].gemms["wgrad"] == "nvfp4-eden"


@pytest.mark.parametrize(
    ("recipe", "runs"),
    [
        ("quartet", "fp4"),
        ("mxfp8", "fp8"),
        ("mxfp4-bwd", "fp4 (dgrad, wgrad)"),
        (qc.mix("m", fprop="mxfp8", dgrad="mxfp4-bwd", wgrad="mxfp4-bwd"), "fp8 (fprop) + fp4 (dgrad, wgrad)"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_the_report_says_what_runs_in_which_format(recipe, runs, mlp):
    model, x = mlp
    report = qc.explain(model, x.requires_grad_(), recipe=recipe)
    assert {site.runs_in for site in report.sites if site.rewritten} == {runs}
    assert runs in str(report)


def test_a_backward_recipe_leaves_an_inference_graph_alone(mlp):
    import torch

    model, x = mlp
    with torch.no_grad():
        report = qc.explain(model, x, recipe="mxfp4-bwd")
    assert {site.reason for site in report.sites} == {
        "recipe 'mxfp4-bwd' quantizes dgrad and wgrad only, which this matmul hasn't here"
    }


@pytest.fixture
def mlp():
    import torch
    from models import Net

    torch.manual_seed(0)
    return Net(), torch.randn(64, 64)
