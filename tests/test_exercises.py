"""The exercise engine, on the small exercises of tests/example_checks."""

from __future__ import annotations

import io
import math
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from course_utils import exercises
from course_utils.exercises import Exercise, assess, progress_store
from course_utils.exercises.calling import is_stub
from course_utils.exercises.checking import Case, compare_cases, property_check
from course_utils.exercises.checks.shared import random_model, random_tokens
from course_utils.exercises.comparing import describe, first_difference
from course_utils.exercises.mistakes import Mistake
from course_utils.house.console import write_anything

HINTS = ("one", "two", "three")


@pytest.fixture(autouse=True)
def example_checks(monkeypatch, tmp_path):
    monkeypatch.setattr(exercises, "CHECKS", "example_checks")
    monkeypatch.setattr(exercises, "_hints_shown", {})
    monkeypatch.setattr(exercises, "_guesses", {})
    monkeypatch.setattr(exercises, "_warned_about_saving", False)
    monkeypatch.setenv("COURSE_PROGRESS", str(tmp_path / "progress.jsonl"))


def verdict_of(id, attempt):
    return assess(exercises.get(id), attempt)


# --- the decorator -----------------------------------------------------------------------------------------


def test_passed_keeps_the_learners_function(capsys):
    def mine(x):
        return x.exp() / x.exp().sum(1, keepdim=True)

    assert exercises.exercise("90.probabilities")(mine) is mine
    shown = capsys.readouterr().out
    assert "✓ passed · 90.probabilities" in shown and "2 cases: 2 × 3; the identity" in shown
    assert "continues with your function" in shown
    assert progress_store.read()[-1]["verdict"] == "passed"


def test_wrong_goes_on_with_the_courses_version(capsys):
    kept = exercises.exercise("90.probabilities")(lambda x: x.softmax(-1) + 0.1)
    assert kept is exercises.get("90.probabilities").reference
    shown = capsys.readouterr().out
    assert "✗ wrong" in shown and "6 of 6 values differ; the first: the answer[0, 0] is" in shown
    assert "x = Tensor float32 [2, 3]" in shown and "got:" in shown and "expected:" in shown
    assert 'hint("90.probabilities")' in shown and "continues with the course's version" in shown


def test_a_named_mistake_is_the_headline_and_is_recorded(capsys):
    exercises.exercise("90.probabilities")(lambda x: torch.log_softmax(x, -1))
    assert "these are log-probabilities" in capsys.readouterr().out
    assert progress_store.read()[-1]["mistake"] == "these are log-probabilities"


def test_quiet_shows_and_records_nothing(capsys):
    exercises.exercise("90.probabilities", quiet=True)(lambda x: x)
    assert capsys.readouterr().out == "" and progress_store.read() == []


@pytest.mark.parametrize("wrong, mistake", [
    (lambda x: x.softmax(0), "over the rows: the columns were asked for"),
    (lambda x: torch.cat([x, x], 1)[:, :4].softmax(-1), "one column too many"),
    (lambda x: x.softmax(0) if len(x) == 2 else x.log_softmax(-1), None),  # neither explains both cases
    (lambda x: torch.zeros(2, 4) if len(x) == 2 else x, None),  # the predicate holds in one case only
    (lambda x: x, None),
])
def test_a_mistake_is_named_only_when_it_explains_every_case(wrong, mistake):
    verdict = verdict_of("90.probabilities", wrong)
    assert verdict.status == "wrong" and verdict.mistake == mistake


@pytest.mark.parametrize("id, nearest", [
    ("90.probability", "90.probabilities"), ("91.doubled", "90.doubled")])
def test_unknown_id_names_the_nearest(id, nearest):
    with pytest.raises(ValueError, match=nearest):
        exercises.exercise(id)


# --- stubs and errors --------------------------------------------------------------------------------------


def raises(x):
    """A docstring."""
    raise NotImplementedError


def raises_with_text(x):
    raise NotImplementedError("write it")


def dots(x):
    """A docstring."""
    ...


def after_some_lines(x):
    y = x + 1
    raise NotImplementedError(y)


def returns_none(x):
    x.softmax(-1)


@pytest.mark.parametrize("stub", [
    raises, raises_with_text, dots, after_some_lines, returns_none, lambda x: ...])
