"""The scaling law: the published figures from the published runs, known laws from made-up runs, and bad tables."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import subprocess
import sys

import pytest

from quartet_compile import QuartetError, law
from quartet_compile.law.budgets import speedup_at
from quartet_compile.law.plot import _speeds, _words
from quartet_compile.law.runs import DATA, precisions, split
from quartet_compile.law.solve import Problem, baseline_runs
from quartet_compile.law.table import read_table

QUARTET = law.Efficiency(fprop="mxfp4-quest", backward="mxfp4-sr", eff_n=0.64, eff_d=0.94, runs=21, separable=False)
"""The paper's own pair."""

TRUE = law.Law(A=2e4, alpha=0.5, B=4e5, beta=0.55, E=1.6, gamma=0.35)


@pytest.fixture(scope="module")
def runs():
    return law.read_runs()


@pytest.fixture(scope="module")
def fitted(runs):
    return law.fit_law(runs)


def made_up(true=TRUE, noise=0.0, seed=0, **recipes):
    """Runs of a known law on a 5 x 5 grid; `recipes` are pairs of efficiencies by `fprop_backward`."""
    generator = random.Random(seed)
    grid = list(itertools.product((1e7, 3e7, 1e8, 3e8, 1e9), (20, 60, 180, 540, 1620)))
    found = []
    for name, (eff_n, eff_d) in {"bf16_bf16": (1, 1), **recipes}.items():
        fprop, backward = name.split("_")
        for size, ratio in grid:
            loss = true.predict(size, size * ratio, eff_n=eff_n, eff_d=eff_d) * math.exp(generator.gauss(0, noise))
            found.append(law.Run(parameters=size, tokens=size * ratio, fprop=fprop, backward=backward, loss=loss))
    return found


def test_the_form_by_hand():
    simple = law.Law(A=8.0, alpha=1.0, B=9.0, beta=0.5, E=1.0, gamma=0.5)
    assert simple.predict(4.0, 9.0) == pytest.approx(math.sqrt(2 + 3) + 1)
    assert simple.predict(4.0, 9.0, eff_n=0.5, eff_d=0.25) == pytest.approx(math.sqrt(4 + 6) + 1)
    assert simple.predict(1e300, 1e300) == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["parameters", "tokens", "eff_n", "eff_d"])
@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf])
def test_a_budget_that_is_no_number(name, value):
    with pytest.raises(law.LawError, match=f"{name}={value!r}; expected a positive number"):
        TRUE.predict(**{"parameters": 1e8, "tokens": 1e9} | {name: value})


@pytest.mark.parametrize("name", law.COEFFICIENTS)
def test_the_published_coefficients_come_out_of_the_published_runs(fitted, name):
    rounded = {"A": 1.52e5, "alpha": 0.589, "B": 5.25e5, "beta": 0.544, "E": 1.35, "gamma": 0.274}
    assert getattr(fitted, name) == pytest.approx(rounded[name], rel=0.02)
    assert getattr(fitted, name) == pytest.approx(getattr(law.PUBLISHED, name), rel=1e-5)


def test_the_largest_two_runs_matter(runs):
    """The two at 430M and 800M are in the published fit: without them A is half as large again, and E 23 % larger."""
    without = law.fit_law([run for run in runs if run.parameters < 4e8])
    assert without.A > 1.4 * law.PUBLISHED.A
    assert without.E > 1.2 * law.PUBLISHED.E


@pytest.mark.parametrize(
    "recipe, separable, count, eff_n, eff_d",
    [
        ("mxfp4-quest:bf16", False, 21, 0.648, 1),
        ("bf16:mxfp4-sr", False, 18, 1, 0.886),
        ("bf16:mxfp4-rtn", False, 6, 1, 0.901),
        ("mxfp4-quest:mxfp4-sr", False, 21, 0.6615, 0.817),
        ("mxfp4-quest:mxfp4-sr", True, 60, 0.6475, 0.875),
    ],
)
def test_the_efficiencies_of_the_published_runs(runs, fitted, recipe, separable, count, eff_n, eff_d):
    found = law.efficiency(runs, fitted, recipe, separable=separable)
    assert (found.runs, found.recipe, found.separable) == (count, recipe, separable)
    assert found.eff_n == pytest.approx(eff_n, abs=6e-4)
    assert found.eff_d == pytest.approx(eff_d, abs=6e-4)


def test_quartets_efficiencies_are_in_the_published_range(runs, fitted):
    found = law.efficiency(runs, fitted, "quartet")
    assert 0.64 <= found.eff_n <= 0.658
    assert 0.822 <= found.eff_d <= 0.95


