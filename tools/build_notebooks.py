"""Build notebooks/ (exercises open) and solutions/ (worked, executed) from lessons/NN_name.py.

    python tools/build_notebooks.py             build what is stale; execute a solution when its code changed
    python tools/build_notebooks.py --execute   execute every solution again
    python tools/build_notebooks.py --check     build nothing; list what is stale and exit with status 1
    python tools/build_notebooks.py --source URL   say where the course is published (else: pyproject's Source URL)

A lesson is a percent script. A cell that holds one function under `@exercise("NN.name")`, ending in
`raise NotImplementedError`, is an exercise: notebooks/ keep it as it is, solutions/ get the source of the
exercise's own reference, so no solution is written twice. Cells tagged `exercise-only` or `solution-only` go
to one of the two. Both notebooks share cell ids (a hash of the lesson's cell), and a build is the same bytes
every time, outputs aside.

Three things are added: after the title the setup cell (tools/setup_cell.ipy), the lesson's costs (tools/costs.py), and,
when the published address is one on GitHub, a badge that opens the notebook in Colab. The costs and the badges also go
into the README's table of lessons.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import copy
import hashlib
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import costs
import jupytext
import nbformat
import tomllib
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode

from course_utils.house import write_whole
from course_utils.runs import LessonError, read_notebook, run_notebook

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    # Without the last two `nbconvert --to script` would leave the magics of IPython as they are.
    "language_info": {"name": "python", "file_extension": ".py", "nbconvert_exporter": "python"},
}
MAX_BYTES = 1_500_000  # a stored notebook, outputs included
SETUP = Path(__file__).resolve().parent / "setup_cell.ipy"
COLAB = "https://colab.research.google.com"
FOLDED = {"cellView": "form", "jupyter": {"source_hidden": True}, "tags": ["setup"]}  # in Colab, in JupyterLab
BADGE = f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({COLAB}/%s)"
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
           and len(d.args) == 1 and isinstance(d.args[0], ast.Constant) and isinstance(d.args[0].value, str)]
    if len(ids) != 1 or len(stub.decorator_list) != 1:
        raise BuildError('the stub needs one decorator, @exercise("NN.name")')
    last = stub.body[-1]
    if not isinstance(last, ast.Raise) or "NotImplementedError" not in ast.unparse(last):
        raise BuildError(f"the stub of {ids[0]} must end in `raise NotImplementedError`")
    return ids[0], stub


def worked_cell(exercise_id: str, stub: ast.FunctionDef, get: Callable) -> str:
    """The solution's cell: the reference's source under the stub's name and decorator."""
    reference = inspect.unwrap(_known(exercise_id, get).reference)
    if not inspect.isfunction(reference) or reference.__name__ == "<lambda>":
        raise BuildError(f"the reference of {exercise_id} must be written as a function (def)")
    source = textwrap.dedent(inspect.getsource(reference)).rstrip()
    function = next(node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))
    missing = [a for a in _parameters(stub) if a not in _parameters(function)]
    if missing:
        raise BuildError(f"the stub of {exercise_id} takes {missing}, which its reference does not take")
    lines, at = source.split("\n"), function.lineno - 1
    lines[at] = re.sub(rf"\bdef {function.name}\b", f"def {stub.name}", lines[at], count=1)
    return "\n".join([f'@exercise("{exercise_id}")', *lines])


def _known(exercise_id: str, get: Callable):
    try:
        return get(exercise_id)
    except (LookupError, ValueError) as error:
        raise BuildError(f"unknown exercise {exercise_id!r}: {error}") from error


def _parameters(function: ast.FunctionDef) -> list[str]:
    return [a.arg for a in ast.walk(function.args) if isinstance(a, ast.arg)]


def _names(source: str) -> tuple[set[str], set[str]]:
    """The names that a cell uses and those that it defines (wherever in the cell)."""
    used: set[str] = set()
    defined: set[str] = set()
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

def make_notebook(path: Path, folder: str, get: Callable, published: str = "") -> NotebookNode:
    """The notebook of one lesson for `folder` ("notebooks" or "solutions"), without outputs.

    Args:
        published: the address of the course's repository, or "" when it has none.

    Raises BuildError for an exercise cell that is not as it must be, an unknown exercise, or a reference that
    uses a name which the lesson has neither imported nor defined by then.
    """
    cells, known = [], set(dir(builtins)) | {"display", "get_ipython"}
    seen: dict[str, int] = {}
    measured = costs.read(path.parent.parent)
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
    extras = (badge(published, path.stem) if folder == "notebooks" else "", costs.lesson_label(measured, path.stem))
    _add_to_title(cells, extras)
    cells.insert(1, _setup_cell(published))
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=copy.deepcopy(METADATA))
    nbformat.validate(notebook)
    return notebook


def badge(published: str, lesson: str) -> str:
    """Markdown that opens an exercise notebook in Colab; empty unless the course is on GitHub."""
    on_github = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(\.git)?/?", published)
    return BADGE % f"github/{on_github[1]}/blob/main/notebooks/{lesson}.ipynb" if on_github else ""


def _add_to_title(cells: list[NotebookNode], extras: tuple[str, ...]) -> None:
    """Put the texts under the heading of the first cell."""
    heading, _, rest = cells[0].source.partition("\n") if cells else ("", "", "")
    if not heading.startswith("# ") or cells[0].cell_type != "markdown":
        raise BuildError("a lesson begins with a Markdown cell whose first line is its title (`# NN · …`)")
    cells[0].source = "\n\n".join([heading, *filter(None, extras), rest.strip()]).strip()


