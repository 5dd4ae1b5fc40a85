"""Every option is a keyword that `help` shows; an unknown one is still our error."""

from __future__ import annotations

import inspect
import pydoc

import pytest

import quartet_compile as qc
from quartet_compile.config.listed import DEFAULTS, Options
from quartet_compile.config.options import OPTIONS, configure

FUNCTIONS = [qc.quartet, qc.enable, qc.explain, qc.graph_diff, qc.cross_compile, qc.register_backend]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_each_option_is_a_keyword_with_its_type(function):
    parameters = inspect.signature(function).parameters
    listed = {name: parameter for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY}
    assert set(OPTIONS) <= set(listed) and "options" not in parameters
    assert {name: listed[name].default for name in OPTIONS} == DEFAULTS
    assert all(listed[name].annotation for name in OPTIONS)


def test_help_shows_them():
    assert "exclude: 'Globs' = ()" in pydoc.render_doc(qc.quartet, renderer=pydoc.plaintext)


def test_the_tables_have_the_same_options_and_the_defaults_are_those():
    assert set(Options.__annotations__) == set(DEFAULTS) == set(OPTIONS)
    assert configure(DEFAULTS) == configure({})


def test_an_unknown_one_is_told_of():
    with pytest.raises(qc.OptionError, match=r"'excldue' \(did you mean 'exclude'\?\)"):  # codespell:ignore
        qc.quartet(excldue=["*"])  # codespell:ignore
