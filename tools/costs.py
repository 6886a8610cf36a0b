"""What each lesson and each exercise costs to run: measured here, written into the notebooks by the builder.

    python tools/costs.py               measure every worked lesson on two cores; write lessons/costs.json
    python tools/costs.py 06            one lesson, the others stay as they are

Seconds are wall time, a lesson's with the start of its kernel; memory is the largest resident size of the kernel,
looked at fifty times a second. A lesson is measured twice: with the shipped model only, and with the sections on the
real language model (when that has been fetched). An exercise's cost is that of running its solved cell: the check.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from notebook_runs import read_notebook, run_notebook, stored_lessons

from course_utils.house import read_json, write_whole

ROOT = Path(__file__).resolve().parent.parent
FILE = Path("lessons") / "costs.json"
CORES = 2
SAMPLE_SECONDS = 0.02
ROW = re.compile(r"^\| (\d\d) \|.*$", re.MULTILINE)  # a lesson's row in the README's table


# ---------------------------------------------------------------------------------------------------- labels

class CostsError(Exception):
    """The file of costs is not what this tool writes; the message names the file and the lesson."""


def read(root: Path) -> dict[str, dict]:
    """{lesson's file name: its costs}; nothing when none were measured. Raises CostsError."""
    path, lesson = root / FILE, "it"
    if not path.exists():
        return {}
    try:
        costs = read_json(path)
        for lesson, cost in costs.items():              # noqa: B007 (the message below names it)
            for each in (cost["tiny"], cost.get("real", cost["tiny"]), *cost["exercises"].values()):
                amount(each)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        reason = f"{lesson[:80]} is not what tools/costs.py writes ({str(error)[:200]}); measure again"
        raise CostsError(f"{path}: {reason}") from error
    return costs


def amount(cost: dict) -> str:
    """"7 s, 0.8 GB": seconds to 1 below ten and to 5 above, so that a label outlives small differences."""
    seconds = cost["seconds"]
    shown = "under 1 s" if seconds < 1 else f"{seconds:.0f} s" if seconds < 10 else f"{5 * round(seconds / 5)} s"
    return f"{shown}, {cost['gigabytes']:.1f} GB"


def lesson_label(costs: dict[str, dict], lesson: str) -> str:
    """A sentence for the lesson's first cell; empty when it was not measured."""
    if lesson not in costs:
        return ""
    cost = costs[lesson]
    real = f" ({amount(cost['real'])} with SmolLM2)" if "real" in cost else ""
    return f"**To run the solved lesson on two cores:** {amount(cost['tiny'])} of memory{real}."


def exercise_label(costs: dict[str, dict], lesson: str, exercise_id: str) -> str:
    """"its check takes under 1 s, 0.8 GB" for the exercise's cell; empty when it was not measured."""
    cost = costs.get(lesson, {}).get("exercises", {}).get(exercise_id)
    return f"its check takes {amount(cost)}" if cost else ""


def with_costs(readme: str, costs: dict[str, dict]) -> str:
    """The README with the last column of its table of lessons filled in."""
    by_number = {name[:2]: amount(cost["tiny"]) for name, cost in costs.items()}

    def filled(row: re.Match) -> str:
        cells = row[0].split("|")
        cells[-2] = f" {by_number.get(row[1], cells[-2].strip())} ".replace("  ", " ")
        return "|".join(cells)

    return ROW.sub(filled, readme)


# ------------------------------------------------------------------------------------------------- measuring

@dataclass
class Watch:
    """Looks at the memory of a kernel while its cells run; `cells` is (seconds, gigabytes) of each."""

    cells: list[tuple[float, float]] = field(default_factory=list)
    _process: psutil.Process | None = None
    _peak: float = 0.0
    _since: float = field(default_factory=time.perf_counter)
    _stop: threading.Event = field(default_factory=threading.Event)

    def kernel(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        threading.Thread(target=self._look, daemon=True).start()

    def cell(self) -> None:
        """A cell has ended."""
        self._sample()  # a short cell may have ended between two looks
        now = time.perf_counter()
        self.cells.append((now - self._since, self._peak))
        self._since, self._peak = now, 0.0

    def stop(self) -> None:
        self._stop.set()

    def _look(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self._sample()

    def _sample(self) -> None:
        with contextlib.suppress(psutil.Error):  # the kernel has ended
            now = self._process.memory_info().rss / 1e9     # may take a while: the next cell may begin meanwhile
            self._peak = max(self._peak, now)


def measure(path: Path, real: str) -> tuple[dict, dict[str, dict]]:
    """The cost of one worked lesson and of each exercise in it. Raises LessonError when a cell fails."""
    whole, cells = measure_cells(path, real)
    found = ((re.search(r'^@exercise\("(.+?)"\)', source, re.MULTILINE), cost) for source, cost in cells)
    return whole, {match[1]: cost for match, cost in found if match}


def measure_cells(path: Path, real: str) -> tuple[dict, list[tuple[str, dict]]]:
    """The cost of one worked lesson, and the source and cost of each of its code cells."""
    notebook = read_notebook(path)
    watch, start = Watch(), time.perf_counter()
    env = {"COURSE_MODEL": "tiny", "COURSE_REAL": real, "OMP_NUM_THREADS": str(CORES)}
    try:
        run_notebook(notebook, env, on_cell=watch.cell, on_kernel=watch.kernel)
    finally:
        watch.stop()
    whole = _cost(time.perf_counter() - start, max(peak for _, peak in watch.cells))
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return whole, [(source, _cost(*cost)) for source, cost in zip(code, watch.cells, strict=True)]


def _cost(seconds: float, gigabytes: float) -> dict[str, float]:
    return {"seconds": round(seconds, 1), "gigabytes": round(gigabytes, 2)}


def real_model_is_here() -> bool:
    from course_utils.models import load_real_model

    return load_real_model() is not None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="?", default="", help="the start of a lesson's name, for example 06")
    parser.add_argument("--root", type=Path, default=ROOT)
    args = parser.parse_args(argv)
    paths = stored_lessons(args.root / "solutions", args.only)
    if not paths:
        print(f"error: there is no worked lesson {args.only}*", file=sys.stderr)
        return 1
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    costs, real = read(args.root), real_model_is_here()
    for path in paths:
        whole, exercises = measure(path, "skip")
        costs[path.stem] = {"tiny": whole, "exercises": exercises}
        if real:
            costs[path.stem]["real"] = measure(path, "auto")[0]
        print(f"{path.stem}: {lesson_label(costs, path.stem)}", flush=True)
        write_whole(args.root / FILE, json.dumps(dict(sorted(costs.items())), indent=1) + "\n")
    print("run `make notebooks` to write the labels")
    return 0


if __name__ == "__main__":
    sys.exit(main())
