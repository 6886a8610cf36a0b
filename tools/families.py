"""Right, or refused in words: a table of model families × public functions.

    python tools/families.py [family …] [--function NAME …] [--list]

Every cell holds what the course computes on a small random model against a slow, plain pass through the untouched
transformers model (tests/family_cells.py). "right", "refused" (the course says which trait of the model makes it
impossible), WRONG (another number), CRASH (any other error) or REFEREE (the plain pass
itself failed); the last three make the command fail.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests")]
os.environ["COURSE_BARS"] = "off"

import torch
from families import FAMILIES
from family_cells import CELLS, Case, Verdict, judge

KINDS = ("right", "refused", "WRONG", "CRASH", "REFEREE")
BAD = KINDS[2:]


def table(names: list[str], functions: list[str]) -> dict[str, dict[str, Verdict]]:
    """{family: {function: verdict}}. What does not load right is asked nothing else."""
    out = {}
    for name in names:
        case = Case(name)
        out[name] = {"load": judge(case, "load")}
        if out[name]["load"].kind == "right":
            out[name] |= {function: judge(case, function) for function in functions if function != "load"}
        line = {kind: sum(each.kind == kind for each in out[name].values()) for kind in KINDS}
        print(f"{name:22}", "  ".join(f"{kind} {number:2}" for kind, number in line.items()),
              file=sys.stderr, flush=True)
        for function, verdict in out[name].items():
            if verdict.kind in BAD:
                print(f"    {verdict.kind} {function}: {verdict.reason}", file=sys.stderr, flush=True)
    return out


def show(found: dict[str, dict[str, Verdict]], functions: list[str]) -> str:
    """The table, functions down and families across in pieces, and under it every reason."""
    lines, names = [], list(found)
    for start in range(0, len(names), 8):
        some = names[start:start + 8]
        lines.append(f"{'':27}" + "".join(f"{name[:14]:15}" for name in some))
        for function in functions:
            cells = (found[name].get(function, Verdict("-")).kind for name in some)
            lines.append(f"{function:27}" + "".join(f"{kind:15}" for kind in cells))
        lines.append("")
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for name in names:
        for function, verdict in found[name].items():
            if verdict.reason:
                reasons.setdefault((verdict.kind, function, verdict.reason), []).append(name)
    lines += [f"{kind:8} {function:27} {', '.join(who)}: {reason}" for (kind, function, reason), who in
              sorted(reasons.items(), key=lambda item: (item[0][0] != "CRASH", item[0][0] != "WRONG", item[0]))]
    every = [verdict for row in found.values() for verdict in row.values()]
    counts = {kind: sum(each.kind == kind for each in every) for kind in KINDS}
    worst = max((each.worst for each in every if each.kind == "right"), default=0.0)
    lines.append("\n" + ", ".join(f"{number} {kind}" for kind, number in counts.items()) +
                 f"; the largest difference in a right cell is {worst:.1e}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("family", nargs="*", help=f"some of {', '.join(FAMILIES)}; default: all")
    parser.add_argument("--function", nargs="*", help=f"some of {', '.join(CELLS)}; default: all")
    chosen = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)                                        # matrices this small gain nothing from more
    found = table(chosen.family or list(FAMILIES), chosen.function or list(CELLS))
    print(show(found, chosen.function or list(CELLS)))
    return int(any(verdict.kind in BAD for row in found.values() for verdict in row.values()))


if __name__ == "__main__":
    sys.exit(main())
