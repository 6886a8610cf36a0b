"""How long another process may take, counted in processor time: however busy the machine is, the verdict is the same.

A process that sleeps uses none, so there is a limit by the clock too, so wide that only a machine some ten times too
busy would reach it. What is raised says how much of both was used.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import psutil

PATIENCE = 10  # seconds by the clock for each second of processor time that is allowed
LOOK_EVERY = 0.05  # seconds


class TimedOut(BaseException):
    """The attempt used up its time. Not an Exception: no check must take it for an error of the function."""


@dataclass
class Allowance:
    """`seconds` of processor time for one process, or for several one after the other; `what` takes it, in words."""

    what: str
    seconds: float
    used: float = 0.0
    waited: float = 0.0  # seconds by the clock

    def wait(self, pipe: Connection, process: BaseProcess) -> None:
        """Return when `pipe` can be read, or `process`, at its other end, is gone.

        Raises:
            TimedOut: when more time is used than is allowed.
        """
        used_before, begun = _processor_seconds(process), time.monotonic() - self.waited
        while not pipe.poll(LOOK_EVERY):
            used = self.used + _processor_seconds(process) - used_before
            self.waited = time.monotonic() - begun
            if used > self.seconds or self.waited > PATIENCE * self.seconds:
                raise self._over(used)

    def spend(self, seconds: float) -> None:
        """Count processor time that a process says it has used.

        Raises:
            TimedOut: when that is more than is allowed.
        """
        self.used += seconds
        if self.used > self.seconds:
            raise self._over(self.used)

    def _over(self, used: float) -> TimedOut:
        return TimedOut(f"{self.what} used {used:.1f} s of processor time in {self.waited:.0f} s by the clock "
                        f"(allowed: {self.seconds:g} in {PATIENCE * self.seconds:g})")


def _processor_seconds(process: BaseProcess) -> float:
    try:
        times = psutil.Process(process.pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return times.user + times.system
