"""What the check modules are written with: exercises, cases, known mistakes, and the kinds of check.

A check is called with the learner's function and the reference; it returns when the function is right and
raises `Failure` when it is not. `compare_cases` builds one from inputs on which both are run and compared.
`property_check` builds one from a function that states what must be true (for answers that are random).
`CompareThenState` is one of each, in this order.
`assess` runs an exercise's check and turns whatever happens into a `Verdict`; it never raises for what the
learner's code does, except that KeyboardInterrupt passes through.
"""

from __future__ import annotations

import inspect
import textwrap
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from course_utils.exercises import leftovers
from course_utils.exercises.calling import Failure, LearnerError, NotYet, call, file_of, is_stub
from course_utils.exercises.comparing import clone, describe, first_difference, without_addresses
from course_utils.exercises.mistakes import Mistake


@dataclass(frozen=True)
class Exercise:
    """One exercise. `reference` is the course's own function; the builders below make `check`.

    `on_any_model` is for a formula that holds on models of GPT-2's and Llama's shape (`Traits.plain`): the course's
    version for every model. On another model it takes the place of what the learner wrote.

    Raises:
        ValueError: when there are not three hints, or the difficulty is not 1, 2 or 3.
    """

    id: str  # "02.head_scores": the lesson's number, a dot, the function's name
    title: str
    reference: Callable
    check: Any  # CompareCases, PropertyCheck or CompareThenState
    hints: tuple[str, str, str]
    minutes: int
    difficulty: int
    on_any_model: Callable | None = None

    def __post_init__(self) -> None:
        if len(self.hints) != 3 or not all(self.hints):
            raise ValueError(f"exercise {self.id}: exactly three hints are needed, found {len(self.hints)}")
        if self.difficulty not in (1, 2, 3):
            raise ValueError(f"exercise {self.id}: difficulty is 1, 2 or 3, not {self.difficulty}")

    @property
    def mistakes(self) -> tuple[str, ...]:
        """The messages of the mistakes that the check recognises."""
        return self.check.messages


class Case:
    """One call to try: `Case(model, tokens, seq_len=8, label="two copies of 8 tokens")`.

    Tensors are cloned for every call, so that nothing the learner does to them reaches a later call.
    """

    def __init__(self, *args: Any, label: str = "", **kwargs: Any) -> None:
        self.args, self.kwargs, self.label = args, kwargs, label

    def inputs(self) -> tuple[tuple, dict]:
        """Fresh copies of the arguments (models are shared, not copied)."""
        return clone(self.args), clone(self.kwargs)

    def describe(self, function: Callable) -> str:
        """The arguments by name, one a line, as `function` would receive them."""
        try:
            named = inspect.signature(function).bind(*self.args, **self.kwargs).arguments
        except (TypeError, ValueError):
            named = {str(i): value for i, value in enumerate(self.args)} | self.kwargs
        return "\n".join(f"{name} = {describe(value)}" for name, value in named.items())


@dataclass(frozen=True)
class Verdict:
    """The result of one attempt."""

    status: str  # "passed" | "not yet" | "wrong" | "error"
    message: str
    mistake: str | None = None  # the named mistake, if it was recognised
    details: tuple[tuple[str, str], ...] = ()

    @property
    def passed(self) -> bool:
        return self.status == "passed"


# --- the kinds of check ------------------------------------------------------------------------------------


