"""The exercises as a learner uses them: check a function, ask for a hint, see the course's solution.

    from course_utils.exercises import exercise, hint, solution, progress, predict, reveal

    @exercise("02.head_scores")
    def head_scores(model, tokens, entries):
        ...

The check runs as soon as the cell does. If it passes, the rest of the notebook uses the learner's function;
if not, it continues with the course's own, and the card says so.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import pkgutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from course_utils.exercises import progress_store
from course_utils.exercises.cards import Card, show, show_card, table_html, table_text
from course_utils.exercises.checking import Exercise, Verdict, assess
from course_utils.exercises.class_view import class_table

CHECKS = "course_utils.exercises.checks"  # the package with one module per lesson: lesson_00, lesson_01, …

_hints_shown: dict[str, int] = {}
_guesses: dict[str, tuple[float | str | None, str]] = {}
_warned_about_saving = False


# --- finding exercises -------------------------------------------------------------------------------------


def lessons() -> list[str]:
    """The numbers of the lessons that have exercises, such as ["00", "01"]."""
    package = importlib.import_module(CHECKS)
    names = [module.name for module in pkgutil.iter_modules(package.__path__)]
    return sorted(name.removeprefix("lesson_") for name in names if name.startswith("lesson_"))


def exercises_of(lesson: str) -> list[Exercise]:
    """The exercises of one lesson, in order; its check module is imported now."""
    return list(importlib.import_module(f"{CHECKS}.lesson_{lesson}").EXERCISES)


def get(id: str) -> Exercise:
    """The exercise with this id.

    Raises:
        ValueError: when there is none; it names the nearest ids.
    """
    lesson = str(id).partition(".")[0]
    known = lessons()
    chosen = [lesson] if lesson in known else known
    found = {item.id: item for number in chosen for item in exercises_of(number)}
    if id in found:
        return found[id]
    near = difflib.get_close_matches(str(id), found, n=3, cutoff=0.4) or list(found)[:3]
    raise ValueError(f"there is no exercise {id!r}. Did you mean {' or '.join(map(repr, near))}?")


# --- checking ----------------------------------------------------------------------------------------------


def exercise(id: str, *, quiet: bool = False) -> Callable[[Callable], Callable]:
    """Check the decorated function at once and show a card.

    Returns the function itself if it passes, the course's own otherwise. `quiet` shows and records nothing.
    Nothing that the decorated function does raises here.
    Raises:
        ValueError: for an unknown id.
    """
    item = get(id)

    def decorate(attempt: Callable) -> Callable:
        verdict = assess(item, attempt)
        if not quiet:
            show_card(verdict_card(item, verdict))
            _record(item.id, verdict)
        function = attempt if verdict.passed else item.reference
        return function if item.on_any_model is None else _where_it_holds(function, item.on_any_model, item.id)

    return decorate


def _where_it_holds(function: Callable, on_any_model: Callable, id: str) -> Callable:
    """The function; but on models whose shape its formula is not for, the course's version and a line that says so."""

    @functools.wraps(function)
    def chosen(model: Any, *args: Any, **kwargs: Any) -> Any:
        from course_utils.passes import traits_of

        if traits_of(model).plain:
            return function(model, *args, **kwargs)
        if model.cfg.model_name not in told:
            told.add(model.cfg.model_name)
            print(f"({id}: {model.cfg.model_name} is of another shape than this formula is for, which is that of "
                  "GPT-2 and Llama; the course's version for any model is used on it)")
        return on_any_model(model, *args, **kwargs)

    told: set[str] = set()
    return chosen


def verdict_card(item: Exercise, verdict: Verdict) -> Card:
    """The card for an attempt: what was found, what was tried, and where to go next."""
    title = f"{item.id} · {item.title}"
    if verdict.passed:
        closing = ["The notebook continues with your function."]
        return Card("passed", title, rows=verdict.details, closing=closing)
    closing = [f'A hint: hint("{item.id}"). The notebook continues with the course\'s version.']
    if verdict.status == "not yet":
        effort = f"About {item.minutes} minutes, difficulty {item.difficulty} of 3."
        return Card("not yet", title, f"{verdict.message}\n{effort}", closing=closing)
    return Card(verdict.status, title, verdict.message, verdict.details, closing)


def _record(id: str, verdict: Verdict) -> None:
    """Save the attempt; where that is impossible, say so once and continue."""
    global _warned_about_saving
    try:
        progress_store.record(id, verdict.status, verdict.mistake)
    except OSError as error:
        if not _warned_about_saving:
            _warned_about_saving = True
            path = progress_store.progress_file()
            print(f"Progress is not being saved: {path} cannot be written ({error.strerror or error}).")


