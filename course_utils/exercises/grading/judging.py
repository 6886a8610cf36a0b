"""One submission, from its cells to its verdicts: it runs behind the walls, and what it claims is tried outside.

A notebook's report (`kernel`) is believed where it speaks against the submission. An exercise that claims to be passed
is checked here once more, by the same check, on the answers that were reported: they are plain data, and no line of
the submission runs in this process.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import psutil
import torch

from course_utils.exercises import exercises_of
from course_utils.exercises.checking import Exercise, Verdict, assess
from course_utils.exercises.grading import plain, walls

PATIENCE = 10  # seconds by the clock for each second of processor time
SPARE_SECONDS = 10.0  # of processor time: for the check, beyond the function's own, and for a start
LOOK_EVERY = 0.25  # seconds
START_SECONDS = 600  # by the clock, for a nursery
RUNS = 4  # of a notebook whose cells end its process
STATUS_OF = {"passed": "passed", "not yet": "not attempted", "wrong": "wrong", "error": "crashed",
             "timed out": "timed out"}


class CannotGrade(Exception):
    """Nothing can be graded; the message says why and what would be right."""


@dataclass(frozen=True)
class Limits:
    """What a submission may use."""

    seconds: float = 60.0  # of processor time, for each exercise and each cell; ten times that for the whole notebook
    gigabytes: float = 4.0  # on top of what the grader itself uses


@dataclass
class Outcome:
    """What became of one exercise."""

    status: str
    mistake: str = ""
    detail: str = ""
    seconds: float = 0.0
    cell: int = -1


class Ended(Exception):
    """The notebook's process ended, or had to be ended; the message says how. `by_time`: it used up its time."""

    def __init__(self, message: str, by_time: bool = False) -> None:
        super().__init__(message)
        self.by_time = by_time


# --- the nursery, from outside -----------------------------------------------------------------------------


class Nursery:
    """The process behind the walls that notebooks are forked from; it ends with this one."""

    def __init__(self, alone: bool, user: int | None) -> None:
        command = [sys.executable, "-m", "course_utils.exercises.grading.kernel", "alone" if alone else "guarded"]
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        os.chmod(self.folder.name, 0o777)
        self.said = tempfile.TemporaryFile()
        self.control, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)  # a message is read whole, or not at all
        own = {} if alone else dict.fromkeys(("HOME", "TMPDIR", "IPYTHONDIR"), self.folder.name)
        self.process = subprocess.Popen(
            walls.behind_walls(command) if alone else command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL,
            stderr=self.said, env={**walls.ENVIRONMENT, **own}, cwd=self.folder.name,
            user=user, group=user, extra_groups=None if user is None else [])
        theirs.close()
        self.control.settimeout(START_SECONDS)
        if self._reply() != b"ready":
            raise CannotGrade(f"the processes for submissions do not start here: {self._last_words()}")

    def _reply(self) -> bytes:
        with suppress(OSError):
            return self.control.recvfrom(4096)[0]
        return b""

    def _last_words(self) -> str:
        self.process.kill()
        self.process.wait()
        self.said.seek(0)
        return (self.said.read().decode(errors="replace").strip().splitlines() or ["nothing was said"])[-1]

    @contextmanager
    def notebook(self, lessons: list[str], request: dict[str, Any]) -> Iterator[Connection]:
        """A connection to a new process that runs a notebook; at the end it is ended, with all that it started."""
        ours, theirs = socket.socketpair()
        socket.send_fds(self.control, [json.dumps(lessons).encode()], [theirs.fileno()])
        theirs.close()
        pipe = Connection(ours.detach())
        self.status: int | None = None
        try:
            pipe.send_bytes(plain.packed(request))
            yield pipe
        finally:
            self.end_notebook()
            pipe.close()

    def end_notebook(self) -> None:
        """End the notebook's process and all that it has started; `status` is then its exit status."""
        if self.status is None and self.process.poll() is None:
            with suppress(OSError):
                self.control.send(b"end")
            reply = self._reply()
            self.status = int(json.loads(reply)) if reply else 1
        if self.status is None:
            self.status = 1

    def uses(self) -> tuple[float, int]:
        """Processor seconds of all processes behind the walls, and how many there are."""
        seconds, number = 0.0, 0
        with suppress(psutil.Error):
            for each in psutil.Process(self.process.pid).children(recursive=True):
                with suppress(psutil.Error):
                    seconds, number = seconds + sum(each.cpu_times()[:4]), number + 1
        return seconds, number

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.control.close()
        self.folder.cleanup()


