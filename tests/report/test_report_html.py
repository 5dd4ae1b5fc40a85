"""The report in a notebook: every matmul is in it, and nothing in it is markup of the user's."""

from __future__ import annotations

import sys
from html.parser import HTMLParser

import pytest
import torch
from models import Net

import quartet_compile as qc
from quartet_compile.report.report import GraphReport, Report, Site
from quartet_compile.report.stats import Statistic, Stats

X = torch.randn(2, 16, 64)


class Reader(HTMLParser):
    """Checks that tags are balanced; keeps rows, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.rows, self.text = [], 0, ""

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.rows += tag == "tr"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data + "\n"


def read(shown) -> Reader:
    reader = Reader()
    reader.feed(shown._repr_html_())
    reader.close()
    assert reader.open == []
    return reader


def test_every_matmul_has_a_row():
    report = qc.explain(Net(blocks=2), X, exclude=["layers.0.*", "no_such_*"])
    reader = read(report)
    assert reader.rows == 1 + len(report.sites)  # the layers differ: the first is kept
    for site in report.sites:
        assert site.name in reader.text and site.reason in reader.text
    assert reader.text.index("3 of 5 matmuls") < reader.text.index(report.sites[0].name)
    assert "3 of 5 matmuls (" in reader.text
    assert "exclude='no_such_*'" in reader.text and "scaled_mm" in reader.text


def test_names_are_no_markup():
    site = Site(
        name="<script>x</script>", shape=("s<0", 1, 2), dtype="float32", rewritten=False, reason="a & b <i>", gemms={}
    )
    reader = read(Report(recipe="<b>", graphs=(GraphReport(sites=(site,), training=True),)))
    assert "<script>x</script>" in reader.text and "a & b <i>" in reader.text and "s<0" in reader.text
    assert "<script" not in Report(recipe="<b>", graphs=(GraphReport(sites=(site,), training=True),))._repr_html_()


def test_equal_layers_are_one_row():
    assert read(qc.explain(Net(blocks=3), X)).rows == 1 + 3  # up and down of the layers, and the last product


def test_recipes_are_tables():
    one = read(qc.recipe("quartet2"))
    assert one.rows == 1 + 6 and "nvfp4-eden" in one.text and "no trust mask" in one.text
    assert read(qc.recipes()).rows == 1 + len(qc.recipes())
    assert str(qc.recipes()).splitlines()[2].startswith("quartet ")


def test_statistics_are_a_table():
    record = {"matmul": "<up>", "graph": "training", "gemm": "fprop"}
    both = [Statistic(operand=operand, quantizer="mxfp4-quest", amax=2.0, **record) for operand in ("X", "W")]
    reader = read(Stats(tuple(both)))
    assert reader.rows == 2 and "<up>" in reader.text and "amax, the largest magnitude" in reader.text


def test_a_picture_has_a_bar_for_each_line(tmp_path):
    pytest.importorskip("matplotlib")
    report = qc.explain(Net(blocks=3), X, exclude=["layers.0.up"])
    figure = report.plot(tmp_path / "report.png")
    (panel,) = figure.axes
    names = [label.get_text() for label in panel.get_yticklabels()]
    assert names == ["layers.0.up", "layers.0-2.down (x3)", "layers.1-2.up (x2)", "out"]
    assert sum(bar.get_width() for bar in panel.patches) == pytest.approx(100)
    assert {text.get_text() for text in panel.get_legend().texts} == {"fp4", "float32"}
    assert (tmp_path / "report.png").stat().st_size > 1000


def test_a_picture_without_matplotlib_or_without_sizes_says_so(monkeypatch):
    empty = Report(recipe="quartet", graphs=())
    with pytest.raises(qc.ReportError, match="nothing to show"):
        empty.plot()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(qc.ReportError, match="pip install matplotlib"):
        empty.plot()