def test_stubs_are_not_yet(stub, capsys):
    assert verdict_of("90.probabilities", stub).status == "not yet"
    kept = exercises.exercise("90.probabilities")(stub)
    assert kept is exercises.get("90.probabilities").reference
    assert "○ not yet" in capsys.readouterr().out


def test_an_empty_stub_is_seen_without_building_the_cases():
    def expensive():
        raise AssertionError("the cases were built")

    item = Exercise("90.x", "x", abs, compare_cases(expensive), HINTS, 1, 1)
    assert assess(item, raises).status == assess(item, dots).status == "not yet"


@pytest.mark.parametrize("function", [
    lambda x: 5, lambda x: True, lambda x: x, lambda: torch.zeros(2), after_some_lines])
def test_functions_that_do_something_are_not_empty(function):
    assert not is_stub(function)


def test_an_exception_is_shown_with_the_learners_own_line():
    def attempt(x):
        scores = x @ torch.ones(99)
        return scores

    verdict = verdict_of("90.probabilities", attempt)
    assert verdict.status == "error" and "RuntimeError" in verdict.message
    assert dict(verdict.details)["your line"].endswith("scores = x @ torch.ones(99)")


def test_an_exception_in_a_library_is_not_taken_for_a_stub():
    def attempt(x):
        return torch.nn.Module()(x)  # raises NotImplementedError inside torch

    assert verdict_of("90.probabilities", attempt).status == "error"


def test_wrong_number_of_arguments_is_an_error_card_without_addresses():
    verdict = verdict_of("90.probabilities", lambda: 3)
    assert verdict.status == "error" and "TypeError" in verdict.message

    def shows_an_address(x):
        raise RuntimeError(f"bad value {object()}")

    assert "0x" not in str(verdict_of("90.probabilities", shows_an_address).details)


