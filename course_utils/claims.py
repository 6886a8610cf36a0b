"""A conclusion of a lesson, held against the control that could refute it.

    claim("the first copy is harder than the second", first_copy, ">", second_copy, unit="nats")

prints whether that holds on this model, with both numbers, their difference and its 95 % interval. When the environment
variable COURSE_REPORT names a file, the verdict is noted there, too: `make course` prints all of them.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from course_utils.measured import note


class Estimate(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        value, low, high = (f"{0.0 + number:.3g}" for number in self)       # −0 is 0, too
        return value if self.low == self.high else f"{value} ({low} to {high})"


Side = float | Float[Tensor, "n"] | tuple[float, float, float]


def estimate(side: Side) -> Estimate:
    """What one side of a claim says: its mean and the two standard errors on each side of it.

    Args:
        side: a number that has no error, such as a chance level; one number for each sequence, text or draw; or
            (value, low, high) with an interval found otherwise, such as a bootstrap's.

    Raises:
        ValueError: for a tensor that is not one number for each of two or more sequences, or an interval that does
            not hold its value.
    """
    if isinstance(side, Tensor) and side.dim():
        if side.dim() > 1 or len(side) < 2:
            raise ValueError(f"one number for each of two or more sequences is needed, [n]; got {list(side.shape)}")
        values = side.double()
        mean, two_errors = values.mean().item(), 2 * (values.std() / len(values) ** 0.5).item()
        return Estimate(mean, mean - two_errors, mean + two_errors)
    if isinstance(side, tuple):
        found = Estimate(*map(float, side))
        if found.low > found.value or found.value > found.high:
            raise ValueError(f"an interval holds its value: (value, low, high); got {side}")
        return found
    return Estimate(float(side), float(side), float(side))


def _paired(first: Side, second: Side) -> Float[Tensor, "n"] | None:
    """`first` minus `second`, number by number, if both are tensors of one length; else None."""
    if isinstance(first, Tensor) and isinstance(second, Tensor) and first.dim() == 1 and first.shape == second.shape:
        return first.cpu().double() - second.cpu().double()
    return None


def difference(first: Side, second: Side) -> Estimate:
    """`first` minus `second`, with its 95 % interval.

    Two tensors of one length are paired, number i of both being about the same sequence: what makes a sequence hard for
    both cancels. Otherwise they are independent, and the arms of their intervals add as squares (Zou and Donner, 2008).
    """
    pairs = _paired(first, second)
    if pairs is not None:
        return estimate(pairs)
    a, b = estimate(first), estimate(second)
    between = a.value - b.value
    return Estimate(between, between - math.hypot(a.value - a.low, b.high - b.value),
                    between + math.hypot(a.high - a.value, b.value - b.low))


def claim(
    sentence: str, value: Side, relation: str, control: Side, *, unit: str = "", within: float | None = None,
) -> None:
    """Print whether a conclusion holds here, and what it rests on. Not a number on either side: it does not.

    Args:
        sentence: the conclusion, in words.
        value, control: what was measured, and what it is held against: see `estimate` and `difference`.
        relation: ">", "<" or "≈": the 95 % interval of value − control lies above 0, below 0, or within ± `within`.
        unit: of both ("nats").
        within: for "≈": the largest difference that would still count as none.

    Raises:
        ValueError: for another relation, "≈" without `within`, `within` without "≈", or what `estimate` refuses.
    """
    if relation not in (">", "<", "≈"):
        raise ValueError(f"relation must be '>', '<' or '≈', got {relation!r}")
    if (relation == "≈") != (within is not None):
        raise ValueError("`within` says which difference counts as none: it belongs to '≈', and '≈' needs it")
    a, b, between = estimate(value), estimate(control), difference(value, control)
    holds = {">": between.low > 0, "<": between.high < 0,
             "≈": within is not None and -within < between.low and between.high < within}[relation]
    unit_of_both = f" {unit}" if unit else ""
    paired = "paired " if _paired(value, control) is not None else ""
    print(f"{'holds' if holds else 'does not hold here'}: {sentence}\n"
          f"    {a} {relation} {b}{unit_of_both}; {paired}difference {between}"
          + (f", within ±{within:g}" if within is not None else ""))
    note({"claim": sentence, "value": a, "relation": relation, "control": b, "difference": between, "unit": unit,
          "holds": holds})


def read(path: str | Path) -> list[dict]:
    """The claims of a report, in order, with `Estimate`s; rows that `measured` wrote are left out.

    Raises:
        OSError: when there is no report.
        ValueError: when a line is not JSON.
    """
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return [row | {name: Estimate(*row[name]) for name in ("value", "control", "difference")}
            for row in rows if "claim" in row]


def main(path: str) -> int:
    """Print the claims of a report that do not hold; 1 if there are any."""
    claims = read(path)
    broken = [row for row in claims if not row["holds"]]
    for row in broken:
        print(f"does not hold: {row['claim']}: {row['value']} {row['relation']} {row['control']} {row['unit']}")
    print(f"{len(claims)} claims, {len(broken)} of them do not hold")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
