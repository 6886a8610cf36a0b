"""What every test has: no progress bars, no window, and nothing written to the learner's own files."""

import os
import sys

import matplotlib
import pytest

sys.modules.setdefault("rfc3987_syntax", None)      # nbformat's validator would build a grammar of addresses, for 2 s
matplotlib.use("Agg")
os.environ.update(COURSE_BARS="off", COURSE_VIZ="compact")
for name in ("COURSE_MODEL", "COURSE_REAL", "COURSE_REPORT"):  # the defaults, whatever the shell says
    os.environ.pop(name, None)


@pytest.fixture(scope="session")
def progress_file(tmp_path_factory):
    return tmp_path_factory.mktemp("progress") / "progress.jsonl"


@pytest.fixture(autouse=True)
def own_progress_file(progress_file, monkeypatch):
    """Attempts made in a test go to a file that is empty when it begins."""
    progress_file.unlink(missing_ok=True)
    monkeypatch.setenv("COURSE_PROGRESS", str(progress_file))
