"""Run every worked lesson, say what was measured and which claims hold, and write the lessons as HTML.

Two lessons run at a time where there are two cores (with a real model one, for its memory), the later ones first, since
they take longest. They run as copies, so the stored notebooks stay as they are.
"""

from __future__ import annotations

import contextlib
import copy
import os
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from nbconvert import HTMLExporter
from nbformat import NotebookNode
from tqdm import tqdm

from course_utils import measured as report
from course_utils.claims import read as read_claims
from course_utils.house import in_columns
from course_utils.runs.formulas import with_mathml
from course_utils.runs.notebook import LessonError, read_notebook, run_notebook, stored_lessons
from course_utils.measured import passed
from course_utils.viz import bundle_script

HEADER = ("lesson", "what was measured", "value", "published", "bound", "result", "seconds")
# Where this is glibc's: memory that a tensor gives back is kept for the next one, since fetching it anew takes time.
KEEP_MEMORY = dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(2**30))
CLAIMS = ("lesson", "claim", "value (95 %)", "", "control (95 %)", "unit", "verdict")


@dataclass
class LessonRun:
    """What came of one lesson."""

    name: str
    rows: list[dict] = field(default_factory=list)
    claims: list[dict] = field(default_factory=list)
    seconds: float = 0.0
    error: str = ""


def run_lesson(path: Path, html_folder: Path, env: dict[str, str], bar: tqdm, kernels: list[int]) -> LessonRun:
    """Run one solutions notebook in a fresh kernel; write its HTML, up to the crash if there is one.

    `kernels` gets the number of the kernel's process.
    """
    run, notebook = LessonRun(path.stem), read_notebook(path)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        measured = Path(folder, "report.jsonl")
        measured.touch()
        try:
            run_notebook(notebook, {**env, "COURSE_REPORT": str(measured)}, on_cell=bar.update,
                         on_kernel=kernels.append)
        except LessonError as error:
            run.error = str(error)
        try:
            run.rows, run.claims = report.read(measured), read_claims(measured)
        except ValueError as error:
            run.error = run.error or str(error)
    run.seconds = time.perf_counter() - start
    html_folder.mkdir(parents=True, exist_ok=True)
    (html_folder / f"{path.stem}.html").write_text(to_html(notebook, path.stem), encoding="utf-8")
    return run


def to_html(notebook: NotebookNode, title: str) -> str:
    """A page that needs no network: formulas are drawn already, and the CircuitsVis bundle stands once, in the head."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = with_mathml(cell.source)
    exporter = HTMLExporter(template_name="lab", require_js_url="", jquery_url="", mathjax_url="")
    body, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": title}})
    body = body.replace('<script src=""></script>', "")
    body = body.replace("<script src=", "<script async src=")  # never wait for an address
    head, tag, rest = body.partition("</head>")
    return head + (bundle_script() if "CircuitsVis" in rest else "") + tag + rest


def run_all(paths: list[Path], html_folder: Path, env: dict[str, str], jobs: int = 1) -> list[LessonRun]:
    """Every lesson, `jobs` at a time, with one progress bar over all their code cells."""
    n_cells = {path: sum(c.cell_type == "code" for c in read_notebook(path).cells) for path in paths}
    env = {**KEEP_MEMORY, **env}
    if jobs > 1:
        env = {**env, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
    kernels: list[int] = []
    pool = ThreadPoolExecutor(jobs)
    with tqdm(total=sum(n_cells.values()), unit="cell", file=sys.stderr) as bar:
        def run(path: Path) -> LessonRun:
            bar.set_description(path.stem)
            return run_lesson(path, html_folder, env, bar, kernels)

        try:
            runs = dict(zip(reversed(paths), pool.map(run, reversed(paths)), strict=True))
        except KeyboardInterrupt:
            for kernel in kernels:                                  # what runs in them would hold up the end
                with contextlib.suppress(ProcessLookupError):
                    os.kill(kernel, signal.SIGTERM)
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        bar.update(bar.total - bar.n)                               # the cells after a crash, and empty ones
    return [runs[path] for path in paths]


# ------------------------------------------------------------------------------------------------ the table

def bound_text(row: dict) -> str:
    low, high = row["at_least"], row["at_most"]
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    return f"≥ {low:g}" if low is not None else f"≤ {high:g}" if high is not None else ""


def table_rows(runs: list[LessonRun]) -> list[tuple[str, ...]]:
    """One row for each measured value, and one for each lesson that crashed or measured nothing."""
    rows: list[tuple[str, ...]] = []
    for run in runs:
        lines = []
        for row in run.rows:
            bounded = row["at_least"] is not None or row["at_most"] is not None
            verdict = "FAIL" if not passed(row) else "pass" if bounded else "–"
            value = f"{row['value']:.4g} {row['unit']}".strip()
            lines.append([run.name, row["name"], value, row["published"] or "", bound_text(row), verdict, ""])
        if run.error:
            lines.append([run.name, "the whole lesson", "", "", "runs to the end", "FAIL", ""])
        lines = lines or [[run.name, "the whole lesson", "", "", "runs to the end", "pass", ""]]
        lines[0][-1] = f"{run.seconds:.1f}"
        for line in lines[1:]:
            line[0] = ""
        rows += map(tuple, lines)
    return rows


def claim_rows(runs: list[LessonRun]) -> list[tuple[str, ...]]:
    """One row for each claim."""
    return [(run.name, row["claim"], str(row["value"]), row["relation"], str(row["control"]), row["unit"],
             "holds" if row["holds"] else "DOES NOT HOLD") for run in runs for row in run.claims]


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Columns padded to their widest entry, under a line."""
    columns, *lines = in_columns([header, *rows])
    rule = ["─" * len(cell) for cell in columns]
    return "\n".join("  ".join(line).rstrip() for line in [columns, rule, *lines])


