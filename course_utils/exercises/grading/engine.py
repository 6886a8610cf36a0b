"""Grading notebooks on one machine: side by side in processes, each with a nursery of its own behind walls.

A notebook is run there (`kernel`), and what came of it is judged outside (`judging`); a process that is killed is
replaced, and costs nobody else a verdict.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import torch
from tqdm import tqdm

from course_utils.exercises import exercises_of, lessons
from course_utils.exercises.checking import assess
from course_utils.exercises.grading import walls
from course_utils.exercises.grading.judging import CannotGrade, Limits, Nursery, Run, exercises_by_id, run_notebook
from course_utils.exercises.grading.submissions import Submission, Unreadable, read_cells, shipped_cells
from course_utils.exercises.grading.table import Row, legible_row
from course_utils.models import load_model

GIGABYTES_OF_A_JOB = 2.0  # of memory: a checking process, a nursery, and a notebook
ENVIRONMENT = {name: walls.ENVIRONMENT[name] for name in (
    "COURSE_MODEL", "COURSE_REAL", "COURSE_BARS", "HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES")}


def prepare() -> None:
    """What all checking processes inherit: one thread, no GPU, the model, and which walls stand."""
    os.environ.update(ENVIRONMENT)
    torch.set_num_threads(1)  # a forked process must find no threads of its parent's
    tqdm.monitor_interval = 0  # no thread for the progress bars either
    tqdm.set_lock(threading.RLock())  # tqdm's own is shared with forked processes, and one that is killed may hold it
    load_model("tiny")
    _walls()


@lru_cache
def _walls() -> dict[str, Any]:
    """The arguments of a `Nursery` here; says on stderr, once, when the first wall does not stand."""
    try:
        return {"alone": True, "user": walls.try_walls()}
    except walls.NoWalls as problem:
        print(f"warning: submissions are not walled off, only watched: {problem}. "
              "Grade strangers' code in a container.", file=sys.stderr)
        nobody_can = os.getuid() == 0 and _open_to_all(sys.executable)
        return {"alone": False, "user": walls.NOBODY if nobody_can else None}


def _open_to_all(file: str) -> bool:
    """Whether every user may read it, so that nobody can run Python."""
    path = Path(file).resolve()
    return all(each.stat().st_mode & 0o005 == 0o005 for each in (path, *path.parents))


def usual_jobs() -> int:
    """One for each core, if there is memory for them."""
    cores = len(os.sched_getaffinity(0))
    return max(1, min(cores, int(psutil.virtual_memory().available / (GIGABYTES_OF_A_JOB * 1e9))))


# --- side by side ------------------------------------------------------------------------------------------

_nursery: Nursery | None = None  # of this process, which grades one notebook after the other


def graded(waiting: Sequence[Submission], limits: Limits, jobs: int) -> Iterator[tuple[Submission, list[Row]]]:
    """Each submission with its rows, in the order in which they are done; a process that is killed is replaced."""
    left, deaths = {each.name: each for each in waiting}, Counter[str]()
    while left:
        fork = multiprocessing.get_context("fork")
        pool = ProcessPoolExecutor(jobs, fork, initializer=walls.die_with_parent)
        futures: dict[Future, Submission] = {pool.submit(rows_in, each, limits): each for each in left.values()}
        try:
            for future in as_completed(futures):
                submission = futures[future]
                rows = future.result()
                del left[submission.name]
                yield submission, rows
        except BrokenProcessPool:  # one of its processes was killed, by whom is not known: each again, by itself
            for each in list(left.values()):
                deaths[each.name] += 1
                if deaths[each.name] > 1 and jobs == 1:
                    del left[each.name]
                    yield each, [_row(each, status="unreadable", detail="grading it ends the grader's own process")]
                    break
            jobs = 1
        finally:
            pool.shutdown(wait=not left, cancel_futures=True)    # all done: its threads end before Python


def rows_in(submission: Submission, limits: Limits) -> list[Row]:
    return [legible_row(row) for row in rows_of(submission, limits)]


def rows_of(submission: Submission, limits: Limits) -> Iterator[Row]:
    """A row for each exercise of each lesson that the notebook belongs to, or one that says it is unreadable."""
    try:
        if submission.problem:
            raise Unreadable(submission.problem)
        cells = read_cells(submission.content)
        named = _lessons_of(submission, cells)
    except Unreadable as problem:
        yield _row(submission, status="unreadable", detail=str(problem))
        return
    known = exercises_by_id(lessons())
    run = _run(cells, named, limits)
    numbers = {id.partition(".")[0] for id, outcome in run.outcomes.items() if outcome.status != "not attempted"}
    for item in known.values():
        number = item.id.partition(".")[0]
        if number in numbers or number in named:
            yield _row(submission, number, item.id, *_verdict(item.id, cells, run))


def _row(submission: Submission, lesson: str = "", exercise: str = "", status: str = "", mistake: str = "",
         detail: str = "", seconds: float = 0.0) -> Row:
    return Row(submission.name, *submission.student, lesson, exercise, status, mistake, detail, seconds)


def _run(cells: list[str], numbers: list[str], limits: Limits) -> Run:
    global _nursery
    shipped = set().union(*map(shipped_cells, numbers))
    own = [number for number, source in enumerate(cells) if source.strip() in shipped]
    if len(own) == len(cells):
        return Run()  # nothing was written
    for number in numbers:
        _warm(number)
    known, answers = exercises_by_id(lessons()), _answers(tuple(numbers))
    for last in (False, True):  # a nursery that has died, of whatever, is replaced
        if _nursery is None or _nursery.process.poll() is not None:
            _nursery = Nursery(**_walls())
        try:
            return run_notebook(_nursery, cells, own, numbers, limits, known, answers)
        except OSError as error:
            _nursery.close()
            if last:
                raise CannotGrade(f"the processes for submissions do not last here: {error}") from error
    raise AssertionError("not reached")


@lru_cache
def _warm(number: str) -> None:
    """Check the course's own functions once: then the models are loaded, and the checks are known to work here."""
    for item in exercises_of(number):
        verdict = assess(item, item.reference)
        if not verdict.passed:
            raise CannotGrade(f"the course's own {item.id} does not pass here: {verdict.message}; "
                              "is it installed whole?")


