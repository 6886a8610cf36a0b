"""Exercises of lesson 02: finding induction heads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from course_utils import heads
from course_utils.exercises.checking import Case, Exercise, compare_cases
from course_utils.exercises.checks.shared import drawn, planted_model, random_model, random_tokens, repeated_distinct
from course_utils.exercises.mistakes import seen, variants
from course_utils.heads import induction_targets, is_pattern

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformer_lens.model_bridge import TransformerBridge

# --- the course's answers -----------------------------------------------------------------------------------------


def where_heads_look(query: int, seq_len: int) -> dict[str, int]:
    """The key position on which each kind of head puts its attention, for a query in the second copy."""
    return {"previous": query - 1, "duplicate": query - seq_len, "induction": query - seq_len + 1}


def head_scores(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], entries: Callable
) -> Float[Tensor, "layer head"]:
    """Mean, over rows and entries, of what `entries` takes from every layer's attention pattern."""
    scores = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)

    def note(pattern, hook):
        scores[hook.layer()] = entries(pattern).mean(dim=(0, 2))        # [batch, head, entry] -> [head]

    model.run_with_hooks(tokens, return_type=None, fwd_hooks=[(is_pattern, note)])
    return scores


def stripe(
    pattern: Float[Tensor, "batch head query key"], kind: str, seq_len: int
) -> Float[Tensor, "batch head entry"]:
    """The entries that hold all the attention of a perfect head of this kind, one for each query that counts."""
    offset, first = {"previous": (-1, 0), "duplicate": (-seq_len, 1), "induction": (1 - seq_len, 2)}[kind]
    return pattern.diagonal(offset, -2, -1)[..., first:]                # the first ones belong to the first copy


def uniform_score(targets: Bool[Tensor, "batch query key"]) -> float:
    """The score of a head that looks equally at everything it can see: a mean over the queries that have a target."""
    n_targets = targets.sum(dim=-1)                                     # [batch, query]
    n_visible = torch.arange(1, targets.shape[-1] + 1, device=targets.device)
    return (n_targets / n_visible)[n_targets > 0].mean().item()


# --- inputs --------------------------------------------------------------------------------------------------------


def position_cases() -> list[Case]:
    return [Case(6, 5, label="first token of the second copy"), Case(4, 3, label="seq_len 3"),
            Case(100, 50, label="last token, seq_len 50")]


def one_back(pattern):
    return pattern.diagonal(-1, -2, -1)


def one_before_the_copy(pattern):
    return pattern[:, :, 5:].diagonal(1, -2, -1)


def the_first_key(pattern):
    return pattern[..., 0]


def collecting_cases() -> list[Case]:
    return [
        Case(planted_model(), repeated_distinct(2, 6), one_back, label="the planted model: head 0.0 must score 1"),
        Case(random_model(), random_tokens(67, 11), one_before_the_copy, label="a random model, 67 rows"),
        Case(random_model(), random_tokens(3, 7, seed=1), the_first_key, label="attention to BOS"),
    ]


def stripe_cases() -> list[Case]:
    def causal(batch: int, length: int, seed: int) -> Tensor:
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        return drawn(batch, 2, length, length, seed=seed).masked_fill(hidden, -torch.inf).softmax(-1)

    patterns = [(causal(2, 13, seed=0), 6), (causal(1, 9, seed=1), 4)]
    return [Case(pattern, kind, n, label=f"{kind}, two copies of {n} tokens")
            for pattern, n in patterns for kind in ("previous", "duplicate", "induction")]


def target_cases() -> list[Case]:
    return [
        Case(induction_targets(torch.tensor([[0, 5, 6, 5, 6]])), label="<bos> a b a b"),
        Case(induction_targets(random_tokens(3, 12, vocab=6)), label="3 random texts of 6 words"),
        Case(torch.tensor([[[1, 0, 0], [1, 1, 0], [1, 0, 1]], [[0, 0, 0], [0, 0, 0], [0, 1, 0]]]).bool(),
             label="targets set by hand, of very different number"),
    ]


