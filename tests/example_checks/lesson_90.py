"""Exercises of a lesson that does not exist: one that is compared, one that is random, one with a model."""

from __future__ import annotations

import torch
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from course_utils.exercises import Exercise
from course_utils.exercises.checking import Case, compare_cases, property_check, require
from course_utils.exercises.mistakes import Mistake

HINTS = ("Think of the axis.", "It is the last axis.", "x.softmax(-1)")
NOT_A_COPY = "the second half is not a copy of the first"
UNSEEDED = "the same seed gives different tokens"


def probabilities(x):
    """Softmax over the last axis. [row, column] -> [row, column]."""
    return x.softmax(-1)


def probability_cases():
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    return [Case(x, label="2 × 3"), Case(torch.eye(3), label="the identity")]


def repeated(batch, length, seed):
    """Two copies of random tokens. -> [batch, 2 * length]."""
    half = torch.randint(0, 1000, (batch, length), generator=torch.Generator().manual_seed(seed))
    return torch.cat([half, half], dim=1)


@property_check(mistakes=[NOT_A_COPY, UNSEEDED])
def repeated_check(attempt):
    """two sequences of 4 + 4 tokens, twice from one seed"""
    tokens = attempt(2, 4, seed=1)
    require(tuple(tokens.shape) == (2, 8), "the shape is not [batch, 2 * length]", got=tokens)
    require((tokens[:, :4] == tokens[:, 4:]).all(), NOT_A_COPY, input="batch = 2, length = 4", got=tokens)
    require((attempt(2, 4, seed=1) == tokens).all(), UNSEEDED)


class Doubler(HookedRootModule):
    """A model with one hook."""

    def __init__(self) -> None:
        super().__init__()
        self.hook_out = HookPoint()
        self.setup()

    def forward(self, x):
        return self.hook_out(2 * x)


def doubled(model, x):
    """What the model returns. [position] -> [position]."""
    return model(x)


MODEL = Doubler()

EXERCISES = [
    Exercise(
        "90.probabilities", "Probabilities", probabilities,
        compare_cases(
            probability_cases,
            [Mistake("these are log-probabilities", lambda x: x.log_softmax(-1)),
             Mistake("over the rows: the columns were asked for", lambda x: x.softmax(0)),
             Mistake("one column too many",
                     predicate=lambda got, expected: got.shape[-1] > expected.shape[-1])],
            keeps_inputs=True),
        HINTS, minutes=5, difficulty=1),
    Exercise("90.repeated", "Repeated tokens", repeated, repeated_check, HINTS, minutes=10, difficulty=2),
    Exercise("90.doubled", "A model's output", doubled, compare_cases(lambda: [Case(MODEL, torch.ones(3))]),
             HINTS, minutes=3, difficulty=1),
]
