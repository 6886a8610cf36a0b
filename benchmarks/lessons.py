"""Whole lessons, and the time until a learner sees something."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tqdm.auto import tqdm

from benchmarks.measuring import in_turn
from benchmarks.registry import Row, benchmark, row
from course_utils.house import bars_are_off

ROOT = Path(__file__).resolve().parent.parent
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
    """Run code in a new interpreter."""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "MPLBACKEND": "Agg"})


@benchmark("first-plot")
def first_plot(quick: bool = False) -> list[Row]:
    """From a new interpreter to the first plot of an attention pattern, against the imports of the libraries alone."""
    rounds = 1 if quick else 5
    package = in_turn(lambda: python("import course_utils"), lambda: python("pass"), rounds, "import")
    plot = in_turn(lambda: python(FIRST_PLOT), lambda: python(IMPORTS), rounds, "first plot")
    import_seconds = sorted(package.first)[rounds // 2] - sorted(package.second)[rounds // 2]
    return [row("import course_utils, beyond an empty interpreter", f"{import_seconds:.3f} s", "<= 0.3 s",
                import_seconds <= 0.3),
            row("to the first plot / importing torch, matplotlib and transformer_lens", str(plot))]


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
