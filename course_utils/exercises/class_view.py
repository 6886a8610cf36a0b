"""A class's progress, from the files of attempts that its learners keep in a folder which the instructor can read.

Nobody is watched unasked: a file is written there only where a learner, or the hub that they agreed to use, sets
`COURSE_PROGRESS` to a file in that folder. The learner's name is the file's: `ada.jsonl`.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from course_utils.exercises import progress_store


def class_table(folder: Path, total: dict[str, int]) -> list[list[str]]:
    """Under a header a row for each learner: exercises passed by lesson, the last attempt, what stopped it. Then means.

    Args:
        folder: where `NAME.jsonl` lie, one for each learner.
        total: how many exercises each lesson has, {"01": 6, …}.

    Raises:
        FileNotFoundError: if the folder holds no such file.
    """
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no file of attempts: one for each learner is wanted, ada.jsonl")
    header = ["learner", *(f"{lesson} of {n}" for lesson, n in total.items()), "last attempt", "last mistake"]
    rows, passed, mistakes = [], Counter[str](), Counter[str]()
    for file in files:
        entries = progress_store.read(file)
        standings = progress_store.standings(entries)
        done = Counter(exercise.split(".")[0] for exercise, standing in standings.items() if standing.passed)
        latest = max(entries, key=_time, default={})
        passed += done
        mistakes.update(f"{entry['id']}: {entry['mistake']}" for entry in entries if entry.get("mistake"))
        rows.append([file.stem, *(str(done[lesson] or "·") for lesson in total), _when(latest), _what(latest)])
    mean = [f"{passed[lesson] / len(files):.1f}" for lesson in total]
    return [header, *rows, ["mean", *mean, "", "; ".join(f"{n} × {name}" for name, n in mistakes.most_common(1))]]


def _time(entry: dict) -> float:
    """Seconds since 1970; 0 in an entry that has no time, or something else in its place."""
    return entry["time"] if isinstance(entry.get("time"), (int, float)) else 0


def _when(entry: dict) -> str:
    return time.strftime("%d %b %H:%M", time.localtime(_time(entry))) if _time(entry) else "–"


def _what(entry: dict) -> str:
    """What stopped a learner last: nothing, if the last attempt passed."""
    if entry.get("verdict") in (None, "passed"):
        return ""
    return f"{entry['id']}: {entry.get('mistake') or entry['verdict']}"
