"""Calling somebody else's function in a process of its own, and getting back nothing but its answer.

`isolated` makes a function to give to a check in place of the learner's. A call of it runs in a forked child:
the child has a copy of the inputs, runs the attempt's code, and sends the answer as plain data. Whatever else
the code does (redefine, patch, print, exit, use up the memory) ends with the child; the check never
runs where the learner's code does. What the code does to input tensors and to weights *is* seen by the check,
because these lie in memory that both processes share.

This stops mistakes and cheap tricks, not a determined attacker: grade strangers' code inside a container.
Needs a system with fork and resource limits (Linux, or Windows through WSL).
"""

from __future__ import annotations

import builtins
import json
import multiprocessing
import os
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor
from transformer_lens import FactoredMatrix

from course_utils.exercises.grading.allowance import Allowance
from course_utils.exercises.grading.submissions import Attempt
from course_utils.exercises.leftovers import hooks_on, remove_new_hooks

ANSWER_BYTES = 100_000_000  # a larger answer is not read
ANSWER_SECONDS = 30.0  # of processor time to copy an answer and send it: none of the attempt's own
END_SECONDS = 10.0  # by the clock, for a child that has closed its connection to end
REFUSED = (  # audit events (https://docs.python.org/3/library/audit_events.html) by their beginnings
    "os.exec", "os.fork", "os.kill", "os.posix_spawn", "os.spawn", "os.system", "os.startfile", "subprocess.",
    "signal.pthread_kill", "socket.", "gc.get_", "resource.setrlimit", "pty.",
    "os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate",
    "shutil.",
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class Limits:
    """What one attempted exercise may use."""

    seconds: float = 60.0  # of processor time
    gigabytes: float = 4.0  # on top of what the grader itself uses


class NoAnswer(Exception):
    """The attempt's process ended without an answer."""


@contextmanager
def isolated(attempt: Attempt, limits: Limits, references: dict[str, Callable]) -> Iterator[Callable]:
    """A function that runs `attempt` in a child, for use within the `with`.

    Args:
        references: the functions that take the place of the other exercises that the attempt uses, by name.

    A call whose inputs hold a tensor or an object forks a child that inherits them; calls with plain inputs share one
    child. The function raises what the attempt raised (as the same built-in exception where it is one), NoAnswer when
    the child ended, and TimedOut when their code has taken `limits.seconds` of processor time in all calls together.
    """
    allowance = Allowance("the function", limits.seconds)
    with ExitStack() as lasting:
        kept: list[Child] = []

        def run(*args: Any, **kwargs: Any) -> Any:
            if _is_plain((args, kwargs)):
                if not kept:
                    kept.append(lasting.enter_context(_forked(attempt, limits, references)))
                reply = kept[0].ask({"inputs": _encoded((args, kwargs)), "state": torch.get_rng_state()}, allowance)
            else:
                _share((args, kwargs))
                with _forked(attempt, limits, references, (args, kwargs)) as child:
                    reply = child.ask(None, allowance)
            if reply["hooked"]:
                _leave_a_hook((*args, *kwargs.values()))
            if "answer" in reply:
                return _decoded(reply["answer"])
            if reply["stub"]:
                raise NotImplementedError  # raised here, in this function, as the stub would
            raise _exception(reply["raised"], reply["message"])

        yield run


@dataclass(frozen=True)
class Child:
    """A running child and our end of the pipe to it."""

    process: BaseProcess
    pipe: Connection

    def ask(self, request: dict | None, allowance: Allowance) -> dict:
        """Send a request (None: it has its inputs already), wait for the time that it took, then for the reply."""
        try:
            if request is not None:
                self.pipe.send_bytes(_packed(request))
            allowance.spend(float(self._next(allowance)["seconds"]))
            return self._next(Allowance("sending its answer", ANSWER_SECONDS))
        except (EOFError, OSError):
            raise NoAnswer(f"its process {self._end()}, without an answer") from None
        except Exception as error:
            raise NoAnswer("what its process sent is not an answer") from error

    def _next(self, allowance: Allowance) -> dict:
        allowance.wait(self.pipe, self.process)
        return _unpacked(self.pipe.recv_bytes(ANSWER_BYTES))

    def _end(self) -> str:
        if not self.pipe.readable:  # a message of more than ANSWER_BYTES closes it
            return "sent something else or too much"
        patience = time.monotonic() + END_SECONDS
        while (status := self.process.exitcode) is None and time.monotonic() < patience:  # join would wait forever:
            time.sleep(0.01)                                                # the child has closed what it waits for
        if status is None:
            return "closed its connection"
        return f"was ended by signal {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


@contextmanager
def _forked(attempt: Attempt, limits: Limits, references: dict, inputs: tuple | None = None) -> Iterator[Child]:
    """A child in an empty folder of its own; killed at the end."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = fork.Process(target=_child, args=(theirs, Path(folder), attempt, limits, references, inputs))
        process.start()
        theirs.close()
        try:
            yield Child(process, ours)
        finally:
            process.kill()
            process.join()
            ours.close()


def _exception(names: list[str], message: str) -> Exception:
    """An exception of the nearest built-in class among `names` (a class and its bases), under its own name."""
    places = (builtins, torch.linalg, np.linalg)
    known = (getattr(place, name.lstrip("_"), None) for name in names for place in places)  # PyTorch: _LinAlgError
    base = next((each for each in known if isinstance(each, type) and issubclass(each, Exception)), Exception)
    try:
        of_that_name = type(names[0], (base,), {"__str__": lambda self: message})
        return of_that_name()
    except TypeError:  # it cannot be made without arguments, as UnicodeDecodeError cannot
        return type(names[0], (Exception,), {})(message)


# --- what both processes see -------------------------------------------------------------------------------


def _share(value: Any) -> None:
    """Move the tensors and the models' weights among the inputs to shared memory, where they stand."""
    if isinstance(value, torch.nn.Module):
        for weight in value.parameters():
            weight.data.share_memory_()
    elif isinstance(value, Tensor):
        value.data.share_memory_()
    elif isinstance(value, FactoredMatrix):
        _share((value.A, value.B))
    elif isinstance(value, (list, tuple)):
        for item in value:
            _share(item)
    elif isinstance(value, dict):
        _share(list(value.values()))


def _leave_a_hook(values: tuple) -> None:
    """The child left a hook on its copy of a model: leave one on ours, for the check to find and remove."""

    def hook_that_does_nothing(module: torch.nn.Module, inputs: tuple) -> None:
        pass

    model = next(value for value in values if isinstance(value, torch.nn.Module))
    model.register_forward_pre_hook(hook_that_does_nothing)


# --- the child ---------------------------------------------------------------------------------------------


def _child(
    pipe: Connection, folder: Path, attempt: Attempt, limits: Limits, references: dict, inputs: tuple | None
) -> None:
    """Answer for the inputs that were inherited, or for those that come through the pipe, one after the other."""
    pack, unpack = _packed, _unpacked                   # local names for all that is used once the attempt has run:
    send, receive = pipe.send_bytes, pipe.recv_bytes    # what it redefines elsewhere does not change these
    remove, answer, clock = remove_new_hooks, _answer, time.process_time
    state = torch.get_rng_state()
    before = hooks_on((*inputs[0], *inputs[1].values())) if inputs else []
    _confine(folder, pipe.fileno(), limits)
    scope = {"__name__": "submission", "display": lambda *_, **__: None, **references}

    def called(state: Tensor, args: tuple, kwargs: dict) -> dict[str, Any]:
        begun = clock()
        return answer(attempt, scope, state, args, kwargs, done=lambda: send(pack({"seconds": clock() - begun})))

    try:
        if inputs:
            reply = called(state, *inputs)
            send(pack({**reply, "hooked": remove(before)}))
        while not inputs:
            request = unpack(receive())
            reply = called(request["state"], *_decoded(request["inputs"]))
            send(pack({**reply, "hooked": False}))
    finally:
        os._exit(0)  # nothing that the code has registered for the end runs


def _answer(
    attempt: Attempt, scope: dict, state: Tensor, args: tuple, kwargs: dict, *, done: Callable[[], None]
) -> dict[str, Any]:
    """What came of one call; the program that defines the function runs before the first. `done`: when it has run."""
    file = f"<{attempt.id}>"
    try:
        try:
            if attempt.name not in scope:
                exec(compile(attempt.program, file, "exec"), scope)
            torch.set_rng_state(state)  # as the check has set it, whatever the program drew
            value = scope[attempt.name](*args, **kwargs)
        finally:
            done()
        return {"answer": _encoded(value)}
    except BaseException as error:  # SystemExit too
        return _raised(error, file)


def _confine(folder: Path, keep: int, limits: Limits) -> None:
    """No writing outside `folder`, no other open files, no processes, no network, not too much memory."""
    import resource

    os.chdir(folder)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    os.closerange(3, keep)
    os.closerange(keep + 1, 4096)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    allowed = used + int(limits.gigabytes * 1e9)
    resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**8, 10**8))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.addaudithook(_guard(str(folder.resolve()) + os.sep))


