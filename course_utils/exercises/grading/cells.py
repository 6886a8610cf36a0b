"""Which cells of a notebook are run for its exercises, and what their text says.

The rule: every cell that is not the lesson's own is run. A cell of the lesson's own, known by its text, is run if it
gives a value to a name, or changes the object of a name, that a learner's cell uses, or one of the lesson's that is run
below it. So whatever a learner wrote runs in the notebook that it was written in; plots, training and measurements on
which nothing of it depends do not run.
"""

from __future__ import annotations

import ast
import re
import symtable
import warnings
from collections.abc import Collection, Iterator, Sequence

from IPython.core.inputtransformer2 import TransformerManager

ANY_NAME = {"globals", "locals", "vars", "eval", "exec", "user_ns", "user_global_ns", "__main__", "__dict__",
            "_getframe", "currentframe", "stack", "gc"}  # with one of these words a cell may read any name


class Cell:
    """The names that a cell gives a value to, or whose objects it changes; those that it uses; and its syntax tree.

    `later` are those of its uses that stand in functions: what they mean is looked up when the function is called.
    """

    def __init__(self, source: str) -> None:
        self.gives: set[str] = set()
        self.uses: set[str] = set()
        self.later: set[str] = set()
        self.tree = ast.Module([], type_ignores=[])
        self.star = False  # it has `from … import *`
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                python = as_python(source)
                self.tree = ast.parse(python)
                table = symtable.symtable(python, "<cell>", "exec")
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return  # it fails where it is run
        self.gives = {each.get_name() for each in table.get_symbols() if each.is_assigned() or each.is_imported()}
        read = set(_read(table))
        changed = set(_changed(self.tree)) & (self.gives | read)  # of the others, which are a function's own, none
        self.gives |= changed | set(_declared_global(table))
        self.uses = read | changed
        self.later = set().union(*map(_read, table.get_children()))
        magics = (line for line in python.split("\n") if "get_ipython()" in line)
        self.uses |= {word for line in magics for word in re.findall(r"\w+", line)}
        self.star = any(isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in ast.walk(self.tree))


def as_python(source: str) -> str:
    """The cell as Python: `%%magic` lines at the top are dropped, `%…` and `!…` lines become calls."""
    while source.lstrip().startswith("%%"):
        source = source.lstrip().partition("\n")[2]
    return TransformerManager().transform_cell(source)


def _read(table: symtable.SymbolTable) -> Iterator[str]:
    """The notebook's names that are read, also inside functions."""
    for symbol in table.get_symbols():
        if symbol.is_referenced() and (table.get_type() == "module" or symbol.is_global()):
            yield symbol.get_name()
    for inner in table.get_children():
        yield from _read(inner)


def _declared_global(table: symtable.SymbolTable) -> Iterator[str]:
    for inner in table.get_children():
        yield from (each.get_name() for each in inner.get_symbols() if each.is_declared_global() and each.is_assigned())
        yield from _declared_global(inner)


def _changed(tree: ast.AST) -> Iterator[str]:
    """The names in `x += …`, `x[…] = …`, `x.y = …`, `del x[…]`, and in `x.method(…)` as a statement."""
    for node in ast.walk(tree):
        if isinstance(node, ast.AugAssign):
            yield from _root(node.target)
        elif isinstance(node, (ast.Attribute, ast.Subscript)) and not isinstance(node.ctx, ast.Load):
            yield from _root(node)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield from _root(node.value.func) if isinstance(node.value.func, ast.Attribute) else ()


def _root(node: ast.AST) -> Iterator[str]:
    """x, for x.y[…].z and x(…).y."""
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    if isinstance(node, ast.Name):
        yield node.id


def to_run(cells: Sequence[Cell], own: Collection[int]) -> list[int]:
    """The numbers of the cells to run, in order; `own` are those of the lesson's own cells."""
    chosen = set(range(len(cells))) - set(own)
    if any(cells[number].uses & ANY_NAME for number in chosen):
        return list(range(len(cells)))
    chosen |= {number for number in own if cells[number].star}
    wanted = {name: len(cells) for number in chosen for name in cells[number].uses}  # a name -> given above which cell
    waiting = sorted(set(own) - chosen, reverse=True)
    while more := [number for number in waiting if any(number < wanted.get(name, 0) for name in cells[number].gives)]:
        number = more[0]
        waiting.remove(number)
        chosen.add(number)
        for name in cells[number].uses:
            wanted[name] = max(wanted.get(name, 0), len(cells) if name in cells[number].later else number)
    return sorted(chosen)


# --- remarks -----------------------------------------------------------------------------------------------


def remark(cell: Cell, answers: Collection[str]) -> str:
    """That an exercise's cell uses the checks, or a function named in `answers`, the course's own; or ""."""
    nodes = list(ast.walk(cell.tree))
    words = {node.attr for node in nodes if isinstance(node, ast.Attribute)} | (cell.uses - cell.gives)
    texts = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    texts |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    texts |= {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    words |= {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    if inside := sorted(text for text in texts if re.match(r"course_utils\.exercises\.\w", text)):
        return f"uses {inside[0][:80]}"
    if used := sorted(words & {"reference", "_getframe", "currentframe", "getsource", *answers}):
        return f"uses {used[0]}, through which the course's own answer can be had"
    return ""
