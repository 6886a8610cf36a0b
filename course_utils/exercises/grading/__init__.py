"""Grading a folder of submitted notebooks: `python -m course_utils grade FOLDER --out grades.csv`.

Each attempted exercise is judged in two processes: one runs the check, the other (see `isolation`) runs the
learner's function. Outputs and progress that a submission brings are not looked at.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, fields, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from course_utils.exercises import exercises_of, get, lessons
from course_utils.exercises.cards import table_text
from course_utils.exercises.checking import Exercise, Verdict, assess
from course_utils.exercises.grading.allowance import Allowance, TimedOut
from course_utils.exercises.grading.isolation import Limits, isolated
from course_utils.exercises.grading.submissions import Attempt, Unreadable, attempts_in, read_cells
from course_utils.models import load_model

STATUSES = ("passed", "named mistake", "wrong", "crashed", "timed out", "not attempted", "unreadable")
STATUS_OF = {"passed": "passed", "not yet": "not attempted", "wrong": "wrong", "error": "crashed"}
SPARE_SECONDS = 60.0  # of processor time for the check itself, beyond the attempt's, which it waits for
USUAL_LIMITS = Limits()
ENVIRONMENT = {"COURSE_MODEL": "tiny", "COURSE_REAL": "skip", "COURSE_BARS": "off", "HF_HUB_OFFLINE": "1",
               "CUDA_VISIBLE_DEVICES": ""}  # a forked process cannot use a GPU that its parent has used


class CannotGrade(Exception):
    """Nothing can be graded; the message says why and what would be right."""


@dataclass(frozen=True)
class Row:
    """One line of the table: an exercise of a submission, or a submission that could not be read."""

    submission: str
    lesson: str
    exercise: str
    status: str
    mistake: str = ""
    detail: str = ""
    seconds: float = 0.0


def grade(folder: Path, out: Path, limits: Limits = USUAL_LIMITS) -> list[Row]:
    """Judge every notebook under `folder`, write the rows to `out` as CSV, and return them.

    The rows are written as they come to `<out>.partial`, which takes the place of `out` at the end.
    Raises:
        CannotGrade: before any work, when the folder, the output or this system will not do.
    """
    paths = _notebooks(folder, out)
    os.environ.update(ENVIRONMENT)
    torch.set_num_threads(1)  # a forked process must find no threads of its parent's
    tqdm.monitor_interval = 0  # no thread for the progress bars either
    tqdm.set_lock(threading.RLock())  # tqdm's own is shared with forked processes, and one that is killed may hold it
    load_model("tiny")  # so that forked processes need not import it all again
    partial = out.with_name(out.name + ".partial")
    rows = []
    with open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(field.name for field in fields(Row))
        for path in tqdm(paths, desc="grading", unit="notebook", disable=None):
            for row in map(_legible, rows_of(path, str(path.relative_to(folder)), limits)):
                writer.writerow(map(_safe_cell, astuple(row)))
                file.flush()
                rows.append(row)
    os.replace(partial, out)
    return rows


def _notebooks(folder: Path, out: Path) -> list[Path]:
    if not hasattr(os, "fork") or not sys.platform.startswith("linux"):
        raise CannotGrade("grading needs Linux (on Windows: WSL; elsewhere: a container)")
    if not folder.is_dir():
        raise CannotGrade(f"there is no folder {folder}")
    found = sorted(p for p in folder.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts and p.is_file())
    if not found:
        raise CannotGrade(f"there is no notebook (*.ipynb) in {folder} or the folders in it")
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK) or out.is_dir():
        raise CannotGrade(f"{out} cannot be written: name a file in a folder that exists")
    return found


def _legible(row: Row) -> Row:
    """The row with characters that neither a file nor a terminal can take (half of a surrogate pair) spelled out."""
    texts: dict[str, Any] = {name: value for name, value in vars(row).items() if isinstance(value, str)}
    return replace(row, **{name: text.encode(errors="backslashreplace").decode() for name, text in texts.items()})


def _safe_cell(value: object) -> object:
    """A text that a spreadsheet would take for a formula gets an apostrophe in front."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


# --- one submission ----------------------------------------------------------------------------------------


