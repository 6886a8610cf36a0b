"""The locks, environment.yml and pyproject.toml agree with each other and with what the package imports."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from setuptools import find_packages

yaml = pytest.importorskip("yaml")
tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BASE = [Requirement(text) for text in PROJECT["dependencies"]]
EXTRAS = {name: [Requirement(text) for text in texts] for name, texts in PROJECT["optional-dependencies"].items()}
DEV, MORE = EXTRAS["dev"], [each for name in ("book", "browser", "flakes", "lint") for each in EXTRAS[name]]


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


@pytest.mark.parametrize("requirement", BASE + DEV, ids=str)
def test_the_lock_has_a_version_that_pyproject_allows(requirement):
    assert requirement.specifier.contains(pins("requirements.lock")[canonicalize_name(requirement.name)])


@pytest.mark.parametrize("requirement", MORE, ids=str)
def test_the_two_locks_have_a_version_of_what_only_the_book_and_the_tests_need(requirement):
    locked = pins("requirements.lock") | pins("requirements-more.lock")
    assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)])


def test_the_two_locks_have_nothing_in_common():
    assert not set(pins("requirements.lock")) & set(pins("requirements-more.lock"))


@pytest.mark.parametrize("requirement", BASE, ids=str)
def test_the_peer_lock_has_a_version_that_pyproject_allows(requirement):
    locked = pins("requirements-peers.lock")
    assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)])


@pytest.mark.parametrize("requirement", BASE + DEV + MORE, ids=str)
def test_ranges_have_lower_bounds_only(requirement):
    assert [s.operator for s in requirement.specifier] == [">="]


def test_the_locks_hold_the_versions_that_the_course_names():
    main, peers = pins("requirements.lock"), pins("requirements-peers.lock")
    assert main["torch"] == peers["torch"] == "2.13.0"  # no build tag: a CPU build satisfies it too
    assert (main["transformer-lens"], peers["transformer-lens"]) == ("4.3.0", "3.9.0")
    assert peers["sae-lens"].startswith("6.54")


@pytest.mark.parametrize(
    "name", ["requirements.lock", "requirements-more.lock", "requirements-peers.lock", "environment.yml", "Makefile"])
def test_no_address_is_built_in(name):
    assert not re.search(r"https?://|--(extra-)?index-url \w|--find-links (?!build/room)", (ROOT / name).read_text())


def test_environment_yml_is_the_interpreter_and_the_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, parts = environment["dependencies"]
    assert pip == "pip" and parts == {"pip": ["-c requirements.lock", "-e .[dev]"]}
    assert SpecifierSet(PROJECT["requires-python"]).contains(python.removeprefix("python=") + ".0")


def test_every_import_of_the_package_is_declared():
    modules = {"circuitsvis", "IPython"}  # imported inside functions, found below as well
    for path in (ROOT / "course_utils").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules.add(node.module.partition(".")[0])
    foreign = modules - set(sys.stdlib_module_names) - {"course_utils"}
    declared = {canonicalize_name(r.name) for r in BASE}
    assert {canonicalize_name(name) for name in foreign} <= declared


def test_every_subpackage_is_shipped():
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    folders = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "course_utils").rglob("*.py")}
    assert set(find_packages(ROOT, include=found["include"])) == {folder.replace("/", ".") for folder in folders}


def test_importing_the_package_is_cheap():
    code = "import sys, course_utils; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_ci_runs_make_test():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111 and "make test" in script.read_text()
    assert subprocess.run(["bash", "-n", script]).returncode == 0
