"""What each lesson costs to run: measured here, written into the notebooks and the README by the builder.

    python tools/costs.py               measure every worked lesson on two cores; write lessons/costs.json
    python tools/costs.py 06            one lesson, the others stay as they are

Seconds are wall time, a lesson's with the start of its kernel; memory is the largest resident size of the kernel,
looked at fifty times a second. A lesson is measured twice: with the shipped model only, and with the sections on the
real language model (when that has been fetched).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from itertools import pairwise
from pathlib import Path

from memory import GB, HighestMemory

from course_utils.house import read_json, write_whole
from course_utils.runs import read_notebook, run_notebook, stored_lessons

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
        for lesson, cost in costs.items():      # noqa: B007 (the message names it)
            for each in (cost["tiny"], cost.get("real", cost["tiny"])):
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


def with_costs(readme: str, costs: dict[str, dict]) -> str:
    """The README with the last column of its table of lessons filled in."""
    by_number = {name[:2]: amount(cost["tiny"]) for name, cost in costs.items()}

    def filled(row: re.Match) -> str:
        cells = row[0].split("|")
        cells[-2] = f" {by_number.get(row[1], cells[-2].strip())} ".replace("  ", " ")
        return "|".join(cells)

    return ROW.sub(filled, readme)


# ------------------------------------------------------------------------------------------------- measuring

def measure(path: Path, real: str) -> tuple[dict[str, float], list[float]]:
    """The cost of one worked lesson, and the seconds of each of its code cells. Raises LessonError if a cell fails."""
    env = {"COURSE_MODEL": "tiny", "COURSE_REAL": real, "OMP_NUM_THREADS": str(CORES)}
    kernels: list[HighestMemory] = []

    def watch(pid: int) -> None:
        kernels.append(HighestMemory(pid, SAMPLE_SECONDS))
        kernels[0].start()

    times = [time.perf_counter()]
    try:
        run_notebook(read_notebook(path), env, on_kernel=watch, on_cell=lambda: times.append(time.perf_counter()))
    finally:
        for kernel in kernels:
            kernel.stop()
    cost = {"seconds": round(times[-1] - times[0], 1), "gigabytes": round(kernels[0].highest / GB, 2)}
    return cost, [end - start for start, end in pairwise(times)]


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
        costs[path.stem] = {"tiny": measure(path, "skip")[0]}
        if real:
            costs[path.stem]["real"] = measure(path, "auto")[0]
        print(f"{path.stem}: {lesson_label(costs, path.stem)}", flush=True)
        write_whole(args.root / FILE, json.dumps(dict(sorted(costs.items())), indent=1) + "\n")
    print("run `make notebooks` to write them into the notebooks and the README")
    return 0


if __name__ == "__main__":
    sys.exit(main())
