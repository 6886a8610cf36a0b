"""The builder: what it puts where, that it is repeatable, what it refuses, and what --check finds."""

import ast
import json
import shutil
import sys
from pathlib import Path

import pytest

pytest.importorskip("jupytext")
nbconvert = pytest.importorskip("nbconvert")
nbformat = pytest.importorskip("nbformat")
build_notebooks = pytest.importorskip("build_notebooks")

SAMPLE = Path(__file__).parent / "data" / "course"
STUB = '@exercise("00.double")\ndef double(x):\n    raise NotImplementedError\n'
sys.path.insert(0, str(SAMPLE))

from sample_exercises import get  # noqa: E402


def copy_of_the_sample(folder: Path) -> Path:
    shutil.copytree(SAMPLE, folder, dirs_exist_ok=True)
    return folder


def main(root, *args):
    return build_notebooks.main([*args, "--root", str(root)], get)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sample, built and executed once; tests that change it take a copy."""
    root = copy_of_the_sample(tmp_path_factory.mktemp("built"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(SAMPLE))
        assert main(root) == 0
    return root


@pytest.fixture
def course(built, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(SAMPLE))
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    return tmp_path


def read(root, folder):
    return nbformat.read(root / folder / "00_sample.ipynb", as_version=4)


def test_the_stub_stays_in_notebooks_and_the_reference_stands_in_solutions(built):
    open_, worked = read(built, "notebooks"), read(built, "solutions")
    stub = next(c for c in open_.cells if "@exercise" in c.source)
    assert stub.source.startswith("# about 5 minutes · difficulty 1 of 3\n@exercise")
    solved = next(c for c in worked.cells if "@exercise" in c.source)
    assert stub.source.endswith("raise NotImplementedError")
    assert solved.source == (
        '@exercise("00.double")\ndef double(x):\n    """Twice x, the course\'s way."""\n    return 2 * x')
    assert stub.id == solved.id


def test_tagged_cells_go_to_one_notebook(built):
    text = {f: "\n".join(c.source for c in read(built, f).cells) for f in ("notebooks", "solutions")}
    assert "Fill in" in text["notebooks"] and "Fill in" not in text["solutions"]
    assert "only in the" in text["solutions"] and "only in the" not in text["notebooks"]


def test_ids_start_with_a_letter_are_shared_and_unique(built):
    open_, worked = ([c.id for c in read(built, f).cells] for f in ("notebooks", "solutions"))
    assert all(i[0].isalpha() for i in open_ + worked)
    assert len(set(open_)) == len(open_) and len(set(worked)) == len(worked)
    assert len(set(open_) & set(worked)) == len(open_) - 1
    assert sum(i.endswith("-2") for i in open_) == 1  # the cell that stands twice


def test_metadata_is_fixed_and_the_header_is_gone(built):
    for folder in ("notebooks", "solutions"):
        notebook = read(built, folder)
        assert notebook.metadata == build_notebooks.METADATA
        assert all(set(c.metadata) <= {"tags"} for c in notebook.cells if c.id != "setup")
        assert notebook.cells[0].source.startswith("# A sample lesson")


def test_a_notebook_can_be_exported_as_a_script(built):
    """The setup cell has a magic, which is no Python as it stands."""
    script, _ = nbconvert.ScriptExporter().from_notebook_node(read(built, "notebooks"))
    assert "get_ipython().run_line_magic('pip'" in script
    ast.parse(script)


def test_only_solutions_are_executed(built):
    assert all(not c.get("outputs") for c in read(built, "notebooks").cells)
    outputs = [c.outputs for c in read(built, "solutions").cells if c.cell_type == "code"]
    assert outputs[4][0].data["text/plain"] == "42"
    assert "off auto" in outputs[6][0].text


def test_a_second_build_executes_nothing_and_changes_no_byte(course, monkeypatch):
    before = {p: p.read_bytes() for p in course.rglob("*.ipynb")}
    monkeypatch.setattr(build_notebooks, "run_notebook", lambda *a: pytest.fail("executed"))
    assert main(course) == 0
    assert {p: p.read_bytes() for p in course.rglob("*.ipynb")} == before


