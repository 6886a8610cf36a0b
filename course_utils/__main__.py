"""The course at a terminal, for example `python -m course_utils progress`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

# Each command imports what it needs when it runs, so that `--help` answers at once.


def run_progress(options: argparse.Namespace) -> int:
    from course_utils.exercises import progress

    progress()
    return 0


def run_fetch(options: argparse.Namespace) -> int:
    from course_utils.house import ModelUnavailable, NotForThisModel, UnknownModel
    from course_utils.models import fetch

    try:
        print(fetch(options.name))
    except (ModelUnavailable, NotForThisModel, UnknownModel) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run_doctor(options: argparse.Namespace) -> int:
    from course_utils.doctor import PROBLEM, as_text, examine

    if options.model:
        return _try_model(options.model)
    findings = examine(options.offline)
    print(as_text(findings))
    return int(any(each.status == PROBLEM for each in findings))


def _try_model(name: str) -> int:
    from course_utils.house import ModelUnavailable, NotForThisModel, UnknownModel
    from course_utils.models import load_model
    from course_utils.passes import traits_of

    try:
        print(f"{name}, tried on a few tokens:\n{traits_of(load_model(name)).as_text()}")
    except (ModelUnavailable, NotForThisModel, UnknownModel) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run_grade(options: argparse.Namespace) -> int:
    from course_utils.exercises import grading
    from course_utils.exercises.grading import CannotGrade, Limits, grade, summary

    try:
        if options.gradescope:
            grading.write_gradescope(options.gradescope)
            print(f"{options.gradescope}: upload it as an autograder's configuration")
        if options.folder is None and options.gradescope:
            return 0
        if options.folder is None:
            raise CannotGrade("name the folder with the submissions")
        rows = grade(options.folder, options.out, Limits(options.seconds, options.gigabytes), options.jobs)
        for file, write in ((options.moodle, grading.write_moodle), (options.canvas, grading.write_canvas),
                            (options.gradescope_results, grading.write_gradescope_results)):
            if file:
                write(file, rows)
    except (CannotGrade, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on from {options.out}.partial", file=sys.stderr)
        return 130
    print(f"{summary(rows)}\n\n{len(rows)} rows written to {options.out}")
    return 0


def _fetch_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="a model's name, such as smollm2-135m")


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--offline", action="store_true", help="do not ask whether the Hugging Face hub answers")
    parser.add_argument("--model", metavar="NAME", help="load this model, and say what it can and cannot be asked")


def _grade_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, nargs="?", help="the submitted notebooks, in folders and archives or not")
    parser.add_argument("--out", type=Path, metavar="grades.csv", help="the table to write (grades.csv)",
                        default=Path("grades.csv"))
    parser.add_argument("--seconds", type=_positive, default=60.0,
                        help="processor time for each exercise and each cell (60); for a notebook, ten times that")
    parser.add_argument("--gigabytes", type=_positive, default=4.0, help="memory for each notebook (4)")
    parser.add_argument("--jobs", type=_whole, help="notebooks at a time (one a core, if there is memory for them)")
    parser.add_argument("--moodle", type=Path, metavar="FILE", help="also write a grading worksheet for Moodle")
    parser.add_argument("--canvas", type=Path, metavar="FILE", help="also write a gradebook for Canvas")
    parser.add_argument("--gradescope", type=Path, metavar="FILE.zip", help="write an autograder for Gradescope")
    parser.add_argument("--gradescope-results", type=Path, metavar="FILE", help=argparse.SUPPRESS)


def _whole(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"a whole number from 1 on is needed, not {text}")
    return int(text)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"a positive number is needed, not {text}")
    return number


Command = tuple[str, Callable[[argparse.Namespace], int], Callable[[argparse.ArgumentParser], None]]

# name: (help, what it runs, what adds its arguments). A new command is one more line here.
COMMANDS: dict[str, Command] = {
    "progress": ("show which exercises are passed", run_progress, lambda parser: None),
    "doctor": ("say what works on this machine, and what to do about what does not", run_doctor, _doctor_arguments),
    "grade": ("check submitted notebooks and write a table of the results", run_grade, _grade_arguments),
    "fetch": ("download a model once, for use offline", run_fetch, _fetch_arguments),
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m course_utils", description="The course at a terminal.")
    subparsers = parser.add_subparsers(title="commands", metavar="command", required=True)
    for name, (help_text, run, add_arguments) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=help_text, description=help_text)
        add_arguments(subparser)
        subparser.set_defaults(run=run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(arguments)
    return options.run(options)


if __name__ == "__main__":
    sys.exit(main())
