"""Run a notebook from top to bottom in a kernel of its own, in an empty folder, with a known environment."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat import NotebookNode

CELL_SECONDS = 600  # a cell that takes longer is stopped and counts as crashed


class LessonError(Exception):
    """A lesson failed: the message names the cell and what it raised, or the file that is not a notebook."""


def stored_lessons(folder: Path, only: str = "") -> list[Path]:
    """The notebooks of the lessons in `folder`, in order, whose names start with `only`."""
    return [path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb")) if path.stem.startswith(only)]


def read_notebook(path: Path) -> NotebookNode:
    """A stored notebook. Raises LessonError, which names the file, if it is not one in format 4."""
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except Exception as error:  # nbformat raises many kinds for what is not a notebook
        raise LessonError(f"{path} is not a notebook: {type(error).__name__}: {str(error)[:200]}") from error
    return notebook


def course_environment(folder: Path) -> dict[str, str]:
    """The variables under which the stored outputs are made; everything personal points into `folder`."""
    return {
        "COURSE_BARS": "off",
        "COURSE_VIZ": "compact",
        "COURSE_PROGRESS": str(folder / "progress.jsonl"),
        "IPYTHONDIR": str(folder / "ipython"),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }


def run_notebook(
    notebook: NotebookNode, env: dict[str, str] | None = None, on_cell: Callable[[], None] | None = None,
    on_kernel: Callable[[int], None] | None = None,
) -> NotebookNode:
    """Execute `notebook` in place and return it.

    Args:
        env: variables for the kernel, on top of this process's own and of `course_environment`.
        on_cell: called after each code cell.
        on_kernel: called with the number of the kernel's process before the first cell.

    Raises:
        LessonError: at the first cell that raises, dies or takes longer than CELL_SECONDS; the outputs up to
            there are in the notebook.
    """
    code = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    at = {"cell": code[0] if code else 0}

    def started(cell, cell_index):
        if on_kernel and cell_index == code[0]:
            on_kernel(client.km.provisioner.pid)
        at["cell"] = cell_index

    def executed(cell, cell_index, execute_reply):
        if on_cell:
            on_cell()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "work").mkdir()
        client = NotebookClient(
            notebook, timeout=CELL_SECONDS, kernel_name="python3", record_timing=False, coalesce_streams=True,
            resources={"metadata": {"path": str(folder / "work")}},
            on_cell_execute=started, on_cell_executed=executed,
        )
        log = folder / "kernel.log"
        try:
            with open(log, "w", encoding="utf-8") as stderr:  # of the kernel itself, not of the cells
                client.execute(env={**os.environ, **course_environment(folder), **(env or {})}, stderr=stderr)
        except (CellExecutionError, DeadKernelError, TimeoutError) as error:
            cell = notebook.cells[at["cell"]]
            where = f"code cell {code.index(at['cell']) + 1} ({cell.source.partition(chr(10))[0]!r})"
            raise LessonError(f"{where}: {_reason(error, log)}") from error
    return notebook


def _reason(error: Exception, log: Path) -> str:
    if isinstance(error, CellExecutionError):
        return f"{error.ename}: {error.evalue}"
    if isinstance(error, TimeoutError):
        return f"took longer than {CELL_SECONDS} seconds"
    last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
    return "\n  ".join(["the kernel died (out of memory?)", *last])
