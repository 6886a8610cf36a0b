"""Every exercise against the answers kept for it in tests/answers: its check must reject the wrong ones,
name the known mistakes, and accept right ones however they are written."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from answers import Answers, function_of

from course_utils import exercises
from course_utils.exercises import Exercise, Verdict, assess
from course_utils.exercises.checking import CompareCases, PropertyCheck

ROOT = Path(__file__).resolve().parent.parent
LESSONS = exercises.lessons()
ALL = [item for lesson in LESSONS for item in exercises.exercises_of(lesson)]


@lru_cache
def kept_answers(lesson: str) -> dict[str, Answers]:
    return importlib.import_module(f"answers.lesson_{lesson}").ANSWERS


def answers_of(item: Exercise) -> Answers:
    kept = kept_answers(item.id.partition(".")[0])
    assert item.id in kept, f"tests/answers keeps no answers for {item.id}"
    return kept[item.id]


def card_text(item: Exercise, verdict: Verdict) -> str:
    return exercises.verdict_card(item, verdict).text()


@lru_cache
def lesson_stubs() -> dict[str, Callable]:
    """exercise id -> the stub as the lessons write it, with the lesson's own imports around it."""
    found = {}
    for path in sorted((ROOT / "lessons").glob("[0-9][0-9]_*.py")):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        imports = [node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))]
        for node in body:
            for decorator in getattr(node, "decorator_list", []):
                if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", "") == "exercise":
                    id = decorator.args[0].value
                    assert id not in found, f"{id} is used twice in the lessons"
                    assert id.startswith(path.name[:2] + "."), f"{path.name} uses {id}, of another lesson"
                    found[id] = _compiled(imports, node)
    return found


def _compiled(imports: list[ast.stmt], stub: ast.FunctionDef) -> Callable:
    stub.decorator_list = []
    future = ast.parse("from __future__ import annotations").body
    scope: dict = {}
    exec(compile(ast.Module(future + imports + [stub], type_ignores=[]), "<stub>", "exec"), scope)
    return scope[stub.name]


def test_ids_are_unique_and_belong_to_their_lesson():
    ids = [item.id for item in ALL]
    assert len(ids) == len(set(ids))
    for lesson in LESSONS:
        assert all(item.id.startswith(f"{lesson}.") for item in exercises.exercises_of(lesson))


def test_lessons_use_every_exercise_and_no_other():
    assert set(lesson_stubs()) == {item.id for item in ALL}


def test_no_answers_are_kept_for_exercises_that_do_not_exist():
    for lesson in LESSONS:
        assert set(kept_answers(lesson)) == {item.id for item in exercises.exercises_of(lesson)}


# The check of each runs a model some hundred times, and there are some twenty answers: `make quick` tries a right one
# and a wrong one.
DEAR = {"02.head_scores", "03.estimate_on_path", "03.loss_without_head", "03.mlp_patch_loop", "05.K_comp_full_circuit",
        "05.patch_path", "05.restore_path", "07.patched_logits", "10.circuit_kept", "10.edge_attribution",
        "10.patch_map", "12.features_kept"}
# scope: all tests of an exercise in a row, so mostly in one process, which works the expected answers out once.
each_exercise = pytest.mark.parametrize("item", [
    pytest.param(item, id=item.id, marks=[pytest.mark.slow] if item.id in DEAR else []) for item in ALL],
    scope="module")


@pytest.mark.parametrize("item", [item for item in ALL if not isinstance(item.check, CompareCases)],
                         ids=lambda item: item.id)
def test_reference_passes(item):
    """Where a property is asked for; a check that compares would compare the reference with itself."""
    verdict = assess(item, item.reference)
    assert verdict.passed, card_text(item, verdict)


IN_THE_PACKAGE = {id: function for lesson in LESSONS for id, function in getattr(
    importlib.import_module(f"{exercises.CHECKS}.lesson_{lesson}"), "IN_THE_PACKAGE", {}).items()}


