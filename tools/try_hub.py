"""A class on a real JupyterHub, on this machine alone: several users at once work through a lesson, one is cut off.

    python tools/try_hub.py                    eight users, lesson 01
    python tools/try_hub.py --users 12 --lesson 00

JupyterHub comes from PyPI and its proxy from npm (node is needed), both into build/hub; the servers find the course in
this environment. The hub runs on hub/jupyterhub_config.py. In every user's kernel the worked lesson runs cell by cell,
as JupyterLab would run it; every second user begins with a wrong answer. Halfway through, the first user's server is
killed and started again, and the lesson goes on from its top. Then: has everyone passed everything, is every file of
attempts its user's own, and what did a user cost? Where there is a browser, the last user follows the link of
docs/hub.md, with a repository on this machine. The status is 1 if something is not as it should be.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
import urllib.request
import venv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / "build" / "hub"
ADDRESS = "http://127.0.0.1:8765"
TOKEN, PASSWORD = secrets.token_hex(16), secrets.token_hex(8)
WANTED = ("jupyterhub==6.1.1", "jupyter-kernel-client==1.0.2", "nbgitpuller==1.3.0")


def installed() -> Path:
    """JupyterHub and its proxy in build/hub; returns the interpreter, which finds this environment's packages, too."""
    python = PLACE / "venv" / "bin" / "python"
    if not python.exists():
        venv.create(PLACE / "venv", with_pip=True)
        for part in ("etc", "share"):       # JupyterLab's settings and pages are not found through a .pth file
            shutil.copytree(Path(sys.prefix, part, "jupyter"), PLACE / "venv" / part / "jupyter")
        site = next((PLACE / "venv" / "lib").glob("python*/site-packages"))
        (site / "course.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
        subprocess.run([python, "-m", "pip", "install", "--quiet", *WANTED], check=True)
        proxy = ["--prefix", str(PLACE / "proxy"), "configurable-http-proxy"]
        subprocess.run(["npm", "install", "--silent", *proxy], check=True)
    return python


def ask(method: str, path: str) -> Any:
    """What the hub answers to a request of its REST API; None where it answers nothing."""
    request = urllib.request.Request(f"{ADDRESS}/hub/api{path}", method=method,
                                     headers={"Authorization": f"token {TOKEN}"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.loads(reply.read() or "null")


@contextmanager
def hub(python: Path) -> Iterator[None]:
    """The hub, until the block ends. What it says goes to class/hub.log."""
    shutil.rmtree(PLACE / "class", ignore_errors=True)
    (PLACE / "class" / "progress").mkdir(parents=True)
    settings = {"CLASS_FOLDER": str(PLACE / "class"), "CLASS_ADDRESS": ADDRESS, "CLASS_TOKEN": TOKEN,
                "CLASS_PASSWORD": PASSWORD, "COURSE_REAL": "skip",
                "PROXY": str(PLACE / "proxy" / "node_modules" / ".bin" / "configurable-http-proxy")}
    command = [str(python), "-m", "jupyterhub", "--config", str(ROOT / "hub" / "jupyterhub_config.py")]
    with (PLACE / "class" / "hub.log").open("w") as log:
        process = subprocess.Popen(command, cwd=PLACE / "class", env=os.environ | settings, stdout=log, stderr=log)
        try:
            wait_until(lambda: ask("GET", "/") is not None, "the hub to answer", seconds=120)
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)


def wait_until(true, what: str, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            if true():
                return
        except OSError:
            pass
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:.0f} seconds for {what}: see {PLACE / 'class' / 'hub.log'}")
        time.sleep(0.5)


def start_server(user: str) -> None:
    ask("POST", f"/users/{user}/server")
    wait_until(lambda: ask("GET", f"/users/{user}")["servers"].get("", {}).get("ready"), f"{user}'s server")


def server_of(user: str):
    """The process of a user's server: the one whose home is theirs."""
    import psutil
    home = str(PLACE / "class" / "homes" / user)
    for process in psutil.process_iter(["cmdline", "cwd"]):
        if process.info["cwd"] == home and any("singleuser" in part for part in process.info["cmdline"] or []):
            return process
    raise LookupError(f"{user} has no server")


def run_cells(user: str, cells: list[str]) -> None:
    """Run cells in a new kernel of the user's server. Raises RuntimeError at the first that fails."""
    from jupyter_kernel_client import JupyterKernelClient
    with JupyterKernelClient(server_url=f"{ADDRESS}/user/{user}", token=TOKEN) as kernel:
        for source in cells:
            reply = kernel.execute(source, timeout=600)
            if reply["status"] != "ok":
                raise RuntimeError(f"{user}: {reply['outputs'][-1].get('evalue')} in {source[:80]!r}")


class Watch(threading.Thread):
    """The largest memory (PSS, in bytes) and the processor time (in seconds) of each user's server and kernels."""

    def __init__(self, users: list[str]) -> None:
        super().__init__(daemon=True)
        self.users, self.stopped = users, threading.Event()
        self.memory, self.seconds = dict.fromkeys(users, 0), dict.fromkeys(users, 0.0)

    def run(self) -> None:
        import psutil
        while not self.stopped.wait(1):
            for user in self.users:
                try:
                    server = server_of(user)
                    processes = [server, *server.children(recursive=True)]
                    self.memory[user] = max(self.memory[user], sum(each.memory_full_info().pss for each in processes))
                    used = sum(sum(each.cpu_times()[:2]) for each in processes)
                    self.seconds[user] = max(self.seconds[user], used)
                except (psutil.Error, LookupError):
                    continue


def lesson_of(user: int, cells: list[str], first: str) -> list[str]:
    """The cells that a user runs: every second one begins with a wrong answer to the lesson's first exercise."""
    at = next(i for i, source in enumerate(cells) if f'@exercise("{first}")' in source)
    wrong = [f'exercise("{first}")(lambda *inputs: 0.0)'] if user % 2 else []
    return [*cells[:at], *wrong, *cells[at:]]


def work(user: int, name: str, cells: list[str], first: str) -> float:
    """One user's hour: start the server, run the lesson; the first user is cut off halfway. Returns seconds."""
    began = time.monotonic()
    start_server(name)
    mine = lesson_of(user, cells, first)
    if user == 0:
        run_cells(name, mine[:len(mine) // 2])
        server_of(name).kill()
        wait_until(lambda: not ask("GET", f"/users/{name}")["servers"], f"the hub to see that {name}'s server is gone")
        start_server(name)
    run_cells(name, mine)
    return time.monotonic() - began


def pull(user: str) -> int | str:
    """Log in and follow the link of docs/hub.md in a browser: the status of the notebook that opens, or what failed."""
    from browser import FLAGS, find_chromium  # type: ignore[import-not-found]  # in tests/
    from playwright.sync_api import Error, sync_playwright
    repository = PLACE / "class" / "repository"
    shutil.copytree(ROOT / "notebooks", repository / "notebooks")
    for command in ("init --quiet --initial-branch=main", "add .", "-c user.name=a -c user.email=a commit -q -m 1"):
        subprocess.run(["git", "-C", repository, *command.split()], check=True)
    docs = (ROOT / "docs" / "hub.md").read_text(encoding="utf-8")
    [link] = re.findall(r"https://HUB(/hub/user-redirect/[^`]+)", docs)
    notebook = link.partition("urlpath=lab/tree/")[2]
    with sync_playwright() as running:
        page = running.chromium.launch(executable_path=find_chromium(), args=FLAGS).new_page()
        try:
            page.goto(ADDRESS + link.replace("REPOSITORY", quote(repository.as_uri(), safe="")))
            page.fill("#username_input", user)
            page.fill("#password_input", PASSWORD)
            page.click("#login_submit")
            page.wait_for_url(f"**/user/{user}/lab/tree/{notebook}", timeout=120_000)
            page.locator(".jp-Notebook .jp-MarkdownCell").first.wait_for(timeout=120_000)
        except Error as error:
            return f"{page.url}: {error.message}"
        return page.request.get(f"{ADDRESS}/user/{user}/api/contents/{notebook}").status


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--lesson", default="01")
    options = parser.parse_args(arguments)
    python = installed()
    if Path(sys.prefix) != PLACE / "venv":
        return subprocess.run([python, __file__, *sys.argv[1:]]).returncode

    from course_utils.exercises import exercises_of, progress_store
    from course_utils.runs import read_notebook, stored_lessons

    [lesson] = stored_lessons(ROOT / "solutions", options.lesson)
    cells = [cell.source for cell in read_notebook(lesson).cells if cell.cell_type == "code"]
    exercises = [each.id for each in exercises_of(options.lesson)]
    names = [f"user-{i:02}" for i in range(options.users)]
    with hub(python):
        for name in names:
            ask("POST", f"/users/{name}")
        watch = Watch(names)
        watch.start()
        with ThreadPoolExecutor(len(names)) as pool:
            seconds = list(pool.map(lambda i: work(i, names[i], cells, exercises[0]), range(len(names))))
        watch.stopped.set()
        watch.join()
        sys.path.insert(0, str(ROOT / "tests"))
        from browser import what_is_missing
        pulled = None if (missing := what_is_missing()) else pull(names[-1])

    wrong = []
    print(f"{'user':10}{'seconds':>9}{'processor':>11}{'memory, GB':>12}  attempts")
    for i, name in enumerate(names):
        entries = progress_store.read(PLACE / "class" / "progress" / f"{name}.jsonl")
        passed = {exercise for exercise, standing in progress_store.standings(entries).items() if standing.passed}
        failed = sum(entry["verdict"] not in ("passed", "not yet") for entry in entries)
        print(f"{name:10}{seconds[i]:9.0f}{watch.seconds[name]:11.0f}{watch.memory[name] / 1e9:12.2f}  "
              f"{len(entries)}, of them rejected {failed}; passed {len(passed)} of {len(exercises)}")
        wrong += [name] if passed != set(exercises) or failed != i % 2 else []
    mean = sum(watch.memory.values()) / len(names) / 1e9
    print(f"a user takes {mean:.2f} GB: 30 users {30 * mean:.0f} GB, 300 users {300 * mean:.0f} GB")
    print(f"not as it should be: {', '.join(wrong)}" if wrong else "everyone's progress is complete, and their own")
    print(f"the link of docs/hub.md: {pulled or f'not tried: {missing}'}")
    return int(bool(wrong) or pulled not in (None, 200))


if __name__ == "__main__":
    sys.exit(main())
