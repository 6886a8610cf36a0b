"""The learner's progress: one line of JSON per attempt, in a local file that is only ever added to.

Every record is written by a single call to the operating system at the end of the file, and flushed to the
disk. So a kernel that is killed loses at most the record it was writing, and two kernels can write at once.
Each record begins with a line break instead of ending with one: a half-written record never spoils the next.
Lines that cannot be read are passed over.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from course_utils.house import is_printable, progress_file


def record(exercise_id: str, verdict: str, mistake: str | None = None, path: Path | None = None) -> None:
    """Add one attempt.

    Raises:
        OSError: when it could not be saved whole (read-only or full disk).
    """
    path = path or progress_file()
    entry = {"id": exercise_id, "verdict": verdict, "mistake": mistake, "time": int(time.time())}
    line = ("\n" + json.dumps(entry, ensure_ascii=False)).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        if os.write(file, line) != len(line):
            raise OSError("the disk is full: the attempt was not saved whole")
        os.fsync(file)
    finally:
        os.close(file)


def read(path: Path | None = None) -> list[dict]:
    """All attempts, oldest first; none when there is no file. Lines that are not attempts are passed over."""
    try:
        content = (path or progress_file()).read_bytes()
    except OSError:
        return []
    entries = []
    for line in content.split(b"\n"):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if _is_attempt(entry):
            entries.append(entry)
    return entries


def _is_attempt(entry: object) -> bool:
    """Whether this is what `record` writes: texts, of which the mistake may be missing."""
    return (isinstance(entry, dict) and is_printable(entry.get("id")) and is_printable(entry.get("verdict"))
            and is_printable(entry.get("mistake") or ""))


@dataclass
class Standing:
    """How far one exercise has got: an untouched stub ("not yet") does not count as an attempt."""

    attempts: int = 0
    passed: bool = False
    last_mistake: str = ""

    @property
    def status(self) -> str:
        return "passed" if self.passed else "tried" if self.attempts else "open"


def standings(entries: list[dict]) -> dict[str, Standing]:
    """The standing of each exercise that appears in the entries."""
    result: dict[str, Standing] = {}
    for entry in entries:
        standing = result.setdefault(entry["id"], Standing())
        standing.attempts += entry["verdict"] != "not yet"
        standing.passed |= entry["verdict"] == "passed"
        standing.last_mistake = str(entry.get("mistake") or standing.last_mistake)
    return result
