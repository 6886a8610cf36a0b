"""What works on this machine, and what to do about what does not: `faithful-circuits doctor`.

Each check looks at one thing and answers with a `Finding`. None of them downloads anything; one asks the Hugging Face
hub for its front page and waits a few seconds, unless `--offline` is given.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

PACKAGE = "faithful-circuits"
OK, NOTE, PROBLEM = "ok", "note", "problem"
HUB_SECONDS = 4
FOR_NOTEBOOKS = ("ipykernel", "ipywidgets", "jupyterlab", "latex2mathml", "nbclient", "nbconvert", "nbformat", "pip")


@dataclass(frozen=True)
class Finding:
    """What one check found. `advice` says what to do; a note leaves the default lessons working, a problem does not."""

    name: str
    status: str
    found: str
    advice: str = ""


def check_python() -> Finding:
    """Python 3.10 to 3.13."""
    here = sys.version_info[:2]
    found = f"{platform.python_version()} ({platform.system()} {platform.machine()})"
    if (3, 10) <= here < (3, 14):
        return Finding("Python", OK, found)
    return Finding("Python", PROBLEM, found, "make an environment with Python 3.11: python3.11 -m venv .venv")


def check_packages() -> Finding:
    """Every package that the lessons need, in a version that the course accepts."""
    wrong = {each: problem for each in _requirements() if (problem := _requirement_problem(each))}
    if wrong:
        needed = " ".join(f'"{each}"' for each in wrong)
        return Finding("packages", PROBLEM, "; ".join(wrong.values()), f"pip install {needed}")
    return Finding("packages", OK, ", ".join(f"{name} {version(name)}" for name in ("transformer-lens", "circuitsvis")))


def check_torch() -> Finding:
    """PyTorch can be imported and computes."""
    try:
        import torch

        right = float((torch.ones(2, 2) @ torch.ones(2, 2)).sum()) == 8
    except (ImportError, OSError, RuntimeError) as error:
        return Finding("PyTorch", PROBLEM, f"{type(error).__name__}: {error}", "pip install --force-reinstall torch")
    found = f"{torch.__version__}, {torch.get_num_threads()} threads"
    return Finding("PyTorch", OK if right else PROBLEM, found, "" if right else "pip install --force-reinstall torch")


def check_gpu() -> Finding:
    """Whether there is a GPU. The lessons do not need one."""
    try:
        import torch
    except (ImportError, OSError):
        return Finding("GPU", NOTE, "not known: PyTorch cannot be imported")
    if torch.cuda.is_available():
        return Finding("GPU", OK, torch.cuda.get_device_name(0))
    return Finding("GPU", OK, "none: the lessons run on the CPU, in seconds")


def check_tiny() -> Finding:
    """The shipped model is there, whole, and predicts."""
    try:
        from course_utils.models import load_model

        model = load_model("tiny", device="cpu")
        finite = bool(model(model.tokenizer("The", return_tensors="pt")["input_ids"]).isfinite().all())
    except Exception as error:      # whatever it is, the learner should read it here and not in lesson 00
        first = (str(error).strip().splitlines() or [""])[0]
        remedy = "start Python without -OO" if sys.flags.optimize > 1 else "install the course again"
        return Finding("model tiny", PROBLEM, f"{type(error).__name__}: {first}", remedy)
    return Finding("model tiny", OK if finite else PROBLEM, "loads and predicts" if finite else "predicts NaN",
                   "" if finite else "install PyTorch again")


def check_models() -> Finding:
    """Which larger models are on this machine."""
    from course_utils.models import MODELS, is_cached

    try:
        always = ("tiny", "tiny-untrained", "gpt2-small-random")
        here = [name for name in MODELS if name not in always and is_cached(name)]
    except ImportError as error:
        return Finding("larger models", NOTE, f"not known: {error}")
    if "smollm2-135m" in here:
        return Finding("larger models", OK, ", ".join(here))
    return Finding("larger models", NOTE, ", ".join(here) or "none",
                   "for the real-model sections, once, with network: faithful-circuits fetch smollm2-135m")


def check_hub(offline: bool = False) -> Finding:
    """Whether the Hugging Face hub answers."""
    if offline or os.environ.get("HF_HUB_OFFLINE") == "1":
        return Finding("Hugging Face hub", NOTE, "not asked (offline)")
    import urllib.error
    import urllib.request

    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=HUB_SECONDS).close()
    except urllib.error.HTTPError:
        pass                                                        # it answered
    except (OSError, ValueError) as error:
        return Finding("Hugging Face hub", NOTE, f"{address} does not answer ({error})",
                       "only gpt2-small and other hub models need it; tiny and smollm2-135m do not")
    return Finding("Hugging Face hub", OK, "answers")


def check_widgets() -> Finding:
    """The attention widgets' script is on this machine, so that they draw offline."""
    spec = importlib.util.find_spec("circuitsvis")
    script = Path(spec.origin).parent / "dist" / "cdn" / "iife.js" if spec and spec.origin else None
    if script and script.exists():
        return Finding("widgets", OK, "draw offline")
    return Finding("widgets", NOTE, "CircuitsVis' script is missing", "pip install --force-reinstall circuitsvis")


