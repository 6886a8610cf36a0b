"""The highest memory of a process, this one or another, while something runs in it."""

from __future__ import annotations

import contextlib
import threading

import psutil

GB = 1e9


class HighestMemory(threading.Thread):
    """Looks at a process's resident memory every few milliseconds until `stop`.

    A peak shorter than that can be missed, but new memory comes from the system at a few GB a second, so that by
    some megabytes at most. (The system's own record, ru_maxrss, would include the peak of loading a model, and on
    Linux even that of the process which started this one.)

    Attributes:
        before, highest: bytes when the watch began, and the most that was seen.
    """

    def __init__(self, pid: int | None = None, every: float = 0.002) -> None:
        super().__init__(daemon=True)
        self.process, self.every, self.over = psutil.Process(pid), every, threading.Event()
        self.before = self.highest = self.process.memory_info().rss

    def run(self) -> None:
        while not self.over.wait(self.every):
            self.look()

    def look(self) -> None:
        with contextlib.suppress(psutil.Error):                     # the process has ended
            self.highest = max(self.highest, self.process.memory_info().rss)

    def stop(self) -> None:
        self.over.set()
        self.join()
