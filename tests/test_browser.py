"""The course in JupyterLab and as pages, in a real browser, as a learner uses it; without a network.

Needs playwright and a Chromium (the program that CHROMIUM names, or an installed one). Where one of them is
missing these tests are skipped and say so; where the variable CI is "true" they fail instead.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
import small_models
import torch

nbformat = pytest.importorskip("nbformat")
if find_spec("jupyterlab") is None:                 # to import it takes a second
    pytest.skip("jupyterlab is not installed", allow_module_level=True)
runs = pytest.importorskip("course_utils.runs")

from browser import Lab, LabNotebook, painted, watched_page  # noqa: E402

from course_utils import viz
from course_utils.exercises import progress_store
from course_utils.viz.widget import OWN_BOX

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
HEADS = 4  # of each layer of `tiny`; the widgets show one layer
MOST_BYTES = 800_000  # of a saved notebook with its pictures; the widgets' bundle alone is 1.3 MB

STUB = '@exercise("00.without_head")'
ANSWER = '''@exercise("00.without_head")
def without_head(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], layer: int, head: int
) -> Float[Tensor, "batch pos vocab"]:
    """Logits of the model with one head's output set to zero."""

    def silence(z, hook):
        z[:, :, head] = 0.0
        return z

    return model.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{layer}.attn.hook_z", silence)])'''
WRONG_AXIS = ANSWER.replace("z[:, :, head]", "z[:, head]")
MISTAKE = "a position was zeroed, not a head"

# How an output's HTML comes into a page: JupyterLab puts a copy of each script in its place, VS Code runs a copy of
# each at the end of the output and takes it away again, nbclassic does that in the page's head.
PLACES = ("JupyterLab", "VS Code", "nbclassic")
INSERT = """([html, place]) => {
  const output = document.body.appendChild(document.createElement("div"));
  output.innerHTML = html;
  for (const script of [...output.querySelectorAll("script")]) {
    const copy = document.createElement("script");
    copy.text = script.textContent;
    if (place === "JupyterLab") script.replaceWith(copy);
    else { (place === "VS Code" ? output : document.head).append(copy); copy.remove(); }
  }
}"""


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    with Lab(tmp_path_factory.mktemp("lab")) as server:
        yield server


@pytest.fixture(scope="module")
def lab_with_another_model(browser, tmp_path_factory):
    """JupyterLab for a learner who has chosen GPT-2 (here a small one, in a local cache of the hub)."""
    cache = tmp_path_factory.mktemp("hub")
    model = small_models.hub_cache(cache)["gpt2"]
    with Lab(tmp_path_factory.mktemp("lab"), COURSE_MODEL=model, HF_HUB_CACHE=str(cache)) as server:
        yield server


@contextmanager
def opened(browser, lab: Lab, source: Path, folder: Path) -> Iterator[LabNotebook]:
    """A copy of a notebook open in JupyterLab, in a folder of its own; afterwards its kernel is stopped."""
    path = lab.root / folder.name / source.name
    path.parent.mkdir()
    shutil.copy(source, path)
    try:
        with watched_page(browser, folder) as watched:
            yield LabNotebook(watched, lab, path)
    finally:
        lab.stop_kernels()


def assert_ran_clean(notebook: LabNotebook, first: int = 1) -> None:
    """All cells ran in order, from execution `first` on; nothing is red; the page asked nobody else, nor complained."""
    assert notebook.outputs_in_red() == []
    assert notebook.watched.refused == [] and notebook.watched.complaints == []
    stored = notebook.save()
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(first, first + len(code)))
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs and not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert notebook.path.stat().st_size < MOST_BYTES


def test_typed_answers_are_judged_and_run_all_paints_the_widgets_and_ends_with_the_progress(browser, lab, tmp_path):
    lesson, path = nbformat.read(ROOT / "notebooks" / "00_start_here.ipynb", as_version=4), tmp_path / "00_lesson.ipynb"
    stub = next(place for place, cell in enumerate(lesson.cells) if STUB in cell.source)
    lesson.cells = [*lesson.cells[:stub + 1], lesson.cells[-1]]     # the last one shows the progress
    nbformat.write(lesson, path)
    with opened(browser, lab, path, tmp_path) as notebook:
        cell = notebook.cell(STUB)
        notebook.run_above(cell)
        notebook.run(cell)
        assert notebook.output(cell).startswith("○ not yet · 00.without_head")
        notebook.type_source(cell, WRONG_AXIS)
        notebook.run(cell)
        card = notebook.output(cell)
        assert card.startswith("✗ wrong · 00.without_head") and MISTAKE in card
        notebook.type_source(cell, ANSWER)
        notebook.run(cell)
        assert notebook.output(cell).startswith("✓ passed · 00.without_head")
        assert notebook.outputs_in_red() == []
        assert_ran_clean(notebook, first=notebook.run_all())
        assert painted(notebook.cell("attention_patterns(words").locator("canvas"), at_least=HEADS)
        table = notebook.output(notebook.cell('progress("00")'))
        assert "00.without_head\tpassed\t3" in table and "1 of 6 passed" in table
        standings = progress_store.standings(progress_store.read(notebook.path.parent / "progress.jsonl"))
        assert [id for id, standing in standings.items() if standing.passed] == ["00.without_head"]


