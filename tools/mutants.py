"""Attack the checks: change every exercise's reference solution a little, in every way below, and see who gets through.

    python tools/mutants.py [exercise or lesson …] [--jobs 2] [--out FILE]

A mutant is the reference with one change: another number, another operator, a dropped operand, argument, call,
slice bound or statement, a parameter in another's place. The check must reject it, unless it does what was asked,
too: those are listed in tests/equivalent_mutants.py, each with the reason. Left as they are: texts, and what the
exercise does not ask for: signatures (the stub has them), `if …: raise` and `check_…(…)`, which refuse bad input.

The exit status is 1 if a mutant that is not listed is accepted, or a listed one is rejected or does not exist.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import multiprocessing
import os
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm.auto import tqdm

from course_utils.exercises import Exercise, assess, exercises_of, get, lessons
from course_utils.house import bars_are_off

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from equivalent_mutants import EQUIVALENT  # noqa: E402

SECONDS = 120       # a mutant that takes longer has been rejected: a learner would see that it hangs


@dataclass(frozen=True)
class Mutant:
    """One change: the changed statement before and after, and the whole function with it."""

    before: str
    after: str
    source: str

    def __str__(self) -> str:
        return f"{self.before}  =>  {self.after}"


# --- the changes -----------------------------------------------------------------------------------------------------

OTHER_OPERATOR = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
                  ast.FloorDiv: ast.Div, ast.Mod: ast.FloorDiv, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd}
OTHER_COMPARISONS = {ast.Lt: [ast.LtE, ast.GtE], ast.LtE: [ast.Lt, ast.Gt], ast.Gt: [ast.GtE, ast.LtE],
                     ast.GtE: [ast.Gt, ast.Lt], ast.Eq: [ast.NotEq], ast.NotEq: [ast.Eq], ast.Is: [ast.IsNot],
                     ast.IsNot: [ast.Is], ast.In: [ast.NotIn], ast.NotIn: [ast.In]}
OTHER_NAME = {"mean": "sum", "sum": "mean", "max": "min", "min": "max", "argmax": "argmin", "argmin": "argmax",
              "any": "all", "all": "any", "softmax": "log_softmax", "log_softmax": "softmax", "exp": "log",
              "log": "exp", "tril": "triu", "triu": "tril", "zeros": "ones", "zeros_like": "ones_like",
              "std": "var", "var": "std", "norm": "sum", "sqrt": "square", "square": "sqrt"}
SAME_NUMBERS = {"item", "float", "double", "cpu", "to", "tolist", "contiguous", "detach", "clone", "expand_as"}


def in_place_of(node: ast.AST, parameters: list[str]) -> Iterator[ast.AST]:
    """What a mutant has where the reference has this node."""
    match node:
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield from (ast.Constant(value + 1), ast.Constant(value - 1))
        case ast.Constant(value=float(value)):
            yield from (ast.Constant(value + 1), ast.Constant(value / 2 if value else -1.0))
        case ast.UnaryOp():
            yield node.operand
        case ast.BinOp(left, op, right):
            if type(op) in OTHER_OPERATOR:
                yield ast.BinOp(left, OTHER_OPERATOR[type(op)](), right)
            else:
                yield ast.BinOp(right, op, left)
            yield from (left, right)
        case ast.BoolOp(op, values):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
            yield from values
        case ast.Compare(left, [op], right):
            yield from (ast.Compare(left, [other()], right) for other in OTHER_COMPARISONS[type(op)])
        case ast.IfExp(test, body, orelse):
            yield from (body, orelse, ast.IfExp(test, orelse, body))
        case ast.If(test, body, orelse):
            yield ast.If(ast.UnaryOp(ast.Not(), test), body, orelse)
            yield from (ast.If(ast.Constant(value), body, orelse) for value in (True, False))
        case ast.Slice(lower, upper, step):
            yield from (ast.Slice(*(None if each is dropped else each for each in (lower, upper, step)))
                        for dropped in (lower, upper, step) if dropped is not None)
        case ast.Call(function, arguments, keywords):
            yield from _other_calls(function, arguments, keywords)
        case ast.Dict(keys, values) if len(values) > 1:
            yield ast.Dict(keys, values[1:] + values[:1])
        case ast.Tuple(elements, ast.Load()) if len(elements) > 1:
            yield ast.Tuple(elements[1:] + elements[:1], ast.Load())
        case ast.comprehension(target, source, conditions):
            yield from (ast.comprehension(target, less, conditions, 0) for less in _one_less(source))
            yield from (ast.comprehension(target, source, [c for c in conditions if c is not dropped], 0)
                        for dropped in conditions)
        case ast.For(target, source, body, orelse):
            yield from (ast.For(target, less, body, orelse) for less in _one_less(source))
        case ast.AugAssign(target, op, value):
            yield ast.Assign([target], value)
        case ast.Expr(ast.Call()) | ast.Assign([ast.Subscript()]):
            yield ast.Pass()
        case ast.Name(name, ast.Load()) if name in parameters:
            yield from (ast.Name(other, ast.Load()) for other in parameters if other != name)


def _other_calls(function: ast.expr, arguments: list, keywords: list) -> Iterator[ast.expr]:
    alone = [each for each in arguments[:1] if not isinstance(each, ast.Starred)]      # what may stand without the call
    match function:
        case ast.Attribute(value, name, context) if name in OTHER_NAME:
            yield ast.Call(ast.Attribute(value, OTHER_NAME[name], context), arguments, keywords)
        case ast.Name(name, context) if name in OTHER_NAME:
            yield ast.Call(ast.Name(OTHER_NAME[name], context), arguments, keywords)
    match function:
        case ast.Attribute(ast.Name("torch" | "F" | "math" | "model"), name):    # a function, not a method of a value
            yield from alone
        case ast.Attribute(value, name) if name not in SAME_NUMBERS:
            yield value
        case ast.Name(name) if name not in ("range", "float", "int", "list", "tuple"):
            yield from alone
    yield from (ast.Call(function, arguments, [k for k in keywords if k is not dropped]) for dropped in keywords)
    if len(arguments) > 1:
        yield ast.Call(function, [arguments[1], arguments[0], *arguments[2:]], keywords)


def _one_less(source: ast.expr) -> Iterator[ast.expr]:
    """The same loop without its first round, and without its last."""
    whole = ast.Call(ast.Name("list", ast.Load()), [source], [])
    for bounds in (ast.Slice(ast.Constant(1)), ast.Slice(None, ast.Constant(-1))):
        yield ast.Subscript(whole, bounds, ast.Load())


# --- making mutants --------------------------------------------------------------------------------------------------


class Put(ast.NodeTransformer):
    """Puts one node in another's place."""

    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self.new if node is self.old else self.generic_visit(node)


