"""`make course`: the table, the exit status, the pages; and `measured`, which feeds it."""

import json
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
run_course = pytest.importorskip("course_utils.runs.course")

from course_utils.measured import main as check_report
from course_utils.measured import measured, passed
from course_utils.viz import Widget


@pytest.fixture
def report(tmp_path, monkeypatch):
    path = tmp_path / "report.jsonl"
    monkeypatch.setenv("COURSE_REPORT", str(path))
    return lambda: [json.loads(line) for line in path.read_text().splitlines()]


def test_measured_shows_and_writes_nothing_unless_asked(capsys, monkeypatch):
    monkeypatch.delenv("COURSE_REPORT", raising=False)
    assert measured("score", 0.9) is None and capsys.readouterr().out == ""


def test_a_report_is_checked_against_its_bounds(report, tmp_path, capsys):
    measured("fine", 0.5, at_least=0.4, at_most=0.6)
    assert check_report(str(tmp_path / "report.jsonl")) == 0
    measured("too small", 0.1, unit="nats", at_least=0.4)
    measured("not a number", float("nan"))
    assert check_report(str(tmp_path / "report.jsonl")) == 1
    shown = capsys.readouterr().out
    assert "too small: 0.1 nats, bounds 0.4 to None" in shown and "3 measured numbers, 2 of them" in shown
    (tmp_path / "report.jsonl").write_text("")
    assert check_report(str(tmp_path / "report.jsonl")) == 1            # nothing was measured


def test_measured_appends_one_line_each(report):
    measured("score", 0.9, at_least=0.8, published="0.91 (quoted)")
    measured("loss", 2, unit="nats", at_most=3)
    assert [row["name"] for row in report()] == ["score", "loss"]
    assert report()[0] == {"name": "score", "value": 0.9, "unit": "", "at_least": 0.8, "at_most": None,
                           "published": "0.91 (quoted)"}


@pytest.mark.parametrize("value, bounds, expected", [
    (0.8, {"at_least": 0.8}, True),
    (0.79, {"at_least": 0.8}, False),
    (0.8, {"at_most": 0.8}, True),
    (0.81, {"at_most": 0.8}, False),
    (float("nan"), {}, False),
    (float("inf"), {"at_least": 0}, False),
    (5, {}, True),
])
def test_bounds_are_inclusive_and_nan_fails(report, value, bounds, expected):
    measured("x", value, **bounds)
    assert passed(report()[0]) is expected


def test_measured_refuses_what_is_not_a_number():
    with pytest.raises(TypeError, match="must be one number, got list"):
        measured("x", [1, 2])
    with pytest.raises(ValueError, match="at_least 2 is above at_most 1"):
        measured("x", 1, at_least=2, at_most=1)


def lesson(root: Path, name: str, *cells: str) -> None:
    (root / "solutions").mkdir(exist_ok=True)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    nbformat.write(notebook, root / "solutions" / f"{name}.ipynb")


def course(root: Path, **options) -> int:
    return run_course.run_course(root / "solutions", root / "build" / "html", **options)


GOOD = """from course_utils.measured import measured
measured('score', 0.9, at_least=0.8, published='0.91 (quoted)')"""