@pytest.mark.parametrize("id", ["90.probabilities", "90.repeated"])
def test_keyboard_interrupt_passes_through(id):
    def attempt(*args, **kwargs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exercises.exercise(id)(attempt)


# --- what a learner's function may and may not touch -------------------------------------------------------


def test_changing_the_input_is_named_and_spoils_nothing():
    def in_place(x):
        return x.sub_(x.logsumexp(-1, keepdim=True)).exp_()

    for _ in range(2):
        assert "changes its input" in verdict_of("90.probabilities", in_place).message
    assert verdict_of("90.probabilities", lambda x: x.softmax(-1)).passed


def test_a_hook_left_behind_is_refused_and_removed():
    model = exercises.get("90.doubled").check.cases()[0].args[0]

    def leaves_a_hook(model, x):
        model.hook_out.add_hook(lambda value, hook: value + 1)
        return 2 * x

    def leaves_a_torch_hook_and_raises(model, x):
        model.register_forward_hook(lambda module, args, output: output + 1)
        raise RuntimeError("stopped half way")

    def cleans_up(model, x):
        return model.run_with_hooks(x, fwd_hooks=[("hook_out", lambda value, hook: value)])

    assert "leaves a hook" in verdict_of("90.doubled", leaves_a_hook).message
    assert verdict_of("90.doubled", leaves_a_torch_hook_and_raises).status == "error"
    assert not model.hook_out.fwd_hooks and torch.equal(model(torch.ones(1)), torch.tensor([2.0]))
    assert verdict_of("90.doubled", cleans_up).passed
    assert verdict_of("90.doubled", lambda model, x: model(x)).passed


def test_hooks_that_the_transformers_library_adds_for_itself_are_left_alone():
    model = exercises.get("90.doubled").check.cases()[0].args[0]

    def of_the_library(module, args, output):
        return None

    of_the_library.__module__ = "transformers.utils.output_capturing"

    def first_use(model, x):
        model.register_forward_hook(of_the_library)
        return model(x)

    assert verdict_of("90.doubled", first_use).passed
    assert of_the_library in model._forward_hooks.values()
    model._forward_hooks.clear()


def _other_logits(model):
    before = model.forward
    model.forward = lambda *args, **options: 2 * before(*args, **options)


def _mlp_that_fails(model):
    model.blocks[0].mlp.forward = lambda *args, **options: 1 / 0


@pytest.mark.parametrize("change, says", [
    (lambda model: model.train(), "between training and evaluation"),
    (lambda model: setattr(model.cfg, "n_ctx", 5), "the model's configuration"),
    (lambda model: setattr(model, "_tokenizer", "another"), "the model's tokenizer"),
    (lambda model: model.blocks[1].ln1(model.W_E), "`model.W_E.detach()`"),
    (lambda model: model.W_E.data.mul_(2), "the model's weights"),
    (lambda model: model.double(), "the model's weights"),
    (lambda model: setattr(model.blocks[0].attn, "hook_z", torch.nn.Identity()), "leaves the model changed"),
    (lambda model: model.W_E.requires_grad_(), "take gradients"),
    (_other_logits, "leaves the model changed"),
    (_mlp_that_fails, "leaves the model changed"),
    (lambda model: torch.set_default_dtype(torch.float64), "default dtype"),
    (lambda model: torch.set_grad_enabled(False), "gradients switched off"),
    (lambda model: torch.manual_seed(0), "seeds torch's global random numbers"),
])
def test_what_an_answer_leaves_changed_is_told_and_spoils_no_later_answer(change, says):
    """After the answer is worked out, and before, in another exercise that shares the model."""
    first, second = (
        Exercise(f"90.{n}", "x", lambda model, tokens: model(tokens), compare_cases(
            lambda: [Case(random_model(), random_tokens(1, n))], keeps_inputs=keeps), HINTS, 1, 1)
        for n, keeps in ((5, True), (6, False)))

    def changes_after(model, tokens):
        answer = model(tokens)
        change(model)
        return answer

    def changes_before(model, tokens):
        change(model)
        return model(tokens)

    assert says in assess(first, changes_after).message
    assert assess(first, first.reference).passed and assess(second, second.reference).passed
    assert not assess(second, changes_before).passed
    assert assess(first, first.reference).passed and assess(second, second.reference).passed
    assert torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32


def test_a_property_check_tells_what_was_left_changed_too():
    @property_check()
    def runs(attempt):
        attempt(random_model(), random_tokens(1, 5))

    item = Exercise("90.x", "x", lambda model, tokens: model(tokens), runs, HINTS, 1, 1)
    assert "training" in assess(item, lambda model, tokens: model.train()(tokens)).message
    assert assess(item, item.reference).passed


def test_right_answers_are_right_whatever_the_notebook_has_set():
    weight = torch.ones(3, requires_grad=True)
    check = compare_cases(lambda: [Case(torch.ones(3))])
    item = Exercise("90.x", "x", lambda x: (weight * x).sum(), check, HINTS, 1, 1)
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    try:
        assert assess(item, lambda x: weight @ x).passed
        assert not torch.is_grad_enabled() and torch.get_default_dtype() == torch.float64
    finally:
        torch.set_grad_enabled(True)
        torch.set_default_dtype(torch.float32)


def test_the_notebooks_random_numbers_are_left_alone():
    def draws():
        return torch.rand(2).tolist(), random.random(), np.random.rand()

    def seeds(x):
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)
        return torch.rand_like(x)

    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    expected = draws()
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    verdict_of("90.probabilities", torch.rand_like)
    verdict_of("90.probabilities", seeds)
    assert draws() == expected


def test_a_random_answer_gives_the_same_card_every_time():
    verdicts = []
    for seed in range(2):
        torch.manual_seed(seed)  # whatever the notebook drew before
        verdicts.append(verdict_of("90.probabilities", lambda x: torch.rand_like(x)))
    assert verdicts[0] == verdicts[1]


def test_a_known_mistake_is_worked_out_once_for_each_case_and_still_named():
    calls = []
    mistake = Mistake("the sign is lost", lambda x: calls.append(x) or abs(x))
    item = Exercise("90.x", "x", lambda x: x, compare_cases(lambda: [Case(-1), Case(-2)], [mistake]), HINTS, 1, 1)
    for attempt, named in (
        (abs, "the sign is lost"), (lambda x: 2 * x, None), (lambda x: max(x, -x), "the sign is lost"),
    ):
        assert assess(item, attempt).mistake == named
    assert calls == [-1, -2]


# --- what makes a check ------------------------------------------------------------------------------------


