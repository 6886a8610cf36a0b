"""Grading: some fifty submissions, honest and hostile, must each get the verdict that they deserve."""

import csv
import importlib
import io
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np  # noqa: F401 (answers are evaluated here)
import pytest
import submissions_made
import torch
from answers import function_of

from course_utils import exercises
from course_utils.__main__ import main
from course_utils.exercises import assess, grading
from course_utils.exercises.grading import CannotGrade, Row, allowance, grade, judge, summary
from course_utils.exercises.grading.allowance import TimedOut
from course_utils.exercises.grading.isolation import Limits, NoAnswer, isolated
from course_utils.exercises.grading.submissions import Attempt, attempts_in, read_cells

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="grading needs Linux")
LIMITS = Limits(seconds=15, gigabytes=4)


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


@pytest.fixture(scope="module")
def graded(once_for_all):
    """The table that the command writes for all submissions, by submission; a file to destroy; its exit status."""
    def run_grader(folder: Path) -> None:
        submitted = folder / "submitted"
        submitted.mkdir(parents=True)
        (folder / "victim.txt").write_text("still here")
        expected = submissions_made.make(submitted, folder / "victim.txt")
        (submitted / "notes.txt").write_text("not a notebook")
        forged = submitted / "forged_progress" / "progress.jsonl"
        forged.write_text('{"id": "01.chance_log_prob", "verdict": "passed"}\n')
        run = subprocess.run(
            [sys.executable, "-m", "course_utils", "grade", str(submitted), "--out", str(folder / "grades.csv"),
             "--seconds", "1"],
            capture_output=True, text=True, timeout=900, cwd=folder, env={**os.environ, "COURSE_PROGRESS": str(forged)})
        (folder / "run.pickle").write_bytes(pickle.dumps((expected, run)))

    folder = once_for_all("graded", run_grader)
    expected, run = pickle.loads((folder / "run.pickle").read_bytes())
    by_submission = {}
    for row in csv.DictReader(io.StringIO((folder / "grades.csv").read_text(encoding="utf-8"))):
        by_submission.setdefault(row["submission"], {})[row["exercise"]] = row
    return expected, by_submission, folder / "victim.txt", run


@pytest.mark.slow
@pytest.mark.parametrize("name", submissions_made.TEXTS)
def test_every_submission_gets_the_verdicts_that_it_deserves(graded, name):
    expected, rows, _, _ = graded
    got = rows[f"{name}/01_lesson.ipynb"]
    wanted = expected[f"{name}/01_lesson.ipynb"]
    if "" not in wanted:
        wanted = {item.id: wanted.get(item.id, ("not attempted", "")) for item in exercises.exercises_of("01")}
    assert set(got) == set(wanted)
    for id, (status, detail) in wanted.items():
        row = got[id]
        assert row["status"] == status or (not status and row["status"] != "passed"), row
        assert detail in row["detail"] + row["mistake"], row


@pytest.mark.slow
def test_the_run_finishes_whatever_is_submitted(graded):
    expected, rows, victim, run = graded
    assert len(expected) >= 30 and set(rows) == set(expected)
    assert run.returncode == 0, run.stderr
    assert victim.read_text() == "still here"
    assert "Traceback" not in run.stderr
    assert f"{sum(map(len, rows.values()))} rows written" in run.stdout


@pytest.mark.slow
def test_a_function_may_use_a_model_that_another_cell_loads(tmp_path):
    text = submissions_made.with_cells(
        "from course_utils.models import load_model", "model = load_model('tiny')",
        submissions_made.chance("assert model.cfg.n_layers\nreturn -math.log(d_vocab)"))
    submissions_made.write(tmp_path, "ada", text)
    rows = {row.exercise: row for row in grade(tmp_path, tmp_path / "grades.csv")}
    assert rows["01.chance_log_prob"].status == "passed", rows["01.chance_log_prob"]


# --- whole lessons -----------------------------------------------------------------------------------------

LESSONS = exercises.lessons()


@pytest.mark.slow
@pytest.mark.parametrize("number", [                                # an exercise of each lesson is judged below
    pytest.param(number, marks=[] if number in ("01", "05", "09") else pytest.mark.matrix) for number in LESSONS])
def test_a_worked_lesson_passes_whole(number, tmp_path):
    submissions_made.write(tmp_path, "ada", submissions_made.lesson(number), number)
    rows = grade(tmp_path, tmp_path / "grades.csv")
    assert [row.exercise for row in rows] == [item.id for item in exercises.exercises_of(number)]
    assert {row.status for row in rows} == {"passed"}, rows


