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


def test_nbval_rejects_other_outputs_and_can_leave_the_real_model_out(tmp_path):
    outputs = {
        "": cell("0.5000", "0.5001"),                           # one in ten thousand is accepted
        "stdout": cell("0.5000", "0.5300", "stdout"),
        "text/plain": cell("0.5000", "0.5300", "plain"),
        "text/html": cell("0.5000", "0.5300", "html"),
        "text/latex": cell("0.5000", "0.5300", "latex"),
    }
    cells = [*outputs.values(), cell("html", "HTML", "html"), nbformat.v4.new_code_cell("real_model = 1 / 0")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "differs.ipynb")
    (tmp_path / "conftest.py").write_text((ROOT / "conftest.py").read_text())
    command = [sys.executable, "-m", "pytest", "-p", "nbval", "-p", "no:cacheprovider", "--nbval",
               "--nbval-current-env", f"--rootdir={tmp_path}", "--junitxml=found.xml", "differs.ipynb"]
    env = {**os.environ, "COURSE_REAL": "skip", "PYTHONPATH": os.pathsep.join([str(ROOT / "tools"), str(ROOT)]),
           "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}               # no plugin but this: the process starts sooner
    subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, timeout=120)
    found = ["".join(child.get("message", "") for child in case)
             for case in ElementTree.parse(tmp_path / "found.xml").iter("testcase")]
    mismatches = [re.search("mismatch '(.+?)'", said) for said in found]
    assert [mismatch[1] if mismatch else said for mismatch, said in zip(mismatches, found)] == [*outputs, "text/html"]
