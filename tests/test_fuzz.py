"""Broken files that a learner's own hands make: a progress file and a submission, spoilt as hypothesis thinks of.

Lines of a progress file that can be read stay readable whatever stands between them; the grader reads any submission or
says what is wrong with it; and a right answer is found whatever stands in the other cells. By default each test tries a
few files, always the same ones. The long run tries as many new ones as asked for:

    COURSE_FUZZ=1000 pytest tests/test_fuzz.py
"""

from __future__ import annotations

import contextlib
import copy
import csv
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from submissions_made import chance, log_probs, with_cells

from course_utils import exercises
from course_utils.exercises import grading, progress_store
from course_utils.exercises.grading.cells import Cell, to_run
from course_utils.exercises.grading.judging import Run

LONG = "COURSE_FUZZ" in os.environ
EXAMPLES = int(os.environ.get("COURSE_FUZZ", 20))
fuzz = settings(deadline=None, max_examples=EXAMPLES, derandomize=not LONG, suppress_health_check=list(HealthCheck))

# --- broken files ----------------------------------------------------------------------------------------------------

DEEP = "a value inside a hundred thousand lists"  # too deep for any reader; written by `as_json`
WHOLE = st.integers() | st.sampled_from([0, 1, -1, 40, 10**6, 10**12, 2**63, 10**400])
REAL = st.floats() | st.sampled_from([0.5, -1.0, 1e300])
WORDS = st.sampled_from(["0", "1.5", "none", "topk", "x" * 10_000]) | st.text(st.characters(), max_size=5)
# st.characters() has surrogates, which JSON can hold and UTF-8 cannot
VALUES = st.recursive(
    st.none() | st.booleans() | WHOLE | REAL | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3), max_leaves=5,
) | st.just(DEEP)
SAME_KIND = {bool: st.booleans(), int: WHOLE, float: REAL | WHOLE, str: WORDS}


def places(value, at: tuple = ()) -> Iterator[tuple]:
    """The way to every part of a JSON value, the whole included."""
    yield at
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*at, key))


@st.composite
def changed(draw, value):
    """A JSON value of which one or two parts were dropped, replaced or added."""
    value = {"whole": copy.deepcopy(value)}
    for _ in range(draw(st.integers(1, 2))):
        *way, key = draw(st.sampled_from([at for at in places(value) if at]))
        inside = value
        for each in way:
            inside = inside[each]
        match draw(st.sampled_from(["replace", "replace", "drop", "add"])):
            case "replace":
                inside[key] = draw(SAME_KIND.get(type(inside[key]), VALUES) | VALUES)
            case "drop" if way:
                del inside[key]
            case "add" if isinstance(inside, list):
                inside.insert(key, draw(VALUES))
            case "add" if way:
                inside[draw(WORDS)] = draw(VALUES)
    return value["whole"]


def as_json(value) -> bytes:
    return json.dumps(value).replace(json.dumps(DEEP), "[" * 100_000 + "]" * 100_000).encode()


@st.composite
def spoilt(draw, content: bytes):
    """These bytes, cut off, with some of them changed or put in between, or other bytes altogether."""
    cut, more = draw(st.integers(0, len(content))), draw(st.binary(max_size=20))
    match draw(st.sampled_from(["cut", "change", "insert", "other"])):
        case "cut":
            return content[:cut]
        case "change":
            return content[:cut] + more + content[cut + len(more):]
        case "insert":
            return content[:cut] + more + content[cut:]
        case _:
            return more


def broken_json(value):
    """A JSON file with other values in it, or spoilt."""
    other = changed(value).map(as_json)
    return other | other | spoilt(json.dumps(value).encode())


@contextlib.contextmanager
def folder_with(files: dict[str, bytes]) -> Iterator[Path]:
    """A folder with these files, which must be the same at the end."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        yield folder
        assert {path: (folder / path).read_bytes() for path in files} == files, "reading has changed a file"


@contextlib.contextmanager
def terminal() -> Iterator[Callable[[], str]]:
    """A terminal that understands UTF-8 and nothing else; a function that says what it shows."""
    screen = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stdout(screen):
        yield lambda: screen.buffer.getvalue().decode()
        screen.flush()


# --- progress --------------------------------------------------------------------------------------------------------

ATTEMPT = {"id": "01.chance_log_prob", "verdict": "wrong", "mistake": "the sign", "time": 1_700_000_000}
LINES = (st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"")) | VALUES.map(as_json)
         | broken_json(ATTEMPT).map(lambda line: line.replace(b"\n", b"")))
EXERCISES = st.sampled_from(["00.top_tokens", "01.chance_log_prob", "not of this course"])


@fuzz
@given(st.lists(LINES | EXERCISES))
@example([b'{"id": "01.chance_log_prob", "verdict": "wrong", "mistake": "\\ud800"}'])
@example([b'{"id": "01.chance_log_prob", "verdict": "wrong", "mistake": ' + b"[" * 900 + b"]" * 900 + b"}"])
def test_a_progress_file(lines):
    good = [line for line in lines if isinstance(line, str)]
    written = (as_json({**ATTEMPT, "id": line, "verdict": "good"}) if line in good else line for line in lines)
    content = b"".join(b"\n" + line for line in written)
    with folder_with({"progress.jsonl": content}) as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_PROGRESS", str(folder / "progress.jsonl"))
        found = progress_store.read()
        assert [each["id"] for each in found if each["verdict"] == "good"] == good
        with terminal() as shown:
            exercises.progress()
        assert " passed" in shown().splitlines()[-1]
        before = (folder / "progress.jsonl").read_bytes()
        progress_store.record("01.after", "passed")
        after = (folder / "progress.jsonl").read_bytes()
        assert after.startswith(before) and progress_store.read()[:-1] == found
        assert progress_store.read()[-1]["id"] == "01.after"
        (folder / "progress.jsonl").write_bytes(before)


# --- submissions -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick_grader():
    """The grader without the judging: what it reads and writes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grading.engine, "_run", lambda cells, numbers, limits: Run())
        patch.setattr(grading.engine, "prepare", lambda: None)
        patch.setattr(grading.engine, "graded", lambda waiting, limits, jobs: (
            (each, grading.engine.rows_in(each, limits)) for each in waiting))
        patch.setattr(os, "environ", dict(os.environ))
        yield