def test_untouched_lessons_are_not_attempted(tmp_path):
    for number in LESSONS:
        submissions_made.write(tmp_path, number, submissions_made.lesson(number, "notebooks"), number)
    rows = grade(tmp_path, tmp_path / "grades.csv")
    assert [row.exercise for row in rows] == [item.id for number in LESSONS for item in exercises.exercises_of(number)]
    assert {row.status for row in rows} == {"not attempted"}


ALL = [pytest.param(item, id=item.id, marks=[pytest.mark.matrix] if place else [])       # one of each lesson is enough
       for number in LESSONS for place, item in enumerate(exercises.exercises_of(number))]


@pytest.mark.slow
@pytest.mark.parametrize("item", ALL)
def test_a_known_mistake_has_the_same_name_as_in_the_notebook(item):
    """A variant of the solution, or, where mistakes are properties, a kept answer that has one."""
    check = getattr(item.check, "compare", item.check)
    if named := next((mistake for mistake in getattr(check, "mistakes", ()) if mistake.functions), None):
        place, name = check.mistakes.index(named), named.message
        program = (f"from course_utils.exercises import get\ncheck = get({item.id!r}).check\n"
                   f"attempt = getattr(check, 'compare', check).mistakes[{place}].functions[0]")
    else:
        number = item.id.partition(".")[0]
        kept = importlib.import_module(f"answers.lesson_{number}").ANSWERS[item.id].reject
        place, name = next((i, verdict.mistake) for i, wrong in enumerate(kept)
                           if (verdict := assess(item, function_of(wrong.answer))).mistake)
        program = (f"from answers import function_of\nfrom answers.lesson_{number} import ANSWERS\n"
                   f"attempt = function_of(ANSWERS[{item.id!r}].reject[{place}].answer)")
    assert judge(item, Attempt(item.id, "attempt", program), LIMITS) == ("named mistake", name, "")


# --- what a function does to its inputs --------------------------------------------------------------------


def verdict_of(id: str, program: str):
    with isolated(Attempt(id, "attempt", program), LIMITS, {}) as function:
        return assess(exercises.get(id), function)


def test_a_hook_left_on_the_model_is_seen():
    verdict = verdict_of("02.head_scores", """
from course_utils.heads import stripe_scores
def attempt(model, tokens, entries):
    next(model.children()).register_forward_hook(lambda *a: None)
    return stripe_scores(model, tokens, entries)""")
    assert verdict.status == "wrong" and "leaves a hook" in verdict.message


def test_changed_inputs_and_weights_are_seen():
    from course_utils.exercises import Exercise
    from course_utils.exercises.checking import Case, compare_cases

    layer = torch.nn.Linear(2, 2)
    check = compare_cases(lambda: [Case(layer, torch.ones(2), label="ones")], keeps_inputs=True)
    item = Exercise("90.total", "total", lambda layer, x: x.sum(), check, ("a", "b", "c"), 1, 1)
    before = layer.weight.detach().clone()
    for change, says in (("x.add_(1)", "changes its input"), ("layer.weight.data.zero_()", "model's weights")):
        program = f"def attempt(layer, x):\n    total = x.sum().clone()\n    {change}\n    return total"
        with isolated(Attempt(item.id, "attempt", program), LIMITS, {}) as function:
            assert says in assess(item, function).message
        assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("value", [
    "1", "2.5", "True", "None", "'text'", "(1, [2.0, 'a'])", "{'a': (1,), 2: None}", "torch.arange(3)",
    "torch.ones(2, 1, dtype=torch.bfloat16)", "[torch.zeros(0)]", "torch.eye(2)[:, 0]",
    "np.ones((2, 1))", "np.arange(3)"])
def test_plain_answers_come_back_as_they_were(value):
    attempt = Attempt("x", "f", f"import numpy as np, torch\ndef f(x):\n    return {value}")
    with isolated(attempt, LIMITS, {}) as function:
        for inputs in (3, torch.ones(1)):
            got, expected = function(inputs), eval(value)
            assert repr(got) == repr(expected) and type(got) is type(expected)


