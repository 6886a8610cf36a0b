"""What every test has: no progress bars, no window, and nothing written to the learner's own files."""

import os
from collections.abc import Callable
from pathlib import Path

import matplotlib
import pytest
from filelock import FileLock

from course_utils.models.importing import import_libraries

matplotlib.use("Agg")
os.environ.update(COURSE_BARS="off", COURSE_VIZ="compact")
for name in ("COURSE_MODEL", "COURSE_REAL", "COURSE_REPORT"):  # the defaults, whatever the shell says
    os.environ.pop(name, None)


def pytest_configure(config):
    if hasattr(config, "workerinput"):      # a process for many tests, which soon imports them anyway
        import_libraries()


@pytest.fixture(scope="session")
def progress_file(tmp_path_factory):
    return tmp_path_factory.mktemp("progress") / "progress.jsonl"


@pytest.fixture(autouse=True)
def own_progress_file(progress_file, monkeypatch):
    """Attempts made in a test go to a file that is empty when it begins."""
    progress_file.unlink(missing_ok=True)
    monkeypatch.setenv("COURSE_PROGRESS", str(progress_file))


@pytest.fixture(scope="session")
def once_for_all(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Path]:
    """once_for_all(name, make): the folder that make(folder) made, once, also when several processes run the tests."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def folder_of(name: str, make: Callable[[Path], None]) -> Path:
        folder, done = shared / name, shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                make(folder)
                done.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def wheel(once_for_all) -> Path:
    """The course's wheel."""
    from try_colab import make_wheel

    return next(once_for_all("wheel", make_wheel).glob("*.whl"))


@pytest.fixture(scope="module")
def browser():
    """Chromium. Skipped where playwright or a browser is missing; where the variable CI is "true" that fails."""
    from browser import FLAGS, find_chromium, what_is_missing

    if reason := what_is_missing():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as running:
        yield running.chromium.launch(executable_path=find_chromium(), args=FLAGS)
