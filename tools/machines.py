"""The stored outputs and the comparisons with SAELens, computed again as other machines would: make machines.

    python tools/machines.py                 every setting that this processor can run
    python tools/machines.py AVX2 plain      the settings whose names begin so
    python tools/machines.py --only 06 11    two lessons, and no comparisons
    python tools/machines.py --threads 1     the settings with one thread
    python tools/machines.py --busy 4        beside four processes that keep the cores busy

The libraries below PyTorch choose their instructions by the processor and share a sum among threads, so that on another
machine the last digits come out otherwise. The settings ask for what such a machine would take; none is left out
without a word. The comparisons run in a second environment, since SAELens needs another TransformerLens.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from course_utils.runs import stored_lessons

ROOT = Path(__file__).resolve().parent.parent
PROCESSOR = Path("/proc/cpuinfo")
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "MKL_CBWR": "AVX2"}
AVX512 = {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "MKL_ENABLE_INSTRUCTIONS": "AVX512"}
PLAIN = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"}
NOTEBOOKS = "--dist loadfile --no-loadscope-reorder --nbval --nbval-current-env".split()     # as in the Makefile


@dataclass(frozen=True)
class Setting:
    """What a machine takes: its instructions (variables of PyTorch, oneDNN and MKL) and its threads."""

    name: str
    threads: int
    variables: dict[str, str]
    needs: str = ""     # the flag without which a processor cannot do it

    def environment(self) -> dict[str, str]:
        """This process's variables, those of every setting left out, and this one's."""
        every = {name for setting in SETTINGS for name in setting.variables}
        kept = {name: value for name, value in os.environ.items() if name not in every}
        threads = {"OMP_NUM_THREADS": str(self.threads), "MKL_NUM_THREADS": str(self.threads)}
        return {**kept, **self.variables, **threads, "OMP_WAIT_POLICY": "PASSIVE"}      # a busy machine needs the core


SETTINGS = (
    Setting("default", 1, {}), Setting("default", 2, {}),
    Setting("AVX2", 1, AVX2, "avx2"), Setting("AVX2", 2, AVX2, "avx2"),
    Setting("AVX-512", 2, AVX512, "avx512f"), Setting("plain", 1, PLAIN),
)


def counts(report: Path) -> tuple[int, int]:
    """(passed, failed) of a JUnit report; a run that left none, or in which nothing ran, failed once."""
    try:
        suites = list(ElementTree.parse(report).iter("testsuite"))
    except (OSError, ElementTree.ParseError):
        return 0, 1
    total, skipped, *bad = (sum(int(suite.get(kind, 0)) for suite in suites)
                            for kind in ("tests", "skipped", "failures", "errors"))
    passed = total - skipped - sum(bad)
    return passed, sum(bad) or int(passed == 0)


def run(python: str, setting: Setting, jobs: int, *arguments: str) -> tuple[int, int, float]:
    """(passed, failed, seconds) of pytest under a setting. What it prints is shown if something failed."""
    with tempfile.TemporaryDirectory() as folder:
        report, began = Path(folder, "report.xml"), time.perf_counter()
        command = [python, "-m", "pytest", "-q", "-n", str(jobs), f"--junitxml={report}", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=setting.environment(), text=True, capture_output=True)
        passed, failed = counts(report)
    if done.returncode and not failed:
        failed = 1
    if failed:
        print(done.stdout, done.stderr, sep="\n", flush=True)
    return passed, failed, time.perf_counter() - began


def flags() -> set[str]:
    """What this processor says that it can do; nothing where Linux does not say it."""
    return set(PROCESSOR.read_text().split()) if PROCESSOR.exists() else set()


def chosen(names: list[str], able: set[str]) -> tuple[list[Setting], list[str]]:
    """The settings whose names begin with one of `names` (all, if there are none), and a line for each left out."""
    asked = [s for s in SETTINGS if not names or any(s.name.lower().startswith(name.lower()) for name in names)]
    can = [s for s in asked if not s.needs or s.needs in able]
    return can, [f"{s.name}: not run, this processor has no {s.needs}" for s in asked if s not in can]


@contextmanager
def beside(busy: int) -> Iterator[None]:
    """With so many other processes that want a core all the time."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        yield
    finally:
        for each in others:
            each.kill()
            each.wait()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help="the start of a setting's name")
    parser.add_argument("--threads", type=int, help="only the settings with so many threads")
    parser.add_argument("--only", nargs="+", help="the starts of lessons' names; the comparisons are left out")
    parser.add_argument("--peers", default=str(ROOT / ".venv-peers/bin/python"), help="the second environment's Python")
    parser.add_argument("--cores", type=int, default=2, help="threads at a time, all processes together")
    parser.add_argument("--busy", type=int, default=0, help="other processes beside, which do nothing but compute")
    args = parser.parse_args(argv)
    settings, left_out = chosen(args.settings, flags())
    settings = [each for each in settings if args.threads in (None, each.threads)]
    peers = [str(path) for path in sorted((ROOT / "tests").glob("test_*.py")) if "mark.peers" in path.read_text()]
    stored = {path for start in args.only or [""] for path in stored_lessons(ROOT / "solutions", start)}
    lessons = [str(path.relative_to(ROOT)) for path in sorted(stored, reverse=True)]
    if not settings or not lessons:
        print("error: no such setting or lesson", *left_out, sep="\n", file=sys.stderr)
        return 1
    print(f"{'setting':10}{'threads':>8}  {'what':12}{'passed':>7}{'failed':>7}{'seconds':>8}", flush=True)
    failures = 0
    for setting in settings:
        jobs = max(1, args.cores // setting.threads)
        parts = {"cells": (sys.executable, *NOTEBOOKS, *lessons)}
        if not args.only:
            parts["comparisons"] = (args.peers, "-m", "peers", *peers)
        for what, (python, *arguments) in parts.items():
            with beside(args.busy):
                passed, failed, seconds = run(python, setting, jobs, *arguments)
            failures += failed
            print(f"{setting.name:10}{setting.threads:8}  {what:12}{passed:7}{failed:7}{seconds:8.0f}", flush=True)
    print("\n".join(left_out))
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