def test_the_table_has_every_published_run(runs):
    counts = {name: sum(run.recipe == name for run in runs) for name in dict.fromkeys(run.recipe for run in runs)}
    assert counts == {
        "bf16:bf16": 23, "mxfp4-quest:bf16": 21, "bf16:mxfp4-sr": 18, "bf16:mxfp4-rtn": 6, "mxfp4-quest:mxfp4-sr": 21,
        "luq-int4:luq-int4": 5, "luq-fp4:luq-fp4": 5, "jetfire-fp4:jetfire-fp4": 5, "halo-fp4:halo-fp4": 5,
    }  # fmt: skip
    assert all(run.tokens % 262144 == 0 for run in runs)
    assert all(24 < run.tokens / run.parameters < 830 for run in runs)


def test_the_jacobian_is_the_slope(runs):
    problem = Problem(baseline_runs(runs, "bf16"))
    x = problem.from_law(law.PUBLISHED)
    exact = problem.jacobian(x)
    for i in range(6):
        step = 1e-6 * max(1, abs(x[i]))
        up, down = x.copy(), x.copy()
        up[i], down[i] = x[i] + step, x[i] - step
        slope = (problem.residuals(up) - problem.residuals(down)) / (2 * step)
        assert exact[:, i] == pytest.approx(slope, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize(
    "true",
    [
        TRUE,
        law.Law(A=298.0934, alpha=0.453612, B=25.91643, beta=0.274566, E=1.341249, gamma=0.717752),
        law.Law(A=5107.503, alpha=0.430207, B=158718.8, beta=0.788501, E=1.371084, gamma=0.720367),
    ],
)
def test_a_known_law_is_found(true):
    found = law.fit_law(made_up(true))
    for name in law.COEFFICIENTS:
        assert getattr(found, name) == pytest.approx(getattr(true, name), rel=1e-3), name


@pytest.mark.parametrize("eff_n, eff_d", [(0.64, 0.94), (0.3, 0.1), (1.2, 0.9)])
@pytest.mark.parametrize("kinds", ["full", "apart"])
def test_known_efficiencies_are_found(kinds, eff_n, eff_d):
    apart = {"q_bf16": (eff_n, 1), "bf16_s": (1, eff_d)} if kinds == "apart" else {}
    table = made_up(q_s=(eff_n, eff_d), **apart)
    found = law.efficiency(table, TRUE, "q:s")
    assert found.separable == (kinds == "apart")
    assert (found.eff_n, found.eff_d) == pytest.approx((eff_n, eff_d), rel=1e-4)


def test_forward_only_and_backward_only_runs_are_enough():
    table = made_up(q_bf16=(0.7, 1), bf16_s=(1, 0.8))
    found = law.efficiency(table, TRUE, "q:s")
    assert (found.eff_n, found.eff_d, found.runs) == pytest.approx((0.7, 0.8, 50), rel=1e-4)
    with pytest.raises(law.LawError, match="no run has the pass in low precision that gives effN and effD"):
        law.efficiency(table, TRUE, "q:s", separable=False)


def test_intervals_cover_the_truth_and_repeat():
    table = made_up(noise=1e-3, q_s=(0.65, 0.9))
    found = law.fit(table, resamples=40, seed=3)
    assert found.resamples == 40 and found.runs == 25
    assert 5e-4 < found.rms < 2e-3
    for name in law.COEFFICIENTS:
        low, high = found.intervals[name]
        assert low < getattr(TRUE, name) < high, name
        assert low <= getattr(found.law, name) <= high, name
    (each,) = found.efficiencies
    for which, truth in (("eff_n", 0.65), ("eff_d", 0.9)):
        low, high = found.intervals[law.interval_key(each, which)]
        assert low < truth < high
        assert high - low < 0.2
    few = law.fit(table, resamples=4, seed=1).intervals
    assert few == law.fit(table, resamples=4, seed=1).intervals
    assert few != law.fit(table, resamples=4, seed=2).intervals


def test_without_resamples_there_are_no_intervals(runs):
    found = law.fit(runs, ["quartet"])
    assert found.intervals == {}
    assert [each.separable for each in found.efficiencies] == [False, True]


@pytest.mark.parametrize("given", [{"level": 0}, {"level": 1.0}, {"level": math.nan}, {"resamples": -1}])
def test_intervals_that_can_not_be(runs, given):
    with pytest.raises(law.LawError, match="expected a level between 0 and 1, as 0.95, and a count"):
        law.fit(runs, **given)


def test_a_recipe_by_any_of_its_names(runs):
    pair = ("mxfp4-quest", "mxfp4-sr")
    assert precisions("quartet", runs, baseline="bf16") == pair
    assert precisions("mxfp4-quest:mxfp4-sr", runs, baseline="bf16") == pair
    assert precisions("luq-int4", runs, baseline="bf16") == ("luq-int4", "luq-int4")
    assert precisions("quartet-rtn", runs, baseline="bf16") == ("mxfp4-quest", "mxfp4-rtn")
    named = [dataclasses.replace(run, fprop="quartet", backward="quartet") for run in runs if run.fprop != "bf16"]
    assert precisions("quartet", named, baseline="bf16") == ("quartet", "quartet")


@pytest.mark.parametrize("recipe", [":", "a:", ":b", "a:b:c"])
def test_a_recipe_that_is_no_pair(recipe):
    with pytest.raises(law.LawError, match="not of the form fprop:backward; expected a name, or two as"):
        split(recipe)


@pytest.mark.parametrize(
    "recipe, message",
    [
        (
            "mxfp4-quset:mxfp4-sr",
            r"forward precision 'mxfp4-quset', of which there is no run \(did you mean 'mxfp4-quest'",
        ),
        ("mxfp4-quest:fp8", "backward precision 'fp8', of which there is no run; expected one of bf16, halo-fp4"),
        ("quartets", "forward precision 'quartets'"),
        ("nvfp4", "take a recipe that it has runs of: quartet, quartet-rtn, jetfire-fp4"),
        ("bf16", "it is the baseline 'bf16' itself"),
        ("luq-int4:mxfp4-rtn", "no run has the pass in low precision that gives effN"),
    ],
)
def test_a_recipe_without_runs(runs, recipe, message):
    with pytest.raises(law.LawError, match=message):
        law.efficiency(runs, law.PUBLISHED, recipe)


@pytest.mark.parametrize(
    "chosen, message",
    [
        (lambda run: False, "0 different runs of bf16:bf16 with 0 sizes and 0 numbers of tokens"),
        (lambda run: run.parameters == 30482560, "6 different runs of bf16:bf16 with 1 sizes and 6 numbers of tokens"),
        (lambda run: run.parameters > 2e8, "5 different runs .* expected at least 7 with 2 of each"),
    ],
)
def test_too_few_runs(runs, chosen, message):
    with pytest.raises(law.LawError, match=message):
        law.fit_law([run for run in runs if chosen(run)])


def test_seven_runs_give_a_law_and_no_intervals(runs):
    few = [run for run in runs if run.recipe == "bf16:bf16"][::3][:7]
    assert law.fit_law(few).predict(1e8, 1e10) == pytest.approx(law.PUBLISHED.predict(1e8, 1e10), rel=0.02)
    with pytest.raises(
        law.LawError, match="7 runs of bf16:bf16 are too few to be drawn again .* expected 9 runs or more"
    ):
        law.fit(few, resamples=20)


GOOD = "parameters,tokens,fprop,backward,loss\n3e7,7e8,bf16,bf16,3.4\n"
BAD = {
    "no file": (None, "No such file or directory; expected a CSV file"),
    "empty": ("", "row 1 has no column parameters, tokens, fprop, backward, loss: got nothing"),
    "no loss": ("parameters,tokens,fprop,backward\n1,2,a,b\n", "row 1 has no column loss: got parameters,tokens,fprop"),
    "no recipe": ("parameters,tokens,loss\n1,2,3\n", "row 1 has no column fprop, backward"),
    "half a recipe": ("parameters,tokens,fprop,loss\n1,2,a,3\n", "row 1 has no column backward"),
    "text": (GOOD + "3e7,many,bf16,bf16,3.4\n", "row 3: tokens is 'many'; expected a positive, finite number"),
    "negative": (
        GOOD + GOOD[38:].replace("7e8", "-7e8"),
        "row 3: tokens is '-7e8'; expected a positive, finite number",
    ),
    "zero": (GOOD + "0,7e8,bf16,bf16,3.4\n", "row 3: parameters is '0'; .* write it as a plain number"),
    "nan": (GOOD + "3e7,7e8,bf16,bf16,nan\n", "row 3: loss is 'nan'; .* leave out runs that diverged"),
    "infinite": (GOOD + "3e7,7e8,bf16,bf16,inf\n", "row 3: loss is 'inf'; .* leave out runs that diverged"),
    "nothing": (GOOD + "3e7,7e8,,bf16,3.4\n", "row 3 has nothing in column fprop; expected a value"),
    "short row": (GOOD + "3e7,7e8\n", "row 3 has nothing in column fprop, backward, loss"),
    "pair in a column": (GOOD + "3e7,7e8,a:b,bf16,3.4\n", "row 3: fprop is 'a:b'; expected one precision"),
    "bad pair": ("parameters,tokens,recipe,loss\n3e7,7e8,a:,3.4\n", "row 2: recipe 'a:' is not of the form"),
    "binary": (b"\xff\xfe\x00\x81", "can't be read as text"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_table_that_is_wrong_names_the_file_and_the_row(tmp_path, case):
    content, message = BAD[case]
    path = tmp_path / "runs.csv"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(law.LawError, match=f"^{path}.*{message}") as caught:
        law.read_runs(path)
    assert isinstance(caught.value, QuartetError)


def test_tables_that_are_right(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("\ufeffnote, loss ,recipe,tokens,parameters\nx,3.5, quartet ,1e9,30482560\ny,3.4,a:b,2e9,3e7\n")
    assert law.read_runs(path) == (
        law.Run(parameters=30482560, tokens=1e9, fprop="quartet", backward="quartet", loss=3.5),
        law.Run(parameters=3e7, tokens=2e9, fprop="a", backward="b", loss=3.4),
    )
    path.write_text("parameters,tokens,recipe,fprop,backward,loss\n3e7,7e8,quartet,q,s,3.4\n")
    assert law.read_runs(path)[0].recipe == "q:s"


@pytest.mark.parametrize("parameters, border", [(1e8, 100), (1e11, 160)])
@pytest.mark.parametrize("eff_n, eff_d", [(0.64, 0.94), (0.6475, 0.8747), (0.658, 0.822)])
def test_regions_are_the_published_ones(parameters, border, eff_n, eff_d):
    """Only two appear, and the border is where the paper has it, within the 10 % that a reading of its figure gives."""
    fp4 = dataclasses.replace(QUARTET, eff_n=eff_n, eff_d=eff_d)
    first, second = law.regions(law.PUBLISHED, fp4, parameters)
    assert (first.candidate, second.candidate) == ("FP8:FP4", "FP4:FP4")
    assert (first.low, second.high) == (1.0, 1e5)
    assert first.high == second.low == pytest.approx(border, rel=0.11)


@pytest.mark.parametrize(
    "speed, expected", [(4.0, ["bf16:FP4", "FP4:FP4"]), (1.5, ["bf16:FP4"]), (1.02, ["bf16:bf16"])]
)
def test_regions_against_bf16(speed, expected):
    found = law.regions(law.PUBLISHED, QUARTET, 1e9, (law.Speedup(forward=speed, backward=speed),), against="bf16")
    assert [region.candidate for region in found] == expected
    with pytest.raises(law.LawError, match=r"'bf61' \(did you mean 'bf16'\?\); expected FP8 or bf16"):
        law.regions(law.PUBLISHED, QUARTET, 1e9, against="bf61")


def test_a_legend_names_what_is_nowhere_the_best():
    assert _words("bf16:bf16", False) == "bf16 throughout: nowhere the best"
    assert _words("FP8:FP4", True) == "FP8 forward, FP4 backward"
    assert _speeds(law.SPEEDUPS["rtx5090"]) == "0.71x to 2.14x"


def test_a_border_is_where_two_candidates_are_equal():
    first, _ = law.regions(law.PUBLISHED, QUARTET, 1e9)
    found = law.losses(law.PUBLISHED, QUARTET, 1e9, 1e9 * first.high)
    assert found["FP8:FP4"] == pytest.approx(found["FP4:FP4"], abs=1e-6)
    assert law.best(law.PUBLISHED, QUARTET, 1e9, 0.99e9 * first.high) == "FP8:FP4"
    assert law.best(law.PUBLISHED, QUARTET, 1e9, 1.01e9 * first.high) == "FP4:FP4"


def test_what_a_candidate_may_spend_under_the_bit_operation_model():
    """FP4:FP4 is L(2N, D), FP8:FP4 L(N, 1.5 D), FP4:FP8 L(2N, .6 D)."""
    n, d, both = 1e9, 1e11, {"eff_n": 0.64, "eff_d": 0.94}
    found = law.losses(law.PUBLISHED, QUARTET, n, d)
    predict = law.PUBLISHED.predict
    assert found == pytest.approx(
        {
            "FP8:FP8": predict(n, d),
            "FP4:FP8": predict(2 * n, 0.6 * d, eff_n=both["eff_n"]),
            "FP8:FP4": predict(n, 1.5 * d, eff_d=both["eff_d"]),
            "FP4:FP4": predict(2 * n, d, **both),
        },
        rel=1e-12,
    )


@pytest.mark.parametrize(
    "forward, backward, expected",
    [(1.0, 1.0, ["FP8:FP8"]), (2.0, 0.5, ["FP8:FP8", "FP4:FP8"]), (1.0, 2.0, ["FP8:FP4"])],
)
def test_measured_speedups_move_the_regions(forward, backward, expected):
    speedups = (law.Speedup(forward=forward, backward=backward),)
    found = law.regions(law.PUBLISHED, QUARTET, 1e9, speedups, low=1, high=1e4)
    assert [region.candidate for region in found] == expected


def test_speedups_between_and_beyond_the_measured_sizes():
    measured = law.SPEEDUPS["rtx5090"]
    assert speedup_at(measured, 1e6).backward == 0.71
    assert speedup_at(measured, 0.8e9).backward == 0.71
    assert speedup_at(measured, 1e13).backward == 1.38
    assert speedup_at(measured, math.sqrt(6.5e9 * 52e9)).backward == pytest.approx(1.19)
    assert speedup_at(measured[::-1], 6.5e9) == measured[1]


def test_speedups_from_a_file(tmp_path):
    path = tmp_path / "speedups.csv"
    path.write_text("parameters,forward,backward\n1e9,2,0.9\n1e10,2.1,1.2\n")
    assert law.read_speedups(path)[1] == law.Speedup(parameters=1e10, forward=2.1, backward=1.2)
    path.write_text("parameters,forward\n1e9,2\n")
    with pytest.raises(law.LawError, match="row 1 has no column backward: got parameters,forward"):
        law.read_speedups(path)


@pytest.mark.parametrize("field", ["forward", "backward", "parameters"])
def test_speedups_are_positive(field):
    with pytest.raises(law.LawError, match=f"Speedup has {field}=0; expected a positive number: the time without FP4"):
        law.Speedup(**{"forward": 2, "backward": 2} | {field: 0})


@pytest.mark.parametrize("low, high", [(0, 1), (2, 1), (1, 1)])
def test_regions_need_a_range(low, high):
    with pytest.raises(law.LawError, match="expected 0 < low < high"):
        law.regions(law.PUBLISHED, QUARTET, 1e9, low=low, high=high)
    with pytest.raises(law.LawError, match="There are no speedups"):
        law.regions(law.PUBLISHED, QUARTET, 1e9, ())


def test_the_open_models_are_plausible():
    models = {
        row["name"]: row for row in read_table(DATA / "open_models.csv", ("parameters", "tokens"), ("name", "place"))
    }
    assert models["Llama 3 8B"]["tokens"] == 15e12
    assert models["DeepSeek-V3"]["parameters"] == 37e9  # activated, and its note says so
    assert "activated" in (DATA / "open_models.csv").read_text().split("DeepSeek-V3")[1]
    assert all(1 < row["tokens"] / row["parameters"] < 1e4 for row in models.values())


def is_png(path):
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 10_000


def test_pictures(tmp_path, runs, fitted):
    efficiencies = (law.efficiency(runs, fitted, "quartet"), law.efficiency(runs, fitted, "mxfp4-quest:bf16"))
    found = law.Fit(
        law=fitted, baseline="bf16", runs=23, rms=1e-3, efficiencies=efficiencies, intervals={}, resamples=0, level=0.95
    )
    law.plot_fit(found, runs, tmp_path / "fit.png")
    assert is_png(tmp_path / "fit.png")
    law.plot_regions(fitted, QUARTET, tmp_path / "regions.png", title="here")
    assert is_png(tmp_path / "regions.png")
    with pytest.raises(law.LawError, match="Can't write the picture .*nowhere.*expected a path as regions.png"):
        law.plot_fit(found, runs, tmp_path / "nowhere" / "fit.png")
    with pytest.raises(law.LawError, match="Can't write the picture .*fit.doc"):
        law.plot_fit(found, runs, tmp_path / "fit.doc")


@pytest.mark.parametrize(
    "module, package", [("scipy.optimize", "scipy"), ("numpy", "numpy"), ("matplotlib", "matplotlib")]
)
def test_a_missing_package_is_named_with_how_to_get_it(monkeypatch, tmp_path, runs, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(law.LawError, match=rf"needs {package}, which isn't installed: pip install {package} \(or pip"):
        law.plot_regions(law.PUBLISHED, QUARTET, tmp_path / "x.png") if package == "matplotlib" else law.fit(runs)


def test_importing_the_package_imports_neither_scipy_nor_matplotlib():
    code = (
        "import sys, quartet_compile, quartet_compile.__main__; quartet_compile.law.read_runs(); "
        "quartet_compile.law.PUBLISHED.predict(1e9, 1e11); "
        "print(sorted({'scipy', 'matplotlib'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