def summary(runs: list[LessonRun], seconds: float, *, claims_must_hold: bool = True) -> tuple[str, int]:
    """The closing lines and the exit status."""
    rows = [(run.name, row) for run in runs for row in run.rows]
    failed = [f"FAIL {lesson}: {row['name']} is {row['value']:.4g}, bound {bound_text(row) or 'finite'}"
              for lesson, row in rows if not passed(row)]
    failed += [f"FAIL {run.name}: {run.error}" for run in runs if run.error]
    claims = [(run.name, row) for run in runs for row in run.claims]
    if claims_must_hold:
        failed += [f"FAIL {lesson}: does not hold: {row['claim']}" for lesson, row in claims if not row["holds"]]
    if not failed and not rows:
        failed = ["FAIL no lesson measured anything"]
    holding = sum(row["holds"] for _, row in claims)
    counts = (f"{len(runs)} lessons, {len(rows)} measured values, {holding} of {len(claims)} claims hold, "
              f"{len(failed)} failed, {seconds:.0f} s")
    return "\n".join([*failed, counts]), int(bool(failed))


def run_course(solutions: Path, pages: Path, only: str = "", model: str = "tiny", real: bool = False) -> int:
    """Run the worked lessons in `solutions` whose names start with `only`, print the tables, write HTML into `pages`.

    Args:
        model: the model that the lessons load.
        real: with the sections on a real language model; else they are left out, and no network is used.

    Returns:
        The exit status. 1 when a lesson crashed, a measured value is outside its bounds, a claim does not hold on
        `tiny`, or nothing was measured at all.
    """
    paths = stored_lessons(solutions, only)
    if not paths:
        print(f"error: no worked lesson {only}* in {solutions}", file=sys.stderr)
        return 1
    env = {"COURSE_MODEL": model, "COURSE_REAL": "auto" if real else "skip"}
    began = time.perf_counter()
    try:
        runs = run_all(paths, pages, env, jobs=1 if real else min(2, os.cpu_count() or 1))
    except LessonError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nstopped: the lessons that have run are in {pages}", file=sys.stderr)
        return 130
    text, status = summary(runs, time.perf_counter() - began, claims_must_hold=model == "tiny")
    print(f"\n{table(HEADER, table_rows(runs))}\n\n{table(CLAIMS, claim_rows(runs))}\n\n{text}\n")
    print(f"The lessons as pages: {pages}")
    return status
