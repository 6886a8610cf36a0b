"""Build notebooks/ (exercises open) and solutions/ (worked, executed) from lessons/NN_name.py.

    python tools/build_notebooks.py             build what is stale; execute a solution when its cells changed
    python tools/build_notebooks.py --execute   execute every solution again
    python tools/build_notebooks.py --check     build nothing; list what is stale and exit with status 1

A lesson is a percent script. A cell that holds one function under `@exercise("NN.name")`, ending in
`raise NotImplementedError`, is an exercise: notebooks/ keep it as it is, solutions/ get the source of the
exercise's own reference, so no solution is written twice. Cells tagged `exercise-only` or `solution-only` go
to one of the two. Both notebooks share cell ids (a hash of the lesson's cell), and a build is the same bytes
every time, outputs aside.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import copy
import hashlib
import inspect
import os
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import jupytext
import nbformat
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode
from notebook_runs import LessonError, run_notebook

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
MAX_BYTES = 1_500_000  # a stored notebook, outputs included
ONLY_IN = {"exercise-only": "notebooks", "solution-only": "solutions"}


class BuildError(Exception):
    """A lesson's source is not what the builder can use; the message names the file and the cell."""


# ------------------------------------------------------------------------------------------- exercise cells

def exercise_in(source: str) -> tuple[str, ast.FunctionDef] | None:
    """The exercise id and the stub of an exercise cell; None for every other cell."""
    if not re.search(r"^@exercise\(", source, re.MULTILINE):
        return None
    body = ast.parse(source).body
    if len(body) != 1 or not isinstance(body[0], ast.FunctionDef):
        raise BuildError(f"an exercise cell holds exactly one function only; found {len(body)} statements")
    stub = body[0]
    ids = [d.args[0].value for d in stub.decorator_list
           if isinstance(d, ast.Call) and getattr(d.func, "id", "") == "exercise"
           and len(d.args) == 1 and isinstance(d.args[0], ast.Constant)]
    if len(ids) != 1 or len(stub.decorator_list) != 1:
        raise BuildError('the stub needs one decorator, @exercise("NN.name")')
    last = stub.body[-1]
    if not isinstance(last, ast.Raise) or "NotImplementedError" not in ast.unparse(last):
        raise BuildError(f"the stub of {ids[0]} must end in `raise NotImplementedError`")
    return ids[0], stub


def worked_cell(exercise_id: str, stub: ast.FunctionDef, get: Callable) -> str:
    """The solution's cell: the reference's source under the stub's name and decorator."""
    try:
        reference = inspect.unwrap(get(exercise_id).reference)
    except (LookupError, ValueError) as error:
        raise BuildError(f"unknown exercise {exercise_id!r}: {error}") from error
    if not inspect.isfunction(reference) or reference.__name__ == "<lambda>":
        raise BuildError(f"the reference of {exercise_id} must be written as a function (def)")
    function = ast.parse(source := textwrap.dedent(inspect.getsource(reference)).rstrip()).body[0]
    missing = [a for a in _parameters(stub) if a not in _parameters(function)]
    if missing:
        raise BuildError(f"the stub of {exercise_id} takes {missing}, which its reference does not take")
    lines, at = source.split("\n"), function.lineno - 1
    lines[at] = re.sub(rf"\bdef {function.name}\b", f"def {stub.name}", lines[at], count=1)
    return "\n".join([f'@exercise("{exercise_id}")', *lines])


def _parameters(function: ast.FunctionDef) -> list[str]:
    return [a.arg for a in ast.walk(function.args) if isinstance(a, ast.arg)]


def _names(source: str) -> tuple[set[str], set[str]]:
    """The names that a cell uses and those that it defines (wherever in the cell)."""
    used, defined = set(), set()
    for node in ast.walk(ast.parse(TransformerManager().transform_cell(source))):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else defined).add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            defined.add(node.name)
        elif isinstance(node, ast.arg):
            defined.add(node.arg)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            defined |= {(a.asname or a.name).split(".")[0] for a in node.names}
        elif isinstance(node, ast.ExceptHandler) and node.name:
            defined.add(node.name)
    return used, defined


# ------------------------------------------------------------------------------------------------- building

def make_notebook(path: Path, folder: str, get: Callable) -> NotebookNode:
    """The notebook of one lesson for `folder` ("notebooks" or "solutions"), without outputs.

    Raises BuildError for an exercise cell that is not as it must be, an unknown exercise, or a reference that
    uses a name which the lesson has neither imported nor defined by then.
    """
    cells, seen, known = [], {}, set(dir(builtins)) | {"display", "get_ipython"}
    for number, cell in enumerate(jupytext.read(path, fmt="py:percent").cells, 1):
        tags = sorted(cell.metadata.get("tags", []))
        if any(ONLY_IN.get(tag, folder) != folder for tag in tags):
            continue
        source = cell.source
        if cell.cell_type == "code":
            try:
                source = _code(source, folder, get, known)
            except (BuildError, SyntaxError) as error:
                first = cell.source.strip().partition("\n")[0]
                raise BuildError(f"{path.name}, cell {number} ({first!r}): {error}") from error
        digest = "c" + hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:8]
        seen[digest] = seen.get(digest, 0) + 1
        new = getattr(nbformat.v4, f"new_{cell.cell_type}_cell")(source)
        new["id"] = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
        if tags:
            new.metadata["tags"] = tags
        cells.append(new)
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=copy.deepcopy(METADATA))
    nbformat.validate(notebook)
    return notebook


