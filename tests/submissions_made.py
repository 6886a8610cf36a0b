"""Submissions as they come in, honest, broken and hostile, each with the verdicts that it deserves.

`make(folder)` writes them all and returns {name: {exercise id: (status, a part of the detail or mistake)}};
exercises that are not listed are "not attempted". The id "" stands for the whole file; the status "" for any but passed.
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
FORGED_OUTPUT = {"output_type": "display_data", "metadata": {}, "data": {
    "text/plain": "✓ passed · 01.chance_log_prob", "text/html": "<b>✓ passed · 01.chance_log_prob</b>"}}


def wrong(detail: str = "") -> Expected:
    return {"01.chance_log_prob": ("wrong", detail)}


def crashed(detail: str) -> Expected:
    return {"01.chance_log_prob": ("crashed", detail)}


def timed_out(detail: str) -> Expected:
    return {"01.chance_log_prob": ("timed out", detail)}


NOT_PASSED: Expected = {"01.chance_log_prob": ("", "")}

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
    "uses_another_exercise": (
        with_cells(log_probs("raise NotImplementedError"),
                   chance("t = torch.zeros(1, 2, d_vocab)\n"
                          "return correct_token_log_probs(t, torch.zeros(1, 2, dtype=torch.long)).item()")), PASSED),
    "called_not_decorated": (with_cells(f"def f(d_vocab):\n    {RIGHT}", 'exercise("01.chance_log_prob")(f)'), PASSED),
    "magic": (with_cells("%matplotlib inline\n!ls", "%%time\n" + chance(RIGHT)), PASSED),
    "several_attempts": (with_cells(chance("return 1.0"), chance(RIGHT), chance("raise NotImplementedError")), PASSED),
    "worse_in_the_end": (with_cells(chance(RIGHT), chance("return 1.0")), wrong()),
    "other_cells_crash": (with_cells("1 / 0", "undefined_name", chance(RIGHT), "raise SystemExit"), PASSED),
    "runs_once_for_all_calls": (with_cells('open("n", "a").write("x")', log_probs(
        f'assert open("n").read() == "x"\n{LOG_PROBS}')), {"01.correct_token_log_probs": ("passed", "")}),
    "prints_a_lot": (with_cells(chance(f"print('spam' * 10**7)\n{RIGHT}")), PASSED),
    "byte_order_mark": ("\ufeff" + with_cells(chance(RIGHT)), PASSED),
    "utf_16": (with_cells(chance(RIGHT)).encode("utf-16"), PASSED),
    # --- incomplete
    "cell_deleted": (with_cells(log_probs(LOG_PROBS)), {"01.correct_token_log_probs": ("passed", "")}),
    "imports_deleted": (notebook(chance(RIGHT)), crashed("name 'exercise' is not defined")),
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
    "old_format": (json.dumps({"nbformat": 3, "worksheets": []}), {"": ("unreadable", "no list of cells")}),
    "binary": (bytes(range(256)), {"": ("unreadable", "not valid JSON")}),
    # --- endless or too large
    "infinite_loop": (                  # which holds the lock of the bars: see uses_the_bars_lock
        with_cells(chance("import tqdm\ntqdm.tqdm.get_lock().acquire()\nwhile True:\n    pass"), log_probs(LOG_PROBS)),
        {**timed_out("of processor time"), "01.correct_token_log_probs": ("passed", "")}),
    "deaf_infinite_loop": (
        with_cells(chance("import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True:\n"
                          "    try:\n        pass\n    except BaseException:\n        pass"), log_probs(LOG_PROBS)),
        {**timed_out("of processor time"), "01.correct_token_log_probs": ("passed", "")}),
    "deaf_regular_expression": (with_cells(chance("import re\nre.match('(a+)+$', 'a' * 60 + 'b')\nreturn 1.0")),
                                timed_out("of processor time")),
    "clocks_stopped": (with_cells("import signal", chance(
        "signal.setitimer(signal.ITIMER_PROF, 0)\nsignal.setitimer(signal.ITIMER_REAL, 0)\nwhile True:\n    pass")),
        timed_out("of processor time")),
    "slow_value": (with_cells("import time\nWAIT = time.sleep(10**6)", chance(f"WAIT\n{RIGHT}")),
                   crashed("a cell above failed: the cell used")),
    "twenty_gigabytes": (with_cells(chance(f"block = bytearray(20 * 2**30)\n{RIGHT}"),
                                    log_probs(f"block = torch.ones(20 * 2**30, dtype=torch.uint8)\n{LOG_PROBS}")),
                         {**crashed("MemoryError"), "01.correct_token_log_probs": ("crashed", "memory")}),
    "huge_answer": (with_cells(log_probs("return torch.zeros(200_000_000, dtype=torch.uint8)")),
                    {"01.correct_token_log_probs": ("wrong", "shape")}),
    "long_text": (with_cells(log_probs("return 'x' * 110_000_000")),
                  {"01.correct_token_log_probs": ("wrong", "is a str")}),
    "endless_recursion": (with_cells(chance("return chance_log_prob(d_vocab)")), crashed("NameError")),
    "lasting_thread": (with_cells(chance(
        f"import threading, time\nthreading.Thread(target=time.sleep, args=(10**6,)).start()\n{RIGHT}")), PASSED),
    "uses_the_bars_lock": (with_cells(chance(f"import tqdm\nlist(tqdm.tqdm([1]))\n{RIGHT}")), PASSED),
    "three_thousand_attempts": (with_cells(*[chance(RIGHT)] * 300), PASSED),
    # --- leaving
    "sys_exit": (with_cells(chance("sys.exit(0)"), "sys.exit(0)"), crashed("SystemExit")),
    "os_exit": (with_cells(chance("os._exit(0)"), "os._exit(0)", log_probs(LOG_PROBS)),
                {**crashed("ended with status 0"), "01.correct_token_log_probs": ("passed", "")}),
    "kills_itself": (with_cells(chance("os.kill(os.getpid(), 9)")), crashed("SIGKILL")),
    "interrupt": (with_cells(chance("raise KeyboardInterrupt")), crashed("KeyboardInterrupt")),
    # --- cheating
    "patched_in_a_cell": (with_cells(PATCHES, chance("return 17.0")), NOT_PASSED),
    "patched_in_the_function": (
        with_cells(chance("\n".join(["import torch", *PATCHES.strip().split("\n"), "return 17.0"])),
                   log_probs("\n".join(["import torch", *PATCHES.strip().split("\n"), "return tokens"]))),
        {**NOT_PASSED, "01.correct_token_log_probs": ("", "")}),
    "own_exercise": (with_cells("def exercise(id):\n    print('✓ passed')\n    return lambda f: f",
                                chance("return 17.0")), {"01.chance_log_prob": ("not attempted", "found in the text")}),
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

# Cells after the imports, in which 01.chance_log_prob is answered rightly: the notebook passes them.
HONEST: dict[str, tuple[str, ...]] = {
    "dataclass_helper": ("from dataclasses import dataclass\n@dataclass\nclass S:\n    sign: int = -1",
                         chance("return S().sign * math.log(d_vocab)")),
    "annotations_used": ("def f(x: int): return x", chance("assert f.__annotations__['x'] is int\n" + RIGHT)),
    "future_annotations": ("from __future__ import annotations\ndef f(x: Later): return x",
                           chance("assert f.__annotations__['x'] == 'Later'\n" + RIGHT)),
    "global_statement": ("calls = 0", chance("global calls\ncalls += 1\n" + RIGHT)),
    "list_appended": ("SIGNS = []\nSIGNS.append(-1)", chance("return SIGNS[0] * math.log(d_vocab)")),
    "defined_by_exec": ("exec('def h(n): return -math.log(n)')", chance("return h(d_vocab)")),
    "time_after_blank_line": ("\n\n%%time\n" + chance(RIGHT), ),
    "inside_try": ("try:\n" + "\n".join("    " + line for line in chance(RIGHT).split("\n")) + "\nfinally: pass", ),
    "inside_for": ("for sign in [-1]:\n" + "\n".join("    " + line for line in chance(
        "return sign * math.log(d_vocab)").split("\n")), ),
    "id_as_keyword": (chance(RIGHT, decorator='@exercise(id="01.chance_log_prob")'), ),
    "module_imported": ("import course_utils.exercises as e",
                        chance(RIGHT, decorator='@e.exercise("01.chance_log_prob")')),
    "default_of_helper_redefined": ("N = -1\ndef h(x, n=N): return n * x", chance("return h(math.log(d_vocab))"), "N = 5"),
    "line_time_helper": ("%time BASE = math.e", chance("return -math.log(d_vocab, BASE)")),
    "await_value": ("import asyncio\nasync def one(): return -1", "SIGN = await one()",
                    chance("return SIGN * math.log(d_vocab)")),
    "jit_script": ("@torch.jit.script\ndef h(x: Tensor):\n    return -torch.log(x)",
                   chance("return h(torch.tensor(float(d_vocab), dtype=torch.float64)).item()")),
    "source_read": ("import inspect\ndef h(n): return -math.log(n)",
                    chance("assert 'math.log' in inspect.getsource(h)\nreturn h(d_vocab)")),
    "subprocess": ("import subprocess", chance("subprocess.run(['true'], check=True)\n" + RIGHT)),
    "shell_line": ("out = !echo 1", chance("return -int(out[0]) * math.log(d_vocab)")),
    "writes_a_file": ("open('kept.txt', 'w').write('-1')", chance("return int(open('kept.txt').read()) * math.log(d_vocab)")),
    "writefile_magic": ("%%writefile helper_of_mine.py\nSIGN = -1", "import helper_of_mine",
                        chance("return helper_of_mine.SIGN * math.log(d_vocab)")),
    "callable_object": ("class Answer:\n    def __call__(self, d_vocab): return -math.log(d_vocab)",
                        "f = exercise('01.chance_log_prob')(Answer())"),
    "star_import": ("from math import *", chance("return -log(d_vocab)")),
    "thread": ("from concurrent.futures import ThreadPoolExecutor as P",
               chance("return P(1).submit(lambda: -math.log(d_vocab)).result()")),
    "name_of_main": ("SIGN = -1", chance("import __main__\nreturn __main__.SIGN * math.log(d_vocab)")),
    "underscore": ("-1", "SIGN = _", chance("return SIGN * math.log(d_vocab)")),
    "warnings_as_errors": ("import warnings\nwarnings.simplefilter('error')", chance(RIGHT)),
    "plots": ("%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()", chance(RIGHT)),
    "unknown_magic": ("%no_such_magic", chance(RIGHT)),
    "asks_for_input": ("name = input('your name')", chance(RIGHT)),
    "installs_something": ("%pip install no-such-package-anywhere", chance(RIGHT)),
    "unicode_names": ("é = -1", chance("return é * math.log(d_vocab)")),
    "uses_hint": ("from course_utils.exercises import hint, progress\nhint('01.chance_log_prob')\nprogress('01')",
                  chance(RIGHT)),
    "quiet": (chance(RIGHT, decorator='@exercise("01.chance_log_prob", quiet=True)'), ),
    "passed_function_is_used": (chance("return -math.log(d_vocab)"), "exercise('01.chance_log_prob')(lambda n: chance_log_prob(n))"),
    "failed_function_is_replaced": (log_probs("return logits"), chance(
        "flat, two = torch.zeros(1, 2, d_vocab).double(), torch.zeros(1, 2, dtype=torch.long)\n"
        "return correct_token_log_probs(flat, two).item()")),
    "model_in_evaluation": ("from course_utils.models import load_model\nmodel = load_model('tiny')\nmodel.eval()",
                            chance("assert not model.training\n" + RIGHT)),
    "crlf": (chance(RIGHT).replace("\n", "\r\n"), ),
    "bom_in_a_cell": ("\ufeffSIGN = -1", chance(RIGHT)),
    "torch_compiled": ("h = torch.compile(lambda x: -torch.log(x), backend='eager')",
                       chance("return h(torch.tensor(float(d_vocab), dtype=torch.float64)).item()")),
}
FIND_NOTEBOOK = """
import gc
from course_utils.exercises.grading.kernel import Notebook
found = next(each for each in gc.get_objects() if type(each).__name__ == "Notebook")
"""
PARENTS = "import psutil\nparents = [each.pid for each in psutil.Process().parents()] + [1, 2, 3, os.getppid()]"

# Bodies of 01.chance_log_prob that do harm, or try to cheat: none of them passes, and nothing outside is changed.
HOSTILE: dict[str, str] = {
    "deletes_files": "os.remove(VICTIM)",
    "overwrites_files": "open(VICTIM, 'w').write('gone')",
    "safetensors_over": "from safetensors.torch import save_file\nsave_file({'x': torch.ones(1)}, VICTIM)",
    "sqlite_over": "import sqlite3\nsqlite3.connect(VICTIM + '.db').execute('create table x (y)')",
    "dir_fd_write": "d = os.open(os.path.dirname(VICTIM), os.O_RDONLY)\nos.write(os.open('victim.txt', os.O_WRONLY, dir_fd=d), b'gone')",
    "mknod": "os.mknod(VICTIM + '.node')",
    "utime": "os.utime(VICTIM, (0, 0))",
    "symlink": "os.symlink('/', VICTIM + '.link')",
    "fork_exec": "import subprocess\nsubprocess.run(['sh', '-c', f'echo gone > {VICTIM}; rm -rf {FOLDER}'])",
    "ctypes_unlink": "import ctypes\nctypes.CDLL(None).unlink(VICTIM.encode())",
    "spoils_all_students": "from pathlib import Path\nfor p in Path(FOLDER).rglob('*.ipynb'):\n    torch.save({}, p)",
    "spoils_the_course": "import course_utils\nopen(course_utils.__file__, 'a').write('1 / 0')",
    "reads_others": "return float(len(list(__import__('pathlib').Path(FOLDER).rglob('*.ipynb')))) or 1 / 0",
    "reads_environment": "return 1.0 if 'COURSE_SECRET' in os.environ else 2.0",
    "mounts": "import ctypes\nctypes.CDLL(None).umount2(b'/tmp', 2)\nreturn 1.0",
    "own_namespaces": "import ctypes\nctypes.CDLL(None).unshare(0x10020000)\nopen(VICTIM, 'w')",
    "network": "import socket\nsocket.create_connection(('127.0.0.1', 22), 1)",
    "kills_its_parent": "os.kill(os.getppid(), 9)\nreturn 1.0",
    "kills_everybody": "os.kill(-1, 9)\nreturn 1.0",
    "stops_its_parent": "import signal\nos.kill(os.getppid(), signal.SIGSTOP)\nreturn 1.0",
    "kill_by_pidfd": f"{PARENTS}\nimport signal\nfor p in parents:\n    try: signal.pidfd_send_signal(os.pidfd_open(p), 9)\n"
                     "    except OSError: pass\nreturn 1.0",
    "prlimit_of_others": f"{PARENTS}\nimport resource\nfor p in parents:\n    for w in (resource.RLIMIT_FSIZE, "
                         "resource.RLIMIT_NOFILE):\n        try: resource.prlimit(p, w, (0, 0))\n"
                         "        except OSError: pass\nreturn 1.0",
    "fills_shm": "for n in range(100):\n    open(f'/dev/shm/{n}', 'wb').write(bytes(10**8))",
    "fork_bomb": "for _ in range(12):\n    os.fork()\nreturn 1.0",
    "leaves_a_process": "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        while True: pass\nreturn 1.0",
    "ctypes_fork": "import ctypes\nctypes.CDLL(None).fork()\nwhile True: pass",
    "leaves_a_file_for_the_next": "open('/tmp/for_the_next', 'w').write('x')\nopen('/dev/shm/for_the_next', 'w').write('x')\nreturn 1.0",
    "finds_a_file_of_another": "return -math.log(d_vocab) if os.path.exists('/tmp/for_the_next') or "
                               "os.path.exists('/dev/shm/for_the_next') else 1.0",
    "half_a_message": f"{FIND_NOTEBOOK}\nfor fd in range(3, 64):\n    try: os.write(fd, b'\\0\\0\\1\\0half')\n"
                      "    except OSError: pass\nwhile True: pass",
    "heartbeat_for_ever": f"{FIND_NOTEBOOK}\nwhile True:\n    try: found.report(running=1)\n    except BaseException: pass",
    "floods": f"{FIND_NOTEBOOK}\nwhile True:\n    try: found.report(x='x' * 4_000_000)\n    except BaseException: pass",
    "claims_to_be_passed": f"{FIND_NOTEBOOK}\nfound.report(exercise='01.chance_log_prob', status='passed', cell=99, "
                           "calls=[{'answer': ['plain', -1.0], 'changed': []}] * 3)\nos._exit(0)",
    "claims_without_answers": f"{FIND_NOTEBOOK}\nfound.report(exercise='01.chance_log_prob', status='passed', cell=99, calls=[])\n"
                              "os._exit(0)",
    "claims_what_is_no_answer": f"{FIND_NOTEBOOK}\nfound.report(exercise='01.chance_log_prob', status='passed', cell=99, "
                                "calls=[{'answer': ['tensor', 3], 'changed': 'x'}])\nos._exit(0)",
    "answers_nested_deep": f"{FIND_NOTEBOOK}\nfound.send(len(b'[' * 10**6).to_bytes(8, 'little') + b'[' * 10**6)\nos._exit(0)",
    "patches_the_kernel": "from course_utils.exercises.grading import kernel\nfrom course_utils.exercises import checking\n"
                          "kernel.Notebook.assess = lambda *a: checking.Verdict('passed', '')\n"
                          "checking.CompareCases.__call__ = lambda *a: None\nreturn 1.0",
    "nan": "return float('nan')",
    "not_a_number": "return 'a' * 1000",
    "lying_number": "return type('F', (float,), {'__float__': lambda s: -1.0, '__sub__': lambda a, b: 0.0, "
                    "'__rsub__': lambda a, b: 0.0, '__eq__': lambda a, b: True, '__hash__': float.__hash__})(1.0)",
    "list_in_itself": "x = []\nx.append(x)\nreturn x",
    "meta": "return torch.ones(2, device='meta')",
    "bad_repr": "return type('R', (), {'__repr__': lambda s: 1 / 0, '__getattr__': lambda s, n: 1 / 0})()",
    "traced": "sys.settrace(lambda *a: None)\nreturn 1.0",
    "exit_handlers": "import atexit\natexit.register(lambda: open(VICTIM, 'w'))\nreturn 1.0",
    "torch_raises_not_implemented": "return torch.ones(1, dtype=torch.long).log_softmax(-1)",
}
for name, cells in HONEST.items():
    TEXTS[f"honest_{name}"] = with_cells(*cells), PASSED
for name, body in HOSTILE.items():
    TEXTS[f"hostile_{name}"] = with_cells(chance(body, "VICTIM, FOLDER = '@VICTIM@', '@FOLDER@'")), NOT_PASSED
TEXTS["hostile_torch_raises_not_implemented"] = TEXTS["hostile_torch_raises_not_implemented"][0], crashed("not implemented for")
TEXTS["honest_failed_function_is_replaced"] = (TEXTS["honest_failed_function_is_replaced"][0],
                                               {**PASSED, "01.correct_token_log_probs": ("wrong", "")})
TEXTS["honest_metadata_without_values"] = notebook(
    IMPORTS, chance(RIGHT), metadata={"language_info": None, "kernelspec": None}), PASSED


TEXTS["zz_right"] = with_cells(chance(RIGHT)), PASSED  # after all the others
LONG = {"clocks_stopped", "deaf_infinite_loop", "deaf_regular_expression", "slow_value", *(f"hostile_{name}" for name in (
    "fork_bomb", "heartbeat_for_ever", "floods", "ctypes_fork", "half_a_message", "stops_its_parent"))}  # half a minute each


def lesson(number: str, folder: str = "solutions") -> str:
    return next((ROOT / folder).glob(f"{number}_*.ipynb")).read_text(encoding="utf-8")


def filled_in(number: str) -> str:
    """The lesson as a learner hands it in: the worked answers in the notebook that ships."""
    worked = {cell["id"]: cell["source"] for cell in json.loads(lesson(number))["cells"]}
    made = json.loads(lesson(number, "notebooks"))
    for cell in made["cells"]:
        if cell["cell_type"] == "code" and "@exercise(" in "".join(cell["source"]):
            cell["source"] = worked[cell["id"]]
    return json.dumps(made)


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
            text = text.replace("@VICTIM@", str(victim)).replace("@FOLDER@", str(folder)) if isinstance(text, str) else text
            expected[write(folder, name, text)] = verdicts
    return expected