@pytest.mark.parametrize("id", IN_THE_PACKAGE)
def test_the_package_s_version_agrees_with_the_plain_solution(id):
    """It may be faster or more general; on what the exercise asks for, both answer alike."""
    item = exercises.get(id)
    assert IN_THE_PACKAGE[id] is not item.reference
    verdict = assess(item, IN_THE_PACKAGE[id])
    assert verdict.passed, card_text(item, verdict)


@each_exercise
def test_untouched_stub_is_not_yet(item):
    stub = lesson_stubs().get(item.id)
    if stub is not None:  # a missing one is reported by test_lessons_use_every_exercise_and_no_other
        assert assess(item, stub).status == "not yet"
    def unwritten(*args, **kwargs):
        args = list(args)  # does something first, so that it is not seen as empty without being called
        raise NotImplementedError
    assert assess(item, unwritten).status == "not yet"
    assert assess(item, lambda *args, **kwargs: None).status == "not yet"


@pytest.fixture
def runs_once(monkeypatch):
    """A variant is the attempt and the mistake that explains it: each case is worked out once for both."""
    run, kept = CompareCases._run, {}

    def once(check, function, case):
        if (function, case) not in kept:
            kept[function, case] = run(check, function, case)
        return kept[function, case]

    monkeypatch.setattr(CompareCases, "_run", once)


@pytest.mark.brief
@pytest.mark.parametrize("id", sorted(DEAR))
def test_the_first_right_and_the_first_wrong_answer_are_judged_rightly(id):
    item = exercises.get(id)
    right, wrong = answers_of(item).accept[0], answers_of(item).reject[0].answer
    verdicts = [assess(item, function_of(answer)) for answer in (right, wrong)]
    assert verdicts[0].passed and verdicts[1].status in ("wrong", "error"), [card_text(item, each) for each in verdicts]


@each_exercise
def test_wrong_answers_are_rejected_and_told_why(item, runs_once):
    """Every variant of the solution is told its own name; the other mistakes have a kept answer that is told theirs."""
    told = set()
    for number, wrong in enumerate(answers_of(item).reject):
        verdict = assess(item, function_of(wrong.answer))
        text = card_text(item, verdict)
        assert verdict.status in ("wrong", "error"), f"wrong answer {number} got through:\n{text}"
        if wrong.says is not None:
            assert wrong.says in text, f"wrong answer {number}: {wrong.says!r} is not on its card:\n{text}"
            assert verdict.mistake is None or wrong.says in verdict.mistake, (
                f"wrong answer {number}: told another mistake than {wrong.says!r}:\n{text}")
            told.add(verdict.mistake)
    for mistake in getattr(getattr(item.check, "compare", item.check), "mistakes", ()):
        for number, function in enumerate(mistake.functions):
            verdict = assess(item, function)
            assert verdict.mistake == mistake.message, (
                f"variant {number} of {mistake.message!r}:\n{card_text(item, verdict)}")
            told.add(mistake.message)
    assert len(told - {None}) >= 2, "at least two mistakes must be told their name"
    assert told - {None} == set(item.mistakes), "every declared mistake needs a wrong answer that is told it"


@each_exercise
def test_right_answers_are_accepted(item):
    assert len(answers_of(item).accept) >= 2, "at least two right answers, written differently, are needed"
    for number, answer in enumerate(answers_of(item).accept):
        verdict = assess(item, function_of(answer))
        assert verdict.passed, f"right answer {number} was rejected:\n{card_text(item, verdict)}"


@each_exercise
def test_empty_answers_are_rejected(item):
    """What the reference returns, but all zeros, or with one NaN at the end, is different to the check."""
    check = getattr(item.check, "compare", item.check)
    if isinstance(check, PropertyCheck):
        pytest.skip("only for checks that compare")

    def last_is_nan(answer: torch.Tensor) -> torch.Tensor:
        values = answer.detach().float().flatten().clone()
        values[-1:] = torch.nan
        return values.reshape(answer.shape)

    expected = check.prepare(item.reference)[1]
    for change, number in ((torch.zeros_like, 0.0), (last_is_nan, torch.nan)):
        changed = [change(answer) if isinstance(answer, torch.Tensor) else number for answer in expected]
        assert any(map(check._told, changed, expected))
