"""Reading a submitted notebook: which exercises it attempts, and the code that each attempt needs.

Nothing in the submission is run here. The notebook is taken apart as text: we keep each function under
`@exercise("NN.name")`, and of everything else only the imports, functions, classes and values that it uses.
Stored outputs, and whatever the other cells would do, are left behind.
"""

from __future__ import annotations

import ast
import json
import re
import symtable
import types
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from IPython.core.inputtransformer2 import TransformerManager

from course_utils.exercises.calling import is_stub

MAX_BYTES = 50_000_000  # a larger file is not read
MARK = re.compile(r"""^\s*@exercise\(\s*["']([^"']+)["']""", re.MULTILINE)
CALLED = "_attempt"  # the name that `exercise("NN.name")(function)` gets in its program


class Unreadable(Exception):
    """The file is not a notebook that can be graded; the message says what it is instead."""


@dataclass(frozen=True)
class Attempt:
    """One attempted exercise: a program that defines `name`; or, in `problem`, why there is none."""

    id: str
    name: str = ""
    program: str = ""
    empty: bool = False  # still the stub
    others: dict[str, str] = field(default_factory=dict)  # other exercises that it uses: name -> id
    problem: str = ""


def read_cells(path: Path) -> list[str]:
    """The code cells of a notebook, as Python (magics become calls).

    Raises:
        Unreadable: if the file is not a notebook.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise Unreadable(f"the file has more than {MAX_BYTES / 1e6:.0f} MB")
        notebook = json.loads(path.read_bytes())  # with a byte-order mark or without
        sources = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
        language = _language(notebook.get("metadata", {}))
    except OSError as error:
        raise Unreadable(f"the file cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"the file is not a notebook: not valid JSON ({str(error)[:80]})") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise Unreadable("the file is not a notebook in format 4: it has no list of cells") from error
    if language != "python":
        raise Unreadable(f"the notebook's kernel is for {language[:40]}; the course is in Python")
    return [_as_python(source) for source in sources]


def _language(metadata: dict) -> str:
    named = metadata.get("language_info", {}).get("name") or metadata.get("kernelspec", {}).get("language")
    return str(named or "python").lower().removeprefix("i")  # "ipython" is Python


def _as_python(source: str) -> str:
    """A `%%magic` at the top is dropped, the cell under it kept; `%…` and `!…` lines become calls."""
    if source.startswith("%%"):
        source = "\n" + source.partition("\n")[2]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return TransformerManager().transform_cell(source)
    except (SyntaxError, ValueError):
        return source  # reported where it is parsed


# --- the attempts ------------------------------------------------------------------------------------------


def attempts_in(cells: Iterable[str]) -> dict[str, Attempt]:
    """Exercise id -> attempt, for every exercise in the cells; of several, the last that is not a stub."""
    found: dict[str, Attempt] = {}
    statements: list[ast.stmt] = []
    marked: list[tuple[str, int, ast.stmt]] = []
    for cell in cells:
        try:
            body = _parsed(cell)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            found |= {id: Attempt(id, problem=f"{type(error).__name__}: {error}") for id in MARK.findall(cell)}
            continue
        for statement in body:
            marked += [(id, len(statements), target) for id, target in _targets(statement)]
            statements.append(statement)
    for id, position, target in marked:
        try:
            attempt = _attempt(id, target, position, statements)
        except (SyntaxError, ValueError, RecursionError) as error:  # parsed, but not a valid program
            attempt = Attempt(id, problem=f"{type(error).__name__}: {error}")
        if id not in found or found[id].empty or not attempt.empty:
            found[id] = attempt
    return found


def _parsed(source: str) -> list[ast.stmt]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source).body


def _exercise_id(node: ast.AST) -> str | None:
    """"02.x" for the expression `exercise("02.x")`; None for any other."""
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        name = getattr(node.func, "id", getattr(node.func, "attr", None))
        return str(node.args[0].value) if name == "exercise" else None
    return None


def _targets(statement: ast.stmt) -> Iterator[tuple[str, ast.stmt]]:
    """(id, statement that defines the function) for `@exercise(id) def …` and for `exercise(id)(function)`."""
    if isinstance(statement, ast.FunctionDef):
        for id in [id for id in map(_exercise_id, statement.decorator_list) if id]:
            rest = [d for d in statement.decorator_list if not _exercise_id(d)]
            fields = {**dict(ast.iter_fields(statement)), "decorator_list": rest}
            yield id, ast.copy_location(ast.FunctionDef(**fields), statement)
    elif isinstance(statement, (ast.Expr, ast.Assign)):
        call = statement.value
        if isinstance(call, ast.Call) and (called_id := _exercise_id(call.func)) and len(call.args) == 1:
            target = ast.Assign([ast.Name(CALLED, ast.Store())], call.args[0])
            yield called_id, ast.fix_missing_locations(ast.copy_location(target, statement))


def _attempt(id: str, target: ast.stmt, position: int, statements: list[ast.stmt]) -> Attempt:
    chosen, others = needed(target, position, statements)
    name = target.name if isinstance(target, ast.FunctionDef) else CALLED
    program = ast.unparse(ast.Module([*chosen, target], type_ignores=[]))
    others = {other: other_id for other, other_id in others.items() if other != name}
    return Attempt(id, name, program, _is_empty(target), others)


def _is_empty(target: ast.stmt) -> bool:
    """Whether the function is still a stub; its code is compiled, not run."""
    if not isinstance(target, ast.FunctionDef):
        return False
    anything = ast.arguments([], [], ast.arg("args"), [], [], ast.arg("kwargs"), [])
    bare = ast.FunctionDef(**{**dict(ast.iter_fields(target)), "args": anything, "decorator_list": [], "returns": None})
    ast.fix_missing_locations(ast.copy_location(bare, target))
    try:
        module = compile(ast.Module([bare], type_ignores=[]), "<stub>", "exec")
    except (SyntaxError, ValueError):
        return False
    code = next(const for const in module.co_consts if isinstance(const, types.CodeType))
    return not code.co_freevars and is_stub(types.FunctionType(code, {}))


# --- what an attempt needs ---------------------------------------------------------------------------------


def needed(
    target: ast.stmt, position: int, statements: list[ast.stmt]
) -> tuple[list[ast.stmt], dict[str, str]]:
    """The statements that define what `target` uses, in order; and the other exercises among them, by name.

    A name means what it means when the notebook is run from top to bottom up to the target: its last
    definition before it. Only where there is none does the first one after it count. An example:

        0    n = 3
        1    m = n
        2    def times(x): return n * x
        3    n = 5
        4    @exercise("02.scaled")
             def scaled(x): return times(x) + m          the target, at position 4

    It uses `times`, statement 2, and `m`, statement 1. `times` looks up n when the target calls it, so it needs the
    last n before 4, statement 3; `m` read n when it ran, so it needs the last n before 1, statement 0.
    """
    chosen = {i for i, statement in enumerate(statements[:position]) if "*" in _defined(statement)}   # star imports
    other_exercises: dict[str, str] = {}
    waiting = [(name, position) for name in _used(target)]      # (a name, the position before which it is defined)
    asked_for = set(waiting)
    while waiting:
        name, before = waiting.pop()
        defined_at = _definition(name, before, position, statements)
        if defined_at is None or defined_at in chosen:
            continue
        statement = statements[defined_at]
        if ids := [id for id, _ in _targets(statement)]:
            other_exercises[name] = ids[0]
            continue
        chosen.add(defined_at)
        looks_up_when_called = isinstance(statement, (ast.FunctionDef, ast.ClassDef))
        before = position if looks_up_when_called else defined_at
        new = {(used, before) for used in _used(statement)} - asked_for
        asked_for |= new
        waiting += sorted(new)
    return [statements[i] for i in sorted(chosen)], other_exercises


def _definition(name: str, before: int, position: int, statements: list[ast.stmt]) -> int | None:
    """Where the name is last defined before `before`; for the target's own names, else where it is defined first."""
    for i in reversed(range(before)):
        if name in _defined(statements[i]):
            return i
    later = range(position + 1, len(statements)) if before == position else ()
    return next((i for i in later if name in _defined(statements[i])), None)


@lru_cache(maxsize=2000)
def _table(statement: ast.stmt) -> symtable.SymbolTable:
    """The names in a statement; none if it is not valid or nested too deep, since its cell fails by itself."""
    try:
        return symtable.symtable(ast.unparse(statement), "<cell>", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return symtable.symtable("", "<cell>", "exec")


def _defined(statement: ast.stmt) -> set[str]:
    """The notebook's names that a statement gives a value to; "*" for a star import."""
    if isinstance(statement, ast.ImportFrom) and statement.names[0].name == "*":
        return {"*"}
    return {s.get_name() for s in _table(statement).get_symbols() if s.is_assigned() or s.is_imported()}


def _used(statement: ast.stmt) -> set[str]:
    """The notebook's names that a statement reads, also inside the functions that it defines."""
    return set(_global_names(_table(statement)))


def _global_names(table: symtable.SymbolTable) -> Iterator[str]:
    for symbol in table.get_symbols():
        if symbol.is_referenced() and (table.get_type() == "module" or symbol.is_global()):
            yield symbol.get_name()
    for inner in table.get_children():
        yield from _global_names(inner)
