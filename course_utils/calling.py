"""Calling a learner's function safely: what it raises, returns and leaves behind becomes one of three exceptions."""

from __future__ import annotations

import dis
import traceback
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import Any

import torch

from course_utils.comparing import describe


class Failure(Exception):
    """Raised by a check: the message says what is wrong; the rest is shown under it when given."""

    def __init__(self, message: str, *, input: Any = None, got: Any = None, expected: Any = None) -> None:
        super().__init__(message)
        self.message, self.mistake = message, None
        rows = (("input", input), ("got", got), ("expected", expected))
        self.details = [(n, v if isinstance(v, str) else describe(v)) for n, v in rows if v is not None]


HOOK_LEFT = "it leaves a hook on the model: every later run of the model would be changed too"


class NotYet(Exception):
    """The learner's function is still the empty stub, or returned nothing."""


class LearnerError(Exception):
    """The learner's function raised; `__cause__` is what it raised."""


@contextmanager
def own_randomness():
    """Draw from seed 0 inside, and leave the notebook's own random numbers as they were."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(0)
        yield


def is_stub(function: Callable) -> bool:
    """Whether the body does nothing but raise NotImplementedError, `pass`, `...` or return None."""
    code = getattr(function, "__code__", None)
    if code is None:
        return False
    if any(op.opname.startswith(("LOAD_FAST", "LOAD_DEREF", "STORE_")) for op in dis.get_instructions(code)):
        return False
    if code.co_names:
        return code.co_names == ("NotImplementedError",)
    return all(const in (None, ..., function.__doc__) for const in code.co_consts)


def call(
    attempt: Callable, args: tuple = (), kwargs: dict | None = None, *, leaves_no_hooks: bool = True,
    none_is_fine: bool = False,
) -> Any:
    """Call the learner's function on its arguments.

    Raises NotYet for a stub, LearnerError for any other exception, and Failure when it leaves hooks on a model
    (they are removed first, so that they cannot change a later call).
    """
    kwargs = kwargs or {}
    before = hooks_on((*args, *kwargs.values())) if leaves_no_hooks else {}
    try:
        with own_randomness():
            answer = attempt(*args, **kwargs)
    except Exception as error:
        remove_new_hooks(before)
        frames = traceback.extract_tb(error.__traceback__)
        if isinstance(error, NotImplementedError) and frames[-1].filename == file_of(attempt):
            raise NotYet("The function still raises NotImplementedError.") from None
        raise LearnerError from error
    if remove_new_hooks(before):
        raise Failure(HOOK_LEFT)
    if not none_is_fine and (answer is None or answer is ...):
        raise NotYet("The function returned nothing. If you have written it, does it end with `return`?")
    return answer


def file_of(function: Callable) -> str | None:
    """The file, or the notebook cell, that the function was written in."""
    return getattr(getattr(function, "__code__", None), "co_filename", None)


def hooks_on(values: Iterable[Any]) -> dict[int, tuple[dict, dict]]:
    """Every table of hooks on the models among the values, with a copy of what it holds now."""
    models = [value for value in values if isinstance(value, torch.nn.Module)]
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    tables = [getattr(module, name) for model in models for module in model.modules() for name in names]
    tables += [module.__dict__[name] for model in models for module in model.modules()
               for name in ("fwd_hooks", "bwd_hooks") if name in module.__dict__]
    return {id(table): (table, table.copy()) for table in tables}


def remove_new_hooks(before: dict[int, tuple[Any, Any]]) -> bool:
    """Put the tables back as they were; True when something had been left in one."""
    changed = [(table, kept) for table, kept in before.values() if len(table) != len(kept)]
    for table, kept in changed:
        table.clear()
        table.extend(kept) if isinstance(table, list) else table.update(kept)
    return bool(changed)
