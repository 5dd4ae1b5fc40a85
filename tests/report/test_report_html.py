"""The report in a notebook: every matmul is in it, and nothing in it is markup of the user's."""

from __future__ import annotations

from html.parser import HTMLParser

import torch
from models import Net

import quartet_compile as qc
from quartet_compile.report.report import GraphReport, Report, Site

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


def read(report: Report) -> Reader:
    reader = Reader()
    reader.feed(report._repr_html_())
    reader.close()
    assert reader.open == []
    return reader


def test_every_matmul_has_a_row():
    report = qc.explain(Net(blocks=2), X, exclude=["layers.0.*", "no_such_*"])
    reader = read(report)
    assert reader.rows == 1 + len(report.sites)
    for site in report.sites:
        assert site.name in reader.text and site.reason in reader.text
    assert "3 of 5 matmuls in FP4" in reader.text
    assert "exclude='no_such_*'" in reader.text and "scaled_mm" in reader.text


def test_names_are_no_markup():
    site = Site(
        name="<script>x</script>", shape=("s<0", 1, 2), dtype="float32", rewritten=False, reason="a & b <i>", gemms={}
    )
    reader = read(Report(recipe="<b>", graphs=(GraphReport(sites=(site,), training=True),)))
    assert "<script>x</script>" in reader.text and "a & b <i>" in reader.text and "s<0" in reader.text
    assert "<script" not in Report(recipe="<b>", graphs=(GraphReport(sites=(site,), training=True),))._repr_html_()
