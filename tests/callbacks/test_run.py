"""What callbacks do in the course of a run, without a trainer; and provenance."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import quartet_compile as qc
from quartet_compile.callbacks.run import Run
from quartet_compile.process import process


def model(**options):
    return qc.quartet(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)), **options)


def test_provenance_is_plain_data_with_the_recipe_operand_by_operand():
    found = qc.provenance(model(recipe=[("0", "bf16"), ("*", "quartet2")], exclude=["2"], eval="bf16"))
    assert json.loads(json.dumps(found)) == found
    assert found["quartet_compile"] == qc.__version__ and found["torch"] == torch.__version__
    (first, kept), (rest, recipe) = found["recipe"]
    assert (first, kept["name"], rest, recipe["name"]) == ("0", "bf16", "*", "quartet2")
    assert recipe["wgrad"] == "nvfp4-eden" and kept["fprop"] == "high precision"
    assert found["eval"] == [["*", kept]] and (found["exclude"], found["scope"]) == (["2"], "all")


def test_provenance_follows_a_switch_and_is_refused_for_a_plain_model():
    compiled = model()
    qc.set_recipe(compiled, "quartet-rtn")
    assert qc.provenance(compiled)["recipe"][0][1]["name"] == "quartet-rtn"
    with pytest.raises(qc.OptionError, match="got a Linear of which no part is compiled"):
        qc.provenance(nn.Linear(64, 64))


def test_a_run_that_resumes_under_another_recipe_is_told(recwarn):
    before = qc.provenance(model(recipe="quartet"))
    assert qc.check_provenance(model(recipe="quartet"), {**before, "torch": "2.11.0"}) == [] and not recwarn.list
    with pytest.warns(qc.QuartetWarning, match="QC401.*recipe was quartet, now quartet2.*exclude was .., now .'2'"):
        differences = qc.check_provenance(model(recipe="quartet2", exclude=["2"]), before)
    assert len(differences) == 3  # eval follows the recipe
    with pytest.warns(qc.QuartetWarning, match="recipe was None, now quartet"):
        qc.check_provenance(model(), {})


@pytest.mark.parametrize(
    "given, message",
    [
        ({"every": 0}, "every=0: expected a number of steps"),
        ({"schedule": {"5": "bf16"}}, "schedule has the step '5'"),
        ({"schedule": {-1: "bf16"}}, "schedule has the step -1"),
        ({"schedule": {5: "quarted"}}, "did you mean 'quartet'"),
    ],
)
def test_what_is_asked_wrongly_is_said_at_once(given, message):
    with pytest.raises(qc.QuartetError, match=message):
        Run(**{"every": None, "schedule": None, **given})


def test_statistics_need_a_model_that_has_them():
    with pytest.raises(qc.OptionError, match="Compile it with the option stats=True"):
        Run(10, None).start(model(), 0, None)
    with pytest.raises(qc.OptionError, match="no part is compiled"):
        Run(None, None).start(nn.Linear(64, 64), 0, None)


def test_a_schedule_switches_at_its_steps_and_a_resumed_run_starts_with_that_of_its_step(recwarn):
    schedule = {0: "quartet", 3: "quartet-rtn", 5: "bf16"}

    def names(run, compiled, steps):
        for step in steps:
            switched = run.before_step(compiled, step)
            yield step, qc.provenance(compiled)["recipe"][0][1]["name"], switched.get("quartet/switches")

    first, compiled = Run(None, schedule), model()
    first.start(compiled, 0, None)
    assert list(names(first, compiled, range(6))) == [
        (0, "quartet", 1.0), (1, "quartet", None), (2, "quartet", None), (3, "quartet-rtn", 2.0),
        (4, "quartet-rtn", None), (5, "bf16", 3.0),
    ]  # fmt: skip
    again, resumed = Run(None, schedule), model()
    qc.set_recipe(compiled, "quartet-rtn")
    again.start(resumed, 5, qc.provenance(compiled))  # the checkpoint after step 4
    assert list(names(again, resumed, [5])) == [(5, "bf16", 3.0)] and not recwarn.list


def test_a_second_run_begins_with_the_recipe_that_the_model_had():
    compiled, run = model(recipe="quartet-rtn"), Run(None, {2: "bf16"})
    found = []
    for _ in range(2):
        run.start(compiled, 0, None)
        for step in range(4):
            switches = run.before_step(compiled, step).get("quartet/switches")
            found.append((qc.provenance(compiled)["recipe"][0][1]["name"], switches))
    first = [("quartet-rtn", None), ("quartet-rtn", None), ("bf16", 1.0), ("bf16", None)]
    assert found == [*first, ("quartet-rtn", 0.0), *first[1:]]


def test_the_first_step_reports_and_each_few_steps_have_statistics(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "reports", {})  # of the tests before it
    compiled = model(stats=True)
    run = Run(2, None)
    run.start(compiled, 0, None)
    compiled(torch.randn(32, 64)).square().mean().backward()
    first, second, third = (run.after_step(compiled, step, tmp_path / "new") for step in (1, 2, 3))
    assert first["quartet/matmuls_in_low_precision"] >= 2 and 0 < first["quartet/share_of_flops"] <= 1
    assert "quartet/2/fprop/W/error" in second and not third
    assert "matmuls" in (tmp_path / "new" / "quartet_report.txt").read_text().splitlines()[0]
