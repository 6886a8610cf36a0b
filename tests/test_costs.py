"""The measured costs: what a label says, that every lesson has one, and that measuring measures."""

from pathlib import Path

import pytest

pytest.importorskip("nbclient")
costs = pytest.importorskip("costs")
try_colab = pytest.importorskip("try_colab")
from course_utils import exercises

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("seconds, says", [(0.2, "under 1 s"), (0.99, "under 1 s"), (1.4, "1 s"), (9.4, "9 s"),
                                           (12.4, "10 s"), (13, "15 s"), (61, "60 s")])
def test_seconds_are_rounded_so_that_a_label_outlives_small_differences(seconds, says):
    assert costs.amount({"seconds": seconds, "gigabytes": 0.84}) == f"{says}, 0.8 GB"


def test_every_lesson_was_measured():
    found = costs.read(ROOT)
    assert {name[:2] for name in found} == set(exercises.lessons())
    for cost in found.values():
        assert cost["real"]["gigabytes"] > cost["tiny"]["gigabytes"] > 0.1 and cost["tiny"]["seconds"] > 1


def test_an_unmeasured_lesson_has_no_label():
    assert costs.lesson_label({}, "01_x") == ""


def test_only_rows_of_lessons_are_written_in_the_readme():
    text = "| 01 | a | 2 | old |\n| 02 | b | 3 | old |\nprose 01 | x |\n| tiny | c |\n"
    found = costs.with_costs(text, {"01_x": {"tiny": {"seconds": 7.2, "gigabytes": 1.0}}})
    assert found == text.replace("| a | 2 | old |", "| a | 2 | 7 s, 1.0 GB |")


@pytest.mark.slow
def test_time_and_memory_are_those_of_the_kernel_and_of_its_cells(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    cells = ["import time", "block = bytearray(400_000_000)\ntime.sleep(0.3)", "del block\ntime.sleep(0.6)"]
    path = tmp_path / "90_x.ipynb"
    path.write_text(nbformat.writes(nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)))))
    whole, seconds = costs.measure(path, "skip")
    assert len(seconds) == 3 and seconds[1] > 0.29 and seconds[2] > 0.59
    assert 0.43 < whole["gigabytes"] < 0.6                  # though freed again; a kernel has some 70 MB of its own
    assert whole["seconds"] == pytest.approx(sum(seconds), abs=0.1)


@pytest.mark.slow
def test_the_first_lesson_begins_as_on_colab_from_a_wheel(wheel, tmp_path, capsys, monkeypatch):
    """Its setup cell, which installs the course. That the wheel holds all of it is seen in test_command.py."""
    nbformat = pytest.importorskip("nbformat")
    lesson = nbformat.read(ROOT / "notebooks" / "00_start_here.ipynb", as_version=4)
    (tmp_path / "notebooks").mkdir()
    lesson.cells = [cell for cell in lesson.cells if cell.id == "setup"]
    nbformat.write(lesson, tmp_path / "notebooks" / "00_start_here.ipynb")
    monkeypatch.setattr(try_colab, "ROOT", tmp_path)
    monkeypatch.setattr(try_colab, "make_wheel", lambda folder: wheel)
    for name in ("JUPYTER_PATH", "COURSE_REAL", "COURSE_MODEL"):
        monkeypatch.setenv(name, "")  # put back afterwards
    assert try_colab.main(["00"]) == 0
    out = capsys.readouterr().out
    assert "00_start_here:" in out and "setup ok on Colab: course 0.1.0" in out and "0 failed" in out