def test_checks_that_cannot_fail_are_refused():
    empty = Exercise("90.x", "x", abs, compare_cases(lambda: []), HINTS, 1, 1)
    with pytest.raises(ValueError, match="never fail"):
        assess(empty, abs)
    never_calls = Exercise("90.x", "x", abs, property_check()(lambda attempt: None), HINTS, 1, 1)
    with pytest.raises(ValueError, match="never fail"):
        assess(never_calls, lambda x: x)
    nan = Exercise("90.x", "x", lambda: math.nan, compare_cases(lambda: [Case()]), HINTS, 1, 1)
    with pytest.raises(ValueError, match="NaN"):
        assess(nan, lambda: math.nan + 1)


def test_exercises_and_mistakes_are_checked_when_they_are_made():
    with pytest.raises(ValueError, match="three hints"):
        Exercise("90.x", "x", abs, compare_cases(list), ("one", "two"), 1, 1)
    with pytest.raises(ValueError, match="difficulty"):
        Exercise("90.x", "x", abs, compare_cases(list), HINTS, 1, 4)
    with pytest.raises(ValueError, match="one of the two"):
        Mistake("neither")


@pytest.mark.parametrize("attempt, status, text", [
    (lambda b, n, seed: torch.arange(n).repeat(b, 2), "passed", None),
    (lambda b, n, seed: torch.arange(2 * n).repeat(b, 1), "wrong", "not a copy"),
    (lambda b, n, seed, seen=[]: seen.append(0) or torch.full((b, 2 * n), len(seen)), "wrong", "same seed"),
    (lambda b, n, seed: torch.zeros(b, n), "wrong", "shape is not"),
    (lambda b, n, seed: [1, 2], "wrong", "could not be used: AttributeError"),
    (lambda b, n, seed: torch.zeros(b) + torch.zeros(n), "error", "RuntimeError"),
    (after_some_lines, "error", "TypeError"),
    (lambda *args, **kwargs: print(end=""), "not yet", "returned nothing"),
])
def test_property_checks(attempt, status, text):
    verdict = verdict_of("90.repeated", attempt)
    assert verdict.status == status and (text is None or text in verdict.message)
    assert (verdict.mistake is not None) == (text in ("not a copy", "same seed"))


# --- comparing ---------------------------------------------------------------------------------------------


@dataclass
class Report:
    loss: float
    scores: torch.Tensor


ONES = torch.ones(2, 2)
SAME = [
    (ONES.double(), ONES), (ONES.half(), ONES + 5e-4), (ONES.bfloat16(), ONES + 3e-3),
    (ONES.clone().requires_grad_(), ONES), (ONES.mT, ONES),
    (torch.tensor([1], dtype=torch.int32), torch.tensor([1])),
    (torch.tensor([-math.inf, 1]), torch.tensor([-math.inf, 1])), (math.inf, math.inf), (2, 2.0), ("a", "a"),
    ([1, 2.0], (1, 2.0)), ({"a": ONES}, {"a": ONES}),
    (Report(1.0, ONES), Report(1.0, ONES)), (torch.zeros(0), torch.zeros(0)),
]
DIFFERENT = [
    (ONES + 0.01, ONES, "4 of 4 values differ"), (ONES.half() + 0.02, ONES, "4 of 4 values differ"),
    (torch.tensor([1.0, math.nan]), torch.tensor([1.0, 2.0]), "NaN"), (math.nan, 1.0, "nan"),
    (torch.tensor([math.inf, 1]), torch.tensor([-math.inf, 1]), "1 of 2"),
    (torch.ones(2, 3), ONES, "shape [2, 3]; [2, 2] was expected"),
    (ONES.int(), ONES, "a float dtype was expected"),
    (ONES.bool(), ONES.int(), "an int dtype"), (ONES.tolist(), ONES, "is a list; a torch.Tensor was expected"),
    (ONES.numpy(), ONES, "ndarray"), (torch.tensor(1.0), 1.0, "`.item()` makes a number"),
    (1.0, torch.tensor(1.0), "Tensor"),
    (True, 1, "is a bool"), (1, True, "is an int"), (2.0, 2, "a whole number was expected"), ("b", "a", "was expected"),
    ([1], [1, 2], "1 item; 2"), ([1, 3], [1, 2], "the answer[1] is 3; 2"), ({"b": 1}, {"a": 1}, "keys 'b'; 'a' were"),
    ({"a": 2}, {"a": 1}, "the answer['a'] is 2"),
    (Report(1.0, 2 * ONES), Report(1.0, ONES), "scores[0, 0] is 2"),
    (3.0, Report(1.0, ONES), "no field 'loss'"),
    (torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.0]), "the answer[1] is 2.5"),
    (4.4301, 4.4349, "is 4.43; 4.435 was"), (4.42951, 4.43049, "is 4.42951; 4.43049 was"),
    (torch.tensor([11.55999]), torch.tensor([11.55599]), "is 11.56; 11.556 was"), (12345.4, 12350.4, "is 12345; 12350"),
    (ONES.to_sparse(), ONES, "sparse (`.to_dense()`"), (ONES.to_sparse_csr(), ONES, "sparse"),
    (ONES.to("meta"), ONES, "holds no values"), (ONES + 0j, ONES, "dtype torch.complex64"), (1j, 1.0, "is a complex"),
    (torch.nested.nested_tensor([torch.ones(2), torch.ones(1)]), ONES, "nested"),
]