# --- help --------------------------------------------------------------------------------------------------


def hint(id: str, step: int | None = None) -> None:
    """Show the next of the three hints, or the one asked for with `step` (1, 2 or 3)."""
    item = get(id)
    step = min(_hints_shown.get(id, 0) + 1, 3) if step is None else step
    if step not in (1, 2, 3):
        raise ValueError(f"there are three hints: step is 1, 2 or 3, not {step!r}")
    _hints_shown[id] = step
    after = f'hint("{id}") shows the next one.' if step < 3 else f'solution("{id}") shows our version.'
    show_card(Card("note", f"hint {step} of 3 · {id}", item.hints[step - 1], closing=[after]))


def solution(id: str) -> None:
    """Show the source of the course's own function."""
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(get(id).reference))).rstrip()
    fence = "`" * 4  # longer than any run of backquotes in a docstring
    show(source, markdown=f"{fence}python\n{source}\n{fence}")


# --- progress ----------------------------------------------------------------------------------------------


def progress_table(lesson: str | None = None) -> tuple[list[list[str]], list[str], str]:
    """Rows, header, closing line: each exercise (of one lesson), its status, attempts, last mistake.

    Raises:
        ValueError: if there is no lesson of this number; it lists those there are.
    """
    if lesson is not None and lesson not in lessons():
        raise ValueError(f"there is no lesson {lesson!r}; there are {', '.join(lessons())}")
    standings = progress_store.standings(progress_store.read())
    items = [item for number in ([lesson] if lesson else lessons()) for item in exercises_of(number)]
    rows = []
    for item in items:
        standing = standings.get(item.id, progress_store.Standing())
        attempts = str(standing.attempts) if standing.attempts else ""
        mistake = "" if standing.passed else standing.last_mistake
        rows.append([item.id.partition(".")[0], item.id, standing.status, attempts, mistake])
    passed = sum(row[2] == "passed" for row in rows)
    header = ["lesson", "exercise", "status", "attempts", "last mistake"]
    return rows, header, f"{passed} of {len(rows)} passed"


def progress(lesson: str | None = None) -> None:
    """Show every exercise of every lesson, or of one ("02"): open, tried or passed."""
    rows, header, closing = progress_table(lesson)
    show(f"{table_text(rows, header)}\n{closing}", html=f"{table_html(rows, header)}<div>{closing}</div>")


def class_progress(folder: Path) -> None:
    """Show how far each learner of a class has got, from their files of attempts in a folder: ada.jsonl, …

    Raises:
        FileNotFoundError: if there is no such file.
    """
    header, *rows = class_table(folder, {lesson: len(exercises_of(lesson)) for lesson in lessons()})
    show(table_text(rows, header), html=table_html(rows, header))


# --- predictions -------------------------------------------------------------------------------------------


def predict(id: str, guess: float | str | None, unit: str = "nats") -> None:
    """Note a prediction, to be shown beside the measured value by `reveal`. None: nothing is noted yet."""
    _guesses[id] = (guess, unit)
    if guess is None:
        ask = "Write your guess in place of None, then run the cell."
        show_card(Card("note", f"no prediction yet · {id}", ask))
        return
    show_card(Card("note", f"prediction noted · {id}", f"You said {_quantity(guess, unit)}."))


def reveal(id: str, measured: Any, unit: str | None = None) -> None:
    """Show the measured value beside the prediction; `unit` is the prediction's unless given."""
    guess, guess_unit = _guesses.get(id, (None, "nats"))
    found = _quantity(measured, guess_unit if unit is None else unit)
    if guess is None:
        show_card(Card("note", id, f"Measured {found}. (You had made no prediction.)"))
    else:
        show_card(Card("note", id, f"You said {_quantity(guess, guess_unit)}; measured {found}."))


def _quantity(value: Any, unit: str) -> str:
    """A number with three significant digits and a real minus sign, or a text as it is; then the unit.

    Below 0.001 one digit is shown: there a difference of two losses has no more (float32).
    """
    if isinstance(value, str):
        return value
    number = float(value)
    digits = 3 if abs(number) >= 1e-3 else 1
    text = f"{number:.0f}" if abs(number) >= 1000 or number.is_integer() else f"{number:.{digits}g}"
    return f"{text.replace('-', '−')} {unit}".rstrip()
