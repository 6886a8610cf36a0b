"""Numeric tolerance for nbval: two outputs are equal when their text is, and their floats are close.

A pytest plugin, loaded by the root conftest.py. nbval passes every text that it compares (stdout, stderr,
text/plain, text/html, text/latex, …) through `IPyNbCell.sanitize`; here that returns a string which compares
with tolerance. Whole numbers are text: they must be equal. Pictures are not compared by nbval.

A value on the edge between two printed numbers comes out as either, so the third significant digit and those after it
may differ by one unit in the last place that is printed: 0.72 (short for 0.720) and 0.721, but not 0.72 and 0.73.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
from pathlib import Path

import pytest

RTOL, ATOL = 1e-3, 5e-4
CELL_SECONDS = 600
REAL_MODEL = re.compile(r"\breal_model\b")  # the name of SmolLM2 in every lesson
TEMPORARY = tempfile.TemporaryDirectory(prefix="nbval-")  # removed when the process ends
FLOAT = re.compile(r"(?<![\w.])-?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+−]?\d+)?(?!\w)")


def same(reference: str, test: str) -> bool:
    """Whether two texts are equal up to their floats, and each pair of floats is close."""
    if FLOAT.sub("#", reference) != FLOAT.sub("#", test):
        return False
    pairs = zip(FLOAT.findall(reference), FLOAT.findall(test), strict=True)
    return all(math.isclose(_number(a), _number(b), rel_tol=RTOL, abs_tol=max(ATOL, _last_place(a, b)))
               for a, b in pairs)


def _last_place(*texts: str) -> float:
    """One unit (and a little for its own rounding) of the last decimal printed, if that is a third digit or later."""
    longest = max(texts, key=len).lstrip("-")
    if re.search("[eE]", longest):
        return 0.0
    decimals = len(longest.partition(".")[2])
    significant = len(longest.replace(".", "").lstrip("0"))
    return 1.01 * 10.0 ** -decimals if significant >= 3 else 0.0


def _number(text: str) -> float:
    """A float as it was printed, perhaps with a real minus sign in its exponent."""
    return float(text.replace("−", "-"))


class TolerantText(str):
    """A string that equals another one when `same` says so."""

    def __eq__(self, other):
        return same(self, other) if isinstance(other, str) else NotImplemented

    def __ne__(self, other):
        return not self == other

    __hash__ = None     # type: ignore[assignment]   # Python's own way to say so


def pytest_configure(config):
    """Give nbval the tolerance, a time limit for each cell, and nothing else."""
    if not config.pluginmanager.hasplugin("nbval"):
        return
    from forked_kernels import use_forked_kernels
    from nbval.plugin import IPyNbCell

    if hasattr(config, "workerinput"):      # a process for many notebooks
        use_forked_kernels()
    if config.option.nbval_cell_timeout == 2000:  # nbval's own default
        config.option.nbval_cell_timeout = CELL_SECONDS
    if not hasattr(IPyNbCell, "exact_sanitize"):
        IPyNbCell.exact_sanitize = IPyNbCell.sanitize
        IPyNbCell.sanitize = _tolerant_sanitize


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Before the first cell of a notebook starts its kernel: the variables the solutions were made with."""
    if item.path.suffix == ".ipynb":
        from course_utils.runs import course_environment

        folder = Path(TEMPORARY.name, item.path.stem)
        folder.mkdir(exist_ok=True)
        os.environ.update(course_environment(folder))
        os.environ.pop("COURSE_MODEL", None)


def pytest_collection_modifyitems(config, items):
    """With COURSE_REAL=skip the cells on the real model are left out, and counted as deselected."""
    if os.environ.get("COURSE_REAL") != "skip":
        return
    left_out = [item for item in items if item.path.suffix == ".ipynb" and REAL_MODEL.search(item.cell.source)]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


def _tolerant_sanitize(self, text):
    clean = self.exact_sanitize(text)
    return TolerantText(clean) if isinstance(clean, str) else clean