def test_a_gradient_is_reported_and_an_unknown_object_keeps_its_type_name():
    with isolated(Attempt("x", "f", "def f(x):\n    return x * 2"), LIMITS, {}) as function:
        assert function(torch.ones(1, requires_grad=True)).requires_grad
        assert not function(torch.ones(1)).requires_grad
    attempt = Attempt("x", "f", "import pathlib\ndef f(x):\n    return pathlib.PurePosixPath('a')")
    with isolated(attempt, LIMITS, {}) as f:
        assert type(f(1)).__name__ == "PurePosixPath" and repr(f(1)) == "PurePosixPath('a')"


def test_an_answer_that_would_run_code_when_it_is_read_is_refused():
    program = ("from course_utils.exercises.grading import isolation\nimport os, pickle\n"
               "class Bad:\n    def __reduce__(self):\n"
               "        return os.getcwd, ()\ndef f(x):\n    import sys\n    frame = sys._getframe()\n"
               "    while frame.f_code.co_name != '_child':\n        frame = frame.f_back\n"
               "    frame.f_locals['send'](pickle.dumps(Bad()))\n    os._exit(0)")
    with isolated(Attempt("x", "f", program), LIMITS, {}) as function, pytest.raises(NoAnswer, match="not an answer"):
        function(1)


def test_random_numbers_are_those_of_the_notebook():
    program = "import torch\nNOISE = torch.randn(5)\ndef f(x):\n    return torch.randn(3)"
    with isolated(Attempt("x", "f", program), LIMITS, {}) as function:
        for inputs in (3, torch.ones(1)):
            torch.manual_seed(5)
            got = function(inputs)
            torch.manual_seed(5)
            assert torch.equal(got, torch.randn(3))


# --- time ---------------------------------------------------------------------------------------------------


def timed(body: str, seconds: float = 0.3):
    program = f"import time\ndef f(x):\n    begun = time.process_time()\n    {body}\n    return x"
    return isolated(Attempt("x", "f", program), Limits(seconds), {})


@pytest.mark.slow
@pytest.mark.parametrize("body", ["time.sleep(1)", "return [0.0] * (2 * 10**5)"])
def test_only_the_processor_time_of_the_function_counts(body, monkeypatch):
    """Not what it waits for the processor, or anything else; not the seconds that copying a long answer takes."""
    monkeypatch.setattr(allowance, "PATIENCE", 1000)
    with timed(body) as function:
        assert function(1) and function(torch.ones(1))


@pytest.mark.slow
@pytest.mark.parametrize("body, patience, says", [
    ("while time.process_time() < begun + 3: pass", 1000,
     r"function used 0\.[3-9] s of processor time .*0\.3 in 300\)"),
    ("time.sleep(60)", 10, r"function used 0\.[01] s of processor time in [1-5]?\d s by the clock .*0\.3 in 3\)")])
def test_a_verdict_about_time_comes_early_and_says_how_much_was_used(body, patience, says, monkeypatch):
    monkeypatch.setattr(allowance, "PATIENCE", patience)
    with timed(body) as function, pytest.raises(TimedOut, match=says):
        function(1)


@pytest.mark.slow
@pytest.mark.parametrize("inputs", [1, torch.ones(1)], ids=["one child", "a child for each call"])
def test_the_time_is_for_all_calls_together(inputs, monkeypatch):
    monkeypatch.setattr(allowance, "PATIENCE", 1000)
    with timed("while time.process_time() < begun + 0.2: pass") as function:
        function(inputs)
        with pytest.raises(TimedOut):
            function(inputs)


# --- reading submissions -----------------------------------------------------------------------------------


def program_of(*cells: str) -> str:
    return attempts_in(cells)["01.x"].program


def test_only_what_the_function_uses_is_kept():
    program = program_of(
        "import os\nimport torch as t\nunused = t.ones(3)\nbase = 2\nprint(base)",
        "def helper(x):\n    return x + later\ntwice = base * 2",
        '@exercise("01.x")\ndef f(x: t.Tensor):\n    return helper(x) * twice',
        "later = 5\ntwice = 0")
    assert program == ("import torch as t\nbase = 2\n\n"
                       "def helper(x):\n    return x + later\ntwice = base * 2\nlater = 5\n\n"
                       "def f(x: t.Tensor):\n    return helper(x) * twice")


def test_a_local_variable_of_the_same_name_needs_nothing():
    program = program_of("x = train()\nrows = [i for i in range(3)]", "print([row for row in rows])", "total = 1",
                         '@exercise("01.x")\ndef f(x):\n    total = x\n    return [row for row in total]')
    assert program == "def f(x):\n    total = x\n    return [row for row in total]"