def _guard(folder: str) -> Callable[[str, tuple], None]:
    """An audit hook (it cannot be removed again) that refuses what no exercise needs."""

    def guard(event: str, args: tuple) -> None:
        if event == "open":
            path, _, flags = args
            if not flags & WRITING or path == os.devnull:
                return
            if isinstance(path, int) or os.path.realpath(os.fsdecode(path)).startswith(folder):
                return
        elif not event.startswith(REFUSED):
            return
        raise PermissionError(f"an exercise may not do this: {event}")

    return guard


def _raised(error: BaseException, file: str) -> dict[str, Any]:
    """What an attempt raised, as plain data; `stub` if it is a NotImplementedError of its own."""
    frame = error.__traceback__
    while frame and frame.tb_next:
        frame = frame.tb_next
    own = frame is not None and frame.tb_frame.f_code.co_filename == file
    names = [each.__name__ for each in type(error).__mro__]
    try:
        message = str(error)[:2000]
    except Exception:
        message = ""
    return {"raised": names, "message": message, "stub": isinstance(error, NotImplementedError) and own}


# --- values as plain data ----------------------------------------------------------------------------------


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, (*value.keys(), *value.values())))
    return value is None or type(value) in (bool, int, float, str)


def _packed(message: dict[str, Any]) -> bytes:
    """JSON, and behind it the tensors as safetensors: plain data, nothing that runs when it is read."""
    tensors: dict[str, Tensor] = {}

    def number(tensor: Tensor) -> dict[str, str]:
        tensors[name := str(len(tensors))] = tensor.contiguous()
        return {"tensor": name}

    text = json.dumps(message, default=number).encode()
    return struct.pack("<Q", len(text)) + text + save(tensors)


