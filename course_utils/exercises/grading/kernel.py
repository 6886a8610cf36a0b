"""What runs behind the walls: a nursery, and in a child of it, for each notebook, the notebook.

The notebook's cells run in order, as its own kernel would run them, and `@exercise` there runs the check as it does in
the notebook. What came of it is reported, with every answer that the function gave, as plain data. The report is a
claim: what it says against the submission is believed, and "passed" only if the check, run outside on the answers,
says so too (`judging`). So code that redefines the check here has won nothing.

The nursery has everything imported and every check tried, so that a child begins in milliseconds.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

import matplotlib.pyplot  # noqa: F401 (imported once, here, for all notebooks)
import torch
import tqdm
from IPython.core.interactiveshell import InteractiveShell
from torch import Tensor
from traitlets.config import Config

from course_utils import exercises
from course_utils.exercises.calling import is_stub
from course_utils.exercises.checking import Exercise, Verdict, assess
from course_utils.exercises.grading import cells, walls
from course_utils.exercises.grading.plain import encoded, packed, raised, tensors_in, unpacked
from course_utils.models import load_model

PATIENCE = 10  # seconds by the clock for each second of processor time that is allowed


class TimedOut(BaseException):
    """The time is used up. Not an Exception: no check must take it for an error of the function."""


# --- time --------------------------------------------------------------------------------------------------


@contextmanager
def stopped_after(seconds: float, what: str) -> Iterator[None]:
    """Stop what is inside after so many seconds of processor time, or PATIENCE times as many by the clock.

    Raises:
        TimedOut: inside; and again every second, if the code there takes no notice.
    """
    begun = time.process_time(), time.monotonic()

    def stop(*_: Any) -> None:
        used, waited = time.process_time() - begun[0], time.monotonic() - begun[1]
        raise TimedOut(f"{what} used {used:.1f} s of processor time in {waited:.0f} s by the clock "
                       f"(allowed: {seconds:g} in {PATIENCE * seconds:g})")

    clocks = ((signal.SIGPROF, signal.ITIMER_PROF, seconds), (signal.SIGALRM, signal.ITIMER_REAL, PATIENCE * seconds))
    outer = [(sign, signal.signal(sign, stop), clock, signal.setitimer(clock, most, 1.0))
             for sign, clock, most in clocks]
    try:
        yield
    finally:
        for sign, handler, clock, timer in outer:
            signal.setitimer(clock, 0)
            signal.signal(sign, handler)
            if timer[0]:
                signal.setitimer(clock, *timer)


# --- an attempt --------------------------------------------------------------------------------------------


class Watched:
    """A learner's function, each of whose calls is timed and noted: its answer, and which of its inputs it changed."""

    def __init__(self, function: Any, seconds: float) -> None:
        self.__name__ = ""
        functools.update_wrapper(self, function)
        if hasattr(function, "__code__"):
            self.__code__ = function.__code__
        self.function, self.left = function, seconds
        self.calls: list[dict[str, Any]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        inputs = list(tensors_in((args, kwargs)))
        before = [tensor.detach().clone() for tensor in inputs]
        begun = time.process_time()
        try:
            with stopped_after(max(self.left, 0.01), "the function"):
                answer = self.function(*args, **kwargs)
        except Exception as error:
            self.calls.append(raised(error))
            raise
        finally:
            self.left -= time.process_time() - begun
        self.calls.append({"answer": _noted(answer), "changed": [
            [number, tensor.detach().clone()] for number, (tensor, old) in enumerate(zip(inputs, before))
            if not _same(tensor, old)]})
        return answer


def _noted(answer: Any) -> Any:
    try:
        return encoded(answer)
    except Exception as error:
        return "object", type(answer).__name__, f"{type(error).__name__}: {error}"[:200], {}


def _same(tensor: Tensor, before: Tensor) -> bool:
    return tensor.shape == before.shape and tensor.dtype == before.dtype and torch.equal(tensor, before)


# --- a notebook --------------------------------------------------------------------------------------------


class Notebook:
    """Runs the cells of one notebook and reports what became of each, and of each exercise."""

    def __init__(self, pipe: Connection, request: dict[str, Any], shell: InteractiveShell) -> None:
        self.shell = shell
        self.sources, self.own, self.skipped = request["cells"], set(request["own"]), set(request["skipped"])
        self.seconds, self.answers = request["seconds"], request["answers"]
        self.send, self.pack, self.assess = pipe.send_bytes, packed, assess  # whatever a cell redefines

    def report(self, **what: Any) -> None:
        self.send(self.pack(what))

    def run(self) -> None:
        parsed = []
        for number, source in enumerate(self.sources):
            self.report(reading=number)
            parsed.append(cells.Cell("" if number in self.skipped else source))
        self.parsed, self.at = parsed, 0
        self.later: dict[str, tuple] = {}  # functions that lacked a name, which a cell below may define
        vars(exercises).update(assess=self.judge, show_card=_nothing, _record=_nothing)
        for number in cells.to_run(parsed, self.own):
            if number in self.skipped:
                continue
            self.at = number
            self.report(running=number)
            self.report(cell=number, error=self._error_of(self.sources[number]))
        for item, attempt, number in list(self.later.values()):
            self.at = number
            self.judge(item, attempt)
        self.report(end=True)

    def _error_of(self, source: str) -> str:
        """Run a cell; what it raised, in words."""
        try:
            with stopped_after(self.seconds, "the cell"):
                result = self.shell.run_cell(source)
            error = result.error_before_exec or result.error_in_exec
        except BaseException as stopped:
            error = stopped
        if error is None:
            return ""
        note = raised(error)
        return f"{note['raised'][0]}: {note['message']}"[:500] if not isinstance(error, TimedOut) else str(error)

    def judge(self, item: Exercise, attempt: Callable) -> Verdict:
        """In the place of `assess`, for `@exercise`: the same verdict, which is reported."""
        if is_stub(attempt):
            self.report(exercise=item.id, status="not yet", stub=True, cell=self.at)
            return self.assess(item, attempt)
        self.report(judging=item.id, cell=self.at)
        watched = Watched(attempt, self.seconds)
        self.later.pop(item.id, None)
        ended, verdict = "", Verdict("error", "")
        try:
            verdict = self.assess(item, watched)
        except TimedOut as stopped:
            ended, verdict = "timed out", Verdict("timed out", str(stopped))
        except BaseException as error:  # SystemExit, which passes through the check
            message = (("message", str(error)), )
            verdict = Verdict("error", f"Your function raised {type(error).__name__}.", None, message)
            raise
        finally:
            calls = watched.calls if verdict.passed else []
            details = [[label, text[:2000]] for label, text in verdict.details]
            self.report(exercise=item.id, status=ended or verdict.status, cell=self.at, message=verdict.message[:2000],
                        mistake=verdict.mistake, details=details, calls=calls, seconds=self.seconds - watched.left,
                        remark=self._remark(item))
        if verdict.message == "Your function raised NameError." and f"'{watched.__name__}'" not in str(verdict.details):
            self.later[item.id] = item, attempt, self.at
        return verdict

    def _remark(self, item: Exercise) -> str:
        return cells.remark(self.parsed[self.at], self.answers.get(item.id, ()))


def _nothing(*_: Any, **__: Any) -> None:
    pass


def _shell() -> InteractiveShell:
    """IPython as a notebook has it, without history, tracebacks or plots that are shown."""
    config = Config()
    config.HistoryManager.enabled = False
    shell = InteractiveShell.instance(config=config)
    shell.showtraceback = shell.showsyntaxerror = shell.showindentationerror = _nothing
    shell.enable_gui = _nothing
    shell.register_magic_function(_nothing, "line", "matplotlib")
    return shell


# --- the nursery -------------------------------------------------------------------------------------------


def nursery() -> None:
    """Answer for ever: a message names lessons and brings a connection; a child runs the notebook that it brings."""
    control = socket.socket(fileno=os.dup(0))
    alone = sys.argv[1] == "alone"
    walls.die_with_parent()
    torch.set_num_threads(1)
    tqdm.tqdm.monitor_interval = 0
    load_model("tiny")
    tried: set[str] = set()
    control.send(b"ready")
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 65536, 1)
        if not message:
            return
        for number in set(json.loads(message)) - tried:
            tried.add(number)
            for item in exercises.exercises_of(number):
                assess(item, item.reference)
        gc.collect()
        gc.freeze()
        child = os.fork()
        if child == 0:
            _guard(control, Connection(descriptors[0]), alone)
        os.close(descriptors[0])
        os.waitpid(child, 0)


