"""What a lesson measured, written down for the table that `make course` prints.

In a notebook `measured(...)` shows nothing. When the environment variable COURSE_REPORT names a file, each
call appends one JSON line to it.
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path

from course_utils.house import is_printable

ENTRIES = {"name", "value", "unit", "at_least", "at_most", "published"}  # of a row


def measured(
    name: str,
    value: float,
    *,
    unit: str = "",
    at_least: float | None = None,
    at_most: float | None = None,
    published: str | None = None,
) -> None:
    """Note one measured number.

    Args:
        name: what was measured, in a few words ("second-half log-prob").
        value: the number; a one-element tensor will do.
        unit: "nats", "share", … or nothing for a plain number.
        at_least, at_most: the bounds that the course claims for this model, both inclusive.
        published: a figure to stand beside it, with its source ("-0.644 (GPT-2 small, quoted)").

    Raises:
        TypeError: when value is not one number.
        ValueError: when at_least is above at_most.
    """
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(value).__name__
        raise TypeError(f"measured({name!r}): value must be one number, got {kind}") from error
    if at_least is not None and at_most is not None and at_least > at_most:
        raise ValueError(f"measured({name!r}): at_least {at_least} is above at_most {at_most}")
    note({"name": name, "value": number, "unit": unit, "at_least": at_least, "at_most": at_most,
          "published": published})


def note(row: dict) -> None:
    """Add a row to the report that COURSE_REPORT names; nothing if it names none."""
    path = os.environ.get("COURSE_REPORT")
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def passed(row: dict) -> bool:
    """Whether a row that `measured` wrote is a number within its bounds."""
    low = -math.inf if row["at_least"] is None else row["at_least"]
    high = math.inf if row["at_most"] is None else row["at_most"]
    return math.isfinite(row["value"]) and low <= row["value"] <= high


def read(path: str | Path) -> list[dict]:
    """The rows of a report that `measured` wrote; claims are left to `claims.read`.

    Raises:
        OSError: when there is no report.
        ValueError: when one of its lines is not what `measured` writes.
    """
    rows = []
    for number, line in enumerate(Path(path).read_bytes().splitlines(), 1):
        try:
            row = json.loads(line)
            if isinstance(row, dict) and "claim" in row:
                continue
            if not _is_row(row):
                raise ValueError("its entries are of other kinds")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is not what measured() writes: {str(error)[:200]}") from error
        rows.append(row)
    return rows


def _is_row(row: object) -> bool:
    """Whether this has the entries that `measured` writes, each of its kind."""
    return (
        isinstance(row, dict) and set(row) == ENTRIES
        and is_printable(row["name"]) and is_printable(row["unit"]) and _is_number(row["value"])
        and (row["published"] is None or is_printable(row["published"]))
        and all(row[bound] is None or _is_number(row[bound]) for bound in ("at_least", "at_most"))
    )


def _is_number(value: object) -> bool:
    """Whether this is an int or a float (True is neither here) that a float can hold; NaN and infinities are."""
    return type(value) is float or type(value) is int and abs(value) <= sys.float_info.max


def main(path: str) -> int:
    """Print the rows of a report that are outside their bounds; 1 if there are any, or no row, or no report."""
    try:
        rows = read(path)
    except (OSError, ValueError) as error:
        print(f"error: {error}")
        return 1
    broken = [row for row in rows if not passed(row)]
    for row in broken:
        print(f"{row['name']}: {row['value']:.6g} {row['unit']}, bounds {row['at_least']} to {row['at_most']}")
    print(f"{len(rows)} measured numbers, {len(broken)} of them outside their bounds")
    return int(bool(broken) or not rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
