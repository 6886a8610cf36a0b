"""The course at a terminal: `faithful-circuits lab`, or `python -m course_utils lab`, which is the same."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import course_utils

# Each command imports what it needs when it runs, so that `--help` answers at once.


def run_lab(options: argparse.Namespace) -> int:
    from course_utils.lab import CannotUse, default_folder, fill, is_current, open_in_jupyter

    try:
        folder = options.folder or default_folder()
        copied = fill(folder)
        if copied:
            print(f"{len(copied)} notebook{'s' if len(copied) > 1 else ''} copied to {folder}: begin with {copied[0]}")
        elif not is_current(folder):
            print("The course has newer notebooks: `faithful-circuits update` brings yours up to date.")
        return 0 if options.copy else open_in_jupyter(folder, options.jupyter, notebook=options.notebook)
    except (CannotUse, FileNotFoundError) as error:
        return _failed(error)


def run_update(options: argparse.Namespace) -> int:
    from course_utils.lab import CannotUse, default_folder, update

    try:
        print("\n".join(update(options.folder or default_folder(), course_utils.__version__)))
    except (CannotUse, FileNotFoundError) as error:
        return _failed(error)
    return 0


def run_course(options: argparse.Namespace) -> int:
    from course_utils.house import shipped_notebooks
    from course_utils.runs import run_course

    try:
        solutions = shipped_notebooks("solutions")
    except FileNotFoundError as error:
        return _failed(error)
    status = run_course(solutions, options.pages, options.only, options.model, options.real)
    print("To work through the exercises in JupyterLab: faithful-circuits lab")
    return status


def run_progress(options: argparse.Namespace) -> int:
    from course_utils.exercises import class_progress, progress

    try:
        if options.of_class:
            class_progress(options.of_class)
        else:
            progress(options.lesson)
    except (ValueError, FileNotFoundError) as error:
        return _failed(error)
    return 0


def run_fetch(options: argparse.Namespace) -> int:
    from course_utils.house import ModelUnavailable, NotForThisModel, UnknownModel
    from course_utils.models import fetch

    try:
        print(fetch(options.name))
    except (ModelUnavailable, NotForThisModel, UnknownModel) as error:
        return _failed(error)
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
        return _failed(error)
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
        rows = grade(options.folder, options.out, Limits(options.seconds, options.gigabytes), options.jobs,
                     options.dask)
        for file, write in ((options.moodle, grading.write_moodle), (options.canvas, grading.write_canvas),
                            (options.gradescope_results, grading.write_gradescope_results)):
            if file:
                write(file, rows)
    except (CannotGrade, OSError) as error:
        return _failed(error)
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on from {options.out}.partial", file=sys.stderr)
        return 130
    print(f"{summary(rows)}\n\n{len(rows)} rows written to {options.out}")
    return 0


def _failed(error: Exception) -> int:
    """Say what went wrong; the status of a command that failed."""
    print(f"error: {error}", file=sys.stderr)
    return 1


def _lab_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [folder] [--notebook | --copy] [options of JupyterLab, such as --no-browser]"
    _folder_argument(parser)
    parser.add_argument("--notebook", action="store_true", help="open Jupyter Notebook 7 in place of JupyterLab")
    parser.add_argument("--copy", action="store_true", help="copy the notebooks and open nothing: in a hub, say")


def _folder_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", type=Path, help="where you work (./faithful-circuits, or this folder if "
                        "the notebooks were copied here)")


def _course_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("only", nargs="?", default="", help="the start of a lesson's name, for example 01")
    parser.add_argument("--model", default="tiny", help="the model that the lessons load (tiny)")
    parser.add_argument("--real", action="store_true", default=os.environ.get("REAL") == "1",
                        help="with the sections on a real language model (or REAL=1)")
    parser.add_argument("--pages", type=Path, default=Path("worked-lessons"), metavar="FOLDER",
                        help="where the lessons are written as HTML (./worked-lessons)")


def _progress_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("lesson", nargs="?", help="one lesson, for example 02")
    parser.add_argument("--class", dest="of_class", type=Path, metavar="FOLDER",
                        help="of a class: the folder with a file of attempts for each learner (docs/hub.md)")


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
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--jobs", type=_whole, help="notebooks at a time (one a core, if there is memory for them)")
    where.add_argument("--dask", metavar="ADDRESS", help="grade on the workers of this Dask scheduler (tcp://host:8786)")
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
    "lab": ("copy the notebooks to a folder of yours, once, and open it in JupyterLab", run_lab, _lab_arguments),
    "update": ("bring your notebooks up to date with the course; your work stays", run_update, _folder_argument),
    "progress": ("show which exercises are passed", run_progress, _progress_arguments),
    "course": ("run every worked lesson, and print what was measured", run_course, _course_arguments),
    "doctor": ("say what works on this machine, and what to do about what does not", run_doctor, _doctor_arguments),
    "grade": ("check submitted notebooks and write a table of the results", run_grade, _grade_arguments),
    "fetch": ("download a model once, for use offline", run_fetch, _fetch_arguments),
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="faithful-circuits", description="The course at a terminal.")
    parser.add_argument("--version", action="version", version=f"faithful-circuits {course_utils.__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="command", required=True)
    for name, (help_text, run, add_arguments) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=help_text, description=help_text)
        add_arguments(subparser)
        subparser.set_defaults(run=run)
    return parser


def for_jupyter(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments of `lab` apart: ours, and JupyterLab's, which begin with the first option that is not ours."""
    ours = {"-h", "--help", "--notebook", "--copy"}
    first = next((i for i, each in enumerate(arguments) if each.startswith("-") and each not in ours), len(arguments))
    return list(arguments[:first]), list(arguments[first:])


def main(arguments: Sequence[str] | None = None) -> int:
    given: list[str] = list(sys.argv[1:] if arguments is None else arguments)
    rest: list[str] = []
    if given[:1] == ["lab"]:
        given, rest = for_jupyter(given)
    options = build_parser().parse_args(given, argparse.Namespace(jupyter=rest))
    return options.run(options)


if __name__ == "__main__":
    sys.exit(main())
