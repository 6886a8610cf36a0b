"""Exercises of lesson 09: the capstone."""

from __future__ import annotations

import torch
from torch import Tensor

from course_utils.exercises.checking import Case, Exercise, Mistake, compare_cases
from course_utils.exercises.checks.shared import drawn
from course_utils.latents import auc
from course_utils.splicing import after_token, circuit_score, remove_latents, same_token_auc

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


def _gains(combine, first=slice(0, 0), second=slice(1, 0), mean=torch.mean, of=lambda x: x):
    """A wrong score: combine(clean gain, changed gain), with columns moved by these, counted from each copy's ends."""

    def score(clean, changed):
        n = clean.shape[1] // 2
        rows = [of(each) for each in (clean, changed)]
        return float(combine(*(mean(each[:, n + second.start : 2 * n + second.stop])
                               - mean(each[:, first.start : n + first.stop]) for each in rows)))

    return score


def _share(clean, changed):
    return changed / clean


def _of_halves(combine, start=1):
    """A wrong score: combine(clean first copy, clean second, changed first, changed second)."""

    def score(clean, changed):
        n = clean.shape[1] // 2
        halves = [half for each in (clean, changed) for half in (each[:, :n], each[:, n + start :])]
        return float(combine(*(half.mean() for half in halves)))

    return score


def _by_sequence(clean, changed):
    n = clean.shape[1] // 2
    gains = [each[:, n + 1 :].mean(1) - each[:, :n].mean(1) for each in (clean, changed)]
    return float((gains[1] / gains[0]).mean())


SCORE_MISTAKES = [
    Mistake("the second copy's first token is counted, which nobody can foresee: the second copy begins at column "
            "n + 1", _gains(_share, second=slice(0, 0))),
    Mistake("this compares the second copies alone: a gain is the second copy's mean minus the first copy's",
            *(_of_halves(lambda c1, c2, x1, x2: x2 / c2, start) for start in (0, 1))),
    Mistake("one model's first copy is used for both: each model's gain is measured from its own first copy",
            _of_halves(lambda c1, c2, x1, x2: (x2 - c1) / (c2 - c1)),
            _of_halves(lambda c1, c2, x1, x2: (x2 - x1) / (c2 - x1))),
    Mistake("this is a difference of gains: a share is the changed model's gain divided by the clean one's",
            _gains(lambda clean, changed: clean - changed), _gains(lambda clean, changed: changed - clean)),
    Mistake("the ratio is upside down: the changed model's gain divided by the clean one's",
            _gains(lambda clean, changed: clean / changed)),
    Mistake("this is the share that is lost, not the one that is left",
            _gains(lambda clean, changed: 1 - changed / clean)),
    Mistake("this is the changed model's gain in nats: divide it by the clean one's",
            _gains(lambda clean, changed: changed)),
    Mistake("these are medians: the gain is a difference of means", _gains(_share, mean=torch.median)),
    Mistake("these are sums: one copy has a column more than the other, so take means", _gains(_share, mean=torch.sum)),
    Mistake("the first copy's first token is left out: it counts, column 0 is part of the first copy",
            _gains(_share, first=slice(1, 0))),
    Mistake("the columns are moved by one: there is none for BOS, column 0 is about the first copy's first token",
            _gains(_share, first=slice(1, 1), second=slice(2, 0))),
    Mistake("these are probabilities: the gain is in nats, so leave the logarithms as they are",
            _gains(_share, of=torch.exp)),
    Mistake("this is the mean of the sequences' ratios: take means over all sequences first, then one ratio",
            _by_sequence),
    Mistake("clipped: a share may be below 0 (worse on the repeat than before) and above 1",
            _gains(lambda clean, changed: (changed / clean).clamp(0, 1)),
            _gains(lambda clean, changed: (changed / clean).clamp(min=0)),
            _gains(lambda clean, changed: (changed / clean).clamp(max=1))),
    Mistake("this is NaN, a mean over nothing: slice columns, `[:, …]`, and n is half of them, `clean.shape[1] // 2`",
            predicate=lambda got, expected: bool(got != got)),
]


def _shifted(by, dims=1, new=False):
    """A wrong answer: position j is compared with the position `by` earlier; what nobody stands before is `new`."""

    def answer(tokens, token):
        here = (tokens == token).roll(by, dims)
        if new is not None:
            here.narrow(dims, 0 if by > 0 else -1, 1)[:] = new
        return here

    return answer


AFTER_MISTAKES = [
    Mistake("this is True at the token itself: ask for the one before, `tokens[:, :-1]` for the positions 1 and later",
            lambda tokens, token: tokens == token),
    Mistake("this asks for the next token: the previous one stands at position j − 1",
            _shifted(-1), _shifted(-1, new=None)),
    Mistake("`roll` goes round: the first position has no previous token and is always False, whatever comes last",
            _shifted(1, new=None), lambda tokens, token: tokens.roll(1) == token),
    Mistake("this looks at the row above: the previous token is in the same row, along dim=1",
            _shifted(1, 0), _shifted(1, 0, None)),
    Mistake("the first position was given the id 0 for its previous token, and 0 is a token too: it must be False",
            lambda tokens, token: torch.nn.functional.pad(tokens, (1, 0))[:, :-1] == token),
    Mistake("this is True at all later positions: only the one just after the token is asked for",
            lambda tokens, token: _shifted(1)((tokens == token).cumsum(1) > 0, True)),
    Mistake("this is turned round: True where the previous token is `token`",
            lambda tokens, token: ~after_token(tokens, token)),
    Mistake("the first position is missing: keep it, with False, so that the shape is that of the tokens",
            predicate=lambda got, expected: got.shape == (len(expected), expected.shape[1] - 1)),
]


