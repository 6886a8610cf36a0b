"""`python -m benchmarks [name …] [--out FILE] [--quick]`"""

from __future__ import annotations

import argparse
import datetime
import inspect
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from tqdm.auto import tqdm

from benchmarks import (  # noqa: F401  (importing a module registers its benchmarks)
    ablations,
    circuits,
    edges,
    gpt2_shape,
    growth,
    heads,
    lessons,
    saes,
)
from benchmarks.registry import BENCHMARKS, as_markdown, select
from course_utils.house import bars_are_off


def heading(arguments: Sequence[str]) -> str:
    """What a reader needs in order to compare: the command, the date, the machine and the versions."""
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformer-lens"))
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (f"# Benchmarks\n\n`python -m benchmarks {' '.join(arguments)}`, {datetime.date.today()}\n\n"
            f"Python {platform.python_version()}, {versions}; {platform.system()} {platform.machine()}, "
            f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads{gpu}.\n")


def section(name: str, quick: bool) -> str:
    """Run one benchmark. Its name, its text and its table."""
    rows = BENCHMARKS[name](quick=quick)
    return f"\n## {name}\n\n{inspect.getdoc(BENCHMARKS[name])}\n\n{as_markdown(rows)}\n"


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure the course's functions.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"some of: {', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the tables to a Markdown file too")
    parser.add_argument("--quick", action="store_true", help="tiny inputs: only shows that everything runs")
    options = parser.parse_args(arguments)
    try:
        names = select(options.names)
    except ValueError as error:
        parser.error(str(error))
    text = heading(arguments) + ("\nQuick: inputs too small for the targets.\n" if options.quick else "")
    print(text)
    for name in tqdm(names, desc="benchmarks", disable=bars_are_off()):
        part = section(name, options.quick)
        tqdm.write(part)
        text += part
        if options.out:                                         # after each, so that an interrupted run leaves some
            options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