# --- a notebook's run --------------------------------------------------------------------------------------


@dataclass
class Run:
    """What has been reported of a notebook: of each exercise, of each cell's error, and where it was at the end."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)  # by cell
    at: int = -1  # the cell that is read or run
    judging: str = ""  # the exercise that is being judged


def run_notebook(
    nursery: Nursery, cells: list[str], own: list[int], lessons: list[str], limits: Limits,
    known: dict[str, Exercise], answers: dict[str, list[str]],
) -> Run:
    """Run a notebook; where a cell ends its process, again without that cell (`RUNS` times at most).

    Args:
        own: the numbers of the lesson's own cells.
        known: exercises by id.
        answers: the names of functions that are the course's own answer, by id.
    """
    skipped: list[int] = []
    lost = Run()
    while True:
        run, left = Run(), Allowance("the notebook", 10 * limits.seconds + SPARE_SECONDS)
        request = {"cells": cells, "own": own, "skipped": skipped, "seconds": limits.seconds, "answers": answers,
                   "gigabytes": limits.gigabytes, "notebook_seconds": left.seconds}
        try:
            with nursery.notebook(lessons, request) as pipe:
                _listen(nursery, pipe, run, limits, left, known)
            break
        except Ended as end:
            lost.errors[run.at] = f"{end}"
            if run.judging:
                lost.outcomes[run.judging] = Outcome("timed out" if end.by_time else "crashed", "", str(end),
                                                     cell=run.at)
            if run.at < 0 or run.at in skipped or len(skipped) >= RUNS - 1 or left.over():
                break
            skipped.append(run.at)
    for id, outcome in lost.outcomes.items():       # unless a later cell has another attempt at the same exercise
        if id not in run.outcomes or run.outcomes[id].cell < outcome.cell:
            run.outcomes[id] = outcome
    run.errors |= lost.errors
    return run


def _listen(nursery: Nursery, pipe: Connection, run: Run, limits: Limits, whole: Allowance,
            known: dict[str, Exercise]) -> None:
    """Take the reports of one run, until it ends.

    Raises:
        Ended: when its process ends before, or has to be ended.
    """
    meter = Meter(nursery)
    while True:
        what = f"cell {run.at + 1}" if run.at >= 0 else "the start"
        step = Allowance("the function" if run.judging else what, limits.seconds + SPARE_SECONDS)
        try:
            meter.wait(pipe, step, whole)
            report = plain.unpacked(pipe.recv_bytes(plain.ANSWER_BYTES + plain.TEXT_BYTES))
        except Ended:
            raise
        except (EOFError, OSError) as end:
            raise Ended(_how_it_ended(nursery, pipe)) from end
        except Exception as error:  # whatever reading such a thing may raise
            raise Ended("what its process sent is not a report") from error
        if not isinstance(report, dict) or "end" in report:
            return
        try:
            _take(report, run, known, limits)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Ended("what its process sent is not a report") from error


def _how_it_ended(nursery: Nursery, pipe: Connection) -> str:
    if not pipe.readable:  # a message of more bytes than are read closes it
        return "its process sent something else or too much"
    nursery.end_notebook()
    status = nursery.status or 0
    if status < 0 or status > 128:
        number = -status if status < 0 else status - 128
        return f"its process was ended by signal {signal.Signals(number).name}"
    return f"its process ended with status {status}"


def _take(report: dict[str, Any], run: Run, known: dict[str, Exercise], limits: Limits) -> None:
    if "reading" in report or "running" in report:
        run.at = int(report["reading"] if "reading" in report else report["running"])
    elif "judging" in report:
        run.judging, run.at = str(report["judging"]), int(report["cell"])
    elif "exercise" in report:
        run.judging = ""
        item = known.get(str(report["exercise"]))
        if item is None:
            return
        outcome = _outcome(report, item, limits)
        before = run.outcomes.get(item.id)
        if before is None or before.status == "not attempted" or outcome.status != "not attempted":
            run.outcomes[item.id] = outcome
    elif report.get("error"):
        run.errors[int(report["cell"])] = str(report["error"])[:500]


def _outcome(report: dict[str, Any], item: Exercise, limits: Limits) -> Outcome:
    """The verdict: what is reported, or, where that is "passed", what the check says of the answers here."""
    details = [(str(label), str(text)) for label, text in report.get("details", [])]
    mistake = report.get("mistake")
    verdict = Verdict(str(report["status"]), str(report.get("message", "")),
                      str(mistake) if mistake in item.mistakes else None, tuple(details))
    if verdict.passed:
        with stopped_here_after(limits.seconds + SPARE_SECONDS):
            verdict = assess(item, replayed(report["calls"]))
    status = STATUS_OF[verdict.status]
    if verdict.mistake:
        status, said = "named mistake", []
    else:
        said = [] if verdict.passed or report.get("stub") else [verdict.message]
        said += [text for label, text in verdict.details if label == "message"]
    said += [f"({report['remark']})"] if report.get("remark") else []
    text = " ".join(" ".join(map(str, said)).split())[:500]
    return Outcome(status, verdict.mistake or "", text, round(float(report.get("seconds", 0)), 1), int(report["cell"]))


def replayed(calls: list[dict[str, Any]]) -> Callable:
    """A function that answers as was noted, call after call, and changes its inputs as was noted."""
    left = iter(calls)

    def function(*args: Any, **kwargs: Any) -> Any:
        call = next(left, None)
        if call is None:
            raise ValueError("there are fewer answers than the check needs")
        if "raised" in call:
            raise plain.exception(call["raised"], str(call["message"]))
        inputs = list(plain.tensors_in((args, kwargs)))
        with torch.no_grad():
            for number, value in call["changed"]:
                inputs[number].data = value
        return plain.decoded(call["answer"])

    return function


# --- time --------------------------------------------------------------------------------------------------


@contextmanager
def stopped_here_after(seconds: float) -> Iterator[None]:
    """End a check of foreign answers that takes this much processor time: whatever they are, the grader goes on."""

    def stop(*_: Any) -> None:
        raise ValueError("checking the answers took too long")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@dataclass
class Allowance:
    """`seconds` of processor time for what goes on behind the walls, and PATIENCE times as many by the clock."""

    what: str
    seconds: float
    used: float = 0.0
    waited: float = 0.0  # seconds by the clock

    def over(self) -> bool:
        return self.used > self.seconds or self.waited > PATIENCE * self.seconds

    def spend(self, used: float, waited: float) -> None:
        """Count these seconds.

        Raises:
            Ended: when that is more than is allowed.
        """
        self.used, self.waited = self.used + used, self.waited + waited
        if self.over():
            raise Ended(f"{self.what} used {self.used:.1f} s of processor time in {self.waited:.0f} s by the clock "
                        f"(allowed: {self.seconds:g} in {PATIENCE * self.seconds:g})", by_time=True)


class Meter:
    """What goes on behind the walls, counted at most every LOOK_EVERY seconds."""

    def __init__(self, nursery: Nursery) -> None:
        self.nursery, self.clock = nursery, time.monotonic()
        self.used, _ = nursery.uses()

    def wait(self, pipe: Connection, *allowances: Allowance) -> None:
        """Return when there is something to read.

        Raises:
            Ended: when an allowance is used up, or there are too many processes.
        """
        ready = pipe.poll(LOOK_EVERY)
        while not ready or time.monotonic() > self.clock + LOOK_EVERY:
            (used, processes), clock = self.nursery.uses(), time.monotonic()
            for each in allowances:
                each.spend(max(0.0, used - self.used), clock - self.clock)
            self.used, self.clock = used, clock
            if processes > walls.PROCESSES:
                raise Ended(f"it started more than {walls.PROCESSES} processes")
            ready = ready or pipe.poll(LOOK_EVERY)


def exercises_by_id(lessons: list[str]) -> dict[str, Exercise]:
    """The exercises of these lessons, by id."""
    return {item.id: item for number in lessons for item in exercises_of(number)}
