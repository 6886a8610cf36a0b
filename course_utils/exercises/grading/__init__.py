"""Grading a folder of submitted notebooks: `python -m course_utils grade FOLDER --out grades.csv`.

Each notebook is run behind walls (`walls`, `kernel`), and no exercise is passed without the check outside of them
(`judging`). Outputs and progress that a submission brings are not looked at. Notebooks are graded side by side, and
what is done is kept in `<out>.partial`: a run that was ended goes on where it was.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from course_utils.exercises.grading import elsewhere, engine
from course_utils.exercises.grading.engine import ENVIRONMENT, rows_of
from course_utils.exercises.grading.judging import CannotGrade, Limits
from course_utils.exercises.grading.school import (
    write_canvas,
    write_gradescope,
    write_gradescope_results,
    write_moodle,
)
from course_utils.exercises.grading.submissions import Submission, find
from course_utils.exercises.grading.table import STATUSES, Journal, Row, legible, summary

__all__ = ["CannotGrade", "ENVIRONMENT", "Limits", "Row", "STATUSES", "grade", "rows_of", "summary", "write_canvas",
           "write_gradescope", "write_gradescope_results", "write_moodle"]

USUAL_LIMITS = Limits()

# --- a folder ----------------------------------------------------------------------------------------------


def grade(folder: Path, out: Path, limits: Limits = USUAL_LIMITS, jobs: int | None = None,
          dask: str | None = None) -> list[Row]:
    """Judge every notebook under `folder`, write the rows to `out` as CSV, and return them.

    Args:
        jobs: how many notebooks at a time; as many as there are cores, and memory for, if not given.
        dask: the address of a Dask scheduler, to grade on its workers instead.

    Raises:
        CannotGrade: before any work, when the folder, the output or this system will not do.
    """
    _can_grade(folder, out)
    submissions = _with_rows(list(find(folder)))
    if not submissions:
        raise CannotGrade(f"there is nothing in {folder} or the folders in it")
    if not dask:
        engine.prepare()
    journal = Journal(out.with_name(out.name + ".partial"), limits)
    done = {each.name: rows for each in submissions if (rows := journal.rows_of(each)) is not None}
    waiting = [each for each in submissions if each.name not in done]
    with tqdm(total=len(submissions), initial=len(done), desc="grading", unit="notebook", disable=None) as bar:
        for submission, rows in _spread(waiting, limits, jobs, dask):
            done[submission.name] = journal.add(submission, rows)
            bar.update()
    rows = [row for each in submissions for row in done[each.name]]
    journal.close_into(out, rows)
    return rows


def _spread(waiting: Sequence[Submission], limits: Limits, jobs: int | None,
            dask: str | None) -> Iterator[tuple[Submission, list[Row]]]:
    if dask:
        return elsewhere.graded(waiting, limits, dask)
    return engine.graded(waiting, limits, min(jobs or engine.usual_jobs(), len(waiting)) or 1)


def _can_grade(folder: Path, out: Path) -> None:
    if not hasattr(os, "fork") or not sys.platform.startswith("linux"):
        raise CannotGrade("grading needs Linux (on Windows: WSL; elsewhere: a container)")
    if folder.is_file():
        raise CannotGrade(f"{folder} is a file: name the folder that it is in")
    if not folder.is_dir():
        raise CannotGrade(f"there is no folder {folder}")
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK) or out.is_dir():
        raise CannotGrade(f"{out} cannot be written: name a file in a folder that exists")


def _with_rows(found: list[Submission]) -> list[Submission]:
    """Without the files that are no notebooks, where the same student has handed in one; these are named on stderr."""
    with_notebook = {each.student for each in found if not each.problem}
    extra = [each for each in found if each.problem.startswith("not a notebook") and each.student in with_notebook]
    if extra:
        names = ", ".join(legible(each.name) for each in extra[:10]) + (", …" if len(extra) > 10 else "")
        print(f"{len(extra)} files beside notebooks were left out: {names}", file=sys.stderr)
    return [each for each in found if each not in extra]
