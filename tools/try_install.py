"""From nothing to the first solved exercise, as a newcomer types it: the commands, and the seconds that each took.

    python tools/try_install.py pip=python3.12                   an environment and pip
    python tools/try_install.py uv=3.13                          `uv tool install` with that Python; pip brings uv
    python tools/try_install.py room=build/room                  pip from the folder of `make room`, no network at all
    python tools/try_install.py pip=python3.10 torch==2.13.0     with these requirements beside the course

The course is packed as a wheel beforehand. Everything is put into a new folder, which is removed again, pip's and uv's
caches too. `faithful-circuits lab` copies the notebooks; then the first lesson's cells run up to the first exercise, in
the installed course's own kernel, with the course's answer in place of the stub. Status 1 if it does not pass.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from try_colab import make_wheel

FIRST_EXERCISE = """
import inspect, sys
from pathlib import Path
from course_utils.exercises import get
from course_utils.runs import read_notebook, run_notebook
notebook = read_notebook(sorted(Path(sys.argv[1]).glob("00_*.ipynb"))[0])
number, stub = next((n, c) for n, c in enumerate(notebook.cells) if "\\n@exercise(" in c.source)
id = stub.source.split('"')[1]
stub.source = f'@exercise("{id}")\\n' + inspect.getsource(inspect.unwrap(get(id).reference))
notebook.cells = notebook.cells[:number + 1]
run_notebook(notebook)
print(id, "passed" if "✓ passed" in str(stub.outputs) else f"NOT PASSED: {stub.outputs}")
"""


def commands(way: str, folder: Path, wheel: Path, beside: Sequence[str]) -> tuple[list[str], Path]:
    """What the newcomer types in `folder`, and where the interpreter is then. Raises ValueError for an unknown way."""
    kind, _, what = way.partition("=")
    course = shlex.join([*beside, str(wheel)])
    python = folder / "course" / "bin" / "python"
    match kind:
        case "pip" if shutil.which(what):
            install = [f"{what} -m venv course", f"course/bin/pip install {course}"]
        case "room" if (Path(what) / "packages").is_dir():
            room = Path(what).resolve()
            install = [f"{sys.executable} -m venv course",
                       f"PIP_NO_INDEX=1 PIP_FIND_LINKS={room}/packages PIP_CONFIG_FILE=/dev/null "
                       f"unshare --net course/bin/pip install -r {room}/requirements.lock faithful-circuits"]
        case "uv" if re.fullmatch(r"3\.\d+", what):
            python = folder / "tools" / "faithful-circuits" / "bin" / "python"
            extra = " ".join(f"--with {shlex.quote(requirement)}" for requirement in beside)
            install = [f"{sys.executable} -m venv --clear uv && uv/bin/pip install uv",
                       f"uv/bin/uv tool install --python {what} {extra} {shlex.quote(str(wheel))}"]
        case _:
            raise ValueError(f"{way!r} is none of pip=<a Python>, uv=<3.x>, room=<the folder of make room>")
    return [*install, f"{python.parent}/faithful-circuits lab work --copy"], python


def try_way(way: str, folder: Path, wheel: Path, beside: Sequence[str]) -> bool:
    """Follow one way in `folder`, and print each command with its seconds. Has the first exercise passed?"""
    home = {"XDG_CACHE_HOME": folder / "cache", "UV_CACHE_DIR": folder / "cache", "UV_TOOL_DIR": folder / "tools",
            "UV_TOOL_BIN_DIR": folder / "bin", "PIP_NO_CACHE_DIR": "1", "PYTHONPATH": ""}
    env = os.environ | {name: str(value) for name, value in home.items()}
    typed, python = commands(way, folder, wheel, beside)
    start = time.perf_counter()
    for command in typed:
        began = time.perf_counter()
        done = subprocess.run(command, shell=True, cwd=folder, env=env, capture_output=True, text=True)
        print(f"{time.perf_counter() - began:7.0f} s  {command.replace(str(folder) + '/', '')}", flush=True)
        if done.returncode:
            print(done.stdout[-2000:] + done.stderr[-2000:])
            return False
    solved = subprocess.run([python, "-c", FIRST_EXERCISE, "work"], cwd=folder, env=env, capture_output=True, text=True)
    print(f"{time.perf_counter() - start:7.0f} s  in all: {solved.stdout.strip() or solved.stderr[-2000:]}")
    return solved.stdout.strip().endswith(" passed")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", help="pip=<a Python>, uv=<3.x> or room=<folder>")
    parser.add_argument("beside", nargs="*", help="requirements beside the course")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            commands(args.way, folder, folder, args.beside)
        except ValueError as error:
            parser.error(str(error))
        return int(not try_way(args.way, folder, make_wheel(folder / "wheel"), args.beside))


if __name__ == "__main__":
    sys.exit(main())
