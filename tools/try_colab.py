"""Run exercise notebooks as Colab would: a session with `google.colab` and without the course, which then installs it.

    python tools/try_colab.py                                every notebook, in a new environment
    python tools/try_colab.py 00 --python colab/bin/python   one, in an environment that has Colab's own versions

The course is packed as a wheel, and the setup cell installs it from a file:// address. Without --python the new
environment borrows the packages of this one (all but the course), so that only the course is installed. torch and
numpy must be the same before and after. Status 1 when a cell fails or one of the two was replaced.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from pathlib import Path

from build_notebooks import SETUP

from course_utils.runs import LessonError, read_notebook, run_notebook, stored_lessons

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = "from importlib.metadata import version; print(version('torch'), version('numpy'))"
PARTS = ("course_utils", "notebooks", "solutions", "pyproject.toml", "setup.py", "README.md", "LICENSE")


def make_wheel(folder: Path) -> Path:
    """Pack the course from a copy of its sources, so that the checkout stays clean."""
    source = folder / "source"
    source.mkdir(parents=True)
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, source / part)
    quietly = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *quietly], check=True)
    return next(folder.glob("*.whl"))


def new_environment(folder: Path) -> Path:
    """An environment that finds this one's packages, but no course; returns its interpreter."""
    venv.create(folder)
    python = folder / "bin" / "python"
    (_site(python) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def _site(python: Path) -> Path:
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip())


def make_it_colab(python: Path) -> None:
    """Put a `google.colab` that is imported at every start into the environment, and take the course out."""
    package = _site(python) / "google" / "colab"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").touch()
    (_site(python) / "zz_colab.pth").write_text("import google.colab\n")
    if (_site(python) / "course_utils").exists():
        subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", "faithful-circuits"], check=True)


def run(lesson: Path, source: str) -> str:
    """Run one notebook with the course at `source`; returns what its setup cell printed. Raises LessonError."""
    notebook = read_notebook(lesson)
    setup = next(cell for cell in notebook.cells if cell.id == "setup")
    setup.source = SETUP.read_text(encoding="utf-8").replace('SOURCE = ""', f"SOURCE = {source!r}")
    run_notebook(notebook)
    return "".join(output.get("text", "") for output in setup.outputs)


def kernel_of(python: Path, folder: Path) -> dict[str, str]:
    """Variables under which a notebook's kernel is that interpreter."""
    spec = folder / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": argv, "display_name": "Colab", "language": "python"}))
    return {"JUPYTER_PATH": str(folder)}


def versions(python: Path) -> str:
    return subprocess.run([python, "-c", VERSIONS], capture_output=True, text=True, check=True).stdout.strip()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="?", default="", help="the start of a lesson's name, for example 00")
    parser.add_argument("--python", type=Path, help="the interpreter of an environment made for this; it is changed")
    args = parser.parse_args(argv)
    lessons = stored_lessons(ROOT / "notebooks", args.only)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = make_wheel(folder / "wheel").as_uri()
        python = args.python.absolute() if args.python else new_environment(folder / "environment")
        make_it_colab(python)
        os.environ.update(kernel_of(python, folder / "jupyter"), COURSE_REAL="skip", COURSE_MODEL="tiny")
        before = versions(python)
        failed = [lesson.stem for lesson in lessons if not _tried(lesson, source)]
        after = versions(python)
    print(f"torch and numpy before {before}, after {after}; {len(lessons)} notebooks, {len(failed)} failed {failed}")
    return int(bool(failed) or before != after or not lessons)


def _tried(lesson: Path, source: str) -> bool:
    start = time.perf_counter()
    try:
        said = run(lesson, source)
    except LessonError as error:
        print(f"{lesson.stem}: FAILED {error}", flush=True)
        return False
    print(f"{lesson.stem}: {time.perf_counter() - start:.0f} s; {said.strip().splitlines()[-1]}", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
