"""A stand-in for course_utils.exercises: one exercise, and a `get` like the real one."""

from types import SimpleNamespace


def times_two(x):
    """Twice x, the course's way."""
    return 2 * x


def from_a_helper(x):
    return times_two(x)


EXERCISES = {"00.double": times_two, "00.helper": from_a_helper, "00.lambda": lambda x: 2 * x}


def get(id):
    if id not in EXERCISES:
        raise ValueError(f"there is no exercise {id!r}")
    return SimpleNamespace(reference=EXERCISES[id], minutes=5, difficulty=1)


def exercise(id):
    def decorate(attempt):
        try:
            attempt(1)
        except NotImplementedError:
            return EXERCISES[id]
        return attempt

    return decorate