def test_the_last_definition_before_the_function_counts():
    assert program_of("a = 1", "a = a + 1", '@exercise("01.x")\ndef f():\n    return a', "a = 9").startswith(
        "a = 1\na = a + 1\n\ndef f")


def test_another_exercise_is_replaced_by_the_course_s_own():
    attempt = attempts_in(['@exercise("01.y")\ndef y():\n    return 1', '@exercise("01.x")\ndef f():\n    return y()'])
    assert attempt["01.x"].others == {"y": "01.y"} and "return 1" not in attempt["01.x"].program


@pytest.mark.parametrize("body, empty", [
    ("raise NotImplementedError", True), ("...", True), ('"""doc"""\n    raise NotImplementedError', True),
    ("pass", True), ("return x", False), ("y = x", False)])
def test_stubs_are_told_from_answers_without_running_them(body, empty):
    attempt = attempts_in([f'@exercise("01.x")\ndef f(x=1 / 0) -> 1 / 0:\n    {body}'])["01.x"]
    assert attempt.empty == empty


def test_cells_are_read_with_their_magics_as_calls(tmp_path):
    path = tmp_path / "a.ipynb"
    path.write_text(submissions_made.notebook("%%time\nx = 1", "!ls\ny = 2"))
    assert read_cells(path)[0] == "x = 1\n" and "get_ipython().system('ls')\ny = 2" in read_cells(path)[1]


# --- the table ---------------------------------------------------------------------------------------------


def test_a_text_that_a_spreadsheet_would_run_is_made_harmless(tmp_path):
    formula = submissions_made.chance("raise ValueError('x')")
    submissions_made.write(tmp_path, "=cmd", submissions_made.with_cells(formula))
    out = tmp_path / "grades.csv"
    assert grade(tmp_path, out, LIMITS)[0].submission == "=cmd/01_lesson.ipynb"
    assert {row["submission"] for row in csv.DictReader(out.open())} == {"'=cmd/01_lesson.ipynb"}


def test_the_summary_counts_and_names_the_most_frequent_mistakes():
    rows = [Row("a", "01", "01.x", "passed"), Row("a", "01", "01.y", "named mistake", "shifted"),
            Row("b", "01", "01.y", "named mistake", "shifted"), Row("c", "", "", "unreadable")]
    text = summary(rows)
    assert "2 × 01.y: shifted" in text and text.splitlines()[1].split()[:3] == ["a", "1", "1"]


@pytest.mark.parametrize("arguments, says", [
    (["nowhere"], "no folder nowhere"), (["."], "no notebook"), (["with"], "cannot be written")])
def test_bad_input_is_refused_before_any_work(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    submissions_made.write(tmp_path, "with/one", "{}")
    if arguments == ["."]:
        shutil.rmtree(tmp_path / "with")
    out = "no/such/folder/grades.csv" if arguments == ["with"] else "grades.csv"
    assert main(["grade", *arguments, "--out", out]) == 1
    assert says in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["grade", ".", "--out", "x.csv", "--seconds", "-1"])


def test_an_interrupted_run_keeps_what_it_has_and_the_old_table(tmp_path, monkeypatch):
    submissions_made.write(tmp_path, "a", "{}")
    submissions_made.write(tmp_path, "b", "{}")
    out = tmp_path / "grades.csv"
    out.write_text("the old table")
    real = grading.rows_of

    def stop_at_second(path, name, limits):
        if name.startswith("b"):
            raise KeyboardInterrupt
        yield from real(path, name, limits)

    monkeypatch.setattr(grading, "rows_of", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        grade(tmp_path, out)
    assert out.read_text() == "the old table"
    assert "a/01_lesson.ipynb" in Path(f"{out}.partial").read_text()


def test_it_is_refused_where_it_cannot_work(tmp_path, monkeypatch):
    submissions_made.write(tmp_path, "a", "{}")
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(CannotGrade, match="needs Linux"):
        grade(tmp_path, tmp_path / "grades.csv")


def test_a_broken_installation_is_said_rather_than_graded(monkeypatch):
    item = exercises.get("01.chance_log_prob")
    broken = type(item)(item.id, item.title, lambda d_vocab: 0.0 * d_vocab, item.check, item.hints, 1, 1)
    monkeypatch.setattr(grading, "_warmed", set())
    item.check.prepare(item.reference)
    with pytest.raises(CannotGrade, match="does not pass here"):
        judge(broken, Attempt(item.id, "f", "def f(x): return 1"), LIMITS)
