"""Two ways to measure: callables in turn (a ratio that other load on the machine hardly moves), and one alone."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

from memory import GB, HighestMemory
from tqdm.auto import tqdm

from course_utils.house import bars_are_off

OURS, LIMIT = "ours", "limit"
SURE = 0.9      # how probable it must be that the true median lies in the interval that a verdict looks at


@dataclass(frozen=True)
class Ratio:
    """The median of some rounds' ratios, and an interval that holds the true median with probability `SURE`.

    The interval goes from one ratio to another: each is as likely to lie below the true median as above, whatever
    their distribution. Fewer than five rounds cannot be as sure as that: then it has no ends.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, ratios: Sequence[float]) -> Ratio:
        n, ratios, chance, skipped = len(ratios), sorted(ratios), 0.0, -1
        while (chance := chance + 2 * math.comb(n, skipped + 1) / 2**n) <= 1 - SURE:
            skipped += 1
        return cls(median(ratios), *(-math.inf, math.inf) if skipped < 0 else (ratios[skipped], ratios[-1 - skipped]))

    def at_least(self, target: float) -> str:
        """Whether the target is met: "yes" or "NO" if the whole interval says so, else "open"."""
        return "yes" if self.low >= target else "NO" if self.high < target else "open"

    def at_most(self, target: float) -> str:
        return "yes" if self.high <= target else "NO" if self.low > target else "open"

    def __str__(self) -> str:
        ends = "" if math.isinf(self.low) else f" ({self.low:.2f}–{self.high:.2f})"
        return f"{self.median:.2f}{ends}"


@dataclass
class Turns:
    """Seconds of each round, by the name of the call, and what each call returned last."""

    seconds: dict[str, list[float]]
    results: dict[str, Any]

    def ratio(self, first: str, second: str) -> Ratio:
        """How many times as long the first takes, round by round."""
        return Ratio.of([a / b for a, b in zip(self.seconds[first], self.seconds[second])])


def take_turns(
    calls: dict[str, Callable[[], Any]], rounds: int, desc: str = "rounds", limit: Callable[[], float] | None = None
) -> Turns:
    """Time each call once a round, so that all meet the same other load; every other round runs in reverse order.

    One round more comes first and is not counted: it does for each call what is done once.

    Args:
        limit: measures itself and returns seconds (see `limits.Limit`); its name is "limit".
    """
    timers = {name: partial(timed, call) for name, call in calls.items()}
    timers |= {} if limit is None else {LIMIT: lambda: (limit(), None)}
    turns = Turns({name: [] for name in timers}, {})
    for i in tqdm(range(rounds + 1), desc=desc, leave=False, disable=bars_are_off()):
        for name in list(timers)[::-1 if i % 2 else 1]:
            seconds, turns.results[name] = timers[name]()
            if i > 0:
                turns.seconds[name].append(seconds)
    return turns


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of one call, until a GPU has finished too, and what it returned."""
    torch = sys.modules.get("torch")                            # a call that imports nothing has no GPU to wait for
    wait = torch.cuda.synchronize if torch and torch.cuda.is_available() else lambda: None
    wait()
    start = time.perf_counter()
    result = call()
    wait()
    return time.perf_counter() - start, result


# --- one call, alone in a fresh process ----------------------------------------------------------------------------


@dataclass
class Cost:
    """What one call cost. Memory is resident memory (RSS), in GB (10^9 bytes).

    Attributes:
        extra: highest value seen during the call minus the value just before it.
        peak: highest value seen in all; the interpreter, the libraries and what was loaded are in it.
    """

    seconds: float
    extra: float
    peak: float


def alone(prepare: str, *arguments: str) -> Cost:
    """Cost of one call in a fresh process.

    `prepare` names a function, "module:function", that loads what is needed and returns the callable to measure;
    `arguments` are passed to it. Loading is not in `seconds`; a first call's set-up is.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["", *filter(None, sys.path)]), "COURSE_BARS": "off"}
    command = [sys.executable, "-m", "benchmarks.measuring", prepare, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"measuring {prepare} {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def cost_of(call: Callable[[], Any]) -> Cost:
    """Seconds and memory of one call in this process."""
    memory = HighestMemory()
    memory.start()
    seconds, result = timed(call)
    memory.look()                                               # while `result` is still there
    memory.stop()
    return Cost(seconds, (memory.highest - memory.before) / GB, memory.highest / GB)


if __name__ == "__main__":
    place, function = sys.argv[1].split(":")
    print(json.dumps(asdict(cost_of(getattr(importlib.import_module(place), function)(*sys.argv[2:])))))