def text_cases() -> list[Case]:
    return [
        Case(torch.tensor([[0, 7, 3, 7, 3, 3]]), label="<bos> a b a b b"),
        Case(random_tokens(3, 12, vocab=6), label="3 random texts of 6 words"),
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

COLLECTING_MISTAKES = variants(head_scores, {
    "only the first row of the batch is used: average over all rows":
        {"run_with_hooks(tokens": "run_with_hooks(tokens[:1]"},
    "every score is 0: no hook ran. A hook's name is `blocks.{layer}.attn.hook_pattern`, or a function that says of "
    "each name whether it is meant": seen(lambda got, expected: (got == 0).all()),
    "the head axis is gone: one score for each layer and head, [layer, head]":
        seen(lambda got, expected: got.ndim == 1),
    "summed over rows or entries: take the mean, so that a perfect head scores 1": (
        {"mean(dim=(0, 2))": "sum(dim=(0, 2))"}, {"mean(dim=(0, 2))": "mean(dim=2).sum(dim=0)"},
        {"mean(dim=(0, 2))": "sum(dim=2).mean(dim=0)"}),
    "every layer has the scores of the last: each belongs in the row `hook.layer()`":
        {"scores[hook.layer()]": "scores[:]"},
    "only one layer has scores: is the hook on every layer's pattern?": (
        {"scores[hook.layer()]": "scores[0]"}, {"scores[hook.layer()]": "scores[-1]"}),
    "this is the largest entry, not the mean": {"mean(dim=(0, 2))": "amax(dim=(0, 2))"},
})

STRIPE_MISTAKES = variants(stripe, {
    "duplicate and induction are swapped: induction looks one position further, after the first occurrence":
        ({"(-seq_len, 1)": "(1 - seq_len, 2)", "(1 - seq_len, 2)}": "(-seq_len, 1)}"},),
    "duplicate: the first entry of its diagonal (query seq_len) looks at BOS: leave it out":
        {"(-seq_len, 1)": "(-seq_len, 0)"},
    "duplicate: two entries were left out; here only one belongs to the first copy":
        {"(-seq_len, 1)": "(-seq_len, 2)"},
    "induction: two entries of its diagonal lie in the first copy (queries seq_len − 1 and seq_len), where there is "
    "nothing to look back at: leave them out": {"(1 - seq_len, 2)": "(1 - seq_len, 0)"},
    "induction: one entry of its diagonal still lies in the first copy: leave out two": {
        "(1 - seq_len, 2)": "(1 - seq_len, 1)"},
    "whole diagonals: what belongs to queries of the first copy must be left out, one entry of duplicate and two of "
    "induction": {"[..., first:]": ""},
    "induction: the offset is 1 − seq_len, one to the right of the duplicate's": (
        {"(1 - seq_len, 2)": "(-1 - seq_len, 0)"}, {"(1 - seq_len, 2)": "(-seq_len, 1)"},
        {"(1 - seq_len, 2)": "(2 - seq_len, 3)"}),
    "previous: the token just before is the diagonal at offset −1": (
        {"(-1, 0)": "(0, 0)"}, {"(-1, 0)": "(0, 1)"}, {"(-1, 0)": "(-2, 0)"}, {"(-1, 0)": "(1, 0)"}),
    "previous: every query but the first counts, those of both copies": (
        {"(-1, 0)": "(-1, 1)"}, {"(-1, 0)": "(-1, seq_len)"}),
    "these entries look ahead (offsets above 0), where a causal model never attends":
        seen(lambda got, expected: (got == 0).all()),
})

UNIFORM_MISTAKES = variants(uniform_score, {
    "queries without a target are counted as 0: leave them out, as `induction_scores_in_text` does":
        "(n_targets / n_visible).mean().item()",
    "query q sees q + 1 keys, itself included": {"arange(1, targets.shape[-1] + 1": "arange(targets.shape[-1]"},
    "divided by the length of the text: query q sees only q + 1 keys": {"(n_targets / n_visible)":
                                                                        "(n_targets / targets.shape[-1])"},
    "a query with several targets counts as one with one: add up its attention on all of them":
        {"(n_targets / n_visible)": "(1 / n_visible).expand_as(n_targets)"},
    "this is the mean number of targets, not the attention on them": "n_targets[n_targets > 0].float().mean().item()",
    "averaged row by row, and then over rows: every query with a target counts the same":
        "torch.stack([(n / n_visible)[n > 0].mean() for n in n_targets]).mean().item()",
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
    "a key may be the query itself: in `b b`, the second b follows a b and is its own target":
        "matches.tril(-1)",
    "only the latest match of each query is marked: a token may have come before several times":
        "matches.tril() & (matches.tril().flip(-1).cumsum(-1).flip(-1) == 1)",
})


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
        id="02.head_scores",
        title="An instrument: something of every pattern",
        reference=head_scores,
        check=compare_cases(collecting_cases, COLLECTING_MISTAKES, keeps_inputs=True),
        hints=(
            "A hook that returns nothing changes nothing, but it may write into a tensor made before the run.",
            "`hook.layer()` says in which layer the hook is. A name in `fwd_hooks` may be a function of the name, such "
            "as `is_pattern`: then the hook is put wherever it says True.",
            "Make `scores = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)`; in the hook, `scores[hook.layer()] = "
            "entries(pattern).mean(dim=(0, 2))`; run `model.run_with_hooks(tokens, fwd_hooks=[(is_pattern, note)])`.",
        ),
        minutes=12,
        difficulty=2,
    ),
    Exercise(
        id="02.stripe",
        title="Three stripes: how many entries, and whose?",
        reference=stripe,
        check=compare_cases(stripe_cases, STRIPE_MISTAKES, keeps_inputs=True),
        hints=(
            "`pattern.diagonal(offset, -2, -1)` takes the entries with key = query + offset. Which offset is whose?",
            "−1, −seq_len and 1 − seq_len. Write down the queries of each diagonal: the first is minus its offset, "
            "and the second copy begins at query seq_len + 1.",
            "Leave out the first entry of the duplicate's diagonal and the first two of induction's: "
            "`pattern.diagonal(1 - seq_len, -2, -1)[..., 2:]`.",
        ),
        minutes=10,
        difficulty=2,
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
        id="02.uniform_score",
        title="What would indifference score?",
        reference=uniform_score,
        check=compare_cases(target_cases, UNIFORM_MISTAKES, keeps_inputs=True),
        hints=(
            "Query q sees the keys 0 … q. How much attention does each get, if all get the same?",
            "With t targets, the score of query q is t / (q + 1). Which queries count?",
            "`n = targets.sum(-1)`; divide by `torch.arange(1, targets.shape[-1] + 1)`; keep those where `n > 0`, "
            "of all rows together, and take their mean.",
        ),
        minutes=8,
        difficulty=2,
    ),
]

IN_THE_PACKAGE = {
    "02.head_scores": heads.stripe_scores,
}
