"""Known mistakes. Each is the plain solution with something changed, under a name: what the learner is told.

    TOKENS_NEEDED = variants(tokens_needed, {
        "precision is not squared: …": "variance.mean() / (precision * kl.mean() ** 2)",    # returned instead
        "weighted by q: …": {"p * r": "q * r"},                                             # replaced in the source
        "not a share": seen(lambda got, expected: got > 1),                                 # a property of answers
    })

So a mistake is written once. The check recognises it, and the tests are made from it: every variant must be rejected,
and each under its own name.
"""

from __future__ import annotations

import ast
import inspect
import math
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import einops
import numpy
import torch

Predicate = Callable[[Any, Any], bool]
NAMES = {"torch": torch, "math": math, "einops": einops, "np": numpy, "F": torch.nn.functional}   # as in the lessons


class Mistake:
    """A mistake that is recognised and named.

    Give either wrong `functions` (recognised when the learner's answers equal those of one of them in every case),
    or a `predicate(got, expected) -> bool` (recognised when it holds in every case that is wrong).
    """

    def __init__(self, message: str, *functions: Callable, predicate: Predicate | None = None) -> None:
        if bool(functions) == bool(predicate):
            raise ValueError(f"mistake {message!r}: give functions or a predicate, one of the two")
        self.message, self.functions, self.predicate = message, functions, predicate


@dataclass(frozen=True)
class seen:  # noqa: N801 (it reads as a word)
    """A mistake that is seen in the answers: `predicate(got, expected)` holds in every case that is wrong."""

    predicate: Predicate


Change = str | dict[str, str] | Callable
Wrong = dict[str, Change | seen | tuple[Change, ...]]


def variants(solution: Callable, wrong: Wrong, names: dict[str, Any] | None = None) -> list[Mistake]:
    """Known mistakes, in the order in which they are looked for.

    Args:
        solution: the plain solution.
        wrong: {what the learner is told: the change}. A text is what the last line returns instead; it may have lines
            of its own, of which the last begins with `return`. A dictionary replaces parts of the source, wherever
            they are. A function is taken as it is. A tuple holds several of these. `seen` is about the answers.
        names: what changes may use beside the names in NAMES and those of the solution's own module.
    Raises:
        ValueError: if a part that is to be replaced is not in the source.
    """
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(solution)))
    scope, found = {**NAMES, **solution.__globals__, **(names or {})}, []
    for message, changes in wrong.items():
        if isinstance(changes, seen):
            found.append(Mistake(message, predicate=changes.predicate))
            continue
        changes = changes if isinstance(changes, tuple) else (changes,)
        functions = [each if callable(each) else _changed(solution.__name__, source, each, scope) for each in changes]
        found.append(Mistake(message, *functions))
    return found


def _changed(name: str, source: str, change: str | dict[str, str], scope: dict[str, Any]) -> Callable:
    """The function of this name and source with this change, compiled."""
    if isinstance(change, str):
        change = {_last_return(source): change if "return " in change else f"return {change}"}
    for part, instead in change.items():
        whole = re.compile(rf"(?<!\w(?=\w)){re.escape(part)}(?!(?<=\w)\w)")               # never half a word
        if not (found := whole.search(source)):
            raise ValueError(f"{name} has no {part!r} to be replaced")
        line = source[:found.start()].rpartition("\n")[2]
        indented = instead.replace("\n", "\n" + " " * (len(line) - len(line.lstrip())))
        source = whole.sub(lambda _: indented, source)
    made: dict[str, Any] = {}
    exec(compile(source, f"<{name}, changed>", "exec"), scope, made)
    return made[name]


def _last_return(source: str) -> str:
    """The text of the last statement of a function, its `return`."""
    function = ast.parse(source).body[0]
    last = function.body[-1] if isinstance(function, ast.FunctionDef) else function
    if not isinstance(last, ast.Return):
        raise ValueError("the solution's last statement must be `return`")
    return ast.get_source_segment(source, last) or ""
