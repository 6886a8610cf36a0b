"""The learner's folder: a copy of the notebooks to work in, opened in JupyterLab, brought up to date by merging."""

from course_utils.lab.folder import CannotUse, default_folder, fill, is_current
from course_utils.lab.jupyter import open_in_jupyter
from course_utils.lab.merging import update

__all__ = ["CannotUse", "default_folder", "fill", "is_current", "open_in_jupyter", "update"]
