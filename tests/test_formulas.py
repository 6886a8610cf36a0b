"""Formulas: every one of the lessons can be drawn, and nothing else is taken for one."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

jupytext = pytest.importorskip("jupytext")
formulas = pytest.importorskip("course_utils.runs.formulas")

LESSONS = sorted((Path(__file__).resolve().parent.parent / "lessons").glob("[0-9][0-9]_*.py"))


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_every_formula_of_a_lesson_can_be_drawn(path):
    for cell in jupytext.read(path, fmt="py:percent").cells:
        for tex, block in formulas.formulas(cell.source) if cell.cell_type == "markdown" else ():
            assert "\\" not in "".join(ElementTree.fromstring(formulas.mathml(tex, block=block)).itertext()), tex


def test_a_fraction_is_drawn():
    fraction = ElementTree.fromstring(formulas.mathml(r"\frac{a}{b}", block=True))
    assert fraction.get("display") == "block"
    assert " ".join(each.tag.rpartition("}")[2] for each in fraction.iter()) == "math mrow mfrac mrow mi mrow mi"


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="cannot be drawn"):
        formulas.mathml(r"\begin{aligned} a &= b \end{aligned}")


def test_only_formulas_are_drawn():
    text = "pay $5 or $6, `$x$`, ```\n$y$\n``` and $z_1$:\n$$a\n= b$$"
    assert formulas.formulas(text) == [("z_1", False), ("a\n= b", True)]
    drawn = formulas.with_mathml(text)
    assert drawn.startswith("pay $5 or $6, `$x$`, ```\n$y$\n``` and <math") and drawn.count("<math") == 2
