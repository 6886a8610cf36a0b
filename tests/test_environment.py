"""The locks, environment.yml and pyproject.toml agree with each other and with what the package imports."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from setuptools import find_packages

tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BASE = [Requirement(text) for text in PROJECT["dependencies"]]
EXTRAS = {name: [Requirement(text) for text in texts] for name, texts in PROJECT["optional-dependencies"].items()}
# Not in the second environment, which has no notebooks; pip is what reads the locks.
FOR_NOTEBOOKS = {"ipykernel", "ipywidgets", "jupyterlab", "latex2mathml", "nbclient", "nbconvert", "nbformat"}
DEV, MORE = EXTRAS["dev"], [each for name in ("book", "browser", "dask", "flakes", "lint") for each in EXTRAS[name]]


def pins(name: str) -> dict[str, str]:
    """{distribution: version} of a lock; every line must be `name==version`."""
    found = {}
    for line in (ROOT / name).read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            (pin,) = requirement.specifier
            assert pin.operator == "==" and not requirement.url and not requirement.extras, line
            found[canonicalize_name(requirement.name)] = pin.version
    return found


def test_each_lock_has_a_version_that_pyproject_allows():
    main, more, peers = (pins(f"requirements{name}.lock") for name in ("", "-more", "-peers"))
    without_notebooks = [each for each in BASE if each.name not in FOR_NOTEBOOKS]
    for lock, requirements in ((main, BASE + DEV), (main | more, MORE), (peers, without_notebooks)):
        for requirement in requirements:
            if requirement.name == "pip":
                continue
            assert requirement.specifier.contains(lock[canonicalize_name(requirement.name)]), requirement
    assert not set(main) & set(more)


def test_ranges_have_lower_bounds_only():
    for requirement in BASE + DEV + MORE:
        assert [s.operator for s in requirement.specifier] == [">="], requirement


@pytest.mark.parametrize(
    "name", ["requirements.lock", "requirements-more.lock", "requirements-peers.lock", "environment.yml", "Makefile"])
def test_no_address_is_built_in(name):
    assert not re.search(r"https?://|--(extra-)?index-url \w|--find-links (?!build/room)", (ROOT / name).read_text())


def test_every_import_of_the_package_is_declared():
    modules = {"circuitsvis", "IPython"}  # imported inside functions, found below as well
    for path in (ROOT / "course_utils").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules.add(node.module.partition(".")[0])
    foreign = modules - set(sys.stdlib_module_names) - {"course_utils"}
    declared = {canonicalize_name(r.name) for r in BASE + EXTRAS["dask"]}
    assert {canonicalize_name(name) for name in foreign} <= declared


def test_every_subpackage_is_shipped():
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    folders = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "course_utils").rglob("*.py")}
    assert set(find_packages(ROOT, include=found["include"])) == {folder.replace("/", ".") for folder in folders}


def test_importing_the_package_is_cheap():
    code = "import sys, course_utils; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
