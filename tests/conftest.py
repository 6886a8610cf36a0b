"""What every test has: no progress bars, no window, and nothing written to the learner's own files."""

import os

import matplotlib
import pytest

matplotlib.use("Agg")
os.environ.update(COURSE_BARS="off", COURSE_VIZ="compact")
for name in ("COURSE_MODEL", "COURSE_REAL", "COURSE_REPORT"):  # the defaults, whatever the shell says
    os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def own_progress_file(tmp_path, monkeypatch):
    """Attempts made in a test go to a file of that test."""
    monkeypatch.setenv("COURSE_PROGRESS", str(tmp_path / "progress.jsonl"))