def assert_runs_to_its_end(browser, lab, tmp_path, lesson):
    with opened(browser, lab, ROOT / "notebooks" / f"{lesson}.ipynb", tmp_path) as notebook:
        notebook.run_all(timeout=600)
        assert_ran_clean(notebook)


@pytest.mark.matrix
def test_an_untouched_exercise_notebook_runs_to_its_end_on_another_model(browser, lab_with_another_model, tmp_path):
    assert_runs_to_its_end(browser, lab_with_another_model, tmp_path, "02_induction_heads")


@pytest.mark.matrix
@pytest.mark.parametrize("lesson", NOTEBOOKS)
def test_the_untouched_exercise_notebook_runs_to_its_end_on_tiny(browser, lab, tmp_path, lesson):
    assert_runs_to_its_end(browser, lab, tmp_path, lesson)


def test_the_exported_page_shows_its_widgets_and_plots_offline(browser, tmp_path):
    stored = nbformat.read(ROOT / "solutions" / "00_start_here.ipynb", as_version=4)
    pictures = [o for c in stored.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    path = tmp_path / "00_start_here.html"
    path.write_text(runs.to_html(stored, path.stem), encoding="utf-8")
    with watched_page(browser, tmp_path) as watched:
        watched.page.goto(path.as_uri())
        plots = watched.page.locator(".jp-RenderedImage img")
        assert painted(watched.page.locator("canvas"), at_least=HEADS)
        assert painted(plots) and plots.count() == len(pictures)
        assert watched.complaints == [] and watched.refused == []


def loader(html: str) -> list[str]:
    """A widget's box and script without its numbers."""
    return [line for line in html.splitlines() if "cv.render(" not in line]


def test_stored_widgets_are_drawn_as_new_ones():
    """So that what the next two tests see of new ones holds for all that the worked lessons bring."""
    lessons = [nbformat.read(path, as_version=4) for path in sorted((ROOT / "solutions").glob("*.ipynb"))]
    outputs = [output for lesson in lessons for cell in lesson.cells for output in cell.get("outputs", [])]
    stored = [output.data.get("text/html", "") for output in outputs if "data" in output]
    new = loader(viz.attention_patterns(["<bos>"], torch.ones(1, 1, 1)).html)
    assert [loader(html) for html in stored if "CircuitsVis" in html] == 2 * [new]
    graphs = [html for html in stored if "data-graph" in html]
    assert len(graphs) == 2 and all(f'{OWN_BOX % {"mark": "data-graph"}})</script>' in html for html in graphs)


def test_widgets_draw_each_in_its_own_box(browser, tmp_path):
    """In each place: two in one output, and the same two in outputs of their own."""
    first, second = "one", "two"
    drawn = [viz.attention_patterns(["<bos>", word], torch.ones(HEADS, 2, 2).tril()).html for word in (first, second)]
    with watched_page(browser, tmp_path) as watched:
        watched.page.set_content(viz.bundle_script())
        for place in PLACES:
            for html in ("".join(drawn), *drawn):
                watched.page.evaluate(INSERT, [html, place])
        assert painted(watched.page.locator("canvas"), at_least=len(PLACES) * 4 * HEADS)
        texts = watched.page.locator("[id^=circuits-vis-]").all_inner_texts()
        assert [(first in text, second in text) for text in texts] == 2 * len(PLACES) * [(True, False), (False, True)]
        assert watched.complaints == watched.refused == []


@pytest.mark.parametrize("place", PLACES)
def test_the_circuit_answers_the_pointer_and_the_slider(browser, tmp_path, place):
    """Two of them in one output: the second is played with, and the first stays as it was."""
    graph = viz.interactive_circuit({("embed", "0.1.v"): 4.0, ("0.1", "1.0.q"): -1.0, ("1.0", "logits"): 2.0})
    seen = """edges => edges.map(edge => getComputedStyle(edge)).map(
        style => [style.display !== "none", Number(style.opacity) > 0.5])"""
    with watched_page(browser, tmp_path) as watched:
        watched.page.evaluate(INSERT, [2 * graph.html, place])
        first, second = (watched.page.locator(".course-graph").nth(i) for i in (0, 1))
        edges = second.locator("path")                                      # the smallest first: −1, 2, 4
        assert edges.evaluate_all(seen) == 3 * [[True, True]]
        second.locator("[data-node='0.1']").first.hover()                   # it wrote −1 and read 4
        assert edges.evaluate_all(seen) == [[True, True], [True, False], [True, True]]
        second.locator("[data-node='logits']").hover()
        assert edges.evaluate_all(seen) == [[True, False], [True, True], [True, False]]
        second.locator("input").fill("60")                                  # 0.6² of the largest, 1.44, and more
        second.locator("svg").hover(position={"x": 2, "y": 2})
        assert edges.evaluate_all(seen) == [[False, True], [True, True], [True, True]]
        assert second.locator("output").inner_text() == "1.4"
        assert first.locator("path").evaluate_all(seen) == 3 * [[True, True]]
        assert watched.complaints == watched.refused == []