@pytest.mark.parametrize("got, expected", SAME)
def test_answers_that_agree(got, expected):
    assert first_difference(got, expected) is None


@pytest.mark.parametrize("got, expected, text", DIFFERENT)
def test_answers_that_differ(got, expected, text):
    assert text in first_difference(got, expected)


@pytest.mark.parametrize("odd", [ONES.to_sparse(), ONES.to("meta"), ONES + 0j, torch.tensor(1.0).to("meta"),
                                 torch.nested.nested_tensor([torch.ones(2), torch.ones(1)])])
def test_an_odd_tensor_gets_a_verdict(odd):
    """Not a traceback: neither comparing nor describing reads values that are not there."""
    for expected in (ONES, 1.0):
        check = compare_cases(lambda: [Case(1)], loose_scalars=True)
        item = Exercise("99.odd", "odd", lambda x, value=expected: value, check, ("1", "2", "3"), 1, 1)
        assert assess(item, lambda x: odd).status == "wrong"


def test_a_right_gradient_is_seen_in_a_notebook_without_gradients():
    check = compare_cases(lambda: [Case(torch.ones(2, requires_grad=True))])
    item = Exercise("99.twice", "twice", lambda x: 2 * x, check, ("1", "2", "3"), 1, 1)
    with torch.set_grad_enabled(False):
        assert assess(item, item.reference).passed


def test_options_of_comparing():
    assert first_difference(1.0, torch.tensor(1.0), loose_scalars=True) is None
    assert first_difference(torch.tensor(1.0), 1.0, loose_scalars=True) is None
    assert first_difference(ONES.numpy().mean(), 1.0, loose_scalars=True) is None
    assert first_difference(torch.tensor(math.nan), 1.0, loose_scalars=True)
    assert first_difference(torch.ones(1), 1.0, loose_scalars=True)
    assert first_difference(ONES.double(), ONES, exact_dtype=True)
    assert first_difference(ONES + 0.01, ONES, atol=0.02) is None


def test_describing_values():
    assert describe(torch.tensor([[1.0, 0.123456]])) == "Tensor float32 [1, 2]: [[1, 0.1235]]"
    assert describe(torch.arange(100)) == "Tensor int64 [100]: 0, 1, 2, 3, 4, 5, …"
    assert "0x" not in describe(object()) and describe((1, [2.5])) == "(1, [2.5])"
    assert describe(torch.nn.Linear(2, 2)) == "a Linear"


# --- cards, hints, solutions, progress, predictions --------------------------------------------------------


def test_cards_escape_what_learners_wrote_and_have_no_scripts():
    def attempt(x):
        raise RuntimeError("<script>alert(1)</script>")

    card = exercises.verdict_card(exercises.get("90.probabilities"), verdict_of("90.probabilities", attempt))
    assert "<script" not in card.html() and "&lt;script&gt;" in card.html()
    assert "! error" in card.html() and "! error" in card.text() and len(card.html()) < 3000
    assert card.html() == exercises.verdict_card(
        exercises.get("90.probabilities"), verdict_of("90.probabilities", attempt)).html()