def _code(source: str, folder: str, get: Callable, known: set[str]) -> str:
    """A code cell's source in `folder`; adds what it defines to `known`."""
    found = exercise_in(source)
    if found and folder == "solutions":
        source = worked_cell(*found, get)
        used, defined = _names(source)
        unknown = sorted(used - defined - known)
        if unknown:
            raise BuildError(f"its reference uses {unknown}, which the lesson neither imports nor defines")
    known |= _names(source)[1]
    return source


def dumps(notebook: NotebookNode) -> str:
    return nbformat.writes(notebook, version=4, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def bare(notebook: NotebookNode) -> str:
    """What must agree with the lesson's source: everything but outputs and counts."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return dumps(notebook)


def lesson_sources(root: Path) -> list[Path]:
    return sorted((root / "lessons").glob("[0-9][0-9]_*.py"))


def build(root: Path, get: Callable, *, execute: bool = False, only: str = "") -> list[Path]:
    """Write every stale notebook whose name starts with `only`; returns what was written."""
    written = []
    for path in lesson_sources(root):
        if not path.stem.startswith(only):
            continue
        for folder in ("notebooks", "solutions"):
            notebook, target = make_notebook(path, folder, get), root / folder / f"{path.stem}.ipynb"
            worked = folder == "solutions"
            if not (worked and execute) and not problems_of(target, notebook, worked):
                continue
            if worked:
                print(f"executing {target.relative_to(root)} …", flush=True)
                run_notebook(notebook)
                notebook.metadata = nbformat.from_dict(copy.deepcopy(METADATA))  # drop the Python version
            target.parent.mkdir(exist_ok=True)
            partial = target.with_suffix(".partial")
            partial.write_text(dumps(notebook), encoding="utf-8")
            os.replace(partial, target)
            written.append(target)
    return written


# ------------------------------------------------------------------------------------------------- checking

def problems_of(target: Path, expected: NotebookNode, worked: bool) -> list[str]:
    """What is wrong with a stored notebook; an empty list when nothing is."""
    if not target.exists():
        return ["missing"]
    stored = nbformat.read(target, as_version=4)
    problems = [] if bare(stored) == bare(expected) else ["stale: its cells are not those of the lesson"]
    if target.stat().st_size > MAX_BYTES:
        problems.append(f"{target.stat().st_size / 1e6:.1f} MB; the limit is {MAX_BYTES / 1e6:.1f} MB")
    code = [c for c in stored.cells if c.cell_type == "code" and c.source.strip()]
    outputs = [(n, o) for n, c in enumerate(code, 1) for o in c.outputs]
    if not worked:
        return problems + (["has outputs"] if outputs else [])
    if [c.execution_count for c in code] != list(range(1, len(code) + 1)):
        problems.append("not executed from top to bottom in one go")
    problems += [f"code cell {n} has an error output" for n, o in outputs if o.output_type == "error"]
    problems += [f"code cell {n} wrote to stderr: {o.text.strip()[:80]!r}" for n, o in outputs
                 if o.output_type == "stream" and o.name == "stderr"]
    return problems


def check(root: Path, get: Callable) -> list[str]:
    """One line per problem of the stored notebooks, without executing anything."""
    lines, expected = [], set()
    for path in lesson_sources(root):
        for folder in ("notebooks", "solutions"):
            target = root / folder / f"{path.stem}.ipynb"
            expected.add(target)
            found = problems_of(target, make_notebook(path, folder, get), folder == "solutions")
            lines += [f"{target.relative_to(root)}: {problem}" for problem in found]
    stored = {p for folder in ("notebooks", "solutions") for p in (root / folder).glob("*.ipynb")}
    return lines + [f"{p.relative_to(root)}: no lesson of this name" for p in sorted(stored - expected)]


def main(argv: list[str] | None = None, get: Callable | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="?", default="", help="the start of a lesson's name, for example 01")
    parser.add_argument("--check", action="store_true", help="list what is stale; build nothing")
    parser.add_argument("--execute", action="store_true", help="execute every solution again")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent)
    args = parser.parse_args(argv)
    if get is None:
        from course_utils.exercises import get
    try:
        if args.check:
            lines = check(args.root, get)
            print("\n".join([*lines, "run: make notebooks"]) if lines else "up to date")
            return int(bool(lines))
        for target in build(args.root, get, execute=args.execute, only=args.only):
            print(f"wrote {target.relative_to(args.root)} ({target.stat().st_size / 1e3:.0f} kB)")
        return 0
    except (BuildError, LessonError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
