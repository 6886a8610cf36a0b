"""`faithful-circuits`: copying never overwrites, updating loses nothing, and what the wheel carries."""

import copy
import json
import sys
import types
import zipfile
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")

from course_utils import __version__, house, lab
from course_utils.__main__ import for_jupyter, main
from course_utils.lab import folder as folders
from course_utils.lab.merging import merged

ROOT = Path(__file__).resolve().parent.parent
FIRST = "00_start_here.ipynb"
NOTEBOOKS = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
ANSWER = '@exercise("00.double")\ndef double(x):\n    return 2 * x'


def cells(**sources: str) -> list:
    """Code cells by their ids."""
    return [nbformat.v4.new_code_cell(source, id=name) for name, source in sources.items()]


def sources(notebook: Path | list) -> list[str]:
    found = nbformat.read(notebook, as_version=4).cells if isinstance(notebook, Path) else notebook
    return [cell.source for cell in found]


@pytest.fixture
def course(tmp_path, monkeypatch):
    """publish(name=cells, …): a course of these notebooks is what is installed; at first one of two cells."""
    installed = tmp_path / "installed"
    installed.mkdir()
    monkeypatch.setattr(folders, "shipped_notebooks", lambda kind: installed)

    def publish(**notebooks):
        for old in installed.iterdir():
            old.unlink()
        for name, its_cells in notebooks.items():
            nbformat.write(nbformat.v4.new_notebook(cells=its_cells), installed / f"{name.strip('_')}.ipynb")

    publish(_00_case=cells(a="1", b="2"))
    return publish


@pytest.fixture
def work(course, tmp_path):
    """The learner's folder, filled."""
    assert lab.fill(tmp_path / "work") == ["00_case.ipynb"]
    return tmp_path / "work"


def write(notebook: Path, its_cells: list) -> bytes:
    nbformat.write(nbformat.v4.new_notebook(cells=its_cells), notebook)
    return notebook.read_bytes()


# ------------------------------------------------------------------------------------------------------ lab

@pytest.fixture
def opened(monkeypatch, tmp_path):
    """What JupyterLab was started with; the current folder is an empty one."""
    starts = []
    application = types.SimpleNamespace(launch_instance=starts.append)
    monkeypatch.setitem(sys.modules, "jupyterlab.labapp", types.SimpleNamespace(LabApp=application))
    monkeypatch.chdir(tmp_path)
    return starts


def test_lab_copies_every_notebook_once_and_opens_them(opened, tmp_path, capsys):
    assert main(["lab", "--copy"]) == 0 and opened == []
    assert main(["lab", "--no-browser", "--port", "9000"]) == 0
    mine = tmp_path / "faithful-circuits"
    assert opened == [[str(mine), "--LabApp.news_url=None", "--no-browser", "--port", "9000"]]
    assert sorted(path.name for path in mine.glob("*.ipynb")) == NOTEBOOKS and len(NOTEBOOKS) == 13
    assert (mine / FIRST).read_bytes() == (ROOT / "notebooks" / FIRST).read_bytes()
    assert f"13 notebooks copied to {mine}: begin with {FIRST}" in capsys.readouterr().out


def test_lab_never_overwrites_and_brings_back_what_was_deleted(opened, tmp_path, capsys):
    mine = tmp_path / "elsewhere"
    mine.mkdir()
    (mine / FIRST).write_text("my work")
    assert main(["lab", "elsewhere"]) == 0
    (mine / NOTEBOOKS[1]).write_text("more work")
    (mine / NOTEBOOKS[2]).unlink()
    assert main(["lab", "elsewhere"]) == 0
    assert (mine / FIRST).read_text() == "my work" and (mine / NOTEBOOKS[1]).read_text() == "more work"
    assert (mine / NOTEBOOKS[2]).exists() and "1 notebook copied" in capsys.readouterr().out


def test_lab_in_the_learners_folder_opens_that(opened, tmp_path, monkeypatch):
    main(["lab"])
    monkeypatch.chdir(tmp_path / "faithful-circuits")
    assert main(["lab"]) == 0
    assert opened[0][0] == opened[1][0]


def test_lab_does_not_fill_a_clone_of_the_course(opened, tmp_path, capsys):
    (tmp_path / "faithful-circuits").mkdir()
    (tmp_path / "faithful-circuits" / "README.md").touch()
    assert main(["lab"]) == 1 and opened == []
    assert "holds something else: name another folder" in capsys.readouterr().err