def _guard(control: socket.socket, pipe: Connection, alone: bool) -> None:
    """Fork the process of the notebook, end it and all that it has started when told to, and say how it ended."""
    request = unpacked(pipe.recv_bytes())

    def run() -> None:
        control.close()
        walls.silence(pipe.fileno())
        notebook = Notebook(pipe, request, _shell())
        walls.limit(request["gigabytes"], request["notebook_seconds"] + time.process_time())
        if not alone:
            walls.refuse_changes(os.getcwd())
        try:
            notebook.run()
        finally:
            os._exit(0)  # nothing that the code has registered for the end runs

    if alone:
        process = walls.forked_alone(run)
    else:
        os.chdir(folder := tempfile.mkdtemp())
        process = os.fork()
    if process == 0:
        os.setsid()
        walls.die_with_parent()
        run()
    pipe.close()
    control.recvfrom(16)
    with suppress(ProcessLookupError):
        status = os.waitpid(process, os.WNOHANG)
        if not status[0]:
            os.kill(process, signal.SIGKILL)
            status = os.waitpid(process, 0)
    if not alone:
        shutil.rmtree(folder, ignore_errors=True)
    control.send(json.dumps(os.waitstatus_to_exitcode(status[1])).encode())
    os._exit(0)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    nursery()
