"""The list of benchmarks. To add one: write a function with `@benchmark("name")` and name its module in __main__.py."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from statistics import median

from benchmarks.measuring import LIMIT, OURS, Turns
from course_utils.house import in_columns

Row = dict[str, str]    # column: cell
BENCHMARKS: dict[str, Callable[..., list[Row]]] = {}


def benchmark(name: str) -> Callable:
    """Register a function(quick) -> rows; its docstring becomes the text above the table.

    quick=True asks for inputs so small that the whole takes seconds: it shows that everything runs, and no more.
    """

    def register(function: Callable[..., list[Row]]) -> Callable[..., list[Row]]:
        BENCHMARKS[name] = function
        return function

    return register


def select(names: list[str]) -> list[str]:
    """The names asked for, or all if none was. Raises ValueError listing the known ones if one is unknown."""
    if unknown := [name for name in names if name not in BENCHMARKS]:
        raise ValueError(f"no benchmark is called {', '.join(unknown)}; there are: {', '.join(BENCHMARKS)}")
    return names or list(BENCHMARKS)


def row(what: str, measured: str, wanted: str = "", met: bool | None = None) -> Row:
    """One measurement, and whether it met its target if it has one."""
    return {"What": what, "Measured": measured, "Wanted": wanted, "Met": {None: "", True: "yes", False: "NO"}[met]}


def speeds(what: str, turns: Turns, wanted: dict[str, float]) -> list[Row]:
    """One row for each peer of a call: its time, the peer's and the limit's, and whether their ratios are as wanted.

    Args:
        turns: of the call, named OURS, perhaps of its limit, named LIMIT, and of peers by their names.
        wanted: peer: how many times as long as ours it must take at least; LIMIT: how many times as long as the limit
            ours may take at most. A target is met, or missed, where an interval around the median says so; else open.
    """
    rows = []
    for peer in [name for name in turns.seconds if name not in (OURS, LIMIT)] or [""]:
        cells = dict.fromkeys(("Peer (s)", "Peer / ours", "Limit (s)", "Ours / limit"), "")
        met = {}
        if peer:
            ratio = turns.ratio(peer, OURS)
            cells |= {"Peer (s)": _median(turns, peer), "Peer / ours": str(ratio)}
            met |= {f"peer >= {wanted[peer]:g}": ratio.at_least(wanted[peer])} if peer in wanted else {}
        if LIMIT in turns.seconds and not rows:                     # once
            ratio = turns.ratio(OURS, LIMIT)
            cells |= {"Limit (s)": _median(turns, LIMIT), "Ours / limit": str(ratio)}
            met |= {f"limit <= {wanted[LIMIT]:g}": ratio.at_most(wanted[LIMIT])} if LIMIT in wanted else {}
        rows.append({"What": what, "Peer": peer, "Ours (s)": _median(turns, OURS), **cells,
                     "Wanted": ", ".join(met), "Met": ", ".join(met.values())})
    return rows


def _median(turns: Turns, name: str) -> str:
    return f"{median(turns.seconds[name]):.3g}"


def as_markdown(rows: list[Row]) -> str:
    """A Markdown table, or one for each run of rows with the same columns, which line up as plain text too."""
    return "\n\n".join(_table(list(some)) for _, some in groupby(rows, key=list))


def _table(rows: list[Row]) -> str:
    header, *lines = in_columns([list(rows[0]), *(list(each.values()) for each in rows)])
    rule = ["-" * len(cell) for cell in header]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *lines])