def left_alone(node: ast.AST) -> bool:
    """Texts, messages, and what only refuses bad input."""
    match node:
        case ast.JoinedStr() | ast.Raise() | ast.If(body=[ast.Raise()]):
            return True
        case ast.Expr(ast.Call(ast.Name(name))):
            return name.startswith("check_")
    return False


def places(node: ast.AST) -> Iterator[ast.AST]:
    """This node and all below it that may be changed."""
    if not left_alone(node):
        yield node
        for child in ast.iter_child_nodes(node):
            yield from places(child)


def mutants_of(source: str) -> list[Mutant]:
    """Every mutant of a function, each text once."""
    tree = ast.parse(textwrap.dedent(source))
    definition = tree.body[0]
    definition.decorator_list = [each for each in definition.decorator_list if "no_grad" in ast.unparse(each)]
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
            if ast.get_docstring(node):
                node.body = node.body[1:]
        elif isinstance(node, ast.arg):
            node.annotation = None
    original = ast.unparse(tree)
    parameters = [each.arg for each in (*definition.args.args, *definition.args.kwonlyargs)]
    found: dict[str, Mutant] = {}
    for node in [place for statement in definition.body for place in places(statement)]:
        for new in in_place_of(node, parameters):
            Put(node, new).visit(tree)
            source = ast.unparse(ast.fix_missing_locations(tree))
            Put(new, node).visit(tree)
            if source != original and source not in found:
                found[source] = Mutant(*_changed_lines(original, source), source)
    assert ast.unparse(tree) == original, "a change was not taken back"
    return list(found.values())


