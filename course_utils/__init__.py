"""Faithful Circuits: the tested helpers that the lessons teach and import.

Importing this package is cheap: no torch, no model. Import the module you need, for example
`from course_utils.models import load_model`. It changes one thing: where Python's output would stop at a sign
that the console does not have, a plain one is written. Modules that have moved are found by their old names, too.
"""

import sys

from course_utils.house.console import write_anything
from course_utils.house.moved import keep_old_names

__version__ = "0.1.0"

keep_old_names()
write_anything(sys.stdout)
