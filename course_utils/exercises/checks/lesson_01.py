"""Exercises of lesson 01: repeated tokens, and how to score a prediction."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from course_utils import repeated_tokens
from course_utils.exercises.checking import Case, Exercise, compare_cases, property_check, require
from course_utils.exercises.checks.shared import random_logits, random_model, random_tokens
from course_utils.exercises.mistakes import seen, variants
from course_utils.models import bos_token_id

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# --- the course's answers --------------------------------------------------------------------------------------------


def generate_repeated_tokens(
    model: TransformerBridge, seq_len: int, batch: int = 1, *, seed: int | None = None
) -> Int[Tensor, "batch 1+2*seq_len"]:
    """BOS, then `seq_len` tokens drawn uniformly from the whole vocabulary, then the same tokens again."""
    rng = None if seed is None else torch.Generator().manual_seed(seed)
    bos = torch.full((batch, 1), bos_token_id(model))
    half = torch.randint(0, model.cfg.d_vocab, (batch, seq_len), generator=rng)
    return torch.cat([bos, half, half], dim=1).to(model.cfg.device)


def chance_log_prob(d_vocab: int) -> float:
    """Log-probability (nats) of any token under the uniform distribution over d_vocab tokens."""
    return -math.log(d_vocab)


def correct_token_log_probs(
    logits: Float[Tensor, "batch pos vocab"], tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos-1"]:
    """Log-probability (nats) of each token that came: entry j scores tokens[:, j + 1] given tokens[:, :j + 1]."""
    log_probs = logits[:, :-1].log_softmax(dim=-1)                      # [batch, pos-1, vocab]
    return log_probs.gather(dim=-1, index=tokens[:, 1:, None])[..., 0]


def top1_correct(
    logits: Float[Tensor, "batch pos vocab"], tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos-1"]:
    """1 where the most likely next token is the one that came, else 0."""
    return (logits[:, :-1].argmax(dim=-1) == tokens[:, 1:]).float()


def split_halves(log_probs: Float[Tensor, "batch 2*seq_len"], seq_len: int) -> tuple[float, float, float]:
    """Mean log-prob (nats) of the first copy, of the boundary token, and of the rest of the second copy."""
    first = log_probs[:, :seq_len].mean()
    boundary = log_probs[:, seq_len].mean()  # the second copy's first token
    inner = log_probs[:, seq_len + 1:].mean()
    return first.item(), boundary.item(), inner.item()


def with_boundary(inner: float, boundary: float, seq_len: int) -> float:
    """Mean over all seq_len tokens of the second copy, from the boundary token and the mean of the others."""
    return (boundary + (seq_len - 1) * inner) / seq_len


# --- generate_repeated_tokens is random, so its check says what must be true -----------------------------------------

AFRESH = "the second half differs from the first: draw one half, and use it twice"
BOS_LAST = "BOS is at the end: the model expects it in front"
NO_BOS = "BOS is missing: the sequence is [BOS, half, half], 1 + 2 * seq_len tokens"
SAME_ROWS = "every row of the batch is the same: draw [batch, seq_len] tokens"
RANGE = "some tokens are never drawn: use the whole vocabulary, torch.randint(0, d_vocab, …)"
SEED = "the same seed gives different tokens: pass a generator with this seed to torch.randint"


@property_check(mistakes=[AFRESH, BOS_LAST, NO_BOS, SAME_ROWS, RANGE, SEED])
def repeated_check(attempt):
    """shape, BOS, the two copies, the range of ids, different rows and the seed, for 3 rows of 2 × 7 tokens"""
    model, asked = random_model(), "seq_len=7, batch=3, seed=1"
    tokens = attempt(model, 7, 3, seed=1)
    require(isinstance(tokens, Tensor), "a torch.Tensor was expected", got=tokens)
    require(not tokens.is_floating_point(), "token ids must be whole numbers (dtype int64)", got=tokens)
    require(tuple(tokens.shape) != (3, 14), NO_BOS, input=asked, got=tokens)
    shape = {"input": asked, "got": tokens, "expected": "shape [3, 15]"}
    require(tuple(tokens.shape) == (3, 15), "the shape must be [batch, 1 + 2 * seq_len]", **shape)
    shown = {"input": asked, "got": f"first row {tokens[0].tolist()}"}
    require(not ((tokens[:, -1] == 0).all() and not (tokens[:, 0] == 0).all()), BOS_LAST, **shown)
    require((tokens[:, 0] == 0).all(), "the first column must be the BOS token's id (here 0)", **shown)
    require(torch.equal(tokens[:, 1:8], tokens[:, 8:]), AFRESH, **shown)
    require(not torch.equal(tokens[0], tokens[1]), SAME_ROWS, input=asked, got=tokens)
    require(torch.equal(attempt(model, 7, 3, seed=1), tokens), SEED, input="the same call twice, with seed=1")
    require(not torch.equal(attempt(model, 7, 3, seed=2), tokens), "seed 1 and seed 2 give the same tokens")
    many = attempt(model, 10, 200, seed=3)[:, 1:11]
    require(0 <= many.min() and many.max() < 40, "an id is outside the vocabulary (0 to 39)", got=many)
    found = len(many.unique())
    require(found == 40, RANGE, input="2000 draws from 40 tokens", got=f"{found} different ids")
    alone = attempt(model, 4)
    require(tuple(alone.shape) == (1, 9), "batch must default to 1, seed to None", got=alone)


# --- inputs ----------------------------------------------------------------------------------------------------------


def vocabulary_cases() -> list[Case]:
    return [Case(988, label="988 tokens"), Case(50257, label="50,257 tokens"), Case(2, label="a coin")]


def scoring_cases() -> list[Case]:
    return [
        Case(random_logits(2, 5, 9), random_tokens(2, 5, vocab=9), label="2 sequences of 5 tokens"),
        Case(random_logits(1, 4, 30, seed=1), random_tokens(1, 4, vocab=30, seed=1), label="1 sequence"),
    ]


def easy_scoring_cases() -> list[Case]:
    """As above, but the right token often has the largest logit, so that accuracies are not all 0."""
    cases = [(random_logits(3, 6, 8, seed=s), random_tokens(3, 6, vocab=8, seed=s)) for s in (2, 3)]
    for logits, tokens in cases:
        logits[:, :3].scatter_add_(2, tokens[:, 1:4, None], torch.full((3, 3, 1), 9.0))
    return [Case(*case, label="3 sequences, some right") for case in cases]


def halves_cases() -> list[Case]:
    return [
        Case(-random_logits(2, 8, 1)[..., 0].abs(), 4, label="seq_len 4"),
        Case(-random_logits(3, 14, 1, seed=1)[..., 0].abs(), 7, label="seq_len 7"),
    ]


def boundary_cases() -> list[Case]:
    return [Case(-0.25, -14.0, 50, label="seq_len 50"), Case(-1.0, -7.0, 4, label="seq_len 4")]


# --- known mistakes --------------------------------------------------------------------------------------------------

CHANCE_MISTAKES = variants(chance_log_prob, {
    "this is the probability, 1 / V: take its logarithm": "1 / d_vocab",
    "the sign is flipped: the logarithm of a probability is never positive": "math.log(d_vocab)",
    "this is in bits (log base 2): nats use the natural logarithm": {"math.log": "math.log2"},
    "this is the logarithm to base 10: nats use the natural logarithm": {"math.log": "math.log10"},
})

ONE_NUMBER = "averaged or summed: keep one number per token"
IS_ONE_NUMBER = seen(lambda got, expected: isinstance(got, (int, float)) or got.ndim == 0)

LOG_PROB_MISTAKES = variants(correct_token_log_probs, {
    "not shifted: logits at position j predict token j + 1, so compare logits[:, :-1] with tokens[:, 1:]":
        ({"tokens[:, 1:": "tokens[:, :-1"}, {"logits[:, :-1]": "logits[:, 1:]"}),
    "shifted the wrong way: logits at position j predict token j + 1, not token j − 1":
        {"tokens[:, 1:": "tokens[:, :-1", "logits[:, :-1]": "logits[:, 1:]"},
    "these are probabilities: use log_softmax, or take the logarithm": {"log_softmax": "softmax"},
    "the sign is flipped: this is the loss, and the exercise asks for the log-probability": {"return ": "return -"},
    "these are the logits of the right tokens: log_softmax is missing": {".log_softmax(dim=-1)": ""},
    "the last axis is still there: [..., 0] or squeeze(-1) removes it":
        seen(lambda got, expected: got.shape == (*expected.shape, 1)),
    "one column too many: the last position predicts a token that is not there":
        seen(lambda got, expected: got.shape == (expected.shape[0], expected.shape[1] + 1)),
    ONE_NUMBER: IS_ONE_NUMBER,
})

TOP1_MISTAKES = variants(top1_correct, {
    "not shifted: logits at position j predict token j + 1":
        ({"tokens[:, 1:]": "tokens[:, :-1]"}, {"logits[:, :-1]": "logits[:, 1:]"}),
    ONE_NUMBER: IS_ONE_NUMBER,
    "these are the best guesses themselves: compare them with the tokens that came": "logits[:, :-1].argmax(dim=-1)",
    "these are the probabilities of the best guesses, not whether they were right":
        "logits[:, :-1].softmax(dim=-1).amax(dim=-1)",
})

HALVES_MISTAKES = variants(split_halves, {
    "the boundary token is still in the second copy's mean: start that mean at seq_len + 1":
        {"seq_len + 1:": "seq_len:"},
    "the boundary token is counted in the first copy": {":seq_len]": ":seq_len + 1]"},
    "one too early: entry 0 scores token 1, so entry seq_len scores the second copy's first token":
        {":seq_len]": ":seq_len - 1]", ", seq_len]": ", seq_len - 1]", "seq_len + 1:": "seq_len:"},
})

BOUNDARY_MISTAKES = variants(with_boundary, {
    "a plain average of the two: there are seq_len − 1 inner tokens and one boundary token": "(inner + boundary) / 2",
    "there are seq_len tokens in all, not seq_len + 1": "(boundary + seq_len * inner) / (seq_len + 1)",
    "the weights are swapped": "(inner + (seq_len - 1) * boundary) / seq_len",
})


EXERCISES = [
    Exercise(
        id="01.generate_repeated_tokens",
        title="Two copies of noise",
        reference=generate_repeated_tokens,
        check=repeated_check,
        hints=(
            "Draw one half, use it twice, and put BOS in front. `bos_token_id(model)` is its id.",
            "`torch.randint(0, model.cfg.d_vocab, (batch, seq_len), generator=rng)`, with "
            "`rng = torch.Generator().manual_seed(seed)` if there is a seed, else None.",
            "BOS is `torch.full((batch, 1), bos_token_id(model))`; `torch.cat([bos, half, half], dim=1)`, "
            "then `.to(model.cfg.device)`.",
        ),
        minutes=8,
        difficulty=1,
    ),
    Exercise(
        id="01.chance_log_prob",
        title="What is chance?",
        reference=chance_log_prob,
        check=compare_cases(vocabulary_cases, CHANCE_MISTAKES),
        hints=(
            "With V tokens, all equally likely, each has the probability 1 / V.",
            "The log-probability is the natural logarithm of that.",
            "ln(1 / V) = −ln V: `-math.log(d_vocab)`",
        ),
        minutes=2,
        difficulty=1,
    ),
    Exercise(
        id="01.correct_token_log_probs",
        title="The log-probability of what came",
        reference=correct_token_log_probs,
        check=compare_cases(scoring_cases, LOG_PROB_MISTAKES, keeps_inputs=True),
        hints=(
            "Logits at position j are about token j + 1. Which positions of each do you keep?",
            "`logits[:, :-1].log_softmax(dim=-1)` is [batch, pos-1, vocab]; the tokens to look up are `tokens[:, 1:]`.",
            "`log_probs.gather(dim=-1, index=tokens[:, 1:, None])[..., 0]`",
        ),
        minutes=8,
        difficulty=2,
    ),
    Exercise(
        id="01.top1_correct",
        title="Was the best guess right?",
        reference=top1_correct,
        check=compare_cases(easy_scoring_cases, TOP1_MISTAKES, keeps_inputs=True),
        hints=(
            "The best guess is the token with the largest logit; no softmax is needed.",
            "`logits[:, :-1].argmax(dim=-1)` is [batch, pos-1].",
            "`(logits[:, :-1].argmax(dim=-1) == tokens[:, 1:]).float()`",
        ),
        minutes=4,
        difficulty=1,
    ),
    Exercise(
        id="01.split_halves",
        title="First copy, boundary, second copy",
        reference=split_halves,
        check=compare_cases(halves_cases, HALVES_MISTAKES, keeps_inputs=True),
        hints=(
            "Entry j scores token j + 1. Token 0 is BOS, tokens 1 … seq_len are the first copy.",
            "So entries 0 … seq_len − 1 are the first copy, and entry seq_len is the boundary token.",
            "`log_probs[:, :seq_len]`, `log_probs[:, seq_len]` and `log_probs[:, seq_len + 1:]`; "
            "`.mean().item()` each.",
        ),
        minutes=6,
        difficulty=2,
    ),
    Exercise(
        id="01.with_boundary",
        title="What one token does to a mean",
        reference=with_boundary,
        check=compare_cases(boundary_cases, BOUNDARY_MISTAKES),
        hints=(
            "The second copy has seq_len tokens: one at the boundary, the others inner.",
            "Add up: one boundary value and seq_len − 1 inner values. How many is that in all?",
            "`(boundary + (seq_len - 1) * inner) / seq_len`",
        ),
        minutes=3,
        difficulty=1,
    ),
]

IN_THE_PACKAGE = {
    "01.generate_repeated_tokens": repeated_tokens.generate_repeated_tokens,
    "01.correct_token_log_probs": repeated_tokens.correct_token_log_probs,
}
