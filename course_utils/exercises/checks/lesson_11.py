"""Exercises of lesson 11: are sparse autoencoders worth it?"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from course_utils import probes as package
from course_utils.exercises.checking import Case, CompareThenState, Exercise, compare_cases, property_check, require
from course_utils.exercises.checks.shared import drawn, grouped_query_model, random_model, random_tokens
from course_utils.exercises.mistakes import seen, variants
from course_utils.latents import auc

# --- the course's answers -----------------------------------------------------------------------------------------


def difference_of_means(x: Float[Tensor, "m d"], labels: Bool[Tensor, "m"]) -> Float[Tensor, "d"]:
    """The mean of the labelled activations minus that of the others."""
    return x[labels].mean(dim=0) - x[~labels].mean(dim=0)


def auc_by_text(
    values: Float[Tensor, "n pos"], labels: Bool[Tensor, "n pos"], known: Bool[Tensor, "n pos"]
) -> Float[Tensor, "n"]:
    """For each text: n · AUC of all texts − (n − 1) · AUC of all but this one."""
    def of(texts: Bool[Tensor, "n"]) -> Tensor:
        asked = known & texts[:, None]
        return auc(values[asked][:, None], labels[asked])[0]

    n = len(values)
    whole = of(torch.ones(n, dtype=torch.bool))
    return torch.stack([n * whole - (n - 1) * of(torch.arange(n) != left) for left in range(n)])


def worse_examples(
    labels: Bool[Tensor, "n pos"], texts: int, noise: float, rng: torch.Generator
) -> tuple[Int[Tensor, "texts"], Bool[Tensor, "texts pos"]]:
    """Which of the n texts are seen, and their labels, a share `noise` of them wrong."""
    rows = torch.randperm(len(labels), generator=rng)[:texts]
    seen_labels = labels[rows]
    wrong = torch.rand(seen_labels.shape, generator=rng) < noise
    return rows, seen_labels ^ wrong


def steered_logits(
    model: TransformerBridge, tokens: Int[Tensor, "n pos"], hook_name: str, direction: Float[Tensor, "d"],
    strength: Float[Tensor, "n"], start: int
) -> Float[Tensor, "n vocab"]:
    """The logits at the last position when the stream is moved along a direction, from position `start` on."""
    unit = direction / direction.norm()

    def hook(x, hook):
        x[:, start:] += strength[:, None, None] * unit
        return x
    return model.run_with_hooks(tokens, fwd_hooks=[(hook_name, hook)])[:, -1]


def distance_from_truth(
    true_log_probs: Float[Tensor, "n vocab"], logits: Float[Tensor, "n vocab"], leave_out: Bool[Tensor, "vocab"]
) -> Float[Tensor, "n"]:
    """KL(truth‖model) in nats, both given that the next token is none of those left out."""
    log_p = true_log_probs.masked_fill(leave_out, -torch.inf).log_softmax(dim=-1)
    log_q = logits.masked_fill(leave_out, -torch.inf).log_softmax(dim=-1)
    return torch.where(log_p > -torch.inf, log_p.exp() * (log_p - log_q), 0).sum(dim=-1)


def pure_latents(
    active: Bool[Tensor, "m d_sae"], labels: Bool[Tensor, "m"], precision: float, at_least: int
) -> Bool[Tensor, "d_sae"]:
    """True for each latent that is active at `at_least` positions or more, of which a share `precision` is labelled."""
    times = active.sum(dim=0)
    right = (active & labels[:, None]).sum(dim=0)
    return (times >= at_least) & (right >= precision * times)


# --- inputs -------------------------------------------------------------------------------------------------------


def means_cases() -> list[Case]:
    return [Case(drawn(12, 5) + 2, drawn(12, seed=1) > 0.4, label="12 positions of 5 numbers"),
            Case(drawn(7, 3, seed=2), torch.arange(7) == 4, label="7 positions, one of them labelled")]


def text_cases() -> list[Case]:
    everywhere, some = torch.ones(5, 8, dtype=torch.bool), drawn(6, 9, seed=2) > -0.8
    stretches = torch.arange(8) < torch.tensor([[3], [7], [1], [5], [1]])
    return [Case(drawn(5, 8, seed=4) + stretches.float(), stretches, everywhere, label="5 texts"),
            Case(drawn(6, 9).round(decimals=1), drawn(6, 9, seed=3) > 0.2, some, label="6 texts, not all known")]


ONE_SIDED = "wrong where a text is labelled all through, or nowhere: it counts like others"


@property_check(mistakes=(ONE_SIDED,))
def one_sided_texts(attempt):
    """a text labelled all through, and one nowhere"""
    labels = torch.arange(8) < torch.tensor([[3], [8], [0], [5], [1]])
    values, known = drawn(5, 8, seed=4) + labels.float(), torch.ones(5, 8, dtype=torch.bool)
    got, expected = attempt(values, labels, known), auc_by_text(values, labels, known)
    require(torch.allclose(torch.as_tensor(got).to(expected), expected, atol=1e-5),
            ONE_SIDED, got=got, expected=expected)


def steer_cases() -> list[Case]:
    return [
        Case(random_model(), random_tokens(3, 6), "blocks.1.hook_resid_pre", drawn(random_model().cfg.d_model) * 3,
             torch.tensor([2.0, -3.0, 5.0]), 2, label="random model, layer 1, from position 2 on"),
        Case(grouped_query_model(), random_tokens(2, 7, seed=1), "blocks.0.hook_resid_post",
             drawn(grouped_query_model().cfg.d_model, seed=1) / 4, torch.tensor([-4.0, 1.0]), 3,
             label="grouped queries, after layer 0, from position 3 on"),
    ]


def truth_cases() -> list[Case]:
    def case(n, vocab, seed, scale, label):
        truth = drawn(n, vocab, seed=seed).masked_fill(drawn(n, vocab, seed=seed + 1) > 0.5, -torch.inf)
        logits, leave_out = drawn(n, vocab, seed=seed + 2) * scale, torch.arange(vocab) % 4 == 1
        return Case(truth.log_softmax(-1), logits, leave_out, label=label)
    return [case(3, 11, 0, 3, "3 predictions of 11 tokens, some of them impossible"),
            case(5, 20, 5, 15, "5 of 20, by a model that is confidently wrong")]


def pure_cases() -> list[Case]:
    labels = torch.arange(20) < 12
    active = torch.zeros(20, 7, dtype=torch.bool)
    active[:8, 0] = True                                                # always right
    active[3:15, 1] = True                                              # right 9 times in 12
    active[:2, 2] = True                                                # right, and too rare
    active[14:, 3] = True                                               # always wrong
    active[8:13, 5] = True                                              # right 4 times in 5
    active[:, 6] = True                                                 # active everywhere; latent 4 nowhere
    return [Case(active, labels, 0.75, 4, label="20 positions, 7 latents; precision 0.75, 4 times or more"),
            Case(active, labels, 0.8, 5, label="precision 0.8, 5 times or more"),
            Case(drawn(40, 9) > 0.4, drawn(40, seed=1) > -0.3, 0.6, 12, label="40 positions, 9 latents, at random")]


# --- known mistakes -----------------------------------------------------------------------------------------------

MEANS_MISTAKES = variants(difference_of_means, {
    "the sign is wrong: the labelled minus the others": "x[~labels].mean(dim=0) - x[labels].mean(dim=0)",
    "this is minus the mean of all: subtract that of the others": "x[labels].mean(dim=0) - x.mean(dim=0)",
    "this is the mean of the labelled alone: subtract that of the others": "x[labels].mean(dim=0)",
    "these are sums: take means": "x[labels].sum(dim=0) - x[~labels].sum(dim=0)",
    "scaled to norm 1: keep the length, which says how far the means are apart":
        "F.normalize(x[labels].mean(dim=0) - x[~labels].mean(dim=0), dim=0)",
    "this is one number: take means over positions, one for each of the d": "x[labels].mean() - x[~labels].mean()",
})


EACH = "n * whole - (n - 1) * "
TEXT_MISTAKES = variants(auc_by_text, {
    "this is the AUC within each text: an AUC of all texts compares positions of different ones, too":
        "torch.stack([of(torch.arange(n) == only) if 0 < labels[only][known[only]].float().mean() < 1 "
        "else whole * 0 + 0.5 for only in range(n)])",
    "these are the AUCs without each text: n · AUC − (n − 1) · that": {EACH: ""},
    "these are only differences from the AUC of all: n · AUC − (n − 1) · AUC without the text":
        ({EACH: "whole - "}, {EACH: "(n - 1) * whole - (n - 1) * "}),
    "positions without an answer count as a no: leave them out":
        {"known & texts[:, None]": "texts[:, None].expand_as(known)", "labels[asked]": "(labels & known)[asked]"},
    "larger values should speak for the label: this is the AUC of −values": {"values[asked]": "-values[asked]"},
    "positions are counted that have no answer": {"known & texts[:, None]": "texts[:, None].expand_as(known)"},
    "this is |AUC − ½| + ½: the sign was chosen on other texts, so an AUC may lie below ½":
        {"auc(values[asked][:, None], labels[asked])[0]":
         "((auc(values[asked][:, None], labels[asked])[0] - 0.5).abs() + 0.5)"},
    "n is the number of texts, not of positions": {"n * whole - (n - 1)": "known.sum() * whole - (known.sum() - 1)"},
    "the factors are swapped: n for the AUC of all, n − 1 for that without the text":
        {EACH: "(n - 1) * whole - n * "},
    "this is one AUC for all: give one number for each text": seen(
        lambda got, expected: not isinstance(got, torch.Tensor) or got.ndim == 0),
})


STEER_MISTAKES = variants(steered_logits, {
    "the direction's own length counts here: divide by its norm": {"direction / direction.norm()": "direction"},
    "the sign is wrong: add the direction": {"+= strength": "-= strength"},
    "every position is moved: only those from `start` on": {"x[:, start:]": "x[:]"},
    "one position is moved: all from `start` on": {"x[:, start:] += strength[:, None, None]":
                                                   "x[:, start] += strength[:, None]"},
    "one position is left out: `start` itself is moved, too": {"x[:, start:]": "x[:, start + 1:]"},
    "`strength` is left out, or its sign alone counts":
        ({"strength[:, None, None] * unit": "unit"}, {"strength[:, None, None]": "strength.sign()[:, None, None]"}),
    "one strength for all texts: each has its own": ({"strength[:, None, None]": "strength[0]"},
                                                     {"strength[:, None, None]": "strength.mean()"}),
    "`strength` is a length: it is not a multiple of the stream's norm":
        {"+= strength[:, None, None]": "+= x[:, start:].norm(dim=-1, keepdim=True) * strength[:, None, None]"},
    "the stream is replaced: the direction is added to it": {"+= strength": "= strength"},
    "the share along the direction is set to `strength`: add `strength` to what is there":
        {"+= strength[:, None, None] * unit":
         "+= (strength[:, None, None] - (x[:, start:] @ unit)[..., None]) * unit"},
    "these are the logits at another position, or at all: take the last":
        ({"[:, -1]": ""}, {"[:, -1]": "[:, 0]"}, {"[:, -1]": "[:, start]"}),
    "these are log-probabilities: give logits": {"[:, -1]": "[:, -1].log_softmax(-1)"},
})


def _any(got, kind):
    return isinstance(got, torch.Tensor) and got.is_floating_point() and bool(kind(got).any())


LEFT_OUT = ".masked_fill(leave_out, -torch.inf)"
SMALL = ("1e-5", "1e-6", "1e-7", "1e-8", "1e-9", "1e-10", "1e-12")
TRUTH_MISTAKES = variants(distance_from_truth, {
    "not a number: where the truth is impossible, 0 · log 0 counts 0":
        seen(lambda got, expected: _any(got, torch.isnan)),
    "this is KL(model‖truth), or infinite: the truth comes first":
        seen(lambda got, expected: _any(got, torch.isinf)),
    "this is KL(model‖truth): weigh by the truth's probabilities, and subtract the model's from its log":
        ("torch.where(log_p > -torch.inf, log_q.exp() * (log_q - log_p), 0).sum(dim=-1)",
         *(f"(log_q.exp() * ((log_q.exp() + {small}) / (log_p.exp() + {small})).log()).sum(dim=-1)"
           for small in SMALL)),
    "a small number inside the logarithm bounds the distance, and a confidently wrong model is further away: "
    "subtract log-probabilities":
        tuple(f"(log_p.exp() * ((log_p.exp() + {small}) / (log_q.exp() + {small})).log()).sum(dim=-1)"
              for small in SMALL),
    "nothing is left out: set the left-out tokens to −inf in both, then normalise":
        ({f"true_log_probs{LEFT_OUT}": "true_log_probs", f"logits{LEFT_OUT}": "logits"},
         {f"true_log_probs{LEFT_OUT}.log_softmax(dim=-1)": f"true_log_probs{LEFT_OUT}", f"logits{LEFT_OUT}": "logits"}),
    "the truth is not normalised again without the tokens that are left out":
        {f"true_log_probs{LEFT_OUT}.log_softmax(dim=-1)": f"true_log_probs{LEFT_OUT}"},
    "the model still gives probability to the tokens that are left out": {f"logits{LEFT_OUT}": "logits"},
    "the wrong tokens are left out: `leave_out` is True where a token does not count":
        {"leave_out, -": "~leave_out, -"},
    "in bits: give nats": "torch.where(log_p > -torch.inf, log_p.exp() * (log_p - log_q), 0).sum(dim=-1) / 0.6931472",
    "this is a mean over tokens: sum over them": {"0).sum(dim=-1)": "0).mean(dim=-1)"},
    "this is the cross-entropy: subtract the truth's entropy": {"(log_p - log_q)": "(-log_q)"},
    "this is one number for all: keep one for each text": seen(
        lambda got, expected: not isinstance(got, torch.Tensor) or got.ndim == 0),
})


PURE_MISTAKES = variants(pure_latents, {
    "this is recall, the share of the labelled positions at which it is active: precision is the share of its active "
    "positions that are labelled": {"precision * times": "precision * labels.sum()"},
    "this is the share of all positions: divide by those where the latent is active":
        {"precision * times": "precision * len(labels)"},
    "rare latents are among them: a latent counts from `at_least` active positions on":
        ({"(times >= at_least) & ": ""}, {"times >= at_least": "times > 0"}),
    "`at_least` counts active positions, not labelled ones": {"times >= at_least": "right >= at_least"},
    "exactly at a limit counts, too: ≥": ({"times >= at_least": "times > at_least"},
                                          {"right >= precision": "right > precision"}),
    "this is the share of positions where it and the label agree: only where it is active":
        "(times >= at_least) & ((active == labels[:, None]).float().mean(dim=0) >= precision)",
    "these are the wrong ones: labelled positions are True": {"active & labels[:, None]": "active & ~labels[:, None]"},
})


# --- an experiment: what must be true of its result ---------------------------------------------------------------

SPOILED_SAYS = {
    "form": "two answers: the rows of the texts that are seen, int [texts], and their labels, bool [texts, pos]",
    "twice": "a text is seen twice: draw without replacement",
    "positions": "positions are drawn here: a row of `labels` is a text",
    "first": "which texts are seen does not depend on `rng`: draw them with `generator=rng`",
    "others": "without noise the labels are those of the rows: `labels[rows]`",
    "rate": "a share `noise` of the labels is wrong, and others stay as they are",
    "exactly": "always the same number of labels is wrong: each is wrong with probability `noise`, independently",
    "stretches": "whole texts, or whole columns, are wrong together: each label is wrong or right independently",
    "one way": "labels become wrong in both directions: a yes becomes a no as often as a no a yes",
    "rng": "the draws do not come from `rng`: with `generator=rng` they can be drawn again",
    "input": "it changes its input: work on a copy",
}


@property_check(mistakes=tuple(SPOILED_SAYS.values()))
def worse_examples_check(attempt):
    """3 and 30 of 40 texts, with no, a tenth, and three tenths of the labels wrong"""
    labels = drawn(40, 60) > 0.6

    def draw(texts, noise, seed):
        given = labels.clone()
        got = attempt(given, texts, noise, torch.Generator().manual_seed(seed))
        require(torch.equal(given, labels), SPOILED_SAYS["input"])
        require(isinstance(got, (tuple, list)) and len(got) == 2, SPOILED_SAYS["form"], got=got)
        rows, found = (torch.as_tensor(each).cpu() for each in got)
        require(found.shape != (texts, 40), SPOILED_SAYS["positions"], got=got)
        require(rows.shape == (texts,) and found.shape == (texts, 60) and found.dtype == torch.bool
                and not rows.is_floating_point() and rows.dtype != torch.bool, SPOILED_SAYS["form"], got=got)
        require(len(rows.unique()) == texts, SPOILED_SAYS["twice"], got=rows)
        return rows, found

    rows, found = draw(3, 0.0, 0)
    require(torch.equal(found, labels[rows]), SPOILED_SAYS["others"])
    require(len({tuple(sorted(draw(3, 0.0, seed)[0].tolist())) for seed in range(4)}) > 1, SPOILED_SAYS["first"])
    for noise in (0.1, 0.3):
        rows, found = draw(30, noise, 1)
        again = draw(30, noise, 1)
        require(torch.equal(rows, again[0]) and torch.equal(found, again[1]), SPOILED_SAYS["rng"])
        wrong = found ^ labels[rows]
        share = wrong.float().mean().item()
        by_row, by_column = wrong.float().mean(dim=1), wrong.float().mean(dim=0)
        require(max(by_row.std(), by_column.std()) < 0.14, SPOILED_SAYS["stretches"])
        of_yes, of_no = wrong[labels[rows]].float().mean().item(), wrong[~labels[rows]].float().mean().item()
        require(abs(of_yes - of_no) < 0.08, SPOILED_SAYS["one way"], got=f"{of_yes:.2f} of yes, {of_no:.2f} of no",
                expected=f"about {noise} of both")
        require(abs(share - noise) < 0.05, SPOILED_SAYS["rate"], got=f"{share:.3f}", expected=f"about {noise}")
        draws = [draw(30, noise, seed) for seed in range(1, 7)]
        counts = [int((found ^ labels[rows]).sum()) for rows, found in draws]
        require(len(set(counts)) > 1, SPOILED_SAYS["exactly"], got=f"{counts[0]} of 1800, in each of six draws")
        require(not torch.equal(wrong, draw(30, noise, 2)[1] ^ labels[draw(30, noise, 2)[0]]), SPOILED_SAYS["rng"])


EXERCISES = [
    Exercise(
        id="11.difference_of_means",
        title="The cheapest probe",
        reference=difference_of_means,
        check=compare_cases(means_cases, MEANS_MISTAKES, keeps_inputs=True),
        hints=(
            "Two means over positions, each of d numbers.",
            "`x[labels]` has the labelled positions, `x[~labels]` the others.",
            "`x[labels].mean(dim=0) - x[~labels].mean(dim=0)`",
        ),
        minutes=3,
        difficulty=1,
    ),
    Exercise(
        id="11.auc_by_text",
        title="Your experiment: one number for each text",
        reference=auc_by_text,
        check=CompareThenState(compare_cases(text_cases, TEXT_MISTAKES, keeps_inputs=True), one_sided_texts),
        hints=(
            "An AUC for a set of texts, once for all of them and once without each.",
            "For a set of texts, bool [n]: `asked = known & texts[:, None]`, then "
            "`auc(values[asked][:, None], labels[asked])[0]`.",
            "`n * whole - (n - 1) * without` for each text that is left out.",
        ),
        minutes=10,
        difficulty=2,
    ),
    Exercise(
        id="11.worse_examples",
        title="Your experiment: few examples, wrong labels",
        reference=worse_examples,
        check=worse_examples_check,
        hints=(
            "Two draws: which texts are seen, and which of their labels are wrong.",
            "`torch.randperm(n, generator=rng)[:texts]` draws texts without replacement; "
            "`torch.rand(shape, generator=rng) < noise` says which labels are wrong.",
            "`labels[rows] ^ wrong`: exclusive or flips a label where `wrong` is True.",
        ),
        minutes=6,
        difficulty=2,
    ),
    Exercise(
        id="11.steered_logits",
        title="Your experiment: steer",
        reference=steered_logits,
        check=compare_cases(steer_cases, STEER_MISTAKES, keeps_inputs=True),
        hints=(
            "A hook gets (x, hook), x of shape [n, pos, d], and returns what is to stand in its place.",
            "`x[:, start:] += strength[:, None, None] * unit`, where `unit = direction / direction.norm()`; return x.",
            "`model.run_with_hooks(tokens, fwd_hooks=[(hook_name, hook)])[:, -1]`",
        ),
        minutes=8,
        difficulty=2,
    ),
    Exercise(
        id="11.distance_from_truth",
        title="How far from what should follow?",
        reference=distance_from_truth,
        check=compare_cases(truth_cases, TRUTH_MISTAKES, keeps_inputs=True),
        hints=(
            "Leave tokens out first, of both distributions; normalise; then the KL.",
            "`masked_fill(leave_out, -torch.inf).log_softmax(dim=-1)` does the first two. Where the truth is −inf the "
            "KL has a 0: `torch.where`.",
            "`torch.where(log_p > -torch.inf, log_p.exp() * (log_p - log_q), 0).sum(dim=-1)`",
        ),
        minutes=8,
        difficulty=2,
    ),
    Exercise(
        id="11.pure_latents",
        title="Your experiment: is there a latent for it?",
        reference=pure_latents,
        check=compare_cases(pure_cases, PURE_MISTAKES, keeps_inputs=True),
        hints=(
            "For each latent two counts: active positions, and active positions that are labelled.",
            "`active.sum(dim=0)` and `(active & labels[:, None]).sum(dim=0)`.",
            "`(times >= at_least) & (right >= precision * times)`",
        ),
        minutes=5,
        difficulty=1,
    ),
]

IN_THE_PACKAGE = {"11.difference_of_means": package.difference_of_means, "11.auc_by_text": package.auc_by_text}
