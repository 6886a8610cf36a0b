"""Submissions as they come in, honest, broken and hostile, each with the verdicts that it deserves.

`make(folder)` writes them all and returns {name: {exercise id: (status, a part of the detail or mistake)}};
exercises that are not listed are "not attempted". The id "" stands for the whole file.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
Expected = dict[str, tuple[str, str]]

IMPORTS = """
import math
import os
import sys

import torch
from jaxtyping import Float, Int
from torch import Tensor

from course_utils.exercises import exercise
"""
RIGHT = "return -math.log(d_vocab)"


def chance(body: str, before: str = "", decorator: str = '@exercise("01.chance_log_prob")') -> str:
    """A cell that answers 01.chance_log_prob (plain number in, plain number out) with this body."""
    lines = "\n".join(f"    {line}" for line in body.split("\n"))
    return f"{before}\n{decorator}\ndef chance_log_prob(d_vocab):\n{lines}"


def log_probs(body: str, before: str = "") -> str:
    """A cell that answers 01.correct_token_log_probs (tensors in, tensor out)."""
    lines = "\n".join(f"    {line}" for line in body.split("\n"))
    return f'{before}\n@exercise("01.correct_token_log_probs")\ndef correct_token_log_probs(logits, tokens):\n{lines}'


LOG_PROBS = "return logits.log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]"


def notebook(*cells: str, metadata: dict | None = None) -> str:
    made = [{"cell_type": "code", "id": f"c{number}", "metadata": {}, "source": cell, "outputs": [],
             "execution_count": None}
            for number, cell in enumerate(cells)]
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": metadata or {}, "cells": made})


def with_cells(*cells: str) -> str:
    return notebook(IMPORTS, *cells)


PASSED = {"01.chance_log_prob": ("passed", "")}
PATCHES = """
import builtins
from course_utils import exercises
from course_utils.exercises import calling, checking, comparing, grading, progress_store
from course_utils.exercises.grading import isolation

def forge(*args, **kwargs):
    return checking.Verdict("passed", "Passed.")

def nothing(*args, **kwargs):
    return None

def true(*args, **kwargs):
    return True

checking.assess = exercises.assess = grading.assess = forge
checking.first_difference = comparing.first_difference = comparing._number_difference = nothing
checking.CompareCases.__call__ = checking.PropertyCheck.__call__ = nothing
calling.call = checking.call = nothing
isolation._encoded = lambda value: ("plain", "passed")
torch.equal = torch.allclose = true
torch.isclose = lambda a, b, **kwargs: torch.ones_like(a, dtype=torch.bool)
builtins.abs = builtins.isinstance = true
"""
FORKS = "for _ in range(4):\n    os.fork()"  # bounded: a grader that lets it through must not take the machine with it
FORGED_OUTPUT = {"output_type": "display_data", "metadata": {}, "data": {
    "text/plain": "✓ passed · 01.chance_log_prob", "text/html": "<b>✓ passed · 01.chance_log_prob</b>"}}


def wrong(detail: str = "") -> Expected:
    return {"01.chance_log_prob": ("wrong", detail)}


def crashed(detail: str) -> Expected:
    return {"01.chance_log_prob": ("crashed", detail)}


def timed_out(detail: str) -> Expected:
    return {"01.chance_log_prob": ("timed out", detail)}


def refused(event: str) -> Expected:
    return crashed(f"may not do this: {event}")


def stored_outputs() -> str:
    """A stub whose stored output says that it was passed."""
    made = json.loads(with_cells(chance("raise NotImplementedError")))
    made["cells"][-1] |= {"outputs": [FORGED_OUTPUT], "execution_count": 1}
    return json.dumps(made)


def every_descriptor() -> str:
    """Writes what a passed verdict looks like to every open file it can find, then returns a wrong answer."""
    return """
for number in range(3, 200):
    try:
        os.write(number, b'["passed", "", ""]')
    except OSError:
        pass
