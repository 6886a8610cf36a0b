"""Small changes of every solution must be rejected: tools/mutants.py, on itself and on the exercises."""

import pytest

from course_utils import exercises
from course_utils.exercises import Exercise
from course_utils.exercises.checking import Case, compare_cases

mutants = pytest.importorskip("mutants")


def texts(source: str) -> set[str]:
    """The last lines of a function's mutants."""
    return {mutant.source.splitlines()[-1].strip() for mutant in mutants.mutants_of(source)}


def test_the_mutants_of_a_sum():
    assert texts("def f(a, b):\n    return a + b") == {
        "return a - b", "return a", "return b", "return b + b", "return a + a"}


def test_the_mutants_of_a_call():
    found = texts("def f(x):\n    return x.mean(dim=-1)[1:]")
    assert {"return x.sum(dim=-1)[1:]", "return x[1:]", "return x.mean()[1:]", "return x.mean(dim=1)[1:]",
            "return x.mean(dim=-2)[1:]", "return x.mean(dim=-1)[:]", "return x.mean(dim=-1)[2:]"} <= found


def test_the_mutants_of_loops_and_conditions():
    found = texts("def f(xs):\n    return [x for x in xs if not x > 0]")
    assert {"return [x for x in list(xs)[1:] if not x > 0]", "return [x for x in list(xs)[:-1] if not x > 0]",
            "return [x for x in xs]", "return [x for x in xs if x > 0]",
            "return [x for x in xs if not x >= 0]"} <= found


def test_docstring_signature_and_refusals_are_left_alone():
    found = mutants.mutants_of('''def f(x: int = 3, *, k=2) -> int:
        """Ten."""
        check_it(x, 1)
        if x < 0:
            raise ValueError("-1")
        return x''')
    assert [str(mutant) for mutant in found] == ["return x  =>  return k"]


def weak_exercise() -> Exercise:
    check = compare_cases(lambda: [Case(2, 2)])     # 2 + 2 is also 2 * 2, but not 2 / 2
    return Exercise("90.times", "A weak check", times, check, ("a", "b", "c"), 1, 1)


def times(a, b):
    return a * b


def test_what_gets_through_a_weak_check_is_reported():
    item = weak_exercise()
    statuses = {str(m): mutants.status_of(item, m) for m in mutants.mutants_of(mutants.source_of(item))}
    assert statuses["return a * b  =>  return a / b"] == "wrong"
    summary, *accepted = mutants.report(item.id, statuses, {})
    assert "5 mutants:    3 rejected" in summary
    assert accepted == [f"    ACCEPTED    return a * b  =>  return {same} * {same}" for same in "ba"]


def test_a_listed_mutant_that_is_rejected_or_gone_is_reported():
    lines = mutants.report("90.times", {"a  =>  b": "wrong"}, {"a  =>  b": "the same", "gone  =>  away": "the same"})
    assert lines[1:] == ["    NOT THERE   a  =>  b", "    NOT THERE   gone  =>  away"]


def test_an_unknown_name_is_refused(capsys):
    with pytest.raises(SystemExit):
        mutants.main(["90.nothing"])
    assert "there is no exercise '90.nothing'" in capsys.readouterr().err


@pytest.mark.matrix
@pytest.mark.parametrize("lesson", exercises.lessons())
def test_every_mutant_of_a_solution_is_rejected_or_equivalent(lesson):
    """All in this process: a pool would want the other cores, too."""
    for id in mutants.chosen([lesson]):
        lines = mutants.report(*mutants.attack(id), mutants.EQUIVALENT.get(id, {}))
        assert lines[1:] == [], "\n".join(lines)