def test_executing_again_gives_the_same_bytes(course):
    before = {p: p.read_bytes() for p in course.rglob("*.ipynb")}
    assert main(course, "--execute") == 0
    assert {p: p.read_bytes() for p in course.rglob("*.ipynb")} == before


def test_a_changed_reference_makes_the_solution_stale(course, monkeypatch, capsys):
    changed = "def times_two(x):\n    return x + x\n"
    monkeypatch.setattr(build_notebooks.inspect, "getsource", lambda function: changed)
    assert main(course, "--check") == 1
    out = capsys.readouterr().out
    assert "solutions/00_sample.ipynb: stale" in out and "notebooks/00" not in out


def edit(root, folder, change):
    path = root / folder / "00_sample.ipynb"
    notebook = nbformat.read(path, as_version=4)
    change([c for c in notebook.cells if c.cell_type == "code"])
    path.write_text(build_notebooks.dumps(notebook), encoding="utf-8")


def set_source(cells):
    cells[0].source = "import sys"


def unexecute(cells):
    cells[4].execution_count, cells[4].outputs = None, []


def enlarge(cells):
    cells[4].outputs[0].data["text/plain"] = "x" * 1_600_000


def add_error(cells):
    cells[4].outputs.append(nbformat.v4.new_output("error", ename="E", evalue="", traceback=[]))


def add_stdout(cells):
    cells[2].outputs.append(nbformat.v4.new_output("stream", text="1"))


def add_stderr(cells):
    cells[4].outputs.append(nbformat.v4.new_output("stream", name="stderr", text="UserWarning: hm"))


@pytest.mark.parametrize("folder, change, problem", [
    ("notebooks", set_source, "stale"),
    ("solutions", set_source, "stale"),
    ("solutions", unexecute, "not executed from top to bottom"),
    ("solutions", enlarge, "1.6 MB; the limit is 1.5 MB"),
    ("solutions", add_error, "code cell 5 has an error output"),
    ("solutions", add_stderr, "code cell 5 wrote to stderr: 'UserWarning: hm'"),
    ("notebooks", add_stdout, "has outputs"),
])
def test_check_names_the_file_and_the_problem(course, capsys, folder, change, problem):
    assert main(course, "--check") == 0 and capsys.readouterr().out == "up to date\n"
    edit(course, folder, change)
    assert main(course, "--check") == 1
    assert f"{folder}/00_sample.ipynb: {problem}" in capsys.readouterr().out


def test_check_finds_missing_and_left_over_notebooks(course, capsys):
    (course / "notebooks" / "00_sample.ipynb").rename(course / "notebooks" / "07_gone.ipynb")
    assert main(course, "--check") == 1
    out = capsys.readouterr().out
    assert "notebooks/00_sample.ipynb: missing" in out and "notebooks/07_gone.ipynb: no lesson" in out


def test_a_lesson_that_fails_is_not_written_and_the_cell_is_named(course, capsys):
    lesson = course / "lessons" / "00_sample.py"
    lesson.write_text(lesson.read_text() + "\n# %%\nbroken = 1 / 0\n")
    before = (course / "solutions" / "00_sample.ipynb").read_bytes()
    assert main(course) == 1
    assert "code cell 10 ('broken = 1 / 0'): ZeroDivisionError: division by zero" in capsys.readouterr().err
    assert (course / "solutions" / "00_sample.ipynb").read_bytes() == before
    assert not list(course.rglob("*.partial"))


@pytest.mark.parametrize("cell, message", [
    (STUB.replace("raise NotImplementedError", "return 2 * x"), "must end in `raise NotImplementedError`"),
    (STUB + "\ndef other():\n    pass\n", "exactly one function only; found 2 statements"),
    ("import math\n" + STUB, "found 2 statements"),
    (STUB.replace("00.double", "00.dobule"), "unknown exercise '00.dobule': there is no exercise"),
    (STUB.replace("(x)", "(x, y)"), r"takes \['y'\], which its reference does not take"),
    (STUB.replace('@exercise("00.double")', "@exercise(NAME)"), 'needs one decorator, @exercise'),
    (STUB.replace('@exercise("00.double")', "@exercise(7)"), 'needs one decorator, @exercise'),
    (STUB.replace("00.double", "00.helper"), r"uses \['times_two'\], which the lesson neither"),
    (STUB.replace("00.double", "00.lambda"), "must be written as a function"),
])
def test_a_bad_exercise_cell_is_refused(tmp_path, cell, message):
    path = tmp_path / "03_bad.py"
    path.write_text(f"# %% [markdown]\n# # Bad\n\n# %%\nfrom sample_exercises import exercise\n\n# %%\n{cell}")
    with pytest.raises(build_notebooks.BuildError, match=f"03_bad.py, cell 3 .*{message}"):
        build_notebooks.make_notebook(path, "solutions", get)