def _changed_lines(before: str, after: str) -> tuple[str, str]:
    """What is left of two texts without the lines that they begin and end with alike."""
    old, new = before.splitlines(), after.splitlines()
    while old and new and old[0] == new[0]:
        old, new = old[1:], new[1:]
    while old and new and old[-1] == new[-1]:
        old, new = old[:-1], new[:-1]
    return tuple(" ".join(line.strip() for line in lines) for lines in (old, new))


# --- trying them -----------------------------------------------------------------------------------------------------


def source_of(item: Exercise) -> str:
    """The text whose mutants are tried."""
    return inspect.getsource(inspect.unwrap(item.reference))


def function_of(item: Exercise, source: str) -> Callable:
    """The function that a text defines, among the names of the reference's module."""
    scope = dict(inspect.unwrap(item.reference).__globals__)
    exec(compile("from __future__ import annotations\n" + source, f"<mutant of {item.id}>", "exec"), scope)
    return scope[item.id.partition(".")[2]]


def status_of(item: Exercise, mutant: Mutant) -> str:
    """What the exercise's check says of this mutant: "passed", "wrong", "error" or "not yet"."""

    def too_long(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    try:
        return assess(item, function_of(item, mutant.source)).status
    except TimeoutError:
        return "error"
    finally:
        signal.alarm(0)


def attack(id: str) -> tuple[str, dict[str, str]]:
    """The exercise's id, and what its check says of each mutant."""
    torch.set_num_threads(1)
    item = get(id)
    source = source_of(item)
    if not assess(item, function_of(item, source)).passed:
        raise AssertionError(f"the check of {id} does not accept the text whose mutants are to be tried")
    return id, {str(mutant): status_of(item, mutant) for mutant in mutants_of(source)}


def report(id: str, statuses: dict[str, str], known: dict[str, str]) -> list[str]:
    """The lines about one exercise: a summary, then everything that should not be so."""
    accepted = [name for name, status in statuses.items() if status == "passed"]
    strangers, gone = [name for name in accepted if name not in known], [name for name in known if name not in accepted]
    raised = sum(status == "error" for status in statuses.values())
    return [f"{id:<30}{len(statuses):>5} mutants: {len(statuses) - len(accepted):>4} rejected, {raised:>4} raise;"
            f"{len(accepted) - len(strangers):>3} equivalent",
            *(f"    ACCEPTED    {name}" for name in strangers), *(f"    NOT THERE   {name}" for name in gone)]


def chosen(names: list[str]) -> list[str]:
    """The ids of these exercises and lessons; of all if none is named. Raises ValueError for an unknown one."""
    found = []
    for name in names or lessons():
        found += [item.id for item in exercises_of(name)] if name in lessons() else [get(name).id]
    return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python tools/mutants.py", description="Try small changes of every solution.")
    parser.add_argument("names", nargs="*", metavar="exercise", help='"06", "06.top_k" … (default: all)')
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: one for each core)")
    parser.add_argument("--out", type=Path, help="write the report to a file, too")
    options = parser.parse_args(arguments)
    try:
        ids = chosen(options.names)
    except ValueError as error:
        parser.error(str(error))
    found, lines = {}, []
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        bar = tqdm(pool.imap(attack, ids), total=len(ids), desc="exercises", disable=bars_are_off())
        for id, statuses in bar:
            found[id] = statuses
            lines += report(id, statuses, EQUIVALENT.get(id, {}))
    through, gone = (sum(word in line for line in lines) for word in ("    ACCEPTED", "    NOT THERE"))
    total, equivalent = sum(map(len, found.values())), sum(len(EQUIVALENT.get(id, {})) for id in ids)
    real = total - equivalent
    lines.append(f"{total} mutants, {equivalent} of them equivalent; rejected: {real - through} of the other {real}"
                 f" ({100 * (real - through) / max(1, real):.1f} %)")
    print("\n".join(lines))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return int(through + gone > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
