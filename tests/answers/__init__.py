"""Right and wrong answers to every exercise, one module per lesson: `ANSWERS: dict[exercise id, Answers]`.

An answer is a function, or the text of one (whose last function is taken; `torch` and `einops` are there).
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Answer = Callable | str


@dataclass(frozen=True)
class Wrong:
    """A plausible wrong answer, and a part of the text that its card must show."""

    answer: Answer
    says: str | None = None


@dataclass(frozen=True)
class Answers:
    """What the check of one exercise must reject and accept."""

    reject: Sequence[Wrong]
    accept: Sequence[Answer]


def function_of(answer: Answer) -> Callable:
    """The answer as a function."""
    if not isinstance(answer, str):
        return answer
    import einops

    scope = {"torch": torch, "einops": einops}
    exec(compile(answer, "<answer>", "exec"), scope)
    return [item for item in scope.values() if isinstance(item, types.FunctionType)][-1]
