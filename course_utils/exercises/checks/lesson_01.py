"""Exercises of lesson 01: repeated tokens, and how to score a prediction."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from course_utils import repeated_tokens
from course_utils.exercises.checking import Case, Exercise, compare_cases, property_check, require
from course_utils.exercises.checks.shared import (
    LATE_BOS,
    late_bos_model,
    random_logits,
    random_model,
    random_tokens,
    repeated_distinct,
)
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
    """Log-probability (nats) of each actual next token: entry j scores tokens[:, j + 1] given tokens[:, :j + 1]."""
    log_probs = logits[:, :-1].log_softmax(dim=-1)                      # [batch, pos-1, vocab]
    return log_probs.gather(dim=-1, index=tokens[:, 1:, None])[..., 0]


def split_halves(log_probs: Float[Tensor, "batch 2*seq_len"], seq_len: int) -> tuple[float, float, float]:
    """Mean log-prob (nats) of the first copy, of the boundary token, and of the rest of the second copy."""
    first = log_probs[:, :seq_len].mean()
    boundary = log_probs[:, seq_len].mean()  # the second copy's first token
    inner = log_probs[:, seq_len + 1:].mean()
    return first.item(), boundary.item(), inner.item()


def with_boundary(inner: float, boundary: float, seq_len: int) -> float:
    """Mean over all seq_len tokens of the second copy, from the boundary token and the mean of the others."""
    return (boundary + (seq_len - 1) * inner) / seq_len


def order_gain(
    model: TransformerBridge, tokens: Int[Tensor, "batch 1+2*seq_len"], seq_len: int, *, seed: int = 0
) -> Float[Tensor, "batch"]:
    """How much the order is worth to the model, in nats per token, for each sequence."""
    rng = torch.Generator().manual_seed(seed)
    order = torch.rand(len(tokens), seq_len, generator=rng).argsort(dim=1).to(tokens.device)
    mixed = tokens.clone()
    mixed[:, seq_len + 1:] = tokens[:, 1:seq_len + 1].gather(1, order)
    in_order, reordered = (correct_token_log_probs(model(rows), rows)[:, seq_len + 1:] for rows in (tokens, mixed))
    return in_order.mean(dim=1) - reordered.mean(dim=1)


# --- generate_repeated_tokens is random, so its check says what must be true -----------------------------------------

AFRESH = "the second half differs from the first: draw one half, and use it twice"
BOS_LAST = "BOS is at the end: the model expects it in front"
NO_BOS = "BOS is missing: the sequence is [BOS, half, half], 1 + 2 * seq_len tokens"
BOS_FIXED = "the first column is not this model's BOS: its id, `bos_token_id(model)`, differs from model to model"
SAME_ROWS = "every row of the batch is the same: draw [batch, seq_len] tokens"
RANGE = "some tokens are never drawn: use the whole vocabulary, torch.randint(0, d_vocab, …)"
NO_TWICE = "no token ever occurs twice in a copy: each is drawn from the whole vocabulary, whatever came before it"
SEED = "the same seed gives different tokens: pass a generator with this seed to torch.randint"
ONE_SEED = "seed 1 and seed 2 give the same tokens: the seed is not used"
SEED_ZERO = "seed=0 is taken for no seed (0 is false in Python): ask whether `seed is None`"
ALWAYS = "without a seed it gives the same tokens every time: leave `generator=None`, which is torch's global stream"
OTHER_STREAM = ("without a seed it does not draw from torch's global stream, so that `torch.manual_seed` in the "
                "notebook would not repeat it: leave `generator=None`")


@property_check(mistakes=[AFRESH, BOS_LAST, NO_BOS, BOS_FIXED, SAME_ROWS, RANGE, NO_TWICE, SEED, ONE_SEED, SEED_ZERO,
                          ALWAYS, OTHER_STREAM])
def repeated_check(attempt):
    """shape, BOS (of two models), the two copies, the range of ids, different rows, seeds 0 to 3 and none"""
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

    def again(seed: int | None, stream: int) -> Tensor:
        return attempt(model, 7, 3, seed=seed, _stream=stream)

    require(torch.equal(again(1, stream=1), tokens), SEED, input="the same call twice, with seed=1")
    require(not torch.equal(again(2, stream=0), tokens), ONE_SEED)
    require(torch.equal(again(0, stream=1), again(0, stream=2)), SEED_ZERO, input="the same call twice, with seed=0")
    require(not torch.equal(again(None, stream=1), again(None, stream=2)), ALWAYS, input="seed=None, twice")
    require(torch.equal(again(None, stream=1), again(None, stream=1)), OTHER_STREAM,
            input="seed=None twice, each time after the same torch.manual_seed")
    many = attempt(model, 15, 200, seed=3)[:, 1:16]
    require(0 <= many.min() and many.max() < 40, "an id is outside the vocabulary (0 to 39)", got=many)
    found = len(many.unique())
    require(found == 40, RANGE, input="3000 draws from 40 tokens", got=f"{found} different ids")
    require(any(len(row.unique()) < 15 for row in many), NO_TWICE, input="200 copies of 15 tokens out of 40")
    alone = attempt(model, 4)
    late = attempt(late_bos_model(), 7, 3, seed=1)
    require((late[:, 0] == LATE_BOS).all(), BOS_FIXED, input=f"a model whose BOS has the id {LATE_BOS}", got=late[:, 0])
    require(tuple(alone.shape) == (1, 9), "batch must default to 1, seed to None", got=alone)


# --- order_gain is tried on models that we invent, whose gain is known ------------------------------------------------


class Invented:
    """A model of 40 tokens that gives 0.9 of its probability to one token, or shares it among some, by a rule.

    `rule(seen)` is given the tokens up to a position and says which tokens it expects next.
    """

    def __init__(self, rule: Callable[[list[int]], list[int]]) -> None:
        self.rule, self.cfg = rule, SimpleNamespace(d_vocab=40, n_ctx=64, device="cpu")

    def __call__(self, tokens: Tensor) -> Tensor:
        logits = torch.full((*tokens.shape, 40), math.log(0.1 / 40))
        for b, row in enumerate(tokens.tolist()):
            for j in range(len(row)):
                expected = self.rule(row[:j + 1]) or range(40)
                logits[b, j, list(expected)] = math.log(0.9 / len(expected) + 0.1 / 40)
        return logits


def copier(seen: list[int]) -> list[int]:
    """What followed the last token when it came before."""
    *earlier, last = seen
    return [seen[len(earlier) - earlier[::-1].index(last)]] if last in earlier else []


def gambler(seen: list[int]) -> list[int]:
    """After 12 tokens, that the first comes again; and nothing else."""
    return [seen[1]] if len(seen) == 13 else []


def repeater_of_one(seen: list[int]) -> list[int]:
    """The token after the boundary token, and nothing else; and that only where the first token's id is even."""
    return [seen[2]] if len(seen) == 14 and seen[1] % 2 == 0 else []


