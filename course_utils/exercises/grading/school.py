"""The verdicts as the systems of schools take them: tables for Moodle and Canvas, an autograder for Gradescope.

An exercise that is passed is a point. Of a student's notebooks each counts: what passed in one of them is passed.
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Iterable
from importlib.metadata import requires, version
from pathlib import Path

from packaging.requirements import Requirement

from course_utils.exercises import exercises_of
from course_utils.exercises.grading.table import Row, write_table
from course_utils.exercises.grading.walls import COURSE

Student = tuple[str, str]  # name and id
DISTRIBUTION = "faithful-circuits"
SETUP = """#!/usr/bin/env bash
set -e
apt-get update && apt-get install -y python{python} python{python}-venv bubblewrap
python{python} -m venv /autograder/venv
/autograder/venv/bin/pip install -r /autograder/source/requirements.txt
"""
RUN = """#!/usr/bin/env bash
export PYTHONPATH=/autograder/source
/autograder/venv/bin/python -m course_utils grade /autograder/submission --out /autograder/grades.csv \\
    --gradescope-results /autograder/results/results.json
"""


def best(rows: Iterable[Row]) -> dict[Student, dict[str, Row]]:
    """For each student the row of each exercise; of several, the first that is passed, or else the last."""
    found: dict[Student, dict[str, Row]] = {}
    for row in rows:
        of_student = found.setdefault((row.student, row.id), {})
        if row.exercise and (row.exercise not in of_student or of_student[row.exercise].status != "passed"):
            of_student[row.exercise] = row
    return found


def _said(row: Row) -> str:
    return f"{row.exercise}: {row.status}" + (f" ({row.mistake or row.detail})" if row.mistake or row.detail else "")


def write_moodle(file: Path, rows: list[Row]) -> None:
    """A grading worksheet for "Upload grading worksheet"; the students are those of "Download all submissions"."""
    lines: list[list[object]] = [["Identifier", "Full name", "Grade", "Maximum Grade", "Feedback comments"]]
    for (name, id), of_student in best(rows).items():
        points = sum(row.status == "passed" for row in of_student.values())
        said = "; ".join(map(_said, of_student.values())) or "no notebook that could be read"
        lines.append([f"Participant {id}" if id else "", name, points, len(of_student), said])
    write_table(file, lines)


def write_canvas(file: Path, rows: list[Row]) -> None:
    """A gradebook for "Import grades": a column for each lesson, with the points possible in the second line."""
    lessons = sorted({row.lesson for row in rows if row.lesson})
    most = [len(exercises_of(number)) for number in lessons]
    titles = ["Student", "ID", "SIS User ID", "SIS Login ID", "Section"]
    lines: list[list[object]] = [[*titles, *(f"Lesson {number}" for number in lessons)],
                                 ["    Points Possible", "", "", "", "", *most]]
    for (name, id), of_student in best(rows).items():
        passed = [row.lesson for row in of_student.values() if row.status == "passed"]
        lines.append([name, id, "", "", "", *map(passed.count, lessons)])
    write_table(file, lines)


# --- Gradescope --------------------------------------------------------------------------------------------


def write_gradescope_results(file: Path, rows: list[Row]) -> None:
    """One student's verdicts as the `results.json` of an autograder: a test for each exercise."""
    together = best(replace_student(row) for row in rows).get(("", ""), {})
    tests = [{"name": row.exercise, "score": float(row.status == "passed"), "max_score": 1.0, "output": _said(row),
              "status": "passed" if row.status == "passed" else "failed"} for row in together.values()]
    problems = [f"{row.submission}: {row.detail}" for row in rows if row.status == "unreadable"]
    if not tests:
        said = "\n".join(problems)
        tests = [{"name": "a notebook", "score": 0.0, "max_score": 1.0, "output": said, "status": "failed"}]
    file.write_text(json.dumps({"tests": tests, "output": "\n".join(problems)}, indent=1), encoding="utf-8")


def replace_student(row: Row) -> Row:
    """The row without its student's name: on Gradescope all files are one student's."""
    return Row(**{**vars(row), "student": "", "id": ""})


def write_gradescope(file: Path) -> None:
    """The zip of an autograder: what it installs, how it runs, and this course."""
    needed = [Requirement(text) for text in requires(DISTRIBUTION) or [] if "extra ==" not in text]
    pins = "".join(f"{each.name}=={version(each.name)}\n" for each in needed)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        texts = {"setup.sh": SETUP.format(python=python), "run_autograder": RUN, "requirements.txt": pins}
        for name, text in texts.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o755 << 16
            archive.writestr(entry, text)
        for folder in (COURSE, COURSE.parent / "notebooks"):
            for path in sorted(folder.rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts and ".ipynb_checkpoints" not in path.parts:
                    archive.write(path, path.relative_to(COURSE.parent))