def test_table_and_status_of_a_lesson_on_the_embedded_model_without_the_real_sections(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COURSE_MODEL", "something-else")
    monkeypatch.setenv("COURSE_REAL", "auto")
    check = "import os\nassert (os.environ['COURSE_MODEL'], os.environ['COURSE_REAL']) == ('tiny', 'skip')"
    lesson(tmp_path, "00_case", GOOD, check)
    stored = (tmp_path / "solutions" / "00_case.ipynb").read_bytes()
    assert course(tmp_path) == 0
    out = capsys.readouterr().out
    for text in ("00_case", "0.9", "0.91 (quoted)", "≥ 0.8", "pass", "1 measured values, 0 of 0 claims hold, 0 failed"):
        assert text in out, out
    assert (tmp_path / "build" / "html" / "00_case.html").exists()
    assert (tmp_path / "solutions" / "00_case.ipynb").read_bytes() == stored


CLAIMING = """from course_utils.claims import claim
claim("copying helps", 0.9, ">", 0.5, unit="nats")
claim("it is sure", 0.7, ">", 0.8)"""


@pytest.mark.slow
def test_lessons_that_fail_do_not_keep_the_next_from_running(tmp_path, capsys):
    lesson(tmp_path, "00_case", GOOD, GOOD.replace("0.9,", "0.7,"), CLAIMING, "x = 1\n1 / 0", "x")
    lesson(tmp_path, "01_case", GOOD, "import os\nos._exit(1)")
    assert course(tmp_path) == 1
    out = capsys.readouterr().out
    for text in ("FAIL 00_case: score is 0.7, bound ≥ 0.8", "FAIL 00_case: code cell 4 ('x = 1'): ZeroDivisionError",
                 "FAIL 00_case: does not hold: it is sure",
                 "FAIL 01_case: code cell 2 ('import os'): the kernel died", "pass",
                 "3 measured values, 1 of 2 claims hold, 4 failed"):
        assert text in out, out
    held, broken = [line.split() for line in out.splitlines() if " copying helps " in line or " it is sure  " in line]
    assert held[3:] == ["0.9", ">", "0.5", "nats", "holds"] and broken[-3:] == ["DOES", "NOT", "HOLD"]
    assert {page.stem for page in (tmp_path / "build" / "html").iterdir()} == {"00_case", "01_case"}


def test_a_claim_that_does_not_hold_on_another_model_is_told_and_no_failure(report, tmp_path, capsys, monkeypatch):
    lesson(tmp_path, "00_case", GOOD)
    measured("score", 0.9)
    claimed = {"claim": "it is sure", "value": 0.7, "relation": ">", "control": 0.8, "unit": "", "holds": False}
    for model, status in {"llama": 0, "tiny": 1}.items():
        def ran(path, pages, env, *_):
            assert env["COURSE_MODEL"] == model
            return run_course.LessonRun(path.stem, report(), [claimed])

        monkeypatch.setattr(run_course, "run_lesson", ran)
        assert course(tmp_path, model=model) == status
        assert "DOES NOT HOLD" in capsys.readouterr().out


def test_ctrl_c_says_what_is_there(tmp_path, capsys, monkeypatch):
    lesson(tmp_path, "00_case", GOOD)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_course, "run_lesson", interrupted)
    assert course(tmp_path) == 130
    assert str(tmp_path / "build" / "html") in capsys.readouterr().err


@pytest.mark.parametrize("values, error, status, expected", [
    ([0.9], "", 0, "1 lessons, 1 measured values, 0 of 0 claims hold, 0 failed"),
    ([0.9, 0.7], "", 1, "FAIL 00_case: x is 0.7, bound ≥ 0.8\n"
                        "1 lessons, 2 measured values, 0 of 0 claims hold, 1 failed"),
    ([0.9], "it crashed", 1, "FAIL 00_case: it crashed\n1 lessons, 1 measured values, 0 of 0 claims hold, 1 failed"),
    ([], "", 1, "FAIL no lesson measured anything"),
])
def test_any_one_failure_is_enough_for_the_status(report, tmp_path, values, error, status, expected):
    (tmp_path / "report.jsonl").touch()
    for value in values:
        measured("x", value, at_least=0.8)
    text, found = run_course.summary([run_course.LessonRun("00_case", report(), error=error)], 0.0)
    assert found == status and text.startswith(expected)


def test_no_lessons_is_an_error(tmp_path, capsys):
    assert course(tmp_path) == 1
    assert "no worked lesson * in" in capsys.readouterr().err


def test_pages_hold_the_bundle_once_and_load_nothing():
    widget = {"text/html": Widget("AttentionPatterns", tokens=[], attention=[]).html}
    output = nbformat.v4.new_output("display_data", data=widget)
    cells = [nbformat.v4.new_markdown_cell("$x_1$"), *(nbformat.v4.new_code_cell("w", outputs=[output]) for _ in "ab")]
    page = run_course.to_html(nbformat.v4.new_notebook(cells=cells), "a lesson")
    head, _, body = page.partition("</head>")
    assert head.count("window.CircuitsVis=(") == 1 and body.count("cv.render(") == 2
    assert "<script src=" not in page, "a script that cannot be had would hold up the page"
    loaded = [part.split('"')[0] for part in page.replace("'", '"').split('src="')[1:]]
    assert [x for x in loaded if x.startswith("http")] == [] and "<msub>" in body


def test_pages_without_widgets_stay_small():
    page = run_course.to_html(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")]), "a lesson")
    assert len(page) < 600_000 and "window.CircuitsVis=(" not in page
