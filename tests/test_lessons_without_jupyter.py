"""The worked lessons as plain Python, so that they are also run in the second environment, on TransformerLens 3.9.0."""

import json
from pathlib import Path

import pytest

from course_utils import claims, measured
from course_utils.exercises import progress_store

SOLUTIONS = sorted((Path(__file__).parent.parent / "solutions").glob("*.ipynb"))
SHORT = SOLUTIONS[:2]                                               # the long ones take a minute each


@pytest.mark.slow
@pytest.mark.parametrize("path", [
    pytest.param(path, marks=pytest.mark.older if path in SHORT else pytest.mark.matrix, id=path.stem)
    for path in SOLUTIONS])
def test_the_worked_lesson_keeps_its_promises(path, tmp_path, monkeypatch, real="skip"):
    """Every exercise passes and every measured number is within its bounds, every claim holds."""
    report = tmp_path / "report.jsonl"
    monkeypatch.setenv("COURSE_REPORT", str(report))
    monkeypatch.setenv("COURSE_REAL", real)
    notebook, names = json.loads(path.read_text(encoding="utf-8")), {"display": lambda shown: None}
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code" and cell["id"] != "setup":  # that one has a magic
            exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), names)

    stub_count = sum("@exercise(" in "".join(cell["source"]) for cell in notebook["cells"]
                     if cell["cell_type"] == "code")
    verdicts = [entry["verdict"] for entry in progress_store.read()]
    assert verdicts == ["passed"] * stub_count and stub_count >= 4
    rows = measured.read(report)
    assert rows and all(measured.passed(row) for row in rows), [row for row in rows if not measured.passed(row)]
    assert all(row["holds"] for row in claims.read(report)), [row for row in claims.read(report) if not row["holds"]]
