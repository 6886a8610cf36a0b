"""Grading on other machines: notebooks are handed to the workers of a Dask scheduler, a few at a time.

A worker gives its few to a process of its own (this file as a program), which grades as one machine does: a worker's
threads may set no signals, and must not fork. A batch whose worker is lost is given to another by the scheduler: what
was begun there, or was done but had not been fetched, is judged again. A verdict that has been fetched is stored once,
and its notebook is not judged again.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import redirect_stdout
from dataclasses import asdict

import course_utils
from course_utils.exercises.grading import engine, walls
from course_utils.exercises.grading.judging import CannotGrade, Limits
from course_utils.exercises.grading.submissions import Submission
from course_utils.exercises.grading.table import Row

MOST_AT_ONCE = 20  # notebooks: a process takes seconds to start, and what is begun is lost with a worker
SECONDS_TO_ANSWER = 20


def graded(waiting: Sequence[Submission], limits: Limits, address: str) -> Iterator[tuple[Submission, list[Row]]]:
    """Each submission with its rows, in the order in which they are done.

    Raises:
        CannotGrade: when there is no Dask, no scheduler, or no worker that can grade.
    """
    try:
        from distributed import Client, KilledWorker, as_completed
    except ModuleNotFoundError as error:
        raise CannotGrade("--dask needs the package distributed: pip install 'faithful-circuits[dask]'") from error
    try:
        with Client(address, timeout=SECONDS_TO_ANSWER, set_as_default=False) as client:
            client.wait_for_workers(1, timeout=SECONDS_TO_ANSWER)
            size = max(1, min(MOST_AT_ONCE, len(waiting) // (2 * sum(client.nthreads().values()))))
            batches = [waiting[start:start + size] for start in range(0, len(waiting), size)]
            tasks = client.map(rows_there, batches, limits=limits, version=course_utils.__version__, pure=False)
            done = as_completed(tasks, loop=client.loop, with_results=True)
            del tasks  # rows that have been fetched are not made again when the worker that made them is lost
            for _, batch in done:
                yield from batch
    except (OSError, TimeoutError, ValueError, CancelledError) as error:
        raise CannotGrade(f"no Dask scheduler with a worker answers at {address}: {error}") from error
    except (KilledWorker, subprocess.CalledProcessError, ImportError) as error:
        raise CannotGrade(f"the workers of {address} cannot grade: {error}") from error


def rows_there(batch: Sequence[Submission], limits: Limits, version: str) -> list[tuple[Submission, list[Row]]]:
    """In a worker: grade these in a new process."""
    if version != course_utils.__version__:
        raise CannotGrade(f"a worker has the course in version {course_utils.__version__}, and this is {version}")
    notebooks = [{**asdict(each), "content": base64.b64encode(each.content).decode()} for each in batch]
    command = [sys.executable, "-m", "course_utils.exercises.grading.elsewhere"]
    run = subprocess.run(command, input=json.dumps([notebooks, asdict(limits)]), stdout=subprocess.PIPE, text=True,
                         check=True)
    sent = {each.name: each for each in batch}
    return [(sent[name], [Row(**row) for row in rows]) for name, rows in json.loads(run.stdout)]


def main() -> None:
    walls.die_with_parent()
    with redirect_stdout(sys.stderr):
        notebooks, limits = json.load(sys.stdin)
        batch = [Submission(**{**each, "content": base64.b64decode(each["content"])}) for each in notebooks]
        engine.prepare()
        graded = [(each.name, list(map(asdict, rows))) for each, rows in engine.graded(batch, Limits(**limits), jobs=1)]
    print(json.dumps(graded))


if __name__ == "__main__":
    main()