def _unpacked(message: bytes) -> dict[str, Any]:
    end = 8 + struct.unpack("<Q", message[:8])[0]
    tensors = load(message[end:])
    return json.loads(message[8:end], object_hook=lambda each: tensors[each["tensor"]] if "tensor" in each else each)


def _encoded(value: Any) -> tuple:
    """A value as nested tuples of a kind and plain data; of an unknown object, its type's name and its repr."""
    if isinstance(value, (Tensor, np.ndarray)) and value.nbytes > ANSWER_BYTES:  # copying and sending would take long
        raise ValueError(f"The answer has {value.nbytes:,} bytes; at most {ANSWER_BYTES:,} are read.")
    if isinstance(value, Tensor):
        return "tensor", value.detach().cpu().clone(), value.requires_grad
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return "array", torch.from_numpy(value.copy())
    if isinstance(value, FactoredMatrix):
        return "factored", _encoded(value.A), _encoded(value.B)
    if value is None or value is ...:
        return "plain", None
    if isinstance(value, (bool, str)):
        return "plain", value
    if isinstance(value, Integral):
        return "plain", int(value)
    if isinstance(value, Real):
        return "plain", float(value)
    if isinstance(value, (list, tuple)):
        return "list" if isinstance(value, list) else "tuple", [_encoded(item) for item in value]
    if isinstance(value, dict):
        return "dict", [(_encoded(key), _encoded(item)) for key, item in value.items()]
    return "object", type(value).__name__, repr(value)[:200]


def _decoded(data: tuple) -> Any:
    kind, *rest = data
    if kind == "tensor":
        return rest[0].requires_grad_(rest[1])
    if kind == "array":
        return rest[0].numpy()
    if kind == "factored":
        return FactoredMatrix(*map(_decoded, rest))
    if kind == "plain":
        return rest[0]
    if kind == "dict":
        return {_decoded(key): _decoded(item) for key, item in rest[0]}
    if kind in ("list", "tuple"):
        return (list if kind == "list" else tuple)(map(_decoded, rest[0]))
    name, text = rest
    return type(name, (), {"__repr__": lambda self: text})()
