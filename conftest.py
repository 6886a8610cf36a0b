"""Loaded for every pytest run here, also for `pytest --nbval solutions`: outputs are compared with tolerance."""

pytest_plugins = ["nbval_tolerance"]
