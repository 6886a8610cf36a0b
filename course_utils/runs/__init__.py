"""Lessons run from top to bottom: one notebook in a kernel of its own, or the whole course with what it measured."""

from course_utils.runs.course import run_course, to_html
from course_utils.runs.formulas import mathml
from course_utils.runs.notebook import LessonError, course_environment, read_notebook, run_notebook, stored_lessons

__all__ = [
    "LessonError", "course_environment", "mathml", "read_notebook", "run_course", "run_notebook", "stored_lessons",
    "to_html",
]
