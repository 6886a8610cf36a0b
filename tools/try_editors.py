"""Do an exercise in Notebook 7 and in nbclassic, in a real browser: cards, progress, pictures and the attention widget.

    python tools/try_editors.py                 both, in a new environment that borrows this one's packages
    python tools/try_editors.py nbclassic       one of them

Each opens a copy of notebooks/00, runs all cells, answers an exercise wrongly and then rightly, and runs all again.
Status 1 when something is not as JupyterLab shows it. JupyterLab itself is in tests/test_browser.py.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from try_colab import new_environment

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from browser import FLAGS, Lab, find_chromium, painted, watched_page, what_is_missing  # noqa: E402
from test_browser import ANSWER, HEADS, MISTAKE, STUB, WRONG_AXIS  # noqa: E402

NOTEBOOK = "00_start_here.ipynb"


class Editor(NamedTuple):
    """What differs between two editors: an address, and selectors for the parts of the page."""

    path: str
    cell: str
    prompt: str
    source: str
    output: str
    run_all: tuple[str, ...]  # the menu's entries that are clicked


EDITORS = {
    "notebook": Editor("notebooks", ".jp-CodeCell", ".jp-InputArea-prompt", ".cm-content", ".jp-OutputArea-output",
                       ('.lm-MenuBar-itemLabel:text-is("Run")', '.lm-Menu-itemLabel:text-is("Run All Cells")')),
    "nbclassic": Editor("nbclassic/notebooks", ".code_cell", ".input_prompt", ".CodeMirror", ".output_area",
                        ("#celllink", "#run_all_cells")),
}


class Page:
    """The notebook, open in an editor."""

    def __init__(self, page, editor: Editor) -> None:
        self.page, self.editor = page, editor

    def cell(self, text: str):
        return self.page.locator(self.editor.cell).filter(has=self.page.locator(self.editor.source, has_text=text))

    def output(self, text: str) -> str:
        return "\n".join(self.cell(text).locator(self.editor.output).all_inner_texts())

    def wait(self, last: str, seconds: float = 120) -> None:
        """Until no cell waits its turn and the last one that runs, or its card, begins as expected."""
        deadline = time.monotonic() + seconds
        self.page.wait_for_timeout(1000)
        while time.monotonic() < deadline:
            prompts = self.page.locator(self.editor.prompt).all_inner_texts()  # Notebook 7: empty off the window
            ended = re.search(r"\d", prompts[-1]) if last == "" else self.output(STUB).startswith(last)
            if ended and not any("*" in each for each in prompts):
                return
            self.page.wait_for_timeout(500)
        raise TimeoutError(f"the cells did not end within {seconds} s")

    def run_all(self) -> None:
        for entry in self.editor.run_all:
            self.page.locator(entry).first.click()
        self.wait("")

    def answer(self, source: str, card: str) -> str:
        """Type an answer over the exercise's cell and run it: what its card says, which begins with `card`."""
        self.cell(STUB).locator(self.editor.source).click()
        self.page.keyboard.press("Control+a")
        self.page.keyboard.insert_text(source)
        self.page.keyboard.press("Control+Enter")
        self.wait(card)
        return self.output(STUB)


def start(lab: Lab, python: Path, module: str) -> None:
    """An editor's server in place of JupyterLab's."""
    command = [str(python), "-m", module, "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1",
               f"--IdentityProvider.token={lab.token}", f"--ServerApp.root_dir={lab.root}"]
    with open(lab.folder / "server.log", "w", encoding="utf-8") as log:
        lab.process = subprocess.Popen(command, cwd=lab.root, env=lab.environment(), stdout=log, stderr=log)
    lab._wait_until_up()


def try_editor(module: str, python: Path, browser, folder: Path) -> dict[str, bool]:
    """What was tried, and whether it went well."""
    editor = EDITORS[module]
    lab = Lab(folder, PYTHONPATH=str(ROOT))
    shutil.copy(ROOT / "notebooks" / NOTEBOOK, lab.root)
    start(lab, python, module)
    try:
        with watched_page(browser, folder) as watched:
            watched.page.goto(f"{lab.address}/{editor.path}/{NOTEBOOK}?token={lab.token}")
            watched.page.locator(editor.cell).first.wait_for(timeout=90_000)
            watched.page.wait_for_timeout(8000)  # a kernel that starts is shown differently in each
            page = Page(watched.page, editor)
            page.run_all()
            wrong, right = page.answer(WRONG_AXIS, "✗ wrong"), page.answer(ANSWER, "✓ passed")
            page.run_all()
            widget = page.cell("attention_patterns(words")
            widget.scroll_into_view_if_needed()
            return {
                "a wrong answer's card": MISTAKE in wrong,
                "a right answer's card": "✓ passed" in right,
                "attention widget": painted(widget.locator("canvas"), at_least=HEADS),
                "pictures": painted(watched.page.locator(".jp-RenderedImage img, .output_png img")),
                "progress": "1 of 6 passed" in page.output('progress("00")'),
                "no request elsewhere": not watched.refused,
            }
    finally:
        lab.__exit__()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("editor", nargs="*", metavar="editor", help=f"of {', '.join(EDITORS)} (default: all)")
    args = parser.parse_args(argv)
    if missing := what_is_missing():
        print(f"error: {missing}", file=sys.stderr)
        return 1
    from playwright.sync_api import sync_playwright

    failed = False
    with tempfile.TemporaryDirectory() as name, sync_playwright() as running:
        folder = Path(name)
        python = new_environment(folder / "environment")
        shutil.copytree(Path(sys.prefix, "share", "jupyter"), folder / "environment" / "share" / "jupyter")
        install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "notebook>=7", "nbclassic"]
        subprocess.run(install, check=True)
        browser = running.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        for module in args.editor or EDITORS:
            for what, went_well in try_editor(module, python, browser, folder / module).items():
                print(f"{module:10} {what:24} {'yes' if went_well else 'NO'}")
                failed |= not went_well
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