def _pooled(weight, own=lambda latents, labels: auc(latents, labels)):
    """A wrong AUC: the tokens' own ones, weighed by weight(labelled, others)."""

    def answer(latents, labels, present):
        total, weights = 0, 0
        for here in (present == token for token in present.unique()):
            yes, no = int((labels & here).sum()), int((~labels & here).sum())
            if yes and no and (w := weight(yes, no)):
                total, weights = total + w * own(latents[here], labels[here]), weights + w
        return total / weights

    return answer


def _mixed(latents, labels, present):
    """Only tokens with both kinds, but all their positions compared with one another."""
    both = torch.isin(present, present[labels]) & torch.isin(present, present[~labels])
    return auc(latents[both], labels[both])


def _won(tie):
    def own(latents, labels):
        yes, no = latents[labels][:, None], latents[~labels][None]
        return ((yes > no).float() + tie * (yes == no)).mean((0, 1))
    return own


AUC_MISTAKES = [
    Mistake("this is the plain AUC: positions with different present tokens are compared. Take one token at a time",
            lambda latents, labels, present: auc(latents, labels)),
    Mistake("positions with different present tokens are compared: one AUC for each token, among its own positions",
            _mixed),
    Mistake("every token counts alike: weigh its AUC by its number of pairs, labelled × others",
            _pooled(lambda yes, no: 1)),
    Mistake("weighed by a number of positions: weigh each token's AUC by its pairs, labelled × others",
            _pooled(lambda yes, no: yes + no), _pooled(lambda yes, no: yes), _pooled(lambda yes, no: no), _pooled(min)),
    Mistake("tokens with few pairs are left out: they count too, with their few pairs",
            *(_pooled(lambda yes, no, few=few: (yes * no >= few) * yes * no) for few in (2, 3, 4, 5, 6, 10)),
            *(_pooled(lambda yes, no, few=few: (min(yes, no) >= few) * yes * no) for few in (2, 3))),
    Mistake("this is NaN: a token that stands at labelled positions only, or at others only, has no pair: leave it out",
            predicate=lambda got, expected: bool(got.isnan().any())),
    Mistake("this is 1 − AUC: the labelled position's latent should be the larger one",
            lambda latents, labels, present: 1 - same_token_auc(latents, labels, present)),
    Mistake("this is the number of pairs that are won: divide by the number of all pairs",
            lambda latents, labels, present: same_token_auc(latents, labels, present) * _pairs(labels, present)),
    Mistake("a tie counts ½: neither lost nor won", *(_pooled(lambda yes, no: yes * no, _won(tie)) for tie in (0, 1))),
]


def _pairs(labels, present):
    return (present[labels][:, None] == present[~labels]).sum()


def _minus(part):
    """A wrong answer: x minus part(latents, W_dec, which)."""
    return lambda x, latents, W_dec, which: x - part(latents, W_dec, which)


def _part(latents, W_dec, which):
    return latents[..., which] @ W_dec[which]


def _projected(x, latents, W_dec, which):
    for i in which:
        unit = W_dec[i] / W_dec[i].norm()
        x = x - (x @ unit)[..., None] * unit
    return x


REMOVE_MISTAKES = [
    Mistake("this keeps only these latents and takes the others out: it is the other way round",
            lambda x, latents, W_dec, which: x - (latents @ W_dec - _part(latents, W_dec, which))),
    Mistake("all latents are taken out: only those in `which`", _minus(lambda latents, W_dec, which: latents @ W_dec)),
    Mistake("the parts are added once more: subtract them", _minus(lambda *given: -_part(*given))),
    Mistake("this is what the latents add: subtract it from x", lambda x, *given: _part(*given)),
    Mistake("this decodes the other latents, so the reconstruction's error is lost: start from x and subtract",
            lambda x, latents, W_dec, which: latents @ W_dec - _part(latents, W_dec, which)),
    Mistake("the directions are taken off as they are: multiply each by its latent's activation",
            _minus(lambda latents, W_dec, which: W_dec[which].sum(0))),
    Mistake("this takes out all of x along these directions: only what the latents add, activation × direction",
            _projected),
    Mistake("only one of the latents is taken out: `which` may name several",
            _minus(lambda latents, W_dec, which: _part(latents, W_dec, which[:1])),
            _minus(lambda latents, W_dec, which: _part(latents, W_dec, which[-1:]))),
    Mistake("this is the mean of their parts: take the sum",
            _minus(lambda latents, W_dec, which: _part(latents, W_dec, which) / len(which))),
    Mistake("each latent is multiplied by the sum of all directions: each has its own, `W_dec[i]`",
            _minus(lambda latents, W_dec, which: latents[..., which].sum(-1, keepdim=True) * W_dec[which].sum(0))),
]

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
