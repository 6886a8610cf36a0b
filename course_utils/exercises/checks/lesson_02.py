"""Exercises of lesson 02: finding induction heads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from course_utils import heads
from course_utils.exercises.checking import (
    Case,
    CompareThenState,
    Exercise,
    compare_cases,
    or_raised,
    property_check,
    require,
)
from course_utils.exercises.checks.shared import planted_model, random_model, random_tokens, repeated_distinct, shown
from course_utils.exercises.mistakes import seen, variants
from course_utils.heads import induction_targets, stripe_scores

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# --- the course's answers -----------------------------------------------------------------------------------------


def where_heads_look(query: int, seq_len: int) -> dict[str, int]:
    """The key position on which each kind of head puts its attention, for a query in the second copy."""
    return {"previous": query - 1, "duplicate": query - seq_len, "induction": query - seq_len + 1}


def previous_token_scores(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "layer head"]:
    """Mean attention to the token just before, over every position but the first."""
    return stripe_scores(model, tokens, lambda pattern: pattern.diagonal(-1, -2, -1))


def induction_scores(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], seq_len: int
) -> Float[Tensor, "layer head"]:
    """Mean attention from each token of the second copy to the token after its first occurrence."""
    # the first two entries of the diagonal belong to queries of the first copy
    return stripe_scores(model, tokens, lambda pattern: pattern.diagonal(1 - seq_len, -2, -1)[..., 2:])


def duplicate_token_scores(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], seq_len: int
) -> Float[Tensor, "layer head"]:
    """Mean attention from each token of the second copy to its own first occurrence."""
    return stripe_scores(model, tokens, lambda pattern: pattern.diagonal(-seq_len, -2, -1)[..., 1:])


def top_heads(scores: Float[Tensor, "layer head"], k: int = 5) -> list[tuple[tuple[int, int], float]]:
    """The k best heads: [((layer, head), score), …], best first."""
    best = scores.flatten().topk(k)
    places = [divmod(index, scores.shape[1]) for index in best.indices.tolist()]
    return list(zip(places, best.values.tolist()))


def formation_step(steps: list[int], scores: Float[Tensor, "step"], threshold: float = 0.5) -> int | None:
    """The first training step at which a score has reached `threshold`; None if it never does."""
    reached = [step for step, score in zip(steps, scores) if score >= threshold]
    return reached[0] if reached else None


# --- inputs --------------------------------------------------------------------------------------------------------


def position_cases() -> list[Case]:
    return [Case(6, 5, label="first token of the second copy"), Case(4, 3, label="seq_len 3"), Case(100, 50)]


def previous_cases() -> list[Case]:
    return [
        Case(planted_model(), repeated_distinct(2, 6), label="the planted model: head 0.0 must score 1"),
        Case(random_model(), random_tokens(3, 9), label="a random model"),
    ]


def repeated_cases() -> list[Case]:
    """Head 1.0 of the planted model is an induction head, so it must score exactly 1."""
    return [
        Case(planted_model(), repeated_distinct(2, 6), 6, label="the planted model: head 1.0 must score 1"),
        Case(random_model(), repeated_distinct(9, 4, vocab=40, seed=1), 4, label="a random model, 9 rows"),
    ]


def duplicate_cases() -> list[Case]:
    return [
        Case(random_model(), repeated_distinct(2, 6, vocab=40), 6, label="a random model"),
        Case(random_model(), repeated_distinct(9, 4, vocab=40, seed=1), 4, label="9 rows"),
    ]


def score_cases() -> list[Case]:
    rng = torch.Generator().manual_seed(0)
    return [
        Case(torch.rand(4, 3, generator=rng), 3, label="4 layers of 3 heads"),
        Case(torch.rand(2, 6, generator=rng), label="2 layers of 6 heads, k left out"),
    ]


def text_cases() -> list[Case]:
    return [
        Case(torch.tensor([[0, 7, 3, 7, 3, 3]]), label="<bos> a b a b b"),
        Case(random_tokens(3, 12, vocab=6), label="3 random texts of 6 words"),
    ]


def formation_cases() -> list[Case]:
    steps = [0, 100, 200, 400]
    return [
        Case(steps, torch.tensor([0.01, 0.6, 0.9, 0.8]), label="forms"),
        Case(steps, torch.tensor([0.01, 0.5, 0.3, 0.9]), label="dips"),
        Case(steps, torch.tensor([0.01, 0.1, 0.2, 0.7]), 0.15, label="another threshold"),
        Case(steps, torch.tensor([0.7, 0.1, 0.2, 0.9]), label="is there from the start"),
        Case(steps, torch.tensor([0.01, 0.1, 0.2, 0.7]), label="forms at the very end"),
    ]


# --- known mistakes ------------------------------------------------------------------------------------------------

LOOK_MISTAKES = variants(where_heads_look, {
    "a head cannot look ahead: keys come before the query":
        seen(lambda got, expected: any(key > expected["previous"] + 1 for key in got.values())),
    "the duplicate-token head's place twice: induction looks at the token after the first occurrence":
        {"seq_len + 1": "seq_len"},
    "duplicate and induction are swapped: induction looks at the token after the first occurrence":
        '{"previous": query - 1, "duplicate": query - seq_len + 1, "induction": query - seq_len}',
    "induction looks at the token after the first occurrence, not before it": {"seq_len + 1": "seq_len - 1"},
})

ALL_ZERO = seen(lambda got, expected: (got == 0).all())
FIRST_ROW = {"only the first row of the batch is used: average over all rows": {"tokens, lambda": "tokens[:1], lambda"}}
NO_HEADS = {
    "the head axis is gone: one score per layer and head, [layer, head]": seen(lambda got, expected: got.ndim == 1)}


def _summed(entries: str) -> dict:
    """Summed over positions, over rows, or over both."""
    times = (entries, "len(tokens)", f"len(tokens) * {entries}")
    return {"summed over positions or rows: take the mean, so that a perfect head scores 1":
            tuple({"return ": f"return {factor} * "} for factor in times)}


PREVIOUS_MISTAKES = variants(previous_token_scores, {
    "this is the main diagonal, attention to the token itself: the one below it has offset -1": {"(-1,": "(0,"},
    "every score is 0: this looks ahead (offset +1), where a causal model never attends, or no hook ran": ALL_ZERO,
    "two tokens back: the token just before is the diagonal at offset -1": {"(-1,": "(-2,"},
    **FIRST_ROW, **NO_HEADS, **_summed("(tokens.shape[1] - 1)"),
})

INDUCTION_MISTAKES = variants(induction_scores, {
    "these are duplicate-token scores (offset −seq_len): induction looks one token further, at 1 − seq_len":
        tuple({"1 - seq_len": "-seq_len", "2:]": f"{first}:]"} for first in (0, 1, 2)),
    "shifted by one: the stripe starts at 1 − seq_len, not at −1 − seq_len":
        {"1 - seq_len": "-1 - seq_len", "2:]": "0:]"},
    "two entries of this diagonal lie in the first copy, where there is nothing to look back at: "
    "leave out the first two (queries seq_len − 1 and seq_len)": {"2:]": "0:]"},
    "one entry of this diagonal still lies in the first copy: leave out the first two": {"2:]": "1:]"},
    "every score is 0: this looks ahead (a positive offset), where a causal model never attends, or no hook ran":
        ALL_ZERO,
    **FIRST_ROW, **NO_HEADS, **_summed("seq_len"),
})

DUPLICATE_MISTAKES = variants(duplicate_token_scores, {
    "these are induction scores (offset 1 − seq_len): the same token's first occurrence is at −seq_len":
        tuple({"(-seq_len": "(1 - seq_len", "1:]": f"{first}:]"} for first in (0, 1, 2)),
    "the first entry of this diagonal (query seq_len) looks at BOS: leave it out": {"1:]": "0:]"},
    **FIRST_ROW, **NO_HEADS, **_summed("seq_len"),
})

TOP_MISTAKES = variants(top_heads, {
    "layer and head are swapped: scores are [layer, head]": {"shape[1])": "shape[1])[::-1]"},
    "the worst heads come first: sort from high to low": seen(lambda got, expected: got[0][-1] < got[-1][-1]),
    "these are positions in the flattened scores: divide by the number of heads to get (layer, head)":
        seen(lambda got, expected: isinstance(got[0][0], int) and isinstance(got[0][1], float)),
    "this divides by the number of layers: a row of scores has n_heads entries": {"shape[1]": "shape[0]"},
})

TARGET_MISTAKES = variants(induction_targets, {
    "these are the earlier occurrences of the token itself: induction looks one position later":
        "(tokens[:, :, None] == tokens[:, None, :]).tril(-1)",
    "these are occurrences of the token itself, this one included: induction looks one position later":
        "(tokens[:, :, None] == tokens[:, None, :]).tril()",
    "this is the token before the earlier occurrence: induction looks at the one after it":
        {"roll(1": "roll(-1", "matches[:, :, 0]": "matches[:, :, -1]"},
    "some keys come after their query: `.tril()` keeps only what a causal head can see": "matches",
    "`roll` moves the last token to the front: the first key has no token before it":
        {"matches[:, :, 0] = False": ""},
    "queries and keys are swapped: rows are queries":
        ("matches.transpose(1, 2).triu()", "matches.transpose(1, 2).tril()"),
})

FORMATION_MISTAKES = variants(formation_step, {
    "this is the step with the highest score, not the first that reaches the threshold": "steps[scores.argmax()]",
    "this is the last step that reaches the threshold: stop at the first": {"reached[0]": "reached[-1]"},
    "this is the index of the step, not the step": {"zip(steps, scores)": "enumerate(scores)"},
    "this is the last step below the threshold: the score has not reached it yet":
        {">=": "<", "reached[0]": "reached[-1]"},
    "the threshold is ignored: it is an argument": {">= threshold": ">= 0.5"},
})

NEVER = "there is no such step if no score reaches the threshold: return None"


@property_check(mistakes=[NEVER], none_is_fine=True)
def never_formed(attempt):
    """None where no score reaches the threshold"""
    steps, scores = [0, 100, 200], torch.tensor([0.1, 0.4, 0.3])
    answer = or_raised(attempt, (IndexError, StopIteration, ValueError, RuntimeError), steps, scores.clone())
    require(answer is None, NEVER, input=f"steps = {steps}\nscores = {scores.tolist()}", got=shown(answer))


EXERCISES = [
    Exercise(
        id="02.where_heads_look",
        title="Three kinds of head, three places to look",
        reference=where_heads_look,
        check=compare_cases(position_cases, LOOK_MISTAKES),
        hints=(
            "Write out [BOS, A, B, C, A, B, C] with positions 0 to 6; take the A at position 4 as the query.",
            "Its previous token is at 3, its first occurrence at 1, and the token after that at 2. Here seq_len is 3.",
            "`query - 1`, `query - seq_len` and `query - seq_len + 1`",
        ),
        minutes=4,
        difficulty=1,
    ),
    Exercise(
        id="02.previous_token_scores",
        title="Score the previous-token heads",
        reference=previous_token_scores,
        check=compare_cases(previous_cases, PREVIOUS_MISTAKES, keeps_inputs=True),
        hints=(
            "In a pattern [batch, head, query, key], which diagonal holds the entries with key = query − 1?",
            "`pattern.diagonal(-1, -2, -1)` is [batch, head, entry]. Average over batch and entries, in every layer.",
            "Run with a hook (or a cache) on every `hook_pattern`, and put "
            "`pattern.diagonal(-1, -2, -1).mean((0, -1))` into row `hook.layer()` of a [layer, head] tensor.",
        ),
        minutes=10,
        difficulty=2,
    ),
    Exercise(
        id="02.induction_scores",
        title="Score the induction heads",
        reference=induction_scores,
        check=compare_cases(repeated_cases, INDUCTION_MISTAKES, keeps_inputs=True),
        hints=(
            "For a query in the second copy, which key does an induction head look at? Which diagonal is that?",
            "The diagonal at offset 1 − seq_len. How many entries does it have, and which are in the second copy?",
            "`pattern.diagonal(1 - seq_len, -2, -1)[..., 2:]`, averaged over batch and entries, layer by layer.",
        ),
        minutes=10,
        difficulty=2,
    ),
    Exercise(
        id="02.duplicate_token_scores",
        title="Score the duplicate-token heads",
        reference=duplicate_token_scores,
        check=compare_cases(duplicate_cases, DUPLICATE_MISTAKES, keeps_inputs=True),
        hints=(
            "The same token stood seq_len positions earlier.",
            "That is the diagonal at offset −seq_len; its first entry is query seq_len looking at BOS.",
            "`pattern.diagonal(-seq_len, -2, -1)[..., 1:]`, averaged over batch and entries, layer by layer.",
        ),
        minutes=6,
        difficulty=2,
    ),
    Exercise(
        id="02.top_heads",
        title="Name the best heads",
        reference=top_heads,
        check=compare_cases(score_cases, TOP_MISTAKES, keeps_inputs=True),
        hints=(
            "`scores.flatten().topk(k)` gives values and flat indices.",
            "A flat index is layer * n_heads + head. What does `divmod` do with it?",
            "`[(divmod(int(i), scores.shape[1]), float(v)) for v, i in zip(*scores.flatten().topk(k))]`",
        ),
        minutes=5,
        difficulty=1,
    ),
    Exercise(
        id="02.induction_targets",
        title="Induction in any text",
        reference=induction_targets,
        check=compare_cases(text_cases, TARGET_MISTAKES, keeps_inputs=True),
        hints=(
            "Compare every query's token with the token that stands just before every key.",
            "`tokens.roll(1, dims=1)` has at each position the token before it, except at the first.",
            "`(tokens[:, :, None] == tokens.roll(1, dims=1)[:, None, :])`, column 0 set to False, then `.tril()`.",
        ),
        minutes=10,
        difficulty=3,
    ),
    Exercise(
        id="02.formation_step",
        title="When did it form?",
        reference=formation_step,
        check=CompareThenState(compare_cases(formation_cases, FORMATION_MISTAKES), never_formed),
        hints=(
            "Go through steps and scores together, in order.",
            "Stop at the first score that is at least the threshold; if there is none, return None.",
            "`next((step for step, score in zip(steps, scores) if score >= threshold), None)`",
        ),
        minutes=4,
        difficulty=1,
    ),
]

IN_THE_PACKAGE = {
    "02.previous_token_scores": heads.previous_token_scores,
    "02.induction_scores": heads.induction_scores,
    "02.duplicate_token_scores": heads.duplicate_token_scores,
    "02.top_heads": heads.top_heads,
}
