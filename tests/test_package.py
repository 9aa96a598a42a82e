"""The package's names."""

import pathlib
import re
import subprocess
import sys

import pytest

import tfsymadj


def test_dir():
    names = dir(tfsymadj)
    assert names == sorted([*tfsymadj.__all__, "bijectors"])
    for name in names:
        assert getattr(tfsymadj, name) is not None
    assert not hasattr(tfsymadj, "_bijectors")


def test_unknown_names():
    with pytest.raises(AttributeError, match="module 'tfsymadj' has no attribute 'odeit'"):
        tfsymadj.odeit  # noqa: B018


def test_all_can_be_imported():
    names = {}
    exec("from tfsymadj import *", names)
    assert set(tfsymadj.__all__) <= set(names)


def test_bijectors_are_loaded_on_demand():
    code = (
        "import sys, tfsymadj; assert 'tfsymadj.bijectors' not in sys.modules; "
        "tfsymadj.bijectors.CNF; assert 'tfsymadj.bijectors' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_modules_of_before():
    from tfsymadj.controllers import Proposal
    from tfsymadj.tableaus import METHODS

    assert Proposal is tfsymadj.Proposal is tfsymadj.controllers.Proposal
    assert METHODS is tfsymadj.METHODS is tfsymadj.tableaus.METHODS


def test_citation_has_the_version():
    text = (pathlib.Path(__file__).parents[1] / "CITATION.cff").read_text()
    assert re.findall(r"^version: (.*)$", text, re.MULTILINE) == [tfsymadj.__version__]
