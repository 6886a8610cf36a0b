"""For the browser tests: a JupyterLab of their own, and the few things that a learner does in it.

Nothing but this computer can be reached: the browser refuses every other address and notes it, and the
kernels look for the rest of the world at a port where nobody answers.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import nbformat

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-software-rasterizer", "--disable-dev-shm-usage",
         "--disable-background-networking",
         "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
HERE = re.compile(r"^(file:|data:|blob:|about:|(https?|wss?)://127\.0\.0\.1[:/])")
RED = "[data-mime-type='application/vnd.jupyter.stderr']"  # how JupyterLab shows errors and warnings
SECONDS = 1000  # playwright counts in milliseconds

# True for a canvas or picture that has more than one colour, so that something was drawn in it.
PAINTED = """element => {
  const copy = document.createElement("canvas");
  copy.width = element.naturalWidth || element.width;
  copy.height = element.naturalHeight || element.height;
  if (!copy.width || !copy.height) return false;
  const context = copy.getContext("2d");
  context.drawImage(element, 0, 0);
  const pixels = new Uint32Array(context.getImageData(0, 0, copy.width, copy.height).data.buffer);
  return pixels.some(pixel => pixel !== pixels[0]);
}"""

PROMPTS = """[...document.querySelectorAll(".jp-CodeCell .jp-InputArea-prompt")].map(p => p.textContent)"""
LAST_NUMBER = f"() => Math.max(0, ...{PROMPTS}.map(text => Number(text.replace(/\\D/g, ''))))"
# Run All has ended: it has given cells new numbers and none waits its turn (after a failure the rest is taken from
# the queue), or JupyterLab asks something.
ENDED = f"""before => {{
  const prompts = {PROMPTS}, begun = ({LAST_NUMBER})() > before, waiting = prompts.some(text => text.includes("*"));
  return begun && !waiting || document.querySelector(".jp-Dialog") !== null;
}}"""


def find_chromium() -> str | None:
    """The browser: the program that CHROMIUM names, else the first of NAMES that is installed."""
    chosen = os.environ.get("CHROMIUM")
    return shutil.which(chosen) if chosen else next(filter(None, map(shutil.which, NAMES)), None)


def what_is_missing() -> str:
    """Why no browser test can run here; empty when they can."""
    if find_spec("playwright") is None:
        return "playwright is not installed (pip install playwright)"
    if find_chromium() is None:
        chosen = os.environ.get("CHROMIUM")
        return (f"CHROMIUM is {chosen!r}, which is not a program" if chosen
                else f"no browser: none of {', '.join(NAMES)} is installed, and CHROMIUM names no other")
    return ""


# ----------------------------------------------------------------------------------------------- the server

def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Lab:
    """A JupyterLab server on this computer only, everything it reads and writes in one folder; `more` variables."""

    def __init__(self, folder: Path, **more: str) -> None:
        self.folder, self.root, self.more = folder, folder / "root", more
        self.token, self.address = secrets.token_hex(16), ""
        self.root.mkdir(parents=True)
        settings = folder / "settings" / "@jupyterlab" / "apputils-extension"
        settings.mkdir(parents=True)
        news_off = {"fetchNews": "false", "checkForUpdates": False}
        (settings / "notification.jupyterlab-settings").write_text(json.dumps(news_off))

    def environment(self) -> dict[str, str]:
        """What the server and its kernels see: a learner's environment, without a network."""
        personal = ("COURSE_", "JUPYTER", "IPYTHON", "MPL", "PYTEST", "PYDEVD")
        env = {name: value for name, value in os.environ.items() if not name.startswith(personal)}
        folders = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime",
                   "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
                   "IPYTHONDIR": "ipython", "COURSE_CACHE": "cache"}
        env.update({name: str(self.folder / folder) for name, folder in folders.items()})
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            env[name] = env[name.lower()] = "http://127.0.0.1:9"
        env["NO_PROXY"] = env["no_proxy"] = "127.0.0.1,localhost"
        # A kernel starts in its notebook's folder, so each notebook has a progress file beside it.
        return {**env, "COURSE_PROGRESS": "progress.jsonl", "COURSE_REAL": "skip", "COURSE_BARS": "off",
                "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **self.more}

    def __enter__(self) -> Lab:
        command = [
            sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1",
            f"--ServerApp.port={_free_port()}", f"--IdentityProvider.token={self.token}",
            f"--ServerApp.root_dir={self.root}", "--LabApp.news_url=", "--LabApp.extension_manager=readonly",
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        ]
        with open(self.folder / "server.log", "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                command, cwd=self.root, env=self.environment(), stdout=log, stderr=subprocess.STDOUT)
        try:
            self._wait_until_up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _wait_until_up(self) -> None:
        """The server writes the port that it got into its runtime folder, then answers there."""
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                info = next((self.folder / "runtime").glob("jpserver-*.json"))
                self.address = json.loads(info.read_text())["url"].rstrip("/")
                self.ask("GET", "status")
                return
            except (StopIteration, ValueError, OSError):
                time.sleep(0.2)
        log = (self.folder / "server.log").read_text(encoding="utf-8", errors="replace")
        raise RuntimeError(f"JupyterLab did not start:\n{log[-3000:]}")

    def ask(self, method: str, what: str) -> bytes:
        """One request to the server's interface for programs."""
        request = urllib.request.Request(
            f"{self.address}/api/{what}", method=method, headers={"Authorization": f"token {self.token}"})
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(request, timeout=20) as reply:
            return reply.read()

    def stop_kernels(self) -> None:
        for session in json.loads(self.ask("GET", "sessions")):
            self.ask("DELETE", f"sessions/{session['id']}")


# ------------------------------------------------------------------------------------------------- the page

class Watched:
    """A browser page, and what went wrong in it."""

    def __init__(self, page) -> None:
        self.page = page
        self.refused: list[str] = []  # addresses elsewhere that the page asked for
        self.complaints: list[str] = []  # errors in the page's scripts and in its console
        page.context.route(lambda url: not HERE.match(url), self._refuse)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", self._listen)

    def _refuse(self, route) -> None:
        self.refused.append(route.request.url)
        route.abort()

    def _listen(self, message) -> None:
        source = message.location.get("url", "")
        if message.type == "error" and source not in self.refused:  # a refusal is in that list already
            self.complaints.append(f"{message.text} ({source})")


@contextmanager
def watched_page(browser, folder: Path) -> Iterator[Watched]:
    """A fresh page; when the test fails, a picture of it goes to `folder`."""
    context = browser.new_context(viewport={"width": 1300, "height": 1000})
    watched = Watched(context.new_page())
    try:
        yield watched
    except BaseException:
        picture = folder / "failed.png"
        watched.page.screenshot(path=picture)
        print(f"the page when the test failed: {picture}\nrefused: {watched.refused}\n{watched.complaints}")
        raise
    finally:
        context.close()


class LabNotebook:
    """One notebook open in JupyterLab, with a kernel that is ready."""

    def __init__(self, watched: Watched, lab: Lab, path: Path) -> None:
        self.watched, self.page, self.path = watched, watched.page, path
        page = self.page
        page.goto(f"{lab.address}/lab/tree/{path.relative_to(lab.root)}?token={lab.token}&reset")
        page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=90 * SECONDS)
        # The cells show no sign of a kernel that is still starting; the status bar does.
        page.locator("#jp-main-statusbar", has_text=re.compile(r"\| Idle")).wait_for(timeout=90 * SECONDS)

    def cell(self, text: str):
        """The code cell with this text in its source."""
        editor = self.page.locator(".jp-InputArea-editor", has_text=text)
        found = self.page.locator(".jp-CodeCell").filter(has=editor)
        assert found.count() == 1, f"{found.count()} code cells contain {text!r}"
        return found

    def choose(self, menu: str, entry: str) -> None:
        """Click an entry of the menu bar."""
        self.page.get_by_role("menuitem", name=menu, exact=True).click()
        self.page.get_by_role("menuitem", name=entry, exact=True).click()

    def run_above(self, cell) -> None:
        cell.locator(".jp-InputArea-prompt").click()
        self.choose("Run", "Run All Above Selected Cell")

    def run(self, cell) -> None:
        """Run one cell with the keyboard and wait for its number."""
        prompt = cell.locator(".jp-InputArea-prompt")
        before = prompt.inner_text().strip()
        cell.locator(".cm-content").click()
        self.page.keyboard.press("Control+Enter")
        self._until(lambda: prompt.inner_text().strip() != before and re.search(r"\d", prompt.inner_text()))

    def type_source(self, cell, source: str) -> None:
        """Replace a cell's source in the editor, line by line, whatever it indents by itself."""
        cell.locator(".cm-content").click()
        self.page.keyboard.press("Control+a")
        for number, line in enumerate(source.splitlines()):
            if number:
                self.page.keyboard.press("Enter")
                self.page.keyboard.press("Shift+Home")  # what the editor indented is typed over
            self.page.keyboard.insert_text(line)
        typed = "\n".join(cell.locator(".cm-line").all_text_contents())
        assert typed == source, f"the cell holds {typed!r}"

    def run_all(self, timeout: float = 300) -> int:
        """Run All, until the last cell has run or one has failed; the number that the first cell should get by it."""
        before = self.page.evaluate(LAST_NUMBER)
        self.choose("Run", "Run All Cells")
        self.page.wait_for_function(ENDED, arg=before, timeout=timeout * SECONDS)
        assert not self.page.locator(".jp-Dialog").count(), self.page.locator(".jp-Dialog").inner_text()
        return before + 1

    def output(self, cell) -> str:
        """The text below a cell: the one output that it has."""
        return cell.locator(".jp-OutputArea-output").inner_text().strip()

    def outputs_in_red(self) -> list[str]:
        """Every error and every warning that the learner sees."""
        return self.page.locator(RED).all_inner_texts()

    def save(self) -> nbformat.NotebookNode:
        """Save with the keyboard; the notebook as it is then stored."""
        before = self.path.stat().st_mtime_ns
        self.page.keyboard.press("Escape")
        self.page.keyboard.press("Control+s")
        self._until(lambda: self.path.stat().st_mtime_ns != before)
        self._until(lambda: not self.page.locator(".lm-TabBar-tab.jp-mod-dirty").count())
        return nbformat.read(self.path, as_version=4)

    def _until(self, condition, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"nothing happened for {seconds} seconds"
            self.page.wait_for_timeout(100)


def painted(elements, at_least: int = 1, seconds: float = 20) -> bool:
    """Whether, within some seconds, so many canvases or pictures are there with something drawn in each."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        drawn = [element.evaluate(PAINTED) for element in elements.all()]
        if len(drawn) >= at_least and all(drawn):
            return True
        elements.page.wait_for_timeout(250)
    return False
