"""Grading: some two hundred submissions, honest and hostile, must each get the verdict that they deserve."""

import csv
import io
import json
import os
import pickle
import signal
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np  # noqa: F401 (answers are evaluated here)
import psutil
import pytest
import submissions_made
import torch
from answers import lesson_01  # noqa: F401 (the answers are there)
from submissions_made import Expected

from course_utils import exercises
from course_utils.__main__ import main
from course_utils.exercises import assess, grading
from course_utils.exercises.grading import CannotGrade, Row, grade, school, summary, walls
from course_utils.exercises.grading.cells import Cell, remark, to_run
from course_utils.exercises.grading.judging import Limits, Outcome, Run, _outcome, replayed
from course_utils.exercises.grading.kernel import Watched
from course_utils.exercises.grading.plain import packed, unpacked
from course_utils.exercises.grading.submissions import Submission, Unreadable, find, read_cells
from course_utils.exercises.grading.table import legible

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="grading needs Linux")
LIMITS = Limits(seconds=15, gigabytes=4)


def why_no_walls() -> str:
    """Why the first wall does not stand here; nothing where it does."""
    try:
        walls.try_walls()
    except walls.NoWalls as reason:
        return str(reason)
    return ""


WALLED = pytest.mark.skipif(bool(NO_WALLS := why_no_walls()), reason=NO_WALLS)
COMMAND = [sys.executable, "-m", "course_utils", "grade"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As in the grader's own process, which forks: it must have no threads of PyTorch's.

    `grade` sets environment variables for good, as a command may: no later test must see them.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in grading.ENVIRONMENT.items():
            patch.setenv(name, value)
        yield
    torch.set_num_threads(before)


# --- the table of cases: one run of the grader over all ----------------------------------------------------

LESSONS = exercises.lessons()


def handed_in(folder: Path, keep, lessons=()) -> tuple[Expected, Callable[[], bool]]:
    """Submissions that `keep` holds of, and two of each lesson: their verdicts, and whether all is as it was."""
    def contents() -> dict[Path, bytes]:
        return {each: each.read_bytes() for each in folder.rglob("*") if each.is_file() and each.name != "grades.csv"}

    submitted = folder / "submitted"
    submitted.mkdir(parents=True)
    (folder / "victim.txt").write_text("still here")
    (folder / "progress.jsonl").write_text('{"id": "01.chance_log_prob", "verdict": "passed"}\n')      # forged
    expected = submissions_made.make(submitted, folder / "victim.txt", keep)
    for number in lessons:
        expected |= whole_lessons(submitted, number)
    before = contents()
    return expected, lambda: contents() == before


def table_in(folder: Path) -> dict[str, dict[str, dict[str, str]]]:
    """The rows of the table by submission and exercise."""
    by_submission: dict[str, dict[str, dict[str, str]]] = {}
    for row in csv.DictReader((folder / "grades.csv").open(encoding="utf-8")):
        by_submission.setdefault(row["submission"], {})[row["exercise"]] = row
    return by_submission


def arguments(folder: Path, seconds: int) -> list[str]:
    """One job: each makes a nursery of its own, which takes seconds."""
    return [str(folder / "submitted"), "--out", str(folder / "grades.csv"), "--seconds", str(seconds), "--jobs", "1"]


def undeserved(expected: Expected, rows: dict[str, dict[str, dict[str, str]]]) -> list:
    """Each row that is another than expected, or lacks, or is too many."""
    found: list = list(set(expected) ^ set(rows))
    for name, wanted in expected.items():
        got = rows.get(name, {})
        if "" not in wanted:
            ids = [item.id for item in exercises.exercises_of(name.partition("/")[2][:2])]
            wanted = {id: wanted.get(id, ("not attempted", "")) for id in ids}
        found += [(name, id) for id in set(got) ^ set(wanted)]
        for id, row in got.items():
            status, detail = wanted.get(id, ("", ""))
            right = row["status"] == status or not status and row["status"] != "passed"
            found += [] if right and detail in row["detail"] + row["mistake"] else [row]
    return found


def whole_lessons(folder: Path, number: str) -> Expected:
    """Two notebooks of a lesson: filled in, and with the first mistake that is a function in each exercise."""
    cells, mistaken = ["from course_utils.exercises import get"], {}
    for item in exercises.exercises_of(number):
        for place, mistake in enumerate(getattr(getattr(item.check, "compare", item.check), "mistakes", ())):
            if mistake.functions and item.id not in mistaken:
                mistaken[item.id] = ("named mistake", mistake.message)
                cells.append(f"check = get({item.id!r}).check\nmistakes = getattr(check, 'compare', check).mistakes\n"
                             f"exercise({item.id!r})(mistakes[{place}].functions[0])")
    right = {item.id: ("passed", "") for item in exercises.exercises_of(number)}
    write = submissions_made.write
    return {write(folder, f"right {number}", submissions_made.filled_in(number), number): right,
            write(folder, f"mistaken {number}", submissions_made.with_cells(*cells), number): mistaken}


# One of each kind that a single wall must stop: also what is tried without bubblewrap.
FEW = ("right", "infinite_loop", "honest_list_appended", "honest_dataclass_helper", "honest_writes_a_file",
       "hostile_deletes_files", "hostile_overwrites_files", "hostile_kills_its_parent", "hostile_symlink",
       "hostile_dir_fd_write", "hostile_mknod", "hostile_utime", "hostile_ctypes_unlink", "hostile_sqlite_over",
       "hostile_kill_by_pidfd", "hostile_prlimit_of_others", "zz_right")


def group_of(name: str) -> str:
    """"usual": what `make test` grades; "more" and "long": what `make matrix` does, too."""
    if name in submissions_made.LONG:
        return "long"
    return "usual" if name in FEW or not name.startswith(("honest_", "hostile_")) else "more"


def group_of_lesson(number: str) -> str:
    return "usual" if number in ("00", "06") else "more"


GROUPS = ("usual", pytest.param("more", marks=pytest.mark.matrix), pytest.param("long", marks=pytest.mark.matrix))


@WALLED
@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_every_submission_gets_the_verdict_that_it_deserves(tmp_path, group):
    expected, untouched = handed_in(tmp_path, lambda name: group_of(name) == group,
                                    [number for number in LESSONS if group_of_lesson(number) == group])
    env = {**os.environ, "COURSE_PROGRESS": str(tmp_path / "progress.jsonl"), "COURSE_SECRET": "1"}
    run = subprocess.run([*COMMAND, *arguments(tmp_path, seconds=20 if group == "more" else 2)], capture_output=True,
                         text=True, timeout=3000, cwd=tmp_path, env=env)
    assert run.returncode == 0 and run.stderr == ""
    rows = table_in(tmp_path)
    assert undeserved(expected, rows) == []
    assert untouched(), "a submission has changed a file"
    assert f"{sum(map(len, rows.values()))} rows written" in run.stdout and not orphans()


def orphans() -> list[psutil.Process]:
    """Processes of the grader whose parent is gone; they are given five seconds to end."""
    def found() -> list[psutil.Process]:
        return [each for each in psutil.process_iter(["cmdline", "ppid"])
                if "course_utils.exercises.grading.kernel" in (each.info["cmdline"] or []) and each.info["ppid"] == 1]

    until = time.monotonic() + 5
    while (left := found()) and time.monotonic() < until:
        time.sleep(0.2)
    return left


@pytest.mark.slow
def test_without_bubblewrap_the_grader_says_so_and_goes_on(tmp_path, monkeypatch, capfd):
    """The second wall: what goes through Python is refused; an honest notebook has its verdict all the same."""
    expected, untouched = handed_in(tmp_path, FEW.__contains__)
    for name, value in {"PATH": "/nowhere", "COURSE_SECRET": "1"}.items():
        monkeypatch.setenv(name, value)
    grading.engine._walls.cache_clear()
    try:
        assert main(["grade", *arguments(tmp_path, seconds=1)]) == 0
    finally:
        grading.engine._walls.cache_clear()
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "bubblewrap is not installed" in said and "in a container" in said
    assert undeserved(expected, table_in(tmp_path)) == [] and untouched()


def test_untouched_lessons_are_not_attempted(tmp_path, monkeypatch):
    monkeypatch.setattr(grading.engine, "Nursery", None)  # and nothing of them is run
    for number in LESSONS:
        submissions_made.write(tmp_path, number, submissions_made.lesson(number, "notebooks"), number)
    rows = [row for each in find(tmp_path) for row in grading.rows_of(each, LIMITS)]
    assert [row.exercise for row in rows] == [item.id for number in LESSONS for item in exercises.exercises_of(number)]
    assert {row.status for row in rows} == {"not attempted"}


# --- the verdict outside -----------------------------------------------------------------------------------


def both_verdicts(item, function):
    """What the notebook says, and what the grader says of the answers that were noted there."""
    watched = Watched(function, 60)
    inside = assess(item, watched)
    return inside, assess(item, replayed(unpacked(packed(watched.calls))))


ALL = [pytest.param(item, id=item.id, marks=[pytest.mark.matrix] if place else [])       # one of each lesson is enough
       for number in LESSONS for place, item in enumerate(exercises.exercises_of(number))]


@pytest.mark.parametrize("item", [*ALL, pytest.param(exercises.get("06.topk_step"), id="trains its input"),
                                  pytest.param(exercises.get("07.known_cases"), id="raises on purpose")])
def test_right_answers_pass_by_what_was_noted_of_them(item):
    inside, outside = both_verdicts(item, item.reference)
    assert inside.passed and outside.passed, outside


@pytest.mark.parametrize("value", [
    "1", "2.5", "True", "None", "'text'", "(1, [2.0, 'a'])", "{'a': (1,), 2: None}", "torch.arange(3)",
    "torch.ones(2, 1, dtype=torch.bfloat16)", "[torch.zeros(0)]", "torch.eye(2)[:, 0]", "...", "float('inf')",
    "np.ones((2, 1))", "np.arange(3)", "torch.ones(1, requires_grad=True)"])
def test_plain_answers_come_back_as_they_were(value):
    watched = Watched(lambda: eval(value), 60)
    watched()
    got, expected = replayed(unpacked(packed(watched.calls)))(), eval(value)
    assert repr(got) == repr(expected) and type(got) is type(expected)


def test_an_unknown_object_keeps_its_type_s_name_its_repr_and_its_fields():
    watched = Watched(lambda: Row("a", "b", "c", "01", "01.x", "passed"), 60)
    watched()
    got = replayed(unpacked(packed(watched.calls)))()
    assert type(got).__name__ == "Row" and "01.x" in repr(got) and got.status == "passed"
    assert type(got) is not Row


def claim(calls: list, **more) -> Outcome:
    item = exercises.get("01.chance_log_prob")
    return _outcome({"exercise": item.id, "status": "passed", "calls": calls, "cell": 3, **more}, item, LIMITS)


@pytest.mark.parametrize("calls", [
    [], [{"answer": ["plain", 1.0], "changed": []}] * 3,
    [{"answer": ["object", "float", "1.0", {}], "changed": []}] * 3,
    [{"raised": ["ValueError"], "message": "x"}] * 3, [{"answer": ["plain", float("nan")], "changed": []}] * 3])
def test_a_claim_without_right_answers_is_not_believed(calls):
    assert claim(calls).status in ("wrong", "crashed")


def test_a_claim_with_right_answers_is(monkeypatch):
    right = [{"answer": ["plain", -float(np.log(n))], "changed": []} for n in (988, 50257, 2)]
    assert claim(right).status == "passed" and claim(right, remark="uses x").detail == "(uses x)"
    assert claim(right, status="wrong", message="no").status == "wrong"
    assert claim(right, status="wrong", message="no", mistake="not one of ours").mistake == ""


def test_data_that_would_run_code_are_no_message():
    for content in (pickle.dumps(os.getcwd), b"", b"\0" * 8, (10**9).to_bytes(8, "little") + b"{}"):
        with pytest.raises(ValueError):
            unpacked(content)


# --- the cells that are run --------------------------------------------------------------------------------


def chosen(*sources: str, own=()) -> list[int]:
    return to_run([Cell(source) for source in sources], own)


def test_a_lesson_s_own_cell_runs_if_something_written_depends_on_it():
    lesson = ("import math", "model = load()", "train(model)", "N = 3", "N += model.n", "plot(N)",
              "for i in []: N.append(i)")
    assert chosen(*lesson, "def f(): return 1", own=range(7)) == [7]
    assert chosen(*lesson, "def f(): return math.pi", own=range(7)) == [0, 7]
    assert chosen(*lesson, "def f(): return N", own=range(7)) == [1, 3, 4, 6, 7]
    assert chosen(*lesson, "globals()['N']", own=range(7)) == list(range(8))
    assert chosen("from x import *", "y = 1", "def f(): return z", own=range(2)) == [0, 2]
    assert chosen("y = 1", "x[", "%time y", own=[0]) == [0, 1, 2]
    assert chosen("y = 1", "%%time\n%%capture\nprint(y)", own=[0]) == [0, 1]
    assert chosen("def set():\n    global y\n    y = 1", "set()", "print(y)", own=[0]) == [0, 1, 2]


@pytest.mark.parametrize("source, says", [
    ("def f(x): return get('01.x').reference(x)", "uses reference"),
    ("from course_utils.exercises.checks.lesson_01 import x\ndef f(): return x", "uses course_utils.exercises.checks"),
    ("import importlib\nimportlib.import_module('course_utils.exercises.checks.lesson_01')", "uses course_utils"),
    ("from course_utils.heads import stripe_scores\ndef f(*a): return stripe_scores(*a)", "uses stripe_scores"),
    ("def stripe_scores(n): return stripe_scores(n - 1)", ""), ("def f(x): return x + 1", "")])
def test_a_remark_says_whose_answer_it_is(source, says):
    found = remark(Cell(source), ["stripe_scores"])
    assert found.startswith(says) and bool(found) == bool(says)


# --- what was handed in ------------------------------------------------------------------------------------


def zipped(files: dict[str, str | bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return content.getvalue()


def found_in(folder: Path, files: dict[str, str | bytes]) -> dict[str, str]:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return {each.name: each.problem for each in find(folder)}


def test_nobody_vanishes(tmp_path):
    inner = zipped({"deep.ipynb": "{}", "c.zip": zipped({"deeper.ipynb": "{}"})})
    found = found_in(tmp_path, {
        "a/x.ipynb.txt": "{}", "b/x.ipynb.json": "{}", "c/X.IPYNB": "{}", "d/work.py": "", "e/work.html": "",
        "f/work.ZIP": zipped({"in/x.ipynb": "{}", "__MACOSX/in/._x.ipynb": "", ".hidden/y.ipynb": ""}),
        "g/w.zip": zipped({"b.zip": inner}), "h/bad.zip": b"PK no archive", "__MACOSX/z/._x.ipynb": "",
        ".Trash-0/x.ipynb": "{}", "i/._x.ipynb": "", "i/.ipynb_checkpoints/x.ipynb": "{}", "j/evil.zip": zipped(
            {"../../up.ipynb": "{}", "/abs.ipynb": "{}"})})
    assert {name for name, problem in found.items() if not problem} == {
        "a/x.ipynb.txt", "b/x.ipynb.json", "c/X.IPYNB", "f/work.ZIP/in/x.ipynb", "g/w.zip/b.zip/deep.ipynb",
        "j/evil.zip/up.ipynb", "j/evil.zip/abs.ipynb"}
    problems = {name: problem for name, problem in found.items() if problem}
    assert problems.keys() == {"d/work.py", "e/work.html", "g/w.zip/b.zip/c.zip", "h/bad.zip"}
    assert "(.py)" in problems["d/work.py"] and "cannot be opened" in problems["h/bad.zip"]


def test_an_archive_cannot_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("course_utils.exercises.grading.submissions.MAX_ARCHIVE_BYTES", 10**6)
    bomb = zipped({"x.ipynb": b"\0" * 2 * 10**6})
    assert "holds more than" in found_in(tmp_path, {"a.zip": bomb})["a.zip"]
    lying = bomb.replace((2 * 10**6).to_bytes(4, "little"), (10**5).to_bytes(4, "little"))
    assert found_in(tmp_path, {"a.zip": lying})["a.zip"]


def test_a_folder_that_cannot_be_read_has_a_row(tmp_path):
    (tmp_path / "shut").mkdir()
    (tmp_path / "shut").chmod(0)
    try:
        found = {each.name: each.problem for each in find(tmp_path)}
    finally:
        (tmp_path / "shut").chmod(stat.S_IRWXU)
    assert os.getuid() == 0 or "cannot be read" in found["shut"]  # root reads everything


@pytest.mark.parametrize("path, student", [
    ("Ada Lovelace_12345_assignsubmission_file_/x.ipynb", ("Ada Lovelace", "12345")),
    ("Ada Lovelace_12345_assignsubmission_file/x.ipynb", ("Ada Lovelace", "12345")),
    ("lovelaceada_LATE_123_456_01_x.ipynb", ("lovelaceada", "123")),
    ("lovelaceada_123_456_01_x-1.ipynb", ("lovelaceada", "123")),
    ("ada/01_x.ipynb", ("ada", "")), ("ada.ipynb.txt", ("ada", "")), ("ada/work.zip/x/01.ipynb", ("ada", ""))])
def test_whose_it_is(path, student):
    assert Submission(path).student == student


@pytest.mark.parametrize("content, says", [
    ("", "not valid JSON"), ("[1]", "no list of cells"), ("[" * 10**5, "not valid JSON"),
    ('{"nbformat": 3, "worksheets": []}', "no list of cells"),
    ('{"cells": [], "metadata": {"kernelspec": {"language": "R"}}}', "kernel is for r")])
def test_what_is_no_notebook_is_said(content, says):
    with pytest.raises(Unreadable, match=says):
        read_cells(content.encode())


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_notebook_in_an_editor_s_encoding_is_read(encoding):
    content = '{"cells": [{"cell_type": "code", "source": ["x = \\"é\\""]}]}'
    assert read_cells(content.encode(encoding)) == ['x = "é"']


def test_extra_files_of_a_student_are_named_and_have_no_row(tmp_path, capsys):
    files = {"a/x.ipynb": "{}", "a/plot.png": "", "b/only.py": ""}
    found_in(tmp_path, files)
    assert [each.name for each in grading._with_rows(list(find(tmp_path)))] == ["a/x.ipynb", "b/only.py"]
    assert "1 files beside notebooks were left out: a/plot.png" in capsys.readouterr().err


# --- a run that is ended -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.matrix
def test_a_killed_run_goes_on_where_it_was(tmp_path):
    """Three times kill -9; no notebook is judged twice, no process is left, and the table is that of one run."""
    submitted, out = tmp_path / "submitted", tmp_path / "grades.csv"
    partial = Path(f"{out}.partial")
    for number in range(8):
        answer = submissions_made.RIGHT if number % 2 else f"return {number + 1.0}"
        submissions_made.write(submitted, f"s{number:02}", submissions_made.with_cells(submissions_made.chance(answer)))
    command = [*COMMAND, str(submitted), "--out", str(out), "--jobs", "2"]
    for most in (1, 3, 5):
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while len(done := lines_of(partial)) < most and run.poll() is None:
            time.sleep(0.02)
        run.send_signal(signal.SIGKILL)
        run.wait()
        assert len(done) >= most and not out.exists() and not orphans()
    partial.write_text(partial.read_text() + '["half a li')
    before = lines_of(partial)
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0 and not partial.exists()
    rows = list(csv.DictReader(out.open()))
    assert [row["status"] for row in rows if row["exercise"] == "01.chance_log_prob"] == ["wrong", "passed"] * 4
    assert len({line.partition(",")[0] for line in before}) == len(before) >= 5


@pytest.fixture
def dask(tmp_path, monkeypatch):
    """A Dask scheduler's address, and two workers, as processes."""
    pytest.importorskip("distributed", reason="grading with --dask needs the extra [dask]")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    started = []

    def start(*arguments: str) -> subprocess.Popen:
        log = open(tmp_path / f"log{len(started)}.txt", "wb")
        started.append(subprocess.Popen([sys.executable, "-m", "dask", *arguments, "--scheduler-file", "scheduler.json",
                                         "--no-dashboard", "--host", "127.0.0.1"], stdout=log, stderr=log))
        return started[-1]

    start("scheduler", "--port", "0")
    workers = [start("worker", "--nthreads", "1", "--no-nanny") for _ in "ab"]
    while not Path("scheduler.json").exists():
        time.sleep(0.1)
    yield json.loads(Path("scheduler.json").read_text())["address"], workers
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.matrix
def test_a_lost_worker_of_dask_costs_no_verdict(tmp_path, dask):
    """One of two is killed when the first rows are there: every verdict is there once, and no process is left."""
    address, workers = dask
    for number in range(8):
        answer = submissions_made.RIGHT if number % 2 else f"return {number + 1.0}"
        submissions_made.write(tmp_path / "in", f"s{number:02}",
                               submissions_made.with_cells(submissions_made.chance(answer)))
    run = subprocess.Popen([*COMMAND, "in", "--dask", address])
    while len(lines_of(Path("grades.csv.partial"))) < 1 and run.poll() is None:
        time.sleep(0.05)
    assert run.poll() is None
    workers[0].kill()
    workers[0].wait()
    arrived = lines_of(Path("grades.csv.partial"))
    os.link("grades.csv.partial", "all.txt")        # the same file, under a name that is not removed at the end
    assert run.wait(timeout=600) == 0 and len(arrived) < 6
    stored = [line.partition(",")[0] for line in lines_of(Path("all.txt"))]
    assert len(stored) == len(set(stored)) == 8
    rows = [row for row in csv.DictReader(open("grades.csv")) if row["exercise"] == "01.chance_log_prob"]
    assert [row["submission"] for row in rows] == [f"s{number:02}/01_lesson.ipynb" for number in range(8)]
    assert [row["status"] for row in rows] == ["wrong", "passed"] * 4 and not orphans()


def test_dask_is_asked_for_in_words(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.ipynb").write_text("{}")
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(["grade", str(tmp_path), "--out", str(tmp_path / "g.csv"), "--dask", "tcp://127.0.0.1:1"]) == 1
    assert "faithful-circuits[dask]" in capsys.readouterr().err


def test_a_notebook_that_ends_its_checking_process_costs_nobody_else_a_verdict(monkeypatch):
    def rows_of(submission, limits):
        if submission.name == "b":
            os.kill(os.getpid(), signal.SIGKILL)
        yield row(submission.name, "01.x", "passed")

    monkeypatch.setattr(grading.engine, "rows_of", rows_of)
    graded = dict(grading.engine.graded([Submission(name) for name in "abcd"], LIMITS, jobs=2))
    found = {submission.name: rows[0].status for submission, rows in graded.items()}
    assert found == {"a": "passed", "b": "unreadable", "c": "passed", "d": "passed"}


def lines_of(partial: Path) -> list[str]:
    text = partial.read_text() if partial.exists() else ""
    return [line for line in text.splitlines(keepends=True) if line.endswith("]]]\n")]


def test_only_what_was_judged_under_the_same_limits_counts(tmp_path):
    submission = Submission("a.ipynb", b"{}")
    first = grading.Journal(tmp_path / "x.partial", LIMITS)
    first.add(submission, [Row("a.ipynb", "a", "", "", "", "unreadable")])
    assert grading.Journal(tmp_path / "x.partial", LIMITS).rows_of(submission)
    assert grading.Journal(tmp_path / "x.partial", Limits(seconds=3)).rows_of(submission) is None
    assert grading.Journal(tmp_path / "x.partial", LIMITS).rows_of(Submission("a.ipynb", b"{ }")) is None


# --- the table ---------------------------------------------------------------------------------------------


def without_judging(monkeypatch) -> None:
    monkeypatch.setattr(grading.engine, "prepare", lambda: None)
    monkeypatch.setattr(grading.engine, "_run", lambda cells, numbers, limits: Run())
    monkeypatch.setattr(grading.engine, "graded", lambda waiting, limits, jobs: (
        (each, grading.engine.rows_in(each, limits)) for each in waiting))


@pytest.mark.parametrize("name", ["=cmd", " =cmd", "@x", "-1"])
def test_a_text_that_a_spreadsheet_would_run_is_made_harmless(name, tmp_path, monkeypatch):
    without_judging(monkeypatch)
    submissions_made.write(tmp_path, name, submissions_made.with_cells(submissions_made.chance("return 1.0")))
    out = tmp_path / "grades.csv"
    assert grade(tmp_path, out, LIMITS)[0].submission == f"{name}/01_lesson.ipynb"
    assert {row["submission"] for row in csv.DictReader(out.open())} == {f"'{name}/01_lesson.ipynb"}


def test_a_name_is_no_command_to_the_terminal(tmp_path, monkeypatch):
    without_judging(monkeypatch)
    name = "a\x1b[31m\nforged/01.ipynb passed\u202e"
    submissions_made.write(tmp_path, name, submissions_made.with_cells(submissions_made.chance("return 1.0")))
    text = summary(grade(tmp_path, tmp_path / "grades.csv", LIMITS))
    assert len(text.splitlines()) == 2 and "\x1b" not in text and "\u202e" not in text
    assert legible("é·\ud800") == "é·\\ud800"


def test_the_summary_counts_and_names_the_most_frequent_mistakes():
    rows = [row("a", "01.x", "passed"), row("a", "01.y", "named mistake", "shifted"),
            row("b", "01.y", "named mistake", "shifted"), row("c", "", "unreadable")]
    text = summary(rows)
    assert "2 × 01.y: shifted" in text and text.splitlines()[1].split()[:3] == ["a/x.ipynb", "1", "1"]


def row(student: str, exercise: str, status: str, mistake: str = "", id: str = "", detail: str = "") -> Row:
    return Row(f"{student}/x.ipynb", student, id, exercise.partition(".")[0], exercise, status, mistake, detail)


def test_schools_get_their_tables(tmp_path):
    rows = [*(row("Ada", "01.x", status, id="7") for status in ("wrong", "passed", "wrong")),
            row("Ada", "01.y", "named mistake", "shifted", id="7"), row("=Bob", "", "unreadable", detail="no notebook")]
    school.write_moodle(tmp_path / "m.csv", rows)
    ada, bob = csv.DictReader((tmp_path / "m.csv").open())
    assert (ada["Identifier"], ada["Grade"], ada["Maximum Grade"]) == ("Participant 7", "1", "2")
    assert "01.y: named mistake (shifted)" in ada["Feedback comments"] and bob["Full name"] == "'=Bob"
    school.write_canvas(tmp_path / "c.csv", rows)
    possible, ada, bob = csv.DictReader((tmp_path / "c.csv").open())
    assert possible["Lesson 01"] == str(len(exercises.exercises_of("01"))) and ada["Lesson 01"] == "1"
    assert ada["ID"] == "7" and bob["Lesson 01"] == "0"
    school.write_gradescope_results(tmp_path / "r.json", rows)
    results = json.loads((tmp_path / "r.json").read_text())
    assert [(each["name"], each["score"]) for each in results["tests"]] == [("01.x", 1.0), ("01.y", 0.0)]
    school.write_gradescope_results(tmp_path / "r.json", rows[-1:])
    assert "no notebook" in json.loads((tmp_path / "r.json").read_text())["tests"][0]["output"]


@pytest.mark.slow
def test_the_autograder_holds_the_course_and_runs_it(tmp_path, monkeypatch):
    """Not compressed here, which takes seconds."""
    monkeypatch.setattr(school, "zipfile", SimpleNamespace(**{**vars(zipfile), "ZIP_DEFLATED": zipfile.ZIP_STORED}))
    assert main(["grade", "--gradescope", str(tmp_path / "a.zip")]) == 0
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        names = archive.namelist()
        assert {"setup.sh", "run_autograder", "requirements.txt", "course_utils/__main__.py"} <= set(names)
        assert any(name.startswith("course_utils/weights/") for name in names)
        assert "--gradescope-results /autograder/results/results.json" in archive.read("run_autograder").decode()
        assert f"torch=={torch.__version__}" in archive.read("requirements.txt").decode()


@pytest.mark.parametrize("arguments, says", [
    (["nowhere"], "no folder nowhere"), (["empty"], "nothing in"), (["with"], "cannot be written"),
    (["with/one/01_lesson.ipynb"], "is a file"), ([], "name the folder")])
def test_bad_input_is_refused_before_any_work(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    submissions_made.write(tmp_path, "with/one", "{}")
    (tmp_path / "empty").mkdir()
    out = "no/such/folder/grades.csv" if arguments == ["with"] else "grades.csv"
    assert main(["grade", *arguments, "--out", out]) == 1
    assert says in capsys.readouterr().err
    for option in (["--seconds", "-1"], ["--jobs", "0"]):
        with pytest.raises(SystemExit):
            main(["grade", ".", "--out", "x.csv", *option])


def test_it_is_refused_where_it_cannot_work(tmp_path, monkeypatch):
    submissions_made.write(tmp_path, "a", "{}")
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(CannotGrade, match="needs Linux"):
        grade(tmp_path, tmp_path / "grades.csv")


def test_a_broken_installation_is_said_rather_than_graded(monkeypatch):
    item = exercises.get("01.chance_log_prob")
    broken = type(item)(item.id, item.title, lambda d_vocab: 0.0 * d_vocab, item.check, item.hints, 1, 1)
    item.check.prepare(item.reference)
    monkeypatch.setattr(grading.engine, "exercises_of", lambda number: [broken])
    with pytest.raises(CannotGrade, match="does not pass here"):
        grading.engine._warm.__wrapped__("01")


@WALLED
def test_the_walls_stand_or_say_why_not(monkeypatch):
    assert walls.try_walls() in (None, walls.NOBODY)
    monkeypatch.setattr(walls, "behind_walls", lambda command: ["sh", "-c", "echo Operation not permitted >&2; exit 1"])
    with pytest.raises(walls.NoWalls, match="not allowed here .*not permitted"):
        walls.try_walls()


def test_packages_that_are_installed_elsewhere_are_seen_behind_the_walls(monkeypatch, tmp_path):
    """The user's own (pip install --user), or those that a .pth file names."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "site-packages"), str(tmp_path)])
    shown = walls.behind_walls([])
    assert str(tmp_path / "site-packages") in shown and str(tmp_path) not in shown


@WALLED
def test_a_course_in_the_temporary_folder_would_not_be_found_behind_the_walls(monkeypatch):
    monkeypatch.setattr(sys, "prefix", "/tmp/venv")
    with pytest.raises(walls.NoWalls, match="is in /tmp"):
        walls.try_walls()
