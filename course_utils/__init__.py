"""Faithful Circuits: the tested helpers that the lessons teach and import.

Importing this package is cheap: no torch, no model. Import the module you need, for example
`from course_utils.models import load_model`. It changes one thing: where Python's output would stop at a sign
that the console does not have, a plain one is written.
"""

import sys

from course_utils.console import write_anything

__version__ = "0.1.0"

write_anything(sys.stdout)
