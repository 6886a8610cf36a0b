"""Exercises of lesson 09: the capstone."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from course_utils import splicing
from course_utils.exercises.checking import Case, Exercise, compare_cases
from course_utils.exercises.checks.shared import drawn
from course_utils.exercises.mistakes import seen, variants
from course_utils.latents import auc
from course_utils.splicing import after_token, remove_latents

# --- the course's answers; `splicing` has its own versions -----------------------------------------------------


def circuit_score(
    clean: Float[Tensor, "batch 2*seq_len"], changed: Float[Tensor, "batch 2*seq_len"]
) -> float:
    """Which share of the clean model's gain on the second copy is left in the changed one.

    The gain: the mean over the second copy, without its first token, which nobody can foresee, minus the mean over
    the first copy. Both means are over all sequences together.
    """
    n = clean.shape[1] // 2
    clean_gain = clean[:, n + 1:].mean() - clean[:, :n].mean()
    changed_gain = changed[:, n + 1:].mean() - changed[:, :n].mean()
    return (changed_gain / clean_gain).item()


def same_token_auc(
    latents: Float[Tensor, "m d_sae"], labels: Bool[Tensor, "m"], present: Int[Tensor, "m"]
) -> Float[Tensor, "d_sae"]:
    """P(f₊ > f₋) + ½ P(f₊ = f₋) over all pairs of a labelled and another position with the same token."""
    total, all_pairs = 0, 0
    for token in present.unique():
        here = present == token
        labelled, others = int(labels[here].sum()), int((~labels[here]).sum())
        pairs = labelled * others
        if pairs:
            total += pairs * auc(latents[here], labels[here])
            all_pairs += pairs
    return total / all_pairs


# --- inputs ----------------------------------------------------------------------------------------------------


def score_cases() -> list[Case]:
    def copies(batch: int, n: int, left: float, seed: int) -> tuple[Tensor, Tensor]:
        """Log-probabilities [batch, 2n] of the clean model, and of one that keeps about `left` of its gain."""
        hardness = torch.linspace(1, 2.5, batch)[:, None]               # some sequences are harder than others
        first = -4 * hardness * (1 + drawn(batch, n, seed=seed).abs())
        second, others_first = -0.4 * drawn(batch, n, seed=seed + 1).abs(), first - hardness
        others_second = others_first.flip(1) + left * (6 + drawn(batch, n, seed=seed + 2))
        second[:, 0], others_second[:, 0] = -9, -11                     # nobody foresees that the repeat begins
        return torch.cat([first, second], dim=1), torch.cat([others_first, others_second], dim=1)
    return [
        Case(*copies(3, 4, 0.5, 0), label="3 sequences, two copies of 4 tokens: a part is left"),
        Case(*copies(5, 7, -0.4, 2), label="5 sequences of twice 7: worse on the repeat than before"),
        Case(*reversed(copies(2, 5, 0.6, 4)), label="2 sequences of twice 5: more than the clean model's"),
    ]


def after_cases() -> list[Case]:
    tokens = torch.tensor([[0, 3, 2, 2, 1, 3, 2, 1, 2], [0, 2, 1, 1, 2, 3, 1, 3, 3], [0, 1, 3, 1, 2, 2, 2, 3, 2]])
    return [
        Case(tokens, 2, label="3 rows of 9 tokens"),
        Case(tokens[1:], 0, label="after token 0, which is BOS here"),
        Case(torch.tensor([[0, 5, 4, 5, 7]]), 7, label="a token that comes last"),
        Case(tokens, 9, label="a token that never comes"),
    ]


def auc_cases() -> list[Case]:
    def some(counts: list[tuple[int, int]], d_sae: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Token t stands at counts[t][0] labelled positions and at counts[t][1] others; all in a random order."""
        present = torch.cat([torch.full((sum(each),), 3 * t + 1) for t, each in enumerate(counts)])
        labels = torch.cat([torch.arange(sum(each)) < each[0] for each in counts])
        own = drawn(3 * len(counts) + 1, d_sae, seed=seed)[present]             # latents know the present token
        knows = labels[:, None] * torch.linspace(-1.5, 1.5, d_sae) * (1 + present[:, None] % 2)
        latents = (2 * (own + knows + drawn(len(present), d_sae, seed=seed + 1))).relu().round() / 2    # many ties
        order = torch.randperm(len(present), generator=torch.Generator().manual_seed(seed))
        return latents[order], labels[order], present[order]
    return [
        Case(*some([(2, 9), (7, 3), (1, 1), (4, 0), (0, 6), (1, 5)], 5, 0), label="6 tokens, 5 latents, many ties"),
        Case(*some([(12, 2), (1, 2), (3, 4)], 3, 3), label="3 tokens, 3 latents"),
        Case(*some([(1, 1), (2, 1), (1, 4), (8, 11), (0, 1), (1, 0)], 2, 6), label="tokens that come once"),
    ]


