"""Calling a learner's function safely: what goes wrong in it becomes one of three exceptions."""

from __future__ import annotations

import dis
import traceback
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import Any

import torch

from course_utils.exercises.comparing import describe


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
    busy = ("LOAD_FAST", "LOAD_DEREF", "STORE_", "JUMP", "BUILD_")  # reads or writes a variable, loops, makes a list
    if any(op.opname.startswith(busy) for op in dis.get_instructions(code)):
        return False
    if code.co_names:
        return code.co_names == ("NotImplementedError",)
    return all(const in (None, ..., function.__doc__) for const in code.co_consts)


def call(attempt: Callable, args: tuple = (), kwargs: dict | None = None, *, none_is_fine: bool = False) -> Any:
    """Call the learner's function on its arguments.

    Raises NotYet for a stub, LearnerError for any other exception, and Failure when it leaves hooks on a
    model (they are removed first, so that they cannot change a later call).
    """
    kwargs = kwargs or {}
    before = hooks_on((*args, *kwargs.values()))
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


WEIGHTS_CHANGED = "it changes the model's weights: every later run of the model would be changed too"


@contextmanager
def weights_kept(values: Iterable[Any]):
    """Undo what is done inside to the weights of the models among the values, then raise Failure for it."""
    models = [value for value in values if isinstance(value, torch.nn.Module)]
    kept = [(weight, weight.detach().clone()) for model in models for weight in model.parameters()]
    try:
        yield
    finally:
        changed = [(weight, copy) for weight, copy in kept if not torch.equal(weight, copy)]
        with torch.no_grad():
            for weight, copy in changed:
                weight.copy_(copy)
    if changed:
        raise Failure(WEIGHTS_CHANGED)


HOOK_TABLES = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",  # PyTorch's
               "fwd_hooks", "bwd_hooks")  # TransformerLens's own lists


def hooks_on(values: Iterable[Any]) -> list[tuple[torch.nn.Module, str, Any]]:
    """A copy of every table of hooks on the models among the values: (module, table's name, copy)."""
    models = [value for value in values if isinstance(value, torch.nn.Module)]
    modules = [module for model in models for module in model.modules()]
    return [(module, name, module.__dict__[name].copy())
            for module in modules for name in HOOK_TABLES if name in module.__dict__]


def remove_new_hooks(before: list[tuple[torch.nn.Module, str, Any]]) -> bool:
    """Remove the hooks that have been added since; True when there were any."""
    found = False
    for module, name, kept in before:
        table = module.__dict__[name]
        if isinstance(table, list):
            new = [hook for hook in table if hook not in kept]
            table[:] = [hook for hook in table if hook in kept]
        else:
            new = [key for key, hook in table.items() if key not in kept and not _is_transformers_own(hook)]
            for key in new:
                del table[key]
        found |= bool(new)
    return found


def _is_transformers_own(hook: Any) -> bool:
    """The transformers library adds hooks of its own when first asked for attention or hidden states."""
    return (getattr(hook, "__module__", None) or "").partition(".")[0] == "transformers"
