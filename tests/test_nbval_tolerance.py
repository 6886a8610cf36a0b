"""nbval accepts a difference that rounding makes and rejects every other one."""

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbval")

from nbval_tolerance import same  # noqa: E402

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("reference, test, equal", [
    ("0.99996", "1.00004", True),
    ("0.1234", "0.1235", True),
    ("loss 2.5000 nats", "loss 2.5020 nats", True),
    ("0.1234", "0.1534", False),
    ("2.50", "2.51", True),         # 2.505, rounded down and up
    ("2.5", "2.51", True),          # as {:.3g} prints 2.50
    ("2.50", "2.52", False),
    ("0.72", "0.73", False),        # a second digit
    ("-0.25", "-0.26", False),
    ("25.0", "25.2", False),
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


def cell(old, new, kind=""):
    """SOURCE with its outputs, `old` replaced by `new` in those of one kind, or of all kinds."""
    def text(own):
        shown = f"{own} 0.5000"
        return shown.replace(old, new) if own.startswith(kind) else shown

    data = [{"text/plain": text("plain")},
            {"text/html": f"<b>{text('html')}</b>", "text/plain": "<IPython.core.display.HTML object>"},
            {"text/latex": f"${text('latex')}$", "text/plain": "<IPython.core.display.Latex object>"}]
    outputs = [nbformat.v4.new_output("stream", name="stdout", text=text("stdout") + " of 3\n")]
    outputs += [nbformat.v4.new_output("display_data", data=d) for d in data]
    return nbformat.v4.new_code_cell(SOURCE, execution_count=1, outputs=outputs)


def run_nbval(folder, notebooks) -> dict[str, list[str]]:
    """{notebook: what was rejected, a text for each cell} of a run in two processes, as `make test` has it."""
    for name, cells in notebooks.items():
        nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / f"{name}.ipynb")
    (folder / "conftest.py").write_text((ROOT / "conftest.py").read_text())
    command = [sys.executable, "-m", "pytest", "-p", "xdist", "-p", "nbval", "-p", "no:cacheprovider", "-n", "2",
               "--dist", "loadfile", "--nbval", "--nbval-current-env", f"--rootdir={folder}", "--junitxml=found.xml",
               *(f"{name}.ipynb" for name in notebooks)]
    env = {**os.environ, "COURSE_REAL": "skip", "PYTHONPATH": os.pathsep.join([str(ROOT / "tools"), str(ROOT)]),
           "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}               # no plugins but these: each process starts sooner
    subprocess.run(command, cwd=folder, env=env, capture_output=True, timeout=120)
    found = {name: [] for name in notebooks}
    for case in ElementTree.parse(folder / "found.xml").iter("testcase"):
        said = "".join(child.get("message", "") for child in case)
        mismatch = re.search("mismatch '(.+?)'", said)
        found[case.get("classname").removesuffix(".ipynb")].append(mismatch[1] if mismatch else said)
    return found


def test_nbval_rejects_other_outputs_keeps_a_notebook_in_one_kernel_and_can_leave_the_real_model_out(tmp_path):
    outputs = {
        "": cell("0.5000", "0.5001"),                           # one in ten thousand is accepted
        "stdout": cell("0.5000", "0.5300", "stdout"),
        "text/plain": cell("0.5000", "0.5300", "plain"),
        "text/html": cell("0.5000", "0.5300", "html"),
        "text/latex": cell("0.5000", "0.5300", "latex"),
    }
    changed = cell("html", "HTML", "html")
    counting = ["x = 0", *["x = x + 1"] * 5, "real_model = 1 / 0"]      # each needs the one before it; one is skipped
    found = run_nbval(tmp_path, {"differs": [*outputs.values(), changed],
                                 "counts": [nbformat.v4.new_code_cell(source) for source in counting]})
    assert found == {"differs": [*outputs, "text/html"], "counts": [""] * 6}