def _setup_cell(published: str) -> NotebookNode:
    where = f"git+{published}" if published.startswith("https://") else published
    source = SETUP.read_text(encoding="utf-8").rstrip().replace('SOURCE = ""', f"SOURCE = {json.dumps(where)}")
    return nbformat.v4.new_code_cell(source, id="setup", metadata=FOLDED)


def _code(source: str, folder: str, get: Callable, known: set[str]) -> str:
    """A code cell's source in `folder`; adds what it defines to `known`."""
    found = exercise_in(source)
    if found and folder == "notebooks":
        item = _known(found[0], get)
        source = f"# about {item.minutes} minutes · difficulty {item.difficulty} of 3\n{source}"
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


def build(root: Path, get: Callable, *, execute: bool = False, only: str = "", published: str = "") -> list[Path]:
    """Write every stale notebook whose name starts with `only`, and the README; returns what was written."""
    written = []
    for path in lesson_sources(root):
        if not path.stem.startswith(only):
            continue
        for folder in ("notebooks", "solutions"):
            notebook, target = make_notebook(path, folder, get, published), root / folder / f"{path.stem}.ipynb"
            worked = folder == "solutions"
            if not (worked and execute) and not problems_of(target, notebook, worked):
                continue
            if worked and (execute or not take_outputs(notebook, target)):
                print(f"executing {target.relative_to(root)} …", flush=True)
                run_notebook(notebook)
                notebook.metadata = nbformat.from_dict(copy.deepcopy(METADATA))  # drop the Python version
            target.parent.mkdir(exist_ok=True)
            write_whole(target, dumps(notebook))
            written.append(target)
    readme = root / "README.md"
    if readme.exists() and (text := _readme(root, published)) != readme.read_text(encoding="utf-8"):
        write_whole(readme, text)
        written.append(readme)
    return written


def take_outputs(notebook: NotebookNode, target: Path) -> bool:
    """Give `notebook` the outputs of the stored one, if that was executed well and has the same code cells."""
    try:
        stored = read_notebook(target)
    except LessonError:
        return False
    if problems_of(target, stored, worked=True):
        return False
    old, new = ([c for c in n.cells if c.cell_type == "code"] for n in (stored, notebook))
    if [(c.id, c.id == "setup" or c.source) for c in old] != [(c.id, c.id == "setup" or c.source) for c in new]:
        return False
    for cell, before in zip(new, old, strict=True):
        cell.outputs, cell.execution_count = before.outputs, before.execution_count
    return True


def _readme(root: Path, published: str) -> str:
    """The README as it must be: the costs and the badges in its table of lessons."""
    text = costs.with_costs((root / "README.md").read_text(encoding="utf-8"), costs.read(root))

    def linked(match: re.Match) -> str:
        return " ".join(filter(None, [match[1], badge(published, match[2])]))

    return re.sub(r"(\]\(notebooks/([\w]+)\.ipynb\))(?: \[!\[Open in Colab\]\([^)]*\)\]\([^)]*\))?", linked, text)


# ------------------------------------------------------------------------------------------------- checking

def problems_of(target: Path, expected: NotebookNode, worked: bool) -> list[str]:
    """What is wrong with a stored notebook; an empty list when nothing is."""
    if not target.exists():
        return ["missing"]
    try:
        stored = read_notebook(target)
    except LessonError as error:
        return [str(error)]
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


def check(root: Path, get: Callable, published: str = "") -> list[str]:
    """One line per problem of the stored notebooks, without executing anything."""
    lines, expected = [], set()
    for path in lesson_sources(root):
        for folder in ("notebooks", "solutions"):
            target = root / folder / f"{path.stem}.ipynb"
            expected.add(target)
            found = problems_of(target, make_notebook(path, folder, get, published), folder == "solutions")
            lines += [f"{target.relative_to(root)}: {problem}" for problem in found]
    stored = {p for folder in ("notebooks", "solutions") for p in (root / folder).glob("*.ipynb")}
    if (readme := root / "README.md").exists() and _readme(root, published) != readme.read_text(encoding="utf-8"):
        lines.append("README.md: its table of lessons is stale")
    return lines + [f"{p.relative_to(root)}: no lesson of this name" for p in sorted(stored - expected)]


def published_at(root: Path) -> str:
    """The Source URL of the project under `root`; "" when it states none."""
    path = root / "pyproject.toml"
    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"] if path.exists() else {}
    return project.get("urls", {}).get("Source", "")


def main(argv: list[str] | None = None, get: Callable | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="?", default="", help="the start of a lesson's name, for example 01")
    parser.add_argument("--check", action="store_true", help="list what is stale; build nothing")
    parser.add_argument("--execute", action="store_true", help="execute every solution again")
    parser.add_argument("--source", help="where the course is published, for the badges and for Colab's installation")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent)
    args = parser.parse_args(argv)
    if get is None:
        from course_utils.exercises import get as get_exercise

        get = get_exercise
    try:
        published = published_at(args.root) if args.source is None else args.source
        if args.check:
            lines = check(args.root, get, published)
            print("\n".join([*lines, "run: make notebooks"]) if lines else "up to date")
            return int(bool(lines))
        for target in build(args.root, get, execute=args.execute, only=args.only, published=published):
            print(f"wrote {target.relative_to(args.root)} ({target.stat().st_size / 1e3:.0f} kB)")
        return 0
    except (BuildError, LessonError, costs.CostsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