def rows_of(path: Path, name: str, limits: Limits) -> Iterator[Row]:
    """A row for each exercise of each lesson that the notebook belongs to, or one that says it is unreadable."""
    try:
        attempts = attempts_in(read_cells(path))
        numbers = _lessons_of(path, attempts)
    except Unreadable as problem:
        yield Row(name, "", "", "unreadable", detail=str(problem))
        return
    for number in numbers:
        for item in exercises_of(number):
            start = time.monotonic()
            status, mistake, detail = judge(item, attempts.get(item.id), limits)
            seconds = round(time.monotonic() - start, 1)
            yield Row(name, number, item.id, status, mistake, detail, seconds)


def _lessons_of(path: Path, attempts: dict[str, Attempt]) -> list[str]:
    """The lessons of the exercises in it; if it has none, the lesson in the file's name."""
    known = lessons()
    found = sorted({id.partition(".")[0] for id in attempts} & set(known))
    named = [number for number in re.findall(r"(?<!\d)\d\d(?!\d)", path.stem) if number in known]
    if not found and not named:
        raise Unreadable("it has no exercise of the course, and no lesson's number in the file's name")
    return found or named[:1]


def judge(item: Exercise, attempt: Attempt | None, limits: Limits) -> tuple[str, str, str]:
    """Status, named mistake and detail of one attempt. The check runs in a process of its own."""
    if attempt is None:
        return "not attempted", "", f'the notebook has no function under @exercise("{item.id}")'
    if attempt.problem:
        return "crashed", "", attempt.problem
    if attempt.empty:
        return "not attempted", "", ""
    _warm(item)
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    judging = fork.Process(target=_send_verdict, args=(sender, item, attempt, limits))
    judging.start()
    sender.close()
    try:
        Allowance("the check", limits.seconds + SPARE_SECONDS).wait(receiver, judging)
        return tuple(json.loads(receiver.recv_bytes()))
    except TimedOut as time_used:
        return "timed out", "", str(time_used)
    except EOFError:
        judging.join()
        return "crashed", "", f"the check ended without a verdict (status {judging.exitcode})"
    finally:
        judging.kill()
        judging.join()
        receiver.close()


_warmed: set[str] = set()


def _warm(item: Exercise) -> None:
    """Check the course's own function once: then the models are loaded, and the check is known to work here."""
    if item.id in _warmed:
        return
    verdict = assess(item, item.reference)
    if not verdict.passed:
        raise CannotGrade(f"the course's own {item.id} does not pass here: {verdict.message}; is it installed whole?")
    _warmed.add(item.id)


def _send_verdict(sender: Connection, item: Exercise, attempt: Attempt, limits: Limits) -> None:
    """The checking process: it never runs a line of the submission."""
    references: dict[str, Callable] = {}
    for name, id in attempt.others.items():
        try:
            references[name] = get(id).reference
        except ValueError:
            continue  # no such exercise: the name stays undefined, as in the notebook
    try:
        with isolated(attempt, limits, references) as function:
            result = _result(assess(item, function))
    except TimedOut as time_used:
        result = "timed out", "", str(time_used)
    sender.send_bytes(json.dumps(result).encode())


def _result(verdict: Verdict) -> tuple[str, str, str]:
    if verdict.mistake:
        return "named mistake", verdict.mistake, ""
    said = [] if verdict.passed else [verdict.message]
    said += [value for label, value in verdict.details if label == "message"]
    return STATUS_OF[verdict.status], "", " ".join(" ".join(said).split())[:500]


# --- the summary -------------------------------------------------------------------------------------------


def summary(rows: list[Row]) -> str:
    """For each submission, how many exercises have each status; then the most frequent mistakes."""
    counts: dict[str, dict[str, int]] = {}
    for row in rows:
        line = counts.setdefault(row.submission, dict.fromkeys(STATUSES, 0))
        line[row.status] += 1
    table = [[name, *(str(n) if n else "·" for n in line.values())] for name, line in counts.items()]
    common = Counter(f"{row.exercise}: {row.mistake}" for row in rows if row.mistake).most_common(5)
    lines = ["", "most frequent mistakes:", *(f"  {n} × {text}" for text, n in common)] if common else []
    return "\n".join([table_text(table, ["submission", *STATUSES]), *lines])
