"""Whole lessons, and the time until a learner sees something."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from tqdm.auto import tqdm

from benchmarks.measuring import LIMIT, OURS, take_turns, timed
from benchmarks.registry import Row, benchmark, row, speeds
from course_utils.house import bars_are_off

ROOT = Path(__file__).resolve().parent.parent
BUDGETS = {"course": 360, "quick": 90, "test": 360}     # seconds
IMPORTS = "import torch, matplotlib.pyplot, transformer_lens.model_bridge"
FIRST_PLOT = """
from course_utils.models import load_model
from course_utils.viz import plot_attention
model = load_model("tiny")
tokens = model.to_tokens("One morning , Mary was in the")
_, cache = model.run_with_cache(tokens, names_filter="blocks.1.attn.hook_pattern")
plot_attention(cache["blocks.1.attn.hook_pattern"][0, 3], [str(i) for i in range(tokens.shape[1])], "head 1.3")
"""


def python(code: str) -> None:
    """Run code in a new interpreter, which then ends at once, without freeing what it has."""
    code += "\nimport os\nos._exit(0)"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "MPLBACKEND": "Agg"})


@benchmark("first-plot")
def first_plot(quick: bool = False) -> list[Row]:
    """From a new interpreter to the first plot of an attention pattern, against the imports of the libraries alone.

    `limit`: the imports. An empty interpreter is what `import course_utils` is held against. How long an interpreter
    takes to end is counted nowhere.
    """
    rounds = 1 if quick else 15
    package = take_turns({OURS: lambda: python("import course_utils"), LIMIT: lambda: python("pass")}, rounds, "import")
    plot = take_turns({OURS: lambda: python(FIRST_PLOT), LIMIT: lambda: python(IMPORTS)}, rounds, "first plot")
    return [*speeds("import course_utils, against an empty interpreter", package, {}),
            *speeds("to the first plot, against importing torch, matplotlib and transformer_lens", plot, {LIMIT: 1.05})]


@benchmark("waits")
def waits(quick: bool = False) -> list[Row]:
    """What a contributor waits for, each once, with the environments ready and nothing else running."""
    rows = []
    for target, budget in BUDGETS.items():
        command = ["make", target, *(["--dry-run"] if quick else [])]
        seconds, done = timed(partial(subprocess.run, command, cwd=ROOT, capture_output=True))
        met = done.returncode == 0 and seconds <= budget
        measured = f"{seconds:.0f} s, status {done.returncode}"
        rows.append(row(f"make {target}", measured, f"<= {budget} s, status 0", met))
    return rows


@benchmark("lessons")
def lessons(quick: bool = False) -> list[Row]:
    """Every worked lesson on the shipped model, in a kernel of its own on two cores: wall time, slowest cell, memory.

    The start of the kernel counts as part of the first cell, the one with the imports.
    """
    import costs

    from course_utils.runs import stored_lessons

    paths = stored_lessons(ROOT / "solutions", "04" if quick else "")
    rows, total = [], 0.0
    for path in tqdm(paths, desc="lessons", leave=False, disable=bars_are_off()):
        whole, cells = costs.measure(path, "skip")
        total += whole["seconds"]
        slowest = max(cells)
        rows.append({"Lesson": path.stem, "Seconds": f"{whole['seconds']:.1f}", "Slowest cell (s)": f"{slowest:.1f}",
                     "Memory (GB)": f"{whole['gigabytes']:.2f}", "Wanted": "cell <= 15 s",
                     "Met": "yes" if slowest <= 15 else "NO"})
    rows.append({"Lesson": "all", "Seconds": f"{total:.0f}", "Slowest cell (s)": "", "Memory (GB)": "",
                 "Wanted": "<= 300 s", "Met": "yes" if total <= 300 else "NO"})
    return rows