def collector(seen: list[int]) -> list[int]:
    """Every token that has been seen, with equal probability."""
    return sorted(set(seen[1:]))


NEW_TOKENS = ("this also counts what a model gains that only knows which tokens have come: the second copy must have "
              "the same tokens, in another order")
COUNTED = "the boundary token is counted: leave it out of both means (start at entry seq_len + 1)"
SAME_ORDER = "no difference for a model that copies: is the second copy in another order, and are both runs compared?"
FLIPPED = "the sign is flipped: subtract the score of the reordered copy from that of the one in order"
KEEPS_PAIRS = ("too small for a model that copies: the reordered copy must not keep which token follows which (a shift "
               "keeps nearly all)")
ROWS = "the means of different sequences are mixed: each number is about one sequence"
ALL_BUT_ONE = "the token after the boundary token counts: both means begin at entry seq_len + 1"
SEED_UNUSED = "the order must be drawn with `seed`, and only with it: `torch.Generator().manual_seed(seed)`"
OWN_COPY = "it changes its input: work on a copy (`.clone()`)"


@property_check(mistakes=[NEW_TOKENS, COUNTED, SAME_ORDER, FLIPPED, KEEPS_PAIRS, ROWS, ALL_BUT_ONE, SEED_UNUSED,
                          OWN_COPY])