@lru_cache
def _answers(numbers: tuple[str, ...]) -> dict[str, list[str]]:
    """The names of the functions that are the course's own answer to an exercise."""
    names = {item.id: {item.reference.__name__} for number in numbers for item in exercises_of(number)}
    for number in numbers:
        module = import_module(f"course_utils.exercises.checks.lesson_{number}")
        for id, function in getattr(module, "IN_THE_PACKAGE", {}).items():
            names.setdefault(id, set()).add(function.__name__)
    return {id: sorted(each) for id, each in names.items()}


# --- what a notebook says of an exercise -------------------------------------------------------------------

NAMED = re.compile(r"""(\w+)\(\s*(?:id\s*=\s*)?["'](\d\d\.\w+)["']""")  # exercise("02.stripe"), by whatever name
NOT_EXERCISES = {"hint", "solution", "predict", "reveal", "progress", "get", "record"}


def _named_in(source: str) -> set[str]:
    return {id for word, id in NAMED.findall(source) if word not in NOT_EXERCISES}


def _lessons_of(submission: Submission, cells: list[str]) -> list[str]:
    """The lessons of the exercises in it; if it has none, the lesson in the file's name."""
    known = lessons()
    found = sorted({id.partition(".")[0] for id in _named_in("\n".join(cells))} & set(known))
    in_name = [number for number in re.findall(r"(?<!\d)\d\d(?!\d)", submission.stem) if number in known]
    if not found and not in_name:
        raise Unreadable("it has no exercise of the course, and no lesson's number in the file's name")
    return found or in_name[:1]


def _verdict(id: str, cells: list[str], run: Run) -> tuple[str, str, str, float]:
    """Status, named mistake, detail and seconds; of an exercise that was not judged, why it was not."""
    outcome = run.outcomes.get(id)
    places = [number for number, source in enumerate(cells) if id in _named_in(source)]
    failed = [number for number in places if number in run.errors and (not outcome or outcome.cell < number)]
    if (outcome is None or outcome.status == "not attempted") and failed:
        return "crashed", "", f"its cell: {run.errors[failed[-1]]}", 0.0
    if outcome is not None:
        detail = outcome.detail
        if outcome.status == "crashed" and (before := [each for each in run.errors if each < outcome.cell]):
            detail += f" (a cell above failed: {run.errors[before[-1]][:120]})"
        return outcome.status, outcome.mistake, detail, outcome.seconds
    if places and run.at >= 0 and any("NotImplementedError" not in cells[number] for number in places):
        return "not attempted", "", "found in the text, but no function was given to it when the notebook ran", 0.0
    return "not attempted", "", "" if places else f'the notebook has no function under @exercise("{id}")', 0.0