def test_a_name_that_the_lesson_imported_before_is_fine(tmp_path):
    path = tmp_path / "03_good.py"
    stub = STUB.replace("double", "helper")
    path.write_text("# %% [markdown]\n# # Good\n\n# %%\nfrom sample_exercises import exercise, times_two\n\n"
                    f"# %%\n{stub}")
    cell = build_notebooks.make_notebook(path, "solutions", get).cells[3]
    assert cell.source.splitlines()[1] == "def helper(x):"


# --- what is added -----------------------------------------------------------------------------------------

COSTS = {"00_sample": {"tiny": {"seconds": 13.4, "gigabytes": 0.84}, "real": {"seconds": 0.4, "gigabytes": 2.0}}}
README = "| | lesson | cost |\n|---|---|---|\n| 00 | [A sample](notebooks/00_sample.ipynb) | |\n| 01 | other | old |\n"


def test_the_costs_are_written_without_running_a_lesson_again(course, monkeypatch):
    (course / "lessons" / "costs.json").write_text(json.dumps(COSTS))
    (course / "README.md").write_text(README)
    outputs = [c.get("outputs") for c in read(course, "solutions").cells]
    monkeypatch.setattr(build_notebooks, "run_notebook", lambda *a: pytest.fail("executed"))
    assert main(course, "--check") == 1
    assert main(course) == 0 and main(course, "--check") == 0
    for folder in ("notebooks", "solutions"):
        assert "15 s, 0.8 GB of memory (under 1 s, 2.0 GB with SmolLM2)." in read(course, folder).cells[0].source
    assert [c.get("outputs") for c in read(course, "solutions").cells] == outputs
    assert "| [A sample](notebooks/00_sample.ipynb) | 15 s, 0.8 GB |" in (course / "README.md").read_text()
    assert "| 01 | other | old |" in (course / "README.md").read_text()


def test_no_badge_and_no_address_without_a_published_address(built):
    for folder in ("notebooks", "solutions"):
        text = "".join(c.source for c in read(built, folder).cells)
        assert "colab.research" not in text and 'SOURCE = ""' in text


def test_one_setting_fills_every_badge_and_the_setup_cell(course, monkeypatch):
    (course / "README.md").write_text(README)
    (course / "pyproject.toml").write_text('[project]\nname = "x"\n[project.urls]\nSource = "https://github.com/a/b.git"\n')
    monkeypatch.setattr(build_notebooks, "run_notebook", lambda *a: pytest.fail("executed"))
    assert main(course) == 0 and main(course, "--check") == 0
    title, setup = read(course, "notebooks").cells[:2]
    address = "https://colab.research.google.com/github/a/b/blob/main/notebooks/00_sample.ipynb"
    assert title.source.startswith("# A sample lesson\n\n[![Open in Colab]") and f"]({address})" in title.source
    assert 'SOURCE = "git+https://github.com/a/b.git"' in setup.source
    assert "colab.research" not in "".join(c.source for c in read(course, "solutions").cells)
    assert ".ipynb) [![Open in Colab]" in (course / "README.md").read_text()
    assert main(course, "--source", "") == 0  # and none again when it is not set
    assert (course / "README.md").read_text() == README


@pytest.mark.parametrize("text", ["# %%\nx = 1\n", "", "# %% [markdown]\n# A text.\n"])
def test_a_lesson_without_a_title_is_refused(tmp_path, text):
    path = tmp_path / "03_bad.py"
    path.write_text(text)
    with pytest.raises(build_notebooks.BuildError, match="whose first line is its title"):
        build_notebooks.make_notebook(path, "notebooks", get)