def order_check(attempt):
    """models that copy, copy one token, know which tokens have come, or bet on the boundary token"""
    tokens = repeated_distinct(24, 12, vocab=40)
    given = tokens.clone()
    gain = attempt(Invented(copier), given, 12)
    require(torch.equal(given, tokens), OWN_COPY)
    require(isinstance(gain, Tensor) and gain.is_floating_point(), "a float torch.Tensor was expected", got=gain)
    require(gain.shape == (24,), "one number for each sequence is needed, shape [batch]", got=gain, expected="[24]")
    best = math.log(0.9 + 0.1 / 40) - math.log(0.1 / 40)
    shown = {"input": "a model that expects what followed a token when it came before; 24 sequences, two copies of 12",
             "got": f"{gain.mean():.3g} nats on average", "expected": f"{0.75 * best:.3g} to {best:.3g}"}
    require(gain.mean() > -0.5, FLIPPED, **shown)
    collected = attempt(Invented(collector), tokens.clone(), 12)
    require(collected.abs().max() < 1e-3, NEW_TOKENS, got=f"{collected.mean():.3g} nats on average", expected="0",
            input="a model that gives equal probability to all tokens that have come")
    bet = attempt(Invented(gambler), tokens.clone(), 12)
    require(bet.abs().max() < 1e-3, COUNTED, got=f"{bet.mean():.3g} nats on average", expected="0",
            input="a model that bets on the boundary token, and knows nothing else")
    require(gain.mean() > 0.05, SAME_ORDER, **shown)
    require(gain.mean() > 0.75 * best, KEEPS_PAIRS, **shown)
    require(gain.max() < best + 1e-3, "too large: give the mean over tokens, in nats", **shown)
    once = attempt(Invented(repeater_of_one), tokens.clone(), 12)
    even = tokens[:, 1] % 2 == 0
    require(once[~even].abs().max() < 1e-3, ROWS, got=once, input="a model that copies in some of the sequences only")
    require(once[even].mean() > 0.5 * best / 11, ALL_BUT_ONE, got=once, input="a model that copies that token only")
    seeds = [attempt(Invented(copier), tokens.clone(), 12, seed=seed, _stream=stream) for seed, stream in (
        (0, 0), (0, 1), (1, 0), (1, 1))]
    require(torch.equal(seeds[0], seeds[1]) and torch.equal(seeds[2], seeds[3]) and not torch.equal(seeds[0], seeds[2]),
            SEED_UNUSED, input="seeds 0 and 1, twice each")


# --- inputs ----------------------------------------------------------------------------------------------------------


def vocabulary_cases() -> list[Case]:
    return [Case(988, label="988 tokens"), Case(50257, label="50,257 tokens"), Case(2, label="a coin")]


def scoring_cases() -> list[Case]:
    return [
        Case(random_logits(2, 5, 9), random_tokens(2, 5, vocab=9), label="2 sequences of 5 tokens"),
        Case(random_logits(1, 4, 30, seed=1), random_tokens(1, 4, vocab=30, seed=1), label="1 sequence"),
    ]


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
    "the softmax runs over positions: probabilities sum to 1 over the vocabulary (dim=-1)":
        ({"log_softmax(dim=-1)": "log_softmax(dim=1)"},
         {"logits[:, :-1].log_softmax(dim=-1)": "logits.log_softmax(dim=1)[:, :-1]"}),
    "this is in bits (log base 2): nats use the natural logarithm": {"[..., 0]": "[..., 0] / math.log(2)"},
    "the last axis is still there: [..., 0] or squeeze(-1) removes it":
        seen(lambda got, expected: got.shape == (*expected.shape, 1)),
    "one column too many: the last position predicts a token that is not there":
        seen(lambda got, expected: got.shape == (expected.shape[0], expected.shape[1] + 1)),
    ONE_NUMBER: IS_ONE_NUMBER,
})

HALVES_MISTAKES = variants(split_halves, {
    "the boundary token is still in the second copy's mean: start that mean at seq_len + 1":
        {"seq_len + 1:": "seq_len:"},
    "the boundary token is counted in the first copy": {":seq_len]": ":seq_len + 1]"},
    "one too early: entry 0 scores token 1, so entry seq_len scores the second copy's first token":
        {":seq_len]": ":seq_len - 1]", ", seq_len]": ", seq_len - 1]", "seq_len + 1:": "seq_len:"},
    "one too late: entry 0 scores token 1, so entry seq_len scores the second copy's first token":
        {":seq_len]": ":seq_len + 1]", ", seq_len]": ", seq_len + 1]", "seq_len + 1:": "seq_len + 2:"},
    "the second and third number are swapped: first copy, boundary token, rest of the second copy":
        "first.item(), inner.item(), boundary.item()",
    "these are sums: take means": {"mean()": "sum()"},
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
        title="The log-probability of the actual next token",
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
    Exercise(
        id="01.order_gain",
        title="The same tokens in another order",
        reference=order_gain,
        check=order_check,
        hints=(
            "Two runs are compared: the tokens as they are, and a copy of them whose second half is in another order.",
            "A random order for each row: `torch.rand(batch, seq_len, generator=rng).argsort(dim=1)`; "
            "`tokens[:, 1:seq_len + 1].gather(1, order)` puts the tokens into it.",
            "`mixed = tokens.clone()`, then `mixed[:, seq_len + 1:] = …`; score both with `correct_token_log_probs`, "
            "keep the entries from `seq_len + 1` on, take row means, and subtract.",
        ),
        minutes=12,
        difficulty=2,
    ),
]

IN_THE_PACKAGE = {
    "01.generate_repeated_tokens": repeated_tokens.generate_repeated_tokens,
    "01.correct_token_log_probs": repeated_tokens.correct_token_log_probs,
}
