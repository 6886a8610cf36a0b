"""Calling a learner's function safely: what goes wrong in it becomes one of three exceptions."""

from __future__ import annotations

import dis
from collections.abc import Callable
from typing import Any

import torch

from course_utils.exercises import leftovers
from course_utils.exercises.comparing import describe


class Failure(Exception):
    """Raised by a check: the message says what is wrong; the rest is shown under it when given."""

    def __init__(self, message: str, *, input: Any = None, got: Any = None, expected: Any = None) -> None:
        super().__init__(message)
        self.message = message
        self.mistake: str | None = None
        rows = (("input", input), ("got", got), ("expected", expected))
        self.details = [(n, v if isinstance(v, str) else describe(v)) for n, v in rows if v is not None]


class NotYet(Exception):
    """The learner's function is still the empty stub, or returned nothing."""


class LearnerError(Exception):
    """The learner's function raised; `__cause__` is what it raised."""


def is_stub(function: Callable) -> bool:
    """Whether the body does nothing but raise NotImplementedError, `pass`, `...` or return None."""
    code = getattr(function, "__code__", None)
    if code is None:
        return False
    busy = ("LOAD_FAST", "LOAD_DEREF", "STORE_", "JUMP", "BUILD_")  # reads or writes a variable, loops, makes a list
    if any(op.opname.startswith(busy) for op in dis.get_instructions(code)):
        return False
    if code.co_names:
        return code.co_names == ("NotImplementedError",)
    return all(const in (None, ..., function.__doc__) for const in code.co_consts)


def call(
    attempt: Callable, args: tuple = (), kwargs: dict | None = None, *, none_is_fine: bool = False,
    keeps_models: bool = False, met: set | None = None, stream: int = 0,
) -> Any:
    """Call the learner's function on its arguments.

    What it leaves changed is put back first: hooks on a model, the kernel's settings, and whatever else a model is if
    the model is one that checks share, or `keeps_models`. The shared models among the arguments are added to `met`.
    `stream` chooses the global random numbers that the function finds.

    Raises:
        NotYet: for a stub.
        LearnerError: for any other exception.
        Failure: when it leaves something changed.
    """
    kwargs = kwargs or {}
    values = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.nn.Module)]
    shared = [model for model in values if leftovers.is_shared(model)]
    hooks, kept = leftovers.hooks_on(values), [leftovers.Kept(model) for model in (values if keeps_models else shared)]
    if met is not None:
        met.update(shared)

    def left_changed() -> list[str]:
        left = [leftovers.HOOK_LEFT] * leftovers.remove_new_hooks(hooks)
        left += [message for each in kept for message in each.put_back()] + leftovers.settings_left(stream)
        return list(dict.fromkeys(left))  # each once

    with leftovers.as_checks_need_it(stream):
        try:
            answer = attempt(*args, **kwargs)
        except Exception as error:
            left_changed()
            if isinstance(error, NotImplementedError) and _raised_by_a_line_of(attempt, error):
                raise NotYet("The function still raises NotImplementedError.") from None
            raise LearnerError from error
        except BaseException:  # the learner's Ctrl-C
            left_changed()
            raise
        if left := left_changed():
            raise Failure("\n".join(left))
    if not none_is_fine and (answer is None or answer is ...):
        raise NotYet("The function returned nothing. If you have written it, does it end with `return`?")
    return answer


def _raised_by_a_line_of(attempt: Callable, error: BaseException) -> bool:
    """Whether a `raise` of the learner's own raised it, and not a function written in C that such a line calls."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None or last.tb_frame.f_code.co_filename != file_of(attempt):
        return False
    return any(op.opname == "RAISE_VARARGS" for op in dis.get_instructions(last.tb_frame.f_code)
               if op.offset == last.tb_lasti)


def file_of(function: Callable) -> str | None:
    """The file, or the notebook cell, that the function was written in."""
    return getattr(getattr(function, "__code__", None), "co_filename", None)
