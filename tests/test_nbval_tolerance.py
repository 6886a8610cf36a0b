"""nbval accepts a difference that rounding makes and rejects every other one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbval")

from nbval_tolerance import same  # noqa: E402

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("reference, test, equal", [
    ("0.99996", "1.00004", True),
    ("0.1234", "0.1235", True),
    ("loss 2.5000 nats", "loss 2.5020 nats", True),
    ("0.1234", "0.1534", False),
    ("2.50", "2.51", False),
    ("loss 0.1234", "cost 0.1234", False),
    ("3 heads", "4 heads", False),
    ("layer 18", "layer 18.0", False),
    ("1e-05", "2e-05", True),
    ("1.0e3", "1.1e3", False),
    ("-0.3000", "0.3000", False),
    ("[0.1, 0.2]", "[0.1, 0.2, 0.3]", False),
    ("version 4.3.0", "version 4.3.1", False),
    ("nan 0.5", "0.5 nan", False),
])
def test_texts(reference, test, equal):
    assert same(reference, test) is equal and same(test, reference) is equal


SOURCE = """
import sys
from IPython.display import display, HTML, Latex
print("stdout 0.5000 of 3")
display({"text/plain": "plain 0.5000"}, raw=True)
display(HTML("<b>html 0.5000</b>"), Latex("$latex 0.5000$"))
"""


def run_nbval(folder, *args) -> int:
    """nbval's exit status over the notebooks in `folder`, run as `pytest --nbval` is run here."""
    (folder / "conftest.py").write_text((ROOT / "conftest.py").read_text())
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--nbval", "--nbval-current-env",
               f"--rootdir={folder}", *args, *sorted(p.name for p in folder.glob("*.ipynb"))]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tools"), str(ROOT)])}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, timeout=120).returncode


def nbval(folder, stored_as) -> int:
    """Store the outputs of SOURCE with `stored_as` applied to their text; nbval's exit status over them."""
    def text(kind):
        return stored_as(f"{kind} 0.5000")

    data = [{"text/plain": text("plain")},
            {"text/html": f"<b>{text('html')}</b>", "text/plain": "<IPython.core.display.HTML object>"},
            {"text/latex": f"${text('latex')}$", "text/plain": "<IPython.core.display.Latex object>"}]
    outputs = [nbformat.v4.new_output("stream", name="stdout", text=text("stdout") + " of 3\n")]
    outputs += [nbformat.v4.new_output("display_data", data=d) for d in data]
    cell = nbformat.v4.new_code_cell(SOURCE, execution_count=1, outputs=outputs)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), folder / "case.ipynb")
    return run_nbval(folder)


def only_in(kind, old, new):
    return lambda text: text.replace(old, new) if text.startswith(kind) else text


def test_nbval_accepts_a_difference_of_one_in_ten_thousand(tmp_path):
    assert nbval(tmp_path, lambda text: text.replace("0.5000", "0.5001")) == 0


@pytest.mark.parametrize("kind", ["stdout", "plain", "html", "latex"])
def test_nbval_rejects_a_difference_of_three_hundredths(tmp_path, kind):
    assert nbval(tmp_path, only_in(kind, "0.5000", "0.5300")) == 1


def test_nbval_rejects_changed_text(tmp_path):
    assert nbval(tmp_path, only_in("html", "html", "HTML")) == 1


def test_parallel_runs_keep_a_notebook_in_one_kernel(tmp_path):
    sources = ["x = 0"] + ["x = x + 1"] * 5  # each cell needs the one before it
    cells = [nbformat.v4.new_code_cell(s, execution_count=i) for i, s in enumerate(sources, 1)]
    for name in ("a", "b"):
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / f"{name}.ipynb")
    assert run_nbval(tmp_path, "-n", "2", "--dist", "loadfile") == 0
