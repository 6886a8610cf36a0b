"""What can go wrong, by name: each message says what was wrong and what would be right."""

from __future__ import annotations


class UnknownModel(ValueError):
    """No model of this name is known, here or to TransformerLens."""


class UnknownStep(ValueError):
    """The model has no checkpoint for this training step."""


class NotForThisModel(ValueError):
    """What was asked for rests on an assumption that does not hold for this model; the message says which."""


class ModelUnavailable(RuntimeError):
    """The model is known but cannot be had now; the message says what would help."""


class DamagedModelFile(ModelUnavailable):
    """A file is missing, truncated or changed: it was not loaded."""


class CacheNotWritable(ModelUnavailable):
    """The cache folder is read-only, or its disk is full. Nothing half-written was left."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
