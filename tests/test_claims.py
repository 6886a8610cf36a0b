"""Claims: the interval of a difference, paired and not, and what is told and noted."""

import json

import pytest
import torch

from course_utils.claims import Estimate, claim, difference, estimate, main, read
from course_utils.metrics import wilson_interval


def said(capsys, *args, **options) -> str:
    claim("a sentence", *args, **options)
    return capsys.readouterr().out


def test_the_mean_has_two_standard_errors_on_each_side():
    two_errors = 2 * (14 / 3) ** 0.5 / 2                                 # squares 4 + 1 + 0 + 9, n − 1 = 3, √n = 2
    assert estimate(torch.tensor([1.0, 2, 3, 6])) == pytest.approx((3, 3 - two_errors, 3 + two_errors))
    assert estimate(0.25) == (0.25, 0.25, 0.25) == estimate(torch.tensor(0.25))
    assert estimate((0.5, 0.2, 0.6)) == Estimate(0.5, 0.2, 0.6)
    assert str(estimate(-0.0)) == "0" and str(estimate((-0.0, -0.5, 0.0))) == "0 (-0.5 to 0)"


def test_pairing_removes_what_both_sides_share():
    hard = torch.tensor([0.0, 10, 20, 30])
    first, second = hard + torch.tensor([1.0, 2, 1, 2]), hard
    assert difference(first, second) == pytest.approx((1.5, 1.5 - 1 / 3 ** 0.5, 1.5 + 1 / 3 ** 0.5))
    assert difference(first, torch.cat([second, second])).low < -10


def test_independent_intervals_add_as_squares():
    assert difference((5.0, 2.0, 6.0), (1.0, 0.0, 5.0)) == pytest.approx((4, 4 - 5, 4 + 2 ** 0.5))
    assert difference((5.0, 2.0, 6.0), 1.0) == (4, 1, 5)


@pytest.mark.parametrize("value, relation, control, within, holds", [
    ((5.0, 4.9, 5.1), ">", 4.8, None, True),
    ((5.0, 4.7, 5.1), ">", 4.8, None, False),           # above it, but its interval is not
    ((5.0, 4.7, 5.1), "<", 5.2, None, True),
    ((5.0, 4.7, 5.3), "<", 5.2, None, False),
    ((5.0, 4.9, 5.1), "≈", 5.0, 0.2, True),
    ((5.0, 4.7, 5.1), "≈", 5.0, 0.2, False),            # not known well enough
    (float("nan"), ">", 0.0, None, False),
    (0.0, "<", float("nan"), None, False),
    (float("nan"), "≈", 0.0, 1.0, False),
])
def test_a_claim_holds_when_the_whole_interval_says_so(capsys, value, relation, control, within, holds):
    text = said(capsys, value, relation, control, within=within)
    assert text.startswith("holds: a" if holds else "does not hold here: a")


def test_both_sides_and_their_difference_are_shown(capsys):
    text = said(capsys, torch.tensor([1.0, 3.0]), ">", torch.tensor([1.0, 1.0]), unit="nats")
    assert text == ("does not hold here: a sentence\n"
                    "    2 (0 to 4) > 1 nats; paired difference 1 (-1 to 3)\n")


def test_what_cannot_be_compared_is_refused():
    for wrong, message in [((torch.zeros(2, 3), ">", 0.0), r"\[n\]; got \[2, 3\]"),
                           ((torch.zeros(1), ">", 0.0), "two or more"),
                           (((1.0, 2.0, 3.0), ">", 0.0), "holds its value"), ((1.0, ">=", 0.0), "relation must be"),
                           ((1.0, "≈", 0.0), "'≈' needs it")]:
        with pytest.raises(ValueError, match=message):
            claim("a sentence", *wrong)
    with pytest.raises(ValueError, match="belongs to '≈'"):
        claim("a sentence", 1.0, ">", 0.0, within=0.1)


def test_the_ledger_tells_what_does_not_hold(tmp_path, monkeypatch, capsys):
    path = tmp_path / "report.jsonl"
    monkeypatch.setenv("COURSE_REPORT", str(path))
    claim("true", 2.0, ">", 1.0, unit="nats")
    path.write_text(path.read_text() + json.dumps({"name": "of another kind"}) + "\n")
    assert main(str(path)) == 0
    claim("false", 2.0, "<", 1.0)
    assert main(str(path)) == 1 and "does not hold: false: 2 < 1" in capsys.readouterr().out
    assert [(row["claim"], row["holds"], row["control"]) for row in read(path)] == [
        ("true", True, Estimate(1, 1, 1)), ("false", False, Estimate(1, 1, 1))]


def test_wilsons_interval_of_a_share():
    """Ends are where the share lies 1.96 standard errors (of that end) away; none at all, and all, keep a width."""
    for share, n in ((0.2, 50), (0.0, 300), (1.0, 20), (0.5, 4)):
        value, low, high = wilson_interval(share, n)
        assert value == share and 0 <= low <= share <= high <= 1 and low < high
        for end in (low, high):
            if end != share:
                assert abs(end - share) == pytest.approx(1.96 * (end * (1 - end) / n) ** 0.5, rel=1e-6)
