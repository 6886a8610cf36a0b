"""The first code cell of every notebook: on Colab it installs the course, elsewhere it looks whether it is there."""

import importlib.util
import json
import re
import sys
import types
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell

ROOT = Path(__file__).resolve().parent.parent
SETUP = (ROOT / "tools" / "setup_cell.ipy").read_text(encoding="utf-8").rstrip()
NOTEBOOKS = sorted(path for folder in ("notebooks", "solutions") for path in (ROOT / folder).glob("*.ipynb"))


class Session:
    """A kernel's session in which `%pip` is only noted down."""

    def __init__(self, monkeypatch, capsys, colab: bool, have_course: bool):
        self.patch, self.capsys, self.installed = monkeypatch, capsys, []
        for name in ("google", "google.colab"):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        if not colab:
            monkeypatch.delitem(sys.modules, "google.colab")
        self.have_course, self.pip_works, real = have_course, True, importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: (
            None if name == "course_utils" and not self.have_course else real(name, *rest)))

    def pip(self, line: str) -> None:
        """Noted down; "installed" unless it was told to fail."""
        self.installed.append(line)
        self.have_course = self.pip_works

    def run(self, source: str = "") -> str:
        """Run the cell; return what it printed. What it raises is raised."""
        shell = InteractiveShell()
        shell.register_magic_function(self.pip, "line", "pip")
        shell.run_cell(SETUP.replace('SOURCE = ""', f'SOURCE = "{source}"')).raise_error()
        return self.capsys.readouterr().out


@pytest.fixture
def session(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    return lambda **options: Session(monkeypatch, capsys, **options)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_notebook_begins_with_it(path):
    code = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    source = "".join(code[0]["source"])
    assert re.sub(r'^SOURCE = ".*"$', 'SOURCE = ""', source, flags=re.MULTILINE) == SETUP
    assert code[0]["metadata"] == {"cellView": "form", "jupyter": {"source_hidden": True}, "tags": ["setup"]}
    assert path.parent.name == "notebooks" or "".join(code[0]["outputs"][0]["text"]) == "setup ok\n"


def test_on_a_computer_with_the_course_it_installs_nothing(session):
    here = session(colab=False, have_course=True)
    assert here.run() == "setup ok\n" and here.installed == []


def test_on_a_computer_without_the_course_it_says_what_to_do(session):
    here = session(colab=False, have_course=False)
    with pytest.raises(ModuleNotFoundError, match="choose the kernel .* or install it in this one"):
        here.run()
    assert here.installed == []


def test_on_colab_it_installs_the_course_and_nothing_else(session, monkeypatch):
    there = session(colab=True, have_course=False)
    out = there.run("git+https://example.org/course")
    assert there.installed == ["install -q git+https://example.org/course"]
    assert out.startswith("installing the course") and re.search(r"setup ok on Colab: course [\d.]+, torch \d", out)


def test_on_colab_it_installs_once(session):
    there = session(colab=True, have_course=True)
    assert "setup ok on Colab" in there.run("git+https://example.org/course") and there.installed == []


def test_on_colab_without_an_address_it_takes_the_newest_uploaded_wheel(session, tmp_path):
    for name in ("faithful_circuits-0.1.0-py3-none-any.whl", "faithful_circuits-0.2.0-py3-none-any.whl"):
        (tmp_path / name).touch()
    there = session(colab=True, have_course=False)
    assert "setup ok" in there.run()
    assert there.installed == ["install -q faithful_circuits-0.2.0-py3-none-any.whl"]


def test_on_colab_a_failed_installation_is_said(session, tmp_path):
    (tmp_path / "faithful_circuits-0.1.0-py3-none-any (1).whl").touch()  # a name that pip refuses
    there = session(colab=True, have_course=False)
    with pytest.raises(FileNotFoundError, match="upload the course's wheel"):
        there.run()
    there.pip_works = False
    with pytest.raises(RuntimeError, match="the installation failed"):
        there.run("git+https://example.org/course")


def test_it_says_when_the_session_must_be_restarted(session, monkeypatch):
    import numpy

    monkeypatch.setattr(numpy, "__version__", "1.0")
    with pytest.raises(RuntimeError, match="Restart session"):
        session(colab=True, have_course=True).run()


@pytest.mark.parametrize("available, says", [(True, "GPU Tesla T4"), (False, "no GPU, none needed")])
def test_it_says_which_gpu_there_is(session, monkeypatch, available, says):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    assert says in session(colab=True, have_course=True).run()
