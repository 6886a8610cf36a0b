"""The highest memory of a process, this one or another, while something runs in it."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import psutil

GB = 1e9


class HighestMemory(threading.Thread):
    """Looks at a process's resident memory every few milliseconds until `stop`.

    A peak shorter than that can be missed: new memory comes from the system at a few GB a second, so that by some
    megabytes, but by more where other work keeps the thread from looking. Linux has a record of its own, VmHWM, which
    can be set back and misses nothing. (ru_maxrss cannot: the peak of loading a model would be in it.)

    Attributes:
        before, highest: bytes when the watch began, and the most that was seen.
    """

    recorded = False

    def __init__(self, pid: int | None = None, every: float = 0.002) -> None:
        super().__init__(daemon=True)
        self.process, self.every, self.over = psutil.Process(pid), every, threading.Event()
        with contextlib.suppress(OSError):                          # not Linux, or another user's process
            (Path("/proc") / str(self.process.pid) / "clear_refs").write_text("5")
            self.recorded = True
        self.before = self.highest = self.process.memory_info().rss

    def run(self) -> None:
        while not self.over.wait(self.every):
            self.look()

    def look(self) -> None:
        with contextlib.suppress(psutil.Error):                     # the process has ended
            self.highest = max(self.highest, self.process.memory_info().rss)
        if self.recorded:
            with contextlib.suppress(OSError, IndexError):         # or it has ended, and its status says nothing
                status = (Path("/proc") / str(self.process.pid) / "status").read_text()
                self.highest = max(self.highest, 1024 * int(status.partition("VmHWM:")[2].split()[0]))

    def stop(self) -> None:
        self.over.set()
        self.join()