def test_lab_where_a_file_is_in_the_way_or_the_record_is_damaged(opened, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["lab", "file"]) == 1 and "file cannot be used" in capsys.readouterr().err
    (tmp_path / folders.RECORD).write_text("[]")
    assert main(["lab"]) == 1 and "is not what the course writes there" in capsys.readouterr().err
    assert opened == []


def test_lab_without_jupyterlab_says_what_to_do(opened, monkeypatch, capsys):
    monkeypatch.setattr(lab.jupyter.importlib.util, "find_spec", lambda name: None)
    assert main(["lab"]) == 1 and "pip install jupyterlab" in capsys.readouterr().err
    assert main(["lab", "--notebook"]) == 1 and "pip install notebook" in capsys.readouterr().err
    assert Path("faithful-circuits", FIRST).exists()


@pytest.mark.parametrize("arguments, ours", [
    ([], 0), (["work"], 1), (["work", "--notebook", "--no-browser"], 2), (["--port", "9000"], 0), (["--help"], 1)])
def test_the_first_option_that_is_not_ours_and_all_after_it_are_jupyterlabs(arguments, ours):
    assert for_jupyter(arguments) == (arguments[:ours], arguments[ours:])


def test_lab_says_when_the_course_has_newer_notebooks(course, work, opened, capsys):
    main(["lab", str(work)])
    assert "newer" not in capsys.readouterr().out
    course(_00_case=cells(a="1", b="3"))
    main(["lab", str(work)])
    assert "`faithful-circuits update` brings yours up to date" in capsys.readouterr().out


# --------------------------------------------------------------------------------------------------- update

@pytest.mark.parametrize("mine, theirs, result", [
    ({"a": "1", "b": "2"}, {"a": "1", "b": "3"}, ["1", "3"]),                   # untouched: replaced
    ({"a": "1", "b": "my 2"}, {"a": "9", "b": "3"}, ["9", "my 2"]),             # touched: kept
    ({"a": "1", "b": "2"}, {"x": "0", "a": "1", "b2": "3"}, ["0", "1", "3"]),   # new cells; one is gone
    ({"a": "1", "b": "my 2"}, {"a": "1", "b2": "3"}, ["1", "my 2", "3"]),       # touched, and gone from the course
    ({"a": "1", "own": "x", "own2": "y", "b": "2"}, {"a": "9", "c": "5", "b": "2"}, ["9", "x", "y", "5", "2"]),
    ({"own": "x", "a": "1"}, {"a": "1", "b": "3"}, ["x", "1"]),                 # b was deleted by the learner: stays so
    ({"other": "1", "b": "2"}, {"a": "9", "b": "2"}, ["9", "2"]),               # an editor gave a new id
    ({"a": "1", "pasted": "1", "b": "2"}, {"a": "1", "b": "3"}, ["1", "1", "3"]),
    ({}, {"a": "1", "b": "2", "c": "3"}, ["3"]),
])
def test_merging(mine, theirs, result):
    base = folders.hashes_of({"cells": cells(a="1", b="2")})
    assert sources(merged(cells(**mine), base, cells(**theirs))[0]) == result


def test_an_answer_goes_below_the_new_text_of_its_exercise():
    stub = ANSWER.replace("return 2 * x", "raise NotImplementedError")
    base = folders.hashes_of({"cells": cells(a="1", b=stub, c="plot")})
    new = stub.replace("(x)", "(x: float)")
    found, counts = merged(cells(a="1", b=ANSWER, c="plot"), base, cells(a="1", new="text", b2=new, c="plot"))
    assert sources(found) == ["1", "text", new, ANSWER, "plot"] and counts == {"new": 2, "of yours kept": 1}


def test_cells_that_are_the_same_keep_their_outputs_and_all_their_ids():
    mine = cells(a="1", b="2")
    for cell in mine:
        cell.outputs = [nbformat.v4.new_output("stream", text="out")]
    found, _ = merged(mine, folders.hashes_of({"cells": mine}), cells(a="1", b="3"))
    assert [(cell.id, len(cell.outputs)) for cell in found] == [("a", 1), ("b", 0)]


def test_cells_without_ids_are_known_by_their_text():
    mine = cells(a="1", b="2") + cells(own="x")
    for cell in mine:
        del cell["id"]
    found, _ = merged(copy.deepcopy(mine), folders.hashes_of({"cells": cells(a="1", b="2")}), cells(a="1", b="3"))
    assert sources(found) == ["1", "3", "x"] and len({cell.id for cell in found}) == 3


