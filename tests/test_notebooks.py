"""The lessons themselves: stored notebooks are fresh, and run from top to bottom on every model they promise.

That the stored outputs are right is nbval's part: `pytest --nbval solutions`.
"""

import ast
import re
import sys
from pathlib import Path

import huggingface_hub
import pytest
import small_models
from IPython.core.interactiveshell import InteractiveShell

from course_utils import exercises
from course_utils.exercises import progress_store

nbformat = pytest.importorskip("nbformat")
build_notebooks = pytest.importorskip("build_notebooks")
from course_utils.runs import run_notebook  # noqa: E402

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


@pytest.mark.parametrize("folder", ["notebooks", "solutions"])
@pytest.mark.parametrize("lesson", LESSONS)
def test_papermill_finds_one_cell_of_parameters(lesson, folder):
    """It puts its own after that cell: MODEL has been given a value there, is not used yet, and gets no other below."""
    cells = nbformat.read(ROOT / folder / f"{lesson}.ipynb", as_version=4).cells
    tagged = [number for number, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", [])]
    assert [number for number, cell in enumerate(cells) if 'environ.get("COURSE_MODEL"' in cell.source] == tagged
    assert len(tagged) == 1 and not re.search(r"\bMODEL\b(?! =)", cells[tagged[0]].source)


@pytest.mark.parametrize("lesson", LESSONS)
def test_every_figure_is_shown(lesson):
    """A figure appears as the last value of its cell, through `display`, or on given axes."""
    draws = {"new_axes", "attention_patterns", "latent_dashboard"}
    for cell in nbformat.read(ROOT / "solutions" / f"{lesson}.ipynb", as_version=4).cells:
        if cell.cell_type != "code" or cell.id == "setup":
            continue
        body = ast.parse(cell.source).body
        values = [node.value for part in body for node in ast.walk(part)
                  if isinstance(node, ast.Expr) and node is not body[-1]]
        lost = [ast.unparse(call)[:80] for call in values if isinstance(call, ast.Call)
                and isinstance(call.func, ast.Name) and (call.func.id.startswith("plot_") or call.func.id in draws)
                and not any(given.arg == "ax" for given in call.keywords)]
        assert not lost


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A Hugging Face cache with a small model of each family."""
    folder = tmp_path_factory.mktemp("hub")
    return folder, small_models.hub_cache(folder, small_models.HUB_MODELS)


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """IPython in this process, which has imported everything already: a kernel takes ten seconds for that."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setattr(InteractiveShell, "_instance", None)
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])       # the shell puts its own there
    yield InteractiveShell.instance()
    InteractiveShell.clear_instance()


def run_here(folder: str, lesson: str, kind: str, hub, monkeypatch) -> None:
    """Run a stored notebook in the IPython of this process, on one of the small models."""
    cache, names = hub
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("COURSE_MODEL", names[kind])
    monkeypatch.setenv("COURSE_REAL", "skip")
    for cell in nbformat.read(ROOT / folder / f"{lesson}.ipynb", as_version=4).cells:
        if cell.cell_type == "code":
            InteractiveShell.instance().run_cell(cell.source).raise_error()


# learned positions and LayerNorm, or rotary positions, grouped queries and RMSNorm
KINDS = [(("gpt2", "llama")[number % 2], lesson) for number, lesson in enumerate(LESSONS)]
# Most of their cells take tiny, or as long, whatever the model is: in a kernel, by make matrix.
LONG = ("00_start_here", "02_induction_heads", "06_sparse_autoencoders", "10_faithful_circuits", "11_worth_it",
        "12_attribution_graphs")


@pytest.mark.slow
@pytest.mark.parametrize("kind, lesson", [each for each in KINDS if each[1] not in LONG])
def test_the_exercise_notebook_runs_untouched(kind, lesson, hub, shell, monkeypatch):
    """In IPython. Every worked notebook runs in a kernel, by nbval; untouched ones run in JupyterLab by make matrix."""
    run_here("notebooks", lesson, kind, hub, monkeypatch)
    verdicts = [entry["verdict"] for entry in progress_store.read()]
    assert verdicts == ["not yet"] * len(exercises.exercises_of(lesson[:2]))


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize("kind, lesson", KINDS)
def test_the_exercise_notebook_runs_untouched_in_a_kernel(kind, lesson, hub):
    folder, names = hub
    run("notebooks", lesson, COURSE_MODEL=names[kind], HF_HUB_CACHE=str(folder), HF_HUB_OFFLINE="1")


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize("kind", small_models.HUB_MODELS)
@pytest.mark.parametrize("lesson", LESSONS)
def test_the_worked_notebook_runs_on_small_models_of_the_hub(lesson, kind, hub, shell, monkeypatch):
    """Every family that the README names; what the functions give there is checked by tools/families.py."""
    run_here("solutions", lesson, kind, hub, monkeypatch)
    assert {entry["verdict"] for entry in progress_store.read()} == {"passed"}


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize("model", ["smollm2-135m", "gpt2-small-random"])
@pytest.mark.parametrize("lesson", LESSONS)
def test_the_worked_notebook_runs_on_larger_models(lesson, model):
    run("solutions", lesson, COURSE_MODEL=model)