@dataclass(eq=False)
class CompareCases:
    """Runs the learner's function and the reference on the same inputs; made by `compare_cases`."""

    cases: Callable[[], Sequence[Case]]
    mistakes: tuple[Mistake, ...]
    options: dict[str, Any]
    keeps_inputs: bool
    _prepared: tuple[list[Case], list[Any]] | None = field(default=None, repr=False)
    _mistaken: dict[tuple[Callable, int], Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        leftovers.forget_with_the_models(self.forget)

    def forget(self) -> None:
        """Have cases, expected answers and those of known mistakes made again, with new models."""
        self._prepared = None
        self._mistaken.clear()

    @property
    def messages(self) -> tuple[str, ...]:
        return tuple(mistake.message for mistake in self.mistakes)

    def prepare(self, reference: Callable) -> tuple[list[Case], list[Any]]:
        """Build the cases and the expected answers, once. A check that could not fail is refused."""
        if self._prepared is None:
            cases = list(self.cases())
            if not cases:
                raise ValueError("a check needs at least one case: with none it could never fail")
            expected = [self._run(reference, case) for case in cases]
            if any(self._difference(value, value) for value in expected):
                raise ValueError("the reference does not equal itself on these cases (does it return NaN?)")
            self._prepared = cases, expected
        return self._prepared

    def __call__(self, attempt: Callable, reference: Callable) -> None:
        cases, expected = self.prepare(reference)
        got = [self._run(attempt, case) for case in cases]
        for case, answer, value in zip(cases, got, expected):
            difference = self._told(answer, value)
            if difference:
                named = self._name(cases, got, expected)
                inputs = case.describe(reference)
                shown = Failure(named or difference, input=inputs, got=answer, expected=value)
                if case.label:
                    shown.details.insert(0, ("case", case.label))
                if named:
                    shown.details.append(("differs", difference))
                shown.mistake = named
                raise shown

    def tried(self, reference: Callable) -> list[tuple[str, str]]:
        """What a card of a passed exercise shows."""
        cases, _ = self.prepare(reference)
        labels = [case.label for case in cases if case.label]
        count = f"{len(cases)} case{'s' * (len(cases) > 1)}"
        return [("tried", f"{count}: " + "; ".join(labels) if labels else count)]

    def _run(self, function: Callable, case: Case) -> Any:
        args, kwargs = case.inputs()
        answer = call(function, args, kwargs, keeps_models=self.keeps_inputs, met=_met)
        if self.keeps_inputs and first_difference(list(args), list(case.args), exact_dtype=True):
            raise Failure("it changes its input: work on a copy (`.clone()`)", input=case.describe(function))
        return answer

    def _difference(self, got: Any, expected: Any) -> str | None:
        return first_difference(got, expected, **self.options)

    def _told(self, got: Any, expected: Any) -> str | None:
        """The difference; also of what cannot be compared, such as a number of a kind that knows no other."""
        try:
            return self._difference(got, expected)
        except Exception as error:
            return f"the answer cannot be compared with the expected one: {type(error).__name__}: {error}"

    def _name(self, cases: list[Case], got: list[Any], expected: list[Any]) -> str | None:
        """The message of the first mistake that explains the answers."""
        wrong = [(a, b) for a, b in zip(got, expected) if self._told(a, b)]
        for mistake in self.mistakes:
            if self._explains(mistake, wrong, cases, got):
                return mistake.message
        return None

    def _explains(self, mistake: Mistake, wrong: list[tuple[Any, Any]], cases: list[Case], got: list[Any]) -> bool:
        """Whether a mistake's predicate holds of all wrong answers, or one of its functions gives all of them."""
        if (predicate := mistake.predicate) is not None:
            return _holds(lambda: all(predicate(answer, expected) for answer, expected in wrong))
        return any(_holds(lambda: self._answers_like(each, cases, got)) for each in mistake.functions)

    def _answers_like(self, function: Callable, cases: list[Case], got: list[Any]) -> bool:
        """Whether these are a known mistake's answers. They are kept, so that the next attempt is judged sooner."""
        for number, answer in enumerate(got):
            if (function, number) not in self._mistaken:
                self._mistaken[function, number] = self._run(function, cases[number])
            if self._difference(answer, self._mistaken[function, number]):
                return False
        return True


def _holds(test: Callable[[], bool]) -> bool:
    """Whether it does; False if it does not apply to this answer (another type, another shape)."""
    try:
        return bool(test())
    except Exception:
        return False


def compare_cases(
    cases: Callable[[], Sequence[Case]], mistakes: Sequence[Mistake] = (), *, atol: float = 1e-5, rtol: float = 1e-4,
    loose_scalars: bool = False, keeps_inputs: bool = False, kind: type[CompareCases] = CompareCases,
) -> CompareCases:
    """A check that runs the learner's function and the reference on the same inputs.

    `cases` is a function without arguments, called once, at the first check: load models there.
    `atol`, `rtol`, `loose_scalars` are those of `comparing.first_difference`.
    `keeps_inputs`: refuse a function that changes its arguments in place (a model's weights are put back).
    `kind`: a subclass that compares in another way.
    """
    options = {"atol": atol, "rtol": rtol, "loose_scalars": loose_scalars}
    return kind(cases, tuple(mistakes), options, keeps_inputs)


@dataclass(frozen=True)
class PropertyCheck:
    """Calls `states(attempt)`, which raises Failure where something is not true; made by `property_check`."""

    states: Callable[[Callable], None]
    messages: tuple[str, ...]
    none_is_fine: bool = False

    def __call__(self, attempt: Callable, reference: Callable) -> None:
        calls = 0

        def guarded(*args: Any, _stream: int = 0, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            return call(attempt, args, kwargs, none_is_fine=self.none_is_fine, met=_met, stream=_stream)

        try:
            self.states(guarded)
        except Failure as failure:
            failure.mistake = failure.message if failure.message in self.messages else None
            raise
        except (NotYet, LearnerError):
            raise
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise Failure(f"what the function returned could not be used: {what}") from error
        if not calls:
            raise ValueError("this check never called the function: it could never fail")

    def tried(self, reference: Callable) -> list[tuple[str, str]]:
        return [("tried", (self.states.__doc__ or "what must be true of every answer").strip())]


def property_check(
    mistakes: Sequence[str] = (), *, none_is_fine: bool = False
) -> Callable[[Callable[[Callable], None]], PropertyCheck]:
    """Decorator: turn a function that states what must be true of the answers into a check.

    The function gets the learner's function and raises `Failure(message, input=…, got=…, expected=…)`, most
    easily through `require`. A message that is in `mistakes` counts as a named mistake. The docstring is what
    the card of a passed exercise says was tried. `none_is_fine`: returning None is an answer, not a stub.
    `attempt(…, _stream=1)` calls it with other global random numbers than `attempt(…)`.
    """
    return lambda states: PropertyCheck(states, tuple(mistakes), none_is_fine)


@dataclass(frozen=True)
class CompareThenState:
    """Compares on ordinary inputs first, where mistakes have names, then states what must be true of others."""

    compare: CompareCases
    then: PropertyCheck

    @property
    def messages(self) -> tuple[str, ...]:
        return self.compare.messages + self.then.messages

    def __call__(self, attempt: Callable, reference: Callable) -> None:
        self.compare(attempt, reference)
        self.then(attempt, reference)

    def tried(self, reference: Callable) -> list[tuple[str, str]]:
        return [*self.compare.tried(reference), *(("and", text) for _, text in self.then.tried(reference))]


def require(condition: Any, message: str, **shown: Any) -> None:
    """Raise Failure(message, **shown) unless the condition holds."""
    if not condition:
        raise Failure(message, **shown)


def or_raised(attempt: Callable, kind: type[Exception] | tuple[type[Exception], ...], *args: Any) -> Any:
    """What the learner's function answers, or the exception that it raises if that is of this kind."""
    try:
        return attempt(*args)
    except LearnerError as raised:
        if isinstance(raised.__cause__, kind):
            return raised.__cause__
        raise


_met: set[Any] = set()  # the shared models that the answer in hand was given


def assess(exercise: Exercise, attempt: Callable) -> Verdict:
    """Check a learner's function and say what was found; nothing is displayed or recorded."""
    if is_stub(attempt):
        return Verdict("not yet", "The function is still empty.")
    _met.clear()
    with leftovers.as_checks_need_it():
        verdict = _judged(exercise, attempt)
        if leftovers.spoiled(_met):
            also = ("also", leftovers.MODEL_CHANGED)
            verdict = (Verdict("wrong", leftovers.MODEL_CHANGED) if verdict.passed
                       else replace(verdict, details=(*verdict.details, also)))
    return verdict


def _judged(exercise: Exercise, attempt: Callable) -> Verdict:
    try:
        exercise.check(attempt, exercise.reference)
    except NotYet as stub:
        return Verdict("not yet", str(stub))
    except LearnerError as raised:
        return _error_verdict(raised.__cause__, attempt)
    except Failure as failure:
        return Verdict("wrong", failure.message, failure.mistake, tuple(failure.details))
    return Verdict("passed", "Passed.", None, tuple(exercise.check.tried(exercise.reference)))


def _error_verdict(error: BaseException | None, attempt: Callable) -> Verdict:
    """The error's type and message, and the last line of the learner's own code that it came through."""
    text = without_addresses(str(error)).strip() or "(no message)"
    lines = text.splitlines()
    details = [("message", "\n".join(lines[:6]) + ("\n…" if len(lines) > 6 else ""))]
    frames = traceback.extract_tb(error.__traceback__ if error else None)
    own = [frame for frame in frames if frame.filename == file_of(attempt)]
    if own:
        details.append(("your line", f"line {own[-1].lineno}: {textwrap.dedent(own[-1].line or '').strip()}"))
    return Verdict("error", f"Your function raised {type(error).__name__}.", None, tuple(details))