def test_update_merges_keeps_what_was_there_and_says_what_it_did(course, work, capsys):
    before = write(work / "00_case.ipynb", cells(a="my 1", b="2"))
    course(_00_case=cells(a="9", b="3"), _01_case=cells(c="4"))
    for _ in range(2):                                              # the second time there is nothing to do
        assert main(["update", str(work)]) == 0
        assert sources(work / "00_case.ipynb") == ["my 1", "3"] and sources(work / "01_case.ipynb") == ["4"]
    backup = work / f"before-{__version__}"
    assert (backup / "00_case.ipynb").read_bytes() == before
    first, second = capsys.readouterr().out.split(f"As they were before: {backup}")
    assert "00_case.ipynb: 1 cell of yours kept, 1 cell replaced" in first and "01_case.ipynb: copied" in first
    assert second.count("left as it is; the course has not changed it") == 2

    write(work / "00_case.ipynb", cells(a="my 1", b="my 3"))
    course(_00_case=cells(a="9", b="5"))
    assert main(["update", str(work)]) == 0
    assert sources(work / "00_case.ipynb") == ["my 1", "my 3"]
    assert sources(work / f"before-{__version__}-2" / "00_case.ipynb") == ["my 1", "my 3"]
    assert (backup / "00_case.ipynb").read_bytes() == before


def test_update_touches_nothing_that_the_course_has_not_changed(work):
    mine = write(work / "00_case.ipynb", cells(own="x", b="my 2"))
    assert main(["update", str(work)]) == 0
    assert (work / "00_case.ipynb").read_bytes() == mine and not list(work.glob("before-*"))


@pytest.mark.parametrize("text", ["not JSON", "{}", ""])
def test_what_cannot_be_merged_stays_and_the_new_one_lies_beside(course, work, text, capsys):
    (work / "00_case.ipynb").write_text(text)
    course(_00_case=cells(a="9"))
    assert main(["update", str(work)]) == 0
    assert (work / "00_case.ipynb").read_text() == text
    assert sources(work / f"00_case-{__version__}.ipynb") == ["9"]
    assert "left as it is, since it is not a notebook that can be read" in capsys.readouterr().out


def test_update_of_a_folder_without_the_course_says_so(opened, capsys):
    assert main(["update"]) == 1 and "faithful-circuits lab does that" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------- other commands

def test_progress_of_one_lesson(capsys):
    assert main(["progress", "02"]) == 0
    shown = capsys.readouterr().out
    assert "02.head_scores" in shown and "01." not in shown
    assert main(["progress", "77"]) == 1 and "there is no lesson '77'" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"faithful-circuits {__version__}\n"


def test_course_needs_the_worked_lessons(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(house.settings, "PACKAGE", tmp_path / "package")
    assert main(["course"]) == 1 and "solutions are neither" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- the wheel

@pytest.mark.slow
def test_the_wheel_carries_the_whole_course_with_its_notebooks_and_stays_small(wheel):
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
        for path in (ROOT / "notebooks").glob("*.ipynb"):
            assert packed.read(f"course_utils/notebooks/{path.name}") == path.read_bytes()
        for path in (ROOT / "solutions").glob("*.ipynb"):
            worked = nbformat.reads(packed.read(f"course_utils/solutions/{path.name}").decode(), as_version=4)
            assert sources(worked.cells) == sources(path) and not any(cell.get("outputs") for cell in worked.cells)
        ours = [path for kind in ("py", "json", "safetensors") for path in (ROOT / "course_utils").rglob(f"*.{kind}")]
        assert len(ours) > 100 and {str(path.relative_to(ROOT)) for path in ours} <= names
        (entry,) = (name for name in names if name.endswith("entry_points.txt"))
        assert b"faithful-circuits = course_utils.__main__:main" in packed.read(entry)
    assert not [name for name in names if not name.startswith(("course_utils/", "faithful_circuits-"))]
    assert wheel.stat().st_size < 60e6


def test_the_notebooks_are_found_in_a_checkout_and_in_the_package(tmp_path, monkeypatch):
    assert house.shipped_notebooks("notebooks") == ROOT / "notebooks"
    inside = tmp_path / "package" / "notebooks"
    inside.mkdir(parents=True)
    monkeypatch.setattr(house.settings, "PACKAGE", tmp_path / "package")
    with pytest.raises(FileNotFoundError, match="install it again"):
        house.shipped_notebooks("notebooks")
    (inside / FIRST).write_text(json.dumps({}))
    assert house.shipped_notebooks("notebooks") == inside