def test_in_a_notebook_both_forms_are_displayed(monkeypatch):
    IPython = pytest.importorskip("IPython")
    shown = []
    monkeypatch.setattr(IPython, "get_ipython", lambda: object())
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    exercises.exercise("90.probabilities")(lambda x: x.softmax(-1))
    exercises.solution("90.probabilities")
    assert set(shown[0]) == {"text/plain", "text/html"} and "passed" in shown[0]["text/html"]
    assert shown[1]["text/markdown"].startswith("````python\ndef probabilities(x):")


def test_hints_come_one_after_another(capsys):
    seen = []
    for step in (None, None, None, None, 1, None):
        exercises.hint("90.doubled", step=step)
        seen.append(capsys.readouterr().out.split(" of 3")[0])
    assert seen == ["hint 1", "hint 2", "hint 3", "hint 3", "hint 1", "hint 2"]
    with pytest.raises(ValueError, match="1, 2 or 3"):
        exercises.hint("90.doubled", step=4)


def test_solution_is_the_references_source(capsys):
    exercises.solution("90.probabilities")
    assert capsys.readouterr().out.startswith('def probabilities(x):\n    """Softmax')


def test_progress_shows_status_attempts_and_the_last_mistake(capsys):
    check = exercises.exercise("90.probabilities")
    for attempt in (raises, lambda x: x.log_softmax(-1), lambda x: x):
        check(attempt)
    capsys.readouterr()
    exercises.progress()
    shown = capsys.readouterr().out
    assert "90      90.probabilities  tried   2         these are log-probabilities" in shown
    assert "90.doubled        open" in shown and "0 of 3 passed" in shown
    check(lambda x: x.softmax(-1))
    check(lambda x: x)  # passed once stays passed
    capsys.readouterr()
    exercises.progress()
    shown = capsys.readouterr().out
    assert "passed  4" in shown and "log-probabilities" not in shown  # no mistake stands beside "passed"


@pytest.mark.parametrize("lesson", ["9", 90, "nothing"])
def test_progress_of_an_unknown_lesson(lesson):
    with pytest.raises(ValueError, match="there is no lesson .*; there are 90"):
        exercises.progress(lesson)


@pytest.mark.parametrize("guess, measured, unit, text", [
    (-1.0, -0.3149, "nats", "You said −1 nats; measured −0.315 nats."),
    ("about a half", 0.95, "", "You said about a half; measured 0.95."),
    (None, torch.tensor(12.0), "nats", "Measured 12 nats. (You had made no prediction.)"),
    (1000, 1234.5, "tokens", "You said 1000 tokens; measured 1234 tokens."),
    (1e-3, math.inf, "nats", "You said 0.001 nats; measured inf nats."),
    (0.5, math.nan, "", "You said 0.5; measured nan."),
])
def test_predictions(guess, measured, unit, text, capsys):
    exercises.predict("01.second_half", guess, unit)
    assert ("no prediction yet" in capsys.readouterr().out) == (guess is None)
    exercises.reveal("01.second_half", measured, None if guess is not None else unit)
    assert text in capsys.readouterr().out


def test_saving_that_fails_is_said_once_and_stops_nothing(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COURSE_PROGRESS", str(tmp_path / "file" / "progress.jsonl"))  # no such folder can be
    check = exercises.exercise("90.probabilities")
    assert check(probabilities := (lambda x: x.softmax(-1))) is probabilities
    check(lambda x: x)
    shown = capsys.readouterr().out
    assert shown.count("Progress is not being saved") == 1 and "✓ passed" in shown and "✗ wrong" in shown


@pytest.mark.parametrize("encoding, errors, written", [
    ("ascii", "strict", rb"+ -3 - \u0120"), ("ascii", "surrogateescape", rb"+ -3 - \u0120"),
    ("cp1252", "strict", b"+ -3 \xb7 \\u0120"), ("utf-8", "strict", "✓ −3 · Ġ".encode()),
    ("ascii", "replace", b"? ?3 ? ?")])
def test_a_console_without_a_sign_gets_a_plain_one(encoding, errors, written):
    stream = io.TextIOWrapper(io.BytesIO(), encoding, errors)
    write_anything(stream)
    stream.write("✓ −3 · Ġ")
    stream.flush()
    assert stream.buffer.getvalue() == written