def remove_cases() -> list[Case]:
    def three(*shape: int, d: int, d_sae: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        latents, W_dec = drawn(*shape, d_sae, seed=seed).relu(), drawn(d_sae, d, seed=seed + 1)
        return latents @ W_dec + drawn(*shape, d, seed=seed + 2), latents, W_dec        # with an error of its own
    return [
        Case(*three(2, 6, d=5, d_sae=8, seed=0), [6], label="one latent, 2 × 6 positions"),
        Case(*three(7, d=4, d_sae=6, seed=3), [4, 1, 5], label="three latents, 7 positions"),
        Case(*three(2, 2, 3, d=3, d_sae=9, seed=6), [0, 7], label="two latents, 2 × 2 × 3 positions"),
    ]


# --- known mistakes --------------------------------------------------------------------------------------------

SCORE_MISTAKES = variants(circuit_score, {
    "the second copy's first token is counted, which nobody can foresee: the second copy begins at column n + 1":
        {"n + 1:": "n:"},
    "this compares the second copies alone: a gain is the second copy's mean minus the first copy's": (
        "(changed[:, n:].mean() / clean[:, n:].mean()).item()",
        "(changed[:, n + 1:].mean() / clean[:, n + 1:].mean()).item()"),
    "one model's first copy is used for both: each model's gain is measured from its own first copy":
        ({"changed[:, :n]": "clean[:, :n]"}, {"clean[:, :n]": "changed[:, :n]"}),
    "this is a difference of gains: a share is the changed model's gain divided by the clean one's":
        ("(clean_gain - changed_gain).item()", "(changed_gain - clean_gain).item()"),
    "the ratio is upside down: the changed model's gain divided by the clean one's":
        "(clean_gain / changed_gain).item()",
    "this is the share that is lost, not the one that is left": "(1 - changed_gain / clean_gain).item()",
    "this is the changed model's gain in nats: divide it by the clean one's": "changed_gain.item()",
    "these are medians: the gain is a difference of means": {"mean()": "median()"},
    "these are sums: one copy has a column more than the other, so take means": {"mean()": "sum()"},
    "the first copy's first token is left out: it counts, column 0 is part of the first copy":
        {"[:, :n]": "[:, 1:n]"},
    "the columns are off by one: there is none for BOS, column 0 is about the first copy's first token":
        {"[:, :n]": "[:, 1:n + 1]", "n + 1:": "n + 2:"},
    "these are probabilities: the gain is in nats, so leave the logarithms as they are":
        {"n = clean.shape": "clean, changed = clean.exp(), changed.exp()\nn = clean.shape"},
    "this is the mean of the sequences' ratios: take means over all sequences first, then one ratio":
        {"mean()": "mean(dim=1)", "item()": "mean().item()"},
    "clipped: a share may be below 0 (worse on the repeat than before) and above 1": tuple(
        f"(changed_gain / clean_gain).clamp({limits}).item()" for limits in ("0, 1", "min=0", "max=1")),
    "this is NaN, a mean over nothing: slice columns, `[:, …]`, and n is half of them, `clean.shape[1] // 2`":
        seen(lambda got, expected: got != got),
})


AFTER_MISTAKES = variants(after_token, {
    "this is True at the token itself: ask for the one before, `tokens[:, :-1]` for the positions 1 and later":
        "tokens == token",
    "this asks for the next token: the previous one stands at position j − 1":
        ({"[:, 1:] = tokens[:, :-1]": "[:, :-1] = tokens[:, 1:]"}, "tokens.roll(-1, dims=1) == token"),
    "`roll` wraps around: the first position has no previous token and is always False, whatever comes last":
        ("tokens.roll(1, dims=1) == token", "tokens.roll(1) == token"),
    "this looks at the row above: the previous token is in the same row, along dim=1":
        ({"[:, 1:] = tokens[:, :-1]": "[1:] = tokens[:-1]"}, "tokens.roll(1, dims=0) == token"),
    "the first position was given the id 0 for its previous token, and 0 is a token too: it must be False":
        "F.pad(tokens, (1, 0))[:, :-1] == token",
    "this is True at all later positions: only the one just after the token is asked for":
        {"tokens[:, :-1] == token": "(tokens[:, :-1] == token).cumsum(dim=1) > 0"},
    "this is inverted: it should be True where the previous token is `token`": "~before",
    "the first position is missing: keep it, with False, so that the shape is that of the tokens":
        seen(lambda got, expected: got.shape == (len(expected), expected.shape[1] - 1)),
})


WON = "(latents[here & labels][:, None] {} latents[here & ~labels]).float().mean(dim=(0, 1))"
AUC_MISTAKES = variants(same_token_auc, {
    "this is the plain AUC: positions with different present tokens are compared. Take one token at a time":
        "auc(latents, labels)",
    "positions with different present tokens are compared: one AUC for each token, among its own positions":
        """both = torch.isin(present, present[labels]) & torch.isin(present, present[~labels])
return auc(latents[both], labels[both])""",
    "every token counts alike: weigh its AUC by its number of pairs, labelled × others":
        {"if pairs:": "if pairs:\n    pairs = 1"},
    "weighed by a number of positions: weigh each token's AUC by its pairs, labelled × others": tuple(
        {"if pairs:": f"if pairs:\n    pairs = {number}"}
        for number in ("labelled + others", "labelled", "others", "min(labelled, others)")),
    "tokens with few pairs are left out: they count too, with their few pairs": tuple(
        {"if pairs:": f"if {enough}:"}
        for enough in (*(f"pairs >= {few}" for few in (2, 3, 4, 5, 6, 10)),
                       *(f"min(labelled, others) >= {few}" for few in (2, 3)))),
    "this is NaN: a token that stands at labelled positions only, or at others only, has no pair: leave it out":
        seen(lambda got, expected: got.isnan().any()),
    "this is 1 − AUC: the labelled position's latent should be the larger one": "1 - total / all_pairs",
    "this is the number of pairs that are won: divide by the number of all pairs": "total",
    "a tie counts ½: neither lost nor won":
        tuple({"auc(latents[here], labels[here])": WON.format(sign)} for sign in (">", ">=")),
})


REMOVE_MISTAKES = variants(remove_latents, {
    "this keeps only these latents and takes the others out: it is the other way round":
        "x - (latents @ W_dec - latents[..., which] @ W_dec[which])",
    "all latents are taken out: only those in `which`": "x - latents @ W_dec",
    "the parts are added a second time: subtract them": {"x - latents": "x + latents"},
    "this is what the latents add: subtract it from x": {"x - latents": "latents"},
    "this decodes the other latents, so the reconstruction's error is lost: start from x and subtract":
        {"x - latents": "latents @ W_dec - latents"},
    "the directions are subtracted as they are: multiply each by its latent's activation":
        "x - W_dec[which].sum(dim=0)",
    "this takes out all of x along these directions: only what the latents add, activation × direction":
        """for direction in W_dec[which]:
    x = x - (x @ direction)[..., None] * direction / direction.norm() ** 2
return x""",
    "only one of the latents is taken out: `which` may name several":
        ({"which]": "which[:1]]"}, {"which]": "which[-1:]]"}),
    "this is the mean of their parts: take the sum": "x - latents[..., which] @ W_dec[which] / len(which)",
    "each latent is multiplied by the sum of all directions: each has its own, `W_dec[i]`":
        "x - latents[..., which].sum(dim=-1, keepdim=True) * W_dec[which].sum(dim=0)",
})


EXERCISES = [
    Exercise(
        id="09.circuit_score",
        title="What is left of the circuit",
        reference=circuit_score,
        check=compare_cases(score_cases, SCORE_MISTAKES, keeps_inputs=True, loose_scalars=True),
        hints=(
            "Find one gain for each model, second copy minus first, in nats. Then compare the two.",
            "With `n = clean.shape[1] // 2` the first copy is `[:, :n]`, and the second without its first token "
            "`[:, n + 1:]`.",
            "`gain = x[:, n + 1:].mean() - x[:, :n].mean()` for both; then the changed gain divided by the clean one.",
        ),
        minutes=4,
        difficulty=1,
    ),
    Exercise(
        id="09.after_token",
        title="The word before was X",
        reference=after_token,
        check=compare_cases(after_cases, AFTER_MISTAKES, keeps_inputs=True),
        hints=(
            "Where is `tokens == token`? The answer is one position further on.",
            "Begin with all False, `torch.zeros_like(tokens, dtype=torch.bool)`, and fill in the positions from 1 on.",
            "`before[:, 1:] = tokens[:, :-1] == token`",
        ),
        minutes=3,
        difficulty=1,
    ),
    Exercise(
        id="09.same_token_auc",
        title="Compare like with like",
        reference=same_token_auc,
        check=compare_cases(auc_cases, AUC_MISTAKES, keeps_inputs=True),
        hints=(
            "Take one present token at a time: `here = present == token`. Among its positions `auc` does the work.",
            "A token has labelled × others pairs. With none, leave it out (`auc` would raise ValueError); else add "
            "`pairs * auc(latents[here], labels[here])` to a sum.",
            "Divide that sum by the number of all pairs: `total / pairs`, both summed over `present.unique()`.",
        ),
        minutes=8,
        difficulty=2,
    ),
    Exercise(
        id="09.remove_latents",
        title="Take one message out",
        reference=remove_latents,
        check=compare_cases(remove_cases, REMOVE_MISTAKES, keeps_inputs=True),
        hints=(
            "A latent adds its activation times its direction, a row of W_dec. Subtract that from x.",
            "`latents[..., which]` has these latents' activations, and `W_dec[which]` their directions.",
            "`x - latents[..., which] @ W_dec[which]`",
        ),
        minutes=4,
        difficulty=1,
    ),
]

IN_THE_PACKAGE = {"09.circuit_score": splicing.circuit_score, "09.same_token_auc": splicing.same_token_auc}