SUBMITTED = json.loads(with_cells(
    chance("return -math.log(d_vocab)"), log_probs("return helper(logits)"), "def helper(x):\n    return other(x)",
    "def other(x):\n    return helper(x)"))
SUBMITTED["metadata"] = {"kernelspec": {"name": "python3", "language": "python"}, "language_info": {"name": "python"}}


@fuzz
@given(broken_json(SUBMITTED), st.sampled_from(["01_x.ipynb", "x.ipynb", "\udcff01.ipynb"]))
@example(as_json({**SUBMITTED, "metadata": {"kernelspec": {"language": "\ud800"}}}), "01_x.ipynb")
def test_a_submitted_notebook(quick_grader, content, name):
    with folder_with({name: content}) as folder, tempfile.TemporaryDirectory() as out:
        rows = grading.grade(folder, Path(out, "grades.csv"))
        assert rows and {row.submission for row in rows} == {name.replace("\udcff", "\\udcff")}
        assert {row.status for row in rows} <= set(grading.STATUSES)
        assert all(row.detail for row in rows if row.status == "unreadable")
        with open(Path(out, "grades.csv"), encoding="utf-8", newline="") as file:
            assert len(list(csv.DictReader(file))) == len(rows)
        with terminal():
            print(grading.summary(rows))


PIECES = st.sampled_from([
    # no valid program
    "nonlocal x", "return 1", "yield", "await x", "break", "def f(a, a):\n    pass", "x = " + "(" * 300, "\t x", "\\",
    "\0", "\ud800 = 1", "x = " + "9" * 5000, "*g, h", "'''", "@exercise('01.z')\ndef g(x):\n    nonlocal x",
    # nested deep
    "x = " + "(" * 150 + ")" * 150, "x = " + "-" * 5000 + "1", "a = a.b" * 2000,
    # who needs whom
    "def g():\n    return h()", "def h():\n    return g()", "class g(h): x = g", "g = h", "h = g", "del g", "global x",
    "from x import *", "import x.y as z, w", "import math", "d_vocab = 3", "math = None", "*g, h = x", "(g := h)",
    # every kind of statement
    "g: int = h",
    "async def g(): pass", "lambda: (yield)", "[x for x in x]", "f'{x!r:{y}}'", "match x:\n    case {'a': g}: pass",
    "try:\n    pass\nexcept* g: pass", "if x:\n    def g(): pass", "for g in h: pass", "with g as h, h as g: pass",
    "type g = h", "def g[T](x: T): ...", "x = 1e400j", "é = ﬁ = 1",
    # what notebooks have besides Python
    "%%time", "%%bash\nls", "!ls {x}", "?x", "x??", "%x y", "x = !ls", "\f", "\r",
    # exercises
    "@exercise('01.x')\ndef g(x):\n    return h(x)", "@exercise('01.x')\nclass g: pass", "@exercise(3)\ndef g(x): ...",
    "@exercise('01.x', '01.y')\n@exercise('01.z')\ndef g(): return g", "@exercise()\ndef g(): ...",
    "@exercise('01.x')\nasync def g(): ...", "@exercise(b'01.x')\ndef g(): ...", "exercise('01.x')(lambda x: g)",
    "exercise('01.x')(g)(h)", "x = exercise('01.x')(g)",
]) | st.text(st.characters(), max_size=20)
CELLS = st.lists(st.lists(PIECES, max_size=4).map("\n".join), max_size=6)


@fuzz
@given(CELLS, CELLS)
def test_every_cell_that_a_learner_wrote_is_run_and_what_it_needs_of_the_lesson(before, after):
    answer = chance("return -__import__('math').log(d_vocab) * needed")
    sources = ["\n".join(("needed = 1", "%matplotlib inline")), *before, answer, *after]
    own = [0, *range(len(before) + 2, len(sources))]
    run = to_run([Cell(source) for source in sources], own)
    assert run == sorted(run) and set(run) >= set(range(len(before) + 2))
    assert to_run([Cell(source) for source in sources], []) == list(range(len(sources)))
