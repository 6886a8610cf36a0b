"""The table of verdicts: its rows, the journal that a killed run goes on from, the CSV file, the summary."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

import course_utils
from course_utils.exercises.cards import table_text
from course_utils.exercises.grading.judging import Limits
from course_utils.exercises.grading.submissions import Submission

STATUSES = ("passed", "named mistake", "wrong", "crashed", "timed out", "not attempted", "unreadable")


@dataclass(frozen=True)
class Row:
    """One line of the table: an exercise of a submission, or a submission that could not be read."""

    submission: str
    student: str
    id: str
    lesson: str
    exercise: str
    status: str
    mistake: str = ""
    detail: str = ""
    seconds: float = 0.0


# --- the journal -------------------------------------------------------------------------------------------


class Journal:
    """`<out>.partial`: a line of JSON for each notebook that is done, so that a later run need not judge it again."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self.path, self.settings = path, [limits.seconds, limits.gigabytes, course_utils.__version__]
        self.lines = dict(self._read())
        self.file = open(path, "a", encoding="utf-8")
        if path.stat().st_size:
            self.file.write("\n")  # what was being written when a run was killed stays a line of its own

    def _read(self) -> Iterator[tuple[str, list[Row]]]:
        if not self.path.is_file():
            return
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                key, rows = json.loads(line)
                yield key, [Row(*row) for row in rows]
            except (ValueError, TypeError):
                continue

    def _key(self, submission: Submission) -> str:
        parts = [submission.name, submission.problem, *self.settings]
        return hashlib.sha256(json.dumps(parts).encode() + submission.content).hexdigest()

    def rows_of(self, submission: Submission) -> list[Row] | None:
        """The rows of this very file, judged under these limits; None if there are none yet."""
        return self.lines.get(self._key(submission))

    def add(self, submission: Submission, rows: list[Row]) -> list[Row]:
        self.file.write(json.dumps([self._key(submission), [astuple(row) for row in rows]]) + "\n")
        self.file.flush()
        return rows

    def close_into(self, out: Path, rows: Sequence[Row]) -> None:
        """Write the table, and only then remove the journal."""
        self.file.close()
        write_table(out, [[field.name for field in fields(Row)], *map(astuple, rows)])
        self.path.unlink()


# --- the file ----------------------------------------------------------------------------------------------


def write_table(out: Path, lines: Sequence[Sequence[object]]) -> None:
    """Write a CSV file, whole or not at all; nothing in it is a formula to a spreadsheet."""
    new = out.with_name(out.name + ".new")
    with open(new, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([_safe_cell(value) for value in line] for line in lines)
    os.replace(new, out)


def legible_row(row: Row) -> Row:
    """The row with all texts spelled out."""
    texts: dict[str, Any] = {name: legible(value) for name, value in vars(row).items() if isinstance(value, str)}
    return replace(row, **texts)


def legible(text: str) -> str:
    """The text; signs that a terminal obeys or cannot show (controls, directions, half a pair) are spelled out."""
    return "".join(sign if unicodedata.category(sign) not in ("Cc", "Cf", "Cs", "Zl", "Zp") else
                   sign.encode("unicode_escape", "surrogatepass").decode() for sign in text)


def _safe_cell(value: object) -> object:
    """A text that a spreadsheet would take for a formula gets an apostrophe in front."""
    return f"'{value}" if isinstance(value, str) and value.lstrip().startswith(("=", "+", "-", "@")) else value


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
