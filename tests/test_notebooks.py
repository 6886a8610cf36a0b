"""The lessons themselves: stored notebooks are fresh, and run from top to bottom on every model they promise.

That the stored outputs are right is nbval's part: `pytest --nbval solutions`.
"""

from pathlib import Path

import pytest

import small_models

nbformat = pytest.importorskip("nbformat")
build_notebooks = pytest.importorskip("build_notebooks")
import browser  # noqa: E402
from notebook_runs import run_notebook  # noqa: E402

ROOT = Path(__file__).parent.parent
LESSONS = [path.stem for path in build_notebooks.lesson_sources(ROOT)]


def run(folder: str, lesson: str, **env):
    """Run a stored notebook with its outputs cleared; raises LessonError when a cell fails."""
    notebook = nbformat.read(ROOT / folder / f"{lesson}.ipynb", as_version=4)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    for cell in code:
        cell.outputs, cell.execution_count = [], None
    run_notebook(notebook, {"COURSE_MODEL": "tiny", "COURSE_REAL": "skip", **env})
    errors = [o for c in code for o in c.outputs if o.output_type == "error"]
    assert not errors, errors
    assert all(c.execution_count for c in code if c.source.strip())
    return notebook


def test_stored_notebooks_are_fresh(capsys):
    status = build_notebooks.main(["--check"])
    assert status == 0, capsys.readouterr().out


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A Hugging Face cache with a small GPT-2 and a small Llama."""
    folder = tmp_path_factory.mktemp("hub")
    return folder, small_models.hub_cache(folder)


UNTOUCHED = [pytest.param(
    ("gpt2", "llama")[number % 2], lesson, id=lesson, marks=[pytest.mark.matrix] if lesson in browser.UNTOUCHED else [])
    for number, lesson in enumerate(LESSONS)]


@pytest.mark.slow
@pytest.mark.parametrize("kind, lesson", UNTOUCHED)
def test_the_exercise_notebook_runs_untouched(kind, lesson, hub):
    """Learned positions and LayerNorm, or rotary positions, grouped queries and RMSNorm."""
    folder, names = hub
    run("notebooks", lesson, COURSE_MODEL=names[kind], HF_HUB_CACHE=str(folder), HF_HUB_OFFLINE="1")


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("lesson", LESSONS)
def test_the_worked_notebook_runs_on_small_models_of_the_hub(lesson, kind, hub):
    folder, names = hub
    run("solutions", lesson, COURSE_MODEL=names[kind], HF_HUB_CACHE=str(folder), HF_HUB_OFFLINE="1")


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize("model", ["smollm2-135m", "gpt2-small-random"])
@pytest.mark.parametrize("lesson", LESSONS)
def test_the_worked_notebook_runs_on_larger_models(lesson, model):
    run("solutions", lesson, COURSE_MODEL=model)
