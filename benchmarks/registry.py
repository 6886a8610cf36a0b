"""The list of benchmarks. To add one: write a function with `@benchmark("name")` and name its module in __main__.py."""

from __future__ import annotations

from collections.abc import Callable

from course_utils.house import in_columns

Row = dict[str, str]    # column: cell; all rows of one benchmark have the same columns
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


def as_markdown(rows: list[Row]) -> str:
    """A Markdown table whose columns line up as plain text too."""
    header, *lines = in_columns([list(rows[0]), *(list(each.values()) for each in rows)])
    rule = ["-" * len(cell) for cell in header]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *lines])