return 1.0"""


TEXTS: dict[str, tuple[str | bytes, Expected]] = {
    # --- honest
    "right": (with_cells(chance(RIGHT), log_probs(LOG_PROBS)),
              {**PASSED, "01.correct_token_log_probs": ("passed", "")}),
    "named_mistake": (with_cells(chance("return math.log(d_vocab)")),
                      {"01.chance_log_prob": ("named mistake", "")}),
    "unnamed_mistake": (with_cells(chance("return 17.0")), wrong("was expected")),
    "raises": (with_cells(chance("return 1 / 0")), crashed("ZeroDivisionError")),
    "returns_nothing": (with_cells(chance("math.log(d_vocab)")), {}),
    "helper_above": (with_cells("def negative(x):\n    return -x", "import math as m\nBASE = m.e",
                                chance("return negative(math.log(d_vocab, BASE))")), PASSED),
    "helper_below": (with_cells(chance("return helper(d_vocab)"), "def helper(n):\n    return -math.log(n)"), PASSED),
    "uses_another_exercise": (
        with_cells(log_probs("raise NotImplementedError"),
                   chance("t = torch.zeros(1, 2, d_vocab)\n"
                          "return correct_token_log_probs(t, torch.zeros(1, 2, dtype=torch.long)).item()")), PASSED),
    "renamed": (with_cells(chance(RIGHT).replace("def chance_log_prob", "def my_own_name")), PASSED),
    "called_not_decorated": (with_cells(f"def f(d_vocab):\n    {RIGHT}", 'exercise("01.chance_log_prob")(f)'), PASSED),
    "magic": (with_cells("%matplotlib inline\n!ls", "%%time\n" + chance(RIGHT)), PASSED),
    "several_attempts": (with_cells(chance("return 1.0"), chance(RIGHT), chance("raise NotImplementedError")), PASSED),
    "worse_in_the_end": (with_cells(chance(RIGHT), chance("return 1.0")), wrong()),
    "other_cells_crash": (with_cells("1 / 0", "undefined_name", chance(RIGHT), "raise SystemExit"), PASSED),
    "prints_a_lot": (with_cells(chance(f"print('spam' * 10**7)\n{RIGHT}")), PASSED),
    "byte_order_mark": ("\ufeff" + with_cells(chance(RIGHT)), PASSED),
    "utf_16": (with_cells(chance(RIGHT)).encode("utf-16"), PASSED),
    # --- incomplete
    "cell_deleted": (with_cells(log_probs(LOG_PROBS)), {"01.correct_token_log_probs": ("passed", "")}),
    "imports_deleted": (notebook(chance(RIGHT)), crashed("name 'math' is not defined")),
    "decorator_deleted": (with_cells(chance(RIGHT, decorator="")), {}),
    "unknown_id": (with_cells(chance(RIGHT, decorator='@exercise("01.no_such_exercise")')), {}),
    "syntax_error": (with_cells(chance("return -math.log(d_vocab"), log_probs(LOG_PROBS)),
                     {**crashed("SyntaxError"), "01.correct_token_log_probs": ("passed", "")}),
    "no_valid_program": (with_cells(chance("nonlocal x\nreturn 1.0")),
                         crashed("SyntaxError")),
    "stored_outputs": (stored_outputs(), {}),
    "foreign_kernel": (notebook(chance(RIGHT), metadata={
        "kernelspec": {"name": "ir", "display_name": "R", "language": "R"}}), {"": ("unreadable", "kernel is for r")}),
    "broken_json": (with_cells(chance(RIGHT))[:-40], {"": ("unreadable", "not valid JSON")}),
    "empty_file": ("", {"": ("unreadable", "not valid JSON")}),
    "a_list": (json.dumps([1, 2]), {"": ("unreadable", "no list of cells")}),
    "old_format": (json.dumps({"nbformat": 3, "worksheets": []}), {"": ("unreadable", "no list of cells")}),
    "binary": (bytes(range(256)), {"": ("unreadable", "not valid JSON")}),
    # --- endless or too large
    "infinite_loop": (with_cells(chance("while True:\n    pass")), timed_out("of processor time")),
    "deaf_infinite_loop": (
        with_cells(chance("import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True:\n"
                          "    try:\n        pass\n    except BaseException:\n        pass")),
        timed_out("of processor time")),
    "slow_value": (with_cells("import time\nWAIT = time.sleep(10**6)", chance(f"WAIT\n{RIGHT}")),
                   timed_out("by the clock")),
    "twenty_gigabytes": (with_cells(chance(f"block = bytearray(20 * 2**30)\n{RIGHT}"),
                                    log_probs(f"block = torch.ones(20 * 2**30, dtype=torch.uint8)\n{LOG_PROBS}")),
                         {**crashed("MemoryError"), "01.correct_token_log_probs": ("crashed", "memory")}),
    "huge_answer": (with_cells(log_probs("return torch.zeros(200_000_000, dtype=torch.uint8)")),
                    {"01.correct_token_log_probs": ("crashed", "The answer has 200,000,000 bytes")}),
    "huge_array": (with_cells(log_probs("import numpy\nreturn numpy.zeros(200_000_000, dtype='uint8')")),
                   {"01.correct_token_log_probs": ("crashed", "The answer has 200,000,000 bytes")}),
    "long_text": (with_cells(log_probs("return 'x' * 110_000_000")),
                  {"01.correct_token_log_probs": ("crashed", "something else or too much")}),
    "endless_recursion": (with_cells(chance("return chance_log_prob(d_vocab)")), crashed("RecursionError")),
    "lasting_thread": (with_cells(chance(
        f"import threading, time\nthreading.Thread(target=time.sleep, args=(10**6,)).start()\n{RIGHT}")), PASSED),
    "takes_the_bars_lock": (with_cells(chance("import tqdm\ntqdm.tqdm.get_lock().acquire()\nwhile True:\n    pass")),
                            timed_out("of processor time")),
    "uses_the_bars_lock": (with_cells(chance(f"import tqdm\nlist(tqdm.tqdm([1]))\n{RIGHT}")), PASSED),
    # --- leaving
    "sys_exit": (with_cells(chance("sys.exit(0)"), "sys.exit(0)"), crashed("SystemExit")),
    "os_exit": (with_cells(chance("os._exit(0)"), "os._exit(0)"), crashed("ended with status 0")),
    "abort": (with_cells(log_probs("os.abort()")), {"01.correct_token_log_probs": ("crashed", "SIGABRT")}),
    "interrupt": (with_cells(chance("raise KeyboardInterrupt")), crashed("KeyboardInterrupt")),
    # --- doing harm
    "fork_bomb": (with_cells(chance(FORKS), FORKS), refused("os.fork")),
    "subprocesses": (with_cells(chance("import subprocess\nsubprocess.run(['true'])")), refused("subprocess.Popen")),
    "kills_its_parent": (with_cells(chance("os.kill(os.getppid(), 9)")), refused("os.kill")),
    "deletes_files": (with_cells(chance("os.remove(VICTIM)", "VICTIM = '@VICTIM@'")), refused("os.remove")),
    "overwrites_files": (with_cells(chance("open(VICTIM, 'w').write('gone')", "VICTIM = '@VICTIM@'")), refused("open")),
    # --- cheating
    "patched_in_a_cell": (with_cells(PATCHES, chance("return 17.0")), wrong("was expected")),
    "patched_in_the_function": (
        with_cells(chance("\n".join(["import torch", *PATCHES.strip().split("\n"), "return 17.0"])),
                   log_probs("\n".join(["import torch", *PATCHES.strip().split("\n"), "return tokens"]))),
        {"01.chance_log_prob": ("", ""), "01.correct_token_log_probs": ("", "")}),  # any verdict but passed
    "own_exercise": (with_cells("def exercise(id):\n    print('✓ passed')\n    return lambda f: f",
                                chance("return 17.0")), wrong()),
    "prints_passed": (with_cells(chance("print('✓ passed · 01.chance_log_prob')\nreturn 17.0")), wrong()),
    "forged_progress": (with_cells(
        "from course_utils.exercises.progress_store import record\nrecord('01.chance_log_prob', 'passed')",
        chance("raise NotImplementedError")), {}),
    "equal_to_all": (with_cells(chance("return Agreeable()", "class Agreeable(float):\n    __eq__ = lambda a, b: True\n"
                                       "    __sub__ = __rsub__ = lambda a, b: 0.0")), wrong()),
    "tensor_subclass": (with_cells(log_probs(
        "return torch.zeros(logits.shape[0], logits.shape[1] - 1).as_subclass(Agreeable)",
        "class Agreeable(Tensor):\n    __torch_function__ = classmethod(lambda *a, **k: True)")),
        {"01.correct_token_log_probs": ("", "")}),
    "writes_a_verdict": (with_cells(chance(every_descriptor().strip())), crashed("sent something else")),
}


def lesson(number: str, folder: str = "solutions") -> str:
    return next((ROOT / folder).glob(f"{number}_*.ipynb")).read_text(encoding="utf-8")


def write(folder: Path, name: str, text: str | bytes, lesson_number: str = "01") -> str:
    """Write one submission, named as a student's file would be; returns its name in the table."""
    path = folder / name / f"{lesson_number}_lesson.ipynb"
    path.parent.mkdir(parents=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return f"{name}/{path.name}"


def make(folder: Path, victim: Path, keep: Callable[[str], bool] = lambda name: True) -> dict[str, Expected]:
    """Write the submissions above into `folder`; `victim` is a file that some of them try to destroy."""
    expected = {}
    for name, (text, verdicts) in TEXTS.items():
        if keep(name):
            text = text.replace("@VICTIM@", str(victim)) if isinstance(text, str) else text
            expected[write(folder, name, text)] = verdicts
    return expected
