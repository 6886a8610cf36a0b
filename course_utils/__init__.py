"""Faithful Circuits: the tested helpers that the lessons teach and import.

Importing this package is cheap: no torch, no model. Import the module you need, for example
`from course_utils.models import load_model`.
"""

__version__ = "0.1.0"