def check_jupyter() -> Finding:
    """Something to open notebooks with."""
    found = [name for name in ("jupyterlab", "notebook") if importlib.util.find_spec(name)]
    if found:
        return Finding("Jupyter", OK, ", ".join(f"{name} {version(name)}" for name in found))
    return Finding("Jupyter", NOTE, "not in this environment",
                   "pip install jupyterlab, or open the notebooks elsewhere")


def check_cache() -> Finding:
    """The folder for downloaded models can be written and has room."""
    from course_utils.house import cache_dir
    from course_utils.models import FETCH_NEEDS_MB

    return _place("cache folder", cache_dir(), FETCH_NEEDS_MB, "COURSE_CACHE")


def check_progress() -> Finding:
    """The file of passed exercises can be written."""
    from course_utils.house import progress_file

    return _place("progress file", progress_file(), 1, "COURSE_PROGRESS", is_file=True)


def _place(name: str, path: Path, needed_mb: int, variable: str, is_file: bool = False) -> Finding:
    """Whether a folder, or a file, can be written at this path, which need not exist yet."""
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    if there.is_dir() == (is_file and there == path):               # a file where a folder is needed, or the reverse
        kind = "folder" if there.is_dir() else "file"
        return Finding(name, NOTE, f"{path}: {there} is a {kind}", f"set {variable} to another place")
    if not os.access(there, os.W_OK):
        return Finding(name, NOTE, f"{path}: {there} is not writable", f"set {variable} to a place that is")
    free = shutil.disk_usage(there).free / 2**20
    if free < needed_mb:
        return Finding(name, NOTE, f"{path}: {free:.0f} MB free", f"make room for {needed_mb} MB, or set {variable}")
    return Finding(name, OK, f"{path}, {free / 1000:.0f} GB free")


def _requirements() -> list[str]:
    """The course's own requirements, without its extras, and without what opens and runs notebooks."""
    try:
        return [each for each in requires(PACKAGE) or []
                if "extra ==" not in each and not each.startswith(FOR_NOTEBOOKS)]
    except PackageNotFoundError:                                    # used from its folder, without being installed
        return ["torch>=2.6", "transformer-lens>=3.9", "circuitsvis>=1.43"]


def _requirement_problem(requirement: str) -> str:
    """What is wrong with an installed package, in a few words; nothing if it fits."""
    from packaging.requirements import Requirement

    wanted = Requirement(requirement)
    try:
        found = version(wanted.name)
    except PackageNotFoundError:
        return f"{wanted.name} is not installed"
    if wanted.specifier.contains(found, prereleases=True):
        return ""
    return f"{wanted.name} is {found}, wanted {wanted.specifier}"


CHECKS: tuple[Callable[[], Finding], ...] = (
    check_python, check_packages, check_torch, check_gpu, check_tiny, check_models, check_widgets, check_jupyter,
    check_cache, check_progress,
)


def examine(offline: bool = False) -> list[Finding]:
    """All findings. The hub comes last: it may take seconds."""
    return [*(check() for check in CHECKS), check_hub(offline)]


def as_text(findings: list[Finding]) -> str:
    """One screen: a line for each finding, advice below it, and a last line that sums up."""
    sign = {OK: "ok     ", NOTE: "note   ", PROBLEM: "PROBLEM"}
    lines = []
    for each in findings:
        lines.append(f"{sign[each.status]}  {each.name:17} {each.found}")
        if each.advice:
            lines.append(f"{'':9}{'':17} → {each.advice}")
    problems = sum(each.status == PROBLEM for each in findings)
    last = "Everything that the lessons need works." if not problems else (
        f"{problems} problem{'s' * (problems > 1)}: the lessons will not run until this is fixed.")
    return "\n".join([*lines, "", last])
