"""Exercises of lesson 09: the capstone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from course_utils import splicing
from course_utils.exercises.checking import (
    Case,
    CompareThenState,
    Exercise,
    compare_cases,
    or_raised,
    property_check,
    require,
)
from course_utils.exercises.checks.shared import drawn, random_model, random_tokens, shown
from course_utils.exercises.comparing import describe
from course_utils.exercises.mistakes import seen, variants
from course_utils.latents import auc
from course_utils.metrics import kl_divergence

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# --- the course's answers; `splicing` has its own versions of two ------------------------------------------------


def circuit_score(
    clean: Float[Tensor, "batch 2*seq_len"], changed: Float[Tensor, "batch 2*seq_len"]
) -> float:
    """What share of the clean model's gain on the second copy is left in the changed one.

    The gain: the mean over the second copy, without its first token, which can only be guessed, minus the mean over
    the first copy. Both means are over all sequences together.
    """
    n = clean.shape[1] // 2
    clean_gain = clean[:, n + 1:].mean() - clean[:, :n].mean()
    changed_gain = changed[:, n + 1:].mean() - changed[:, :n].mean()
    return (changed_gain / clean_gain).item()


def mixed_activations(
    stories: Float[Tensor, "n d"], repeats: Float[Tensor, "m d"], number: int
) -> Float[Tensor, "number d"]:
    """As many rows of one kind as of the other, drawn without repetition."""
    rng, half = torch.Generator().manual_seed(0), number // 2
    drawn_of_each = [kind[torch.randperm(len(kind), generator=rng)[:size]]
                     for kind, size in ((stories, number - half), (repeats, half))]
    return torch.cat(drawn_of_each)


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
    if not all_pairs:
        raise ValueError("no token stands both at a labelled and at another position")
    return total / all_pairs


def control(
    x: Float[Tensor, "n pos d"], latent: Float[Tensor, "n pos"], direction: Float[Tensor, "d"]
) -> Float[Tensor, "n pos d"]:
    """The stream without latent · u, where u is as long as the latent's direction and at right angles to it."""
    noise = torch.randn(direction.shape, generator=torch.Generator().manual_seed(0)).to(direction)
    across = noise - (noise @ direction) / (direction @ direction) * direction
    return x - latent[..., None] * across * direction.norm() / across.norm()


def effect_of(
    model: TransformerBridge, hook_name: str, change: Callable[[Tensor], Tensor], tokens: Int[Tensor, "n pos"],
    p_logits: Float[Tensor, "n pos vocab"],
) -> tuple[Float[Tensor, "n query key"], Float[Tensor, "n pos"]]:
    """With `change(x)` for the stream x, but at BOS: the layer's attention, all heads together; KL(clean‖changed)."""
    layer, patterns = int(hook_name.split(".")[1]), []

    def put(x, hook):
        return torch.cat([x[:, :1], change(x)[:, 1:]], dim=1)               # BOS keeps its own

    def read(pattern, hook):
        patterns.append(pattern.sum(dim=1))                                 # over the heads: [n, query, key]

    q_logits = model.run_with_hooks(
        tokens, fwd_hooks=[(hook_name, put), (f"blocks.{layer}.attn.hook_pattern", read)])
    return patterns[0], kl_divergence(p_logits, q_logits)


# --- inputs ----------------------------------------------------------------------------------------------------


def score_cases() -> list[Case]:
    def copies(batch: int, n: int, left: float, seed: int) -> tuple[Tensor, Tensor]:
        """Log-probabilities [batch, 2n] of the clean model, and of one that keeps about `left` of its gain."""
        hardness = torch.linspace(1, 2.5, batch)[:, None]               # some sequences are harder than others
        first = -4 * hardness * (1 + drawn(batch, n, seed=seed).abs())
        second, others_first = -0.4 * drawn(batch, n, seed=seed + 1).abs(), first - hardness
        others_second = others_first.flip(1) + left * (6 + drawn(batch, n, seed=seed + 2))
        second[:, 0], others_second[:, 0] = -9, -11                     # that the repeat begins can only be guessed
        return torch.cat([first, second], dim=1), torch.cat([others_first, others_second], dim=1)
    return [
        Case(*copies(3, 4, 0.5, 0), label="3 sequences, two copies of 4 tokens: a part is left"),
        Case(*copies(5, 7, -0.4, 2), label="5 sequences of twice 7: worse on the repeat than before"),
        Case(*reversed(copies(2, 5, 0.6, 4)), label="2 sequences of twice 5: more than the clean model's"),
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


def effect_cases() -> list[Case]:
    direction = drawn(16, seed=5)

    def halved(x: Tensor) -> Tensor:
        return 0.5 * x

    def moved(x: Tensor) -> Tensor:
        return x - (x @ direction).relu()[..., None] * direction / 4

    def case(layer: int, change: Callable, n: int, length: int, label: str) -> Case:
        tokens = random_tokens(n, length, seed=layer)
        return Case(random_model(), f"blocks.{layer}.hook_resid_pre", change, tokens, random_model()(tokens).detach(),
                    label=label)
    return [
        case(1, halved, 3, 8, "3 texts of 8 tokens, layer 1, the stream halved"),
        case(2, moved, 2, 11, "2 of 11, layer 2, a part along one direction taken out"),
    ]


# --- known mistakes --------------------------------------------------------------------------------------------

SCORE_MISTAKES = variants(circuit_score, {
    "the second copy's first token, column n, is counted, or the whole row: the first can only be guessed, so start at "
    "column n + 1": ({"n + 1:": "n:"}, {"[:, n + 1:]": ""}),
    "the first copy has a column too many or too few: it is columns 0 to n − 1, `[:, :n]`":
        ({"[:, :n]": "[:, :n + 1]"}, {"[:, :n]": "[:, :n - 1]"}),
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


WON = "(latents[here & labels][:, None] {} latents[here & ~labels]).float().mean(dim=(0, 1))"
AUC_MISTAKES = variants(same_token_auc, {
    "this is the plain AUC: positions with different present tokens are compared. Take one token at a time":
        "auc(latents, labels)",
    "positions with different present tokens are compared: one AUC for each token, among its own positions":
        """both = torch.isin(present, present[labels]) & torch.isin(present, present[~labels])
return auc(latents[both], labels[both])""",
    "every token counts alike: weight its AUC by its number of pairs, labelled × others":
        {"if pairs:": "if pairs:\n    pairs = 1"},
    "weighted by a number of positions: weight each token's AUC by its pairs, labelled × others": tuple(
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


BOS_KEPT = "torch.cat([x[:, :1], change(x)[:, 1:]], dim=1)"
EFFECT_MISTAKES = variants(effect_of, {
    "BOS is changed, too: at position 0 the stream keeps its own value": {BOS_KEPT: "change(x)"},
    "the stream is not changed, so the KL is 0: a hook must return what is to be put in the place of its value":
        {f"return {BOS_KEPT}": "change(x)"},
    "this is the mean over the heads: take the sum": {"pattern.sum(dim=1)": "pattern.mean(dim=1)"},
    "this is one head's attention: take the sum over the layer's heads":
        ({"pattern.sum(dim=1)": "pattern[:, 0]"}, {"pattern.sum(dim=1)": "pattern.amax(dim=1)"}),
    "the heads are kept apart: take the sum over the layer's heads": {"pattern.sum(dim=1)": "pattern"},
    "these are the clean model's patterns: read them in the pass with the changed stream":
        {"patterns[0]": "model.run_with_cache(tokens)[1][f'blocks.{layer}.attn.hook_pattern'].sum(dim=1)"},
    "this is another layer's pattern: read that of the layer whose stream is changed":
        ({"blocks.{layer}.attn": "blocks.0.attn"}, {"blocks.{layer}.attn": "blocks.{model.cfg.n_layers - 1}.attn"},
         {"blocks.{layer}.attn": "blocks.{layer - 1}.attn"}),
    "the KL has its arguments reversed: KL(clean‖changed), the clean prediction first":
        {"kl_divergence(p_logits, q_logits)": "kl_divergence(q_logits, p_logits)"},
    "this is a mean over positions: keep a KL for each, [n, pos]": (
        "patterns[0], kl_divergence(p_logits, q_logits).mean(dim=1)",
        "patterns[0], kl_divergence(p_logits, q_logits).mean()"),
    "the two are swapped: (attention, KL)": "kl_divergence(p_logits, q_logits), patterns[0]",
})


# --- what a comparison cannot state ----------------------------------------------------------------------------

NO_PAIRS = "with no pairs at all there is nothing to compare: raise a ValueError, not 0 / 0"


@property_check(mistakes=[NO_PAIRS])
def refuses_no_pairs(attempt):
    """a ValueError where no token stands both at a labelled and at another position"""
    latents, labels = drawn(3, 2), torch.tensor([True, False, False])
    for present in (torch.tensor([1, 2, 3]), torch.tensor([7, 2, 2])):
        answer = or_raised(attempt, (ValueError, ZeroDivisionError), latents.clone(), labels.clone(), present)
        inputs = f"labels = {describe(labels)}\npresent = {describe(present)}"
        require(isinstance(answer, ValueError), NO_PAIRS, input=inputs, got=shown(answer), expected="a ValueError")


MIX_SAYS = {
    "number": "return `number` rows, each one activation: [number, d]",
    "own": "rows are changed or made up: take activations as they are",
    "one kind": "there are hardly any of one kind: each of the two makes at least a quarter",
    "twice": "some rows are there twice: draw without repetition, `torch.randperm(len(x))[:n]`",
    "first": "these are the first rows, from the first texts: draw them from all over, `torch.randperm`",
    "input": "it changes its input: work on a copy (`.clone()`)",
}


@property_check(mistakes=tuple(MIX_SAYS.values()))
def is_a_mixture(attempt):
    """200 of 1,000 and 600 activations, and 301 of 400 and 900: rows of both, from all over, none twice"""
    for n, m, number in ((1000, 600, 200), (400, 900, 301)):
        stories, repeats = drawn(n, 3), drawn(m, 3, seed=1)
        given = stories.clone(), repeats.clone()
        got = torch.as_tensor(attempt(stories, repeats, number)).cpu()
        inputs = {"input": f"stories {[n, 3]}, repeats {[m, 3]}, number {number}"}
        require(torch.equal(stories, given[0]) and torch.equal(repeats, given[1]), MIX_SAYS["input"], **inputs)
        require(got.shape == (number, 3), MIX_SAYS["number"], got=f"shape {list(got.shape)}", **inputs)
        distance, where = torch.cdist(got.double(), torch.cat(given).double()).min(dim=1)       # the row it comes from
        require(distance.max() < 1e-5, MIX_SAYS["own"], got=got, **inputs)
        of_stories = int((where < n).sum())
        count = {"got": f"{of_stories} of stories, {number - of_stories} of repeats"}
        require(min(of_stories, number - of_stories) >= number // 4, MIX_SAYS["one kind"], **count, **inputs)
        require(len(where.unique()) == number, MIX_SAYS["twice"], got=f"{len(where.unique())} different rows", **inputs)
        late = [(of >= 0.75 * size).float().mean() for of, size in ((where[where < n], n), (where[where >= n] - n, m))]
        require(min(late) > 0.05, MIX_SAYS["first"], **inputs)


CONTROL_SAYS = {
    "shape": "return the changed stream, as large as x: [n, pos, d]",
    "nothing": "nothing is changed: a control that does nothing cannot show what a change of this size does",
    "where": "positions are changed where the latent is not active: change the same ones as taking it out does",
    "same": "this is along the latent's own direction, so it changes what the latent says: go in another direction",
    "partly": "a part of this lies along the latent's own direction: subtract it from your vector, v − (v·w / w·w) w",
    "dtype": "the stream keeps its dtype: float32 in, float32 out",
    "length": "the change is not as large: at each position ‖change‖ must be latent · ‖direction‖",
    "input": MIX_SAYS["input"],
}


@property_check(mistakes=tuple(CONTROL_SAYS.values()))
def is_a_control(attempt):
    """the same positions, changes of the same size, in a direction at right angles to the latent's"""
    for n, length, d, seed in ((3, 9, 64, 0), (2, 20, 256, 1)):
        x, latent = 5 * drawn(n, length, d, seed=seed) + 1, 3 * drawn(n, length, seed=seed + 1).relu()
        direction = drawn(d, seed=seed + 2).flip(0)                         # nobody's noise, whatever its seed
        direction = 1.7 * direction / direction.norm()
        given = x.clone(), latent.clone(), direction.clone()
        got = torch.as_tensor(attempt(x, latent, direction))
        inputs = {"input": f"x {list(x.shape)}, latent {list(latent.shape)}, direction of length 1.7"}
        require(all(torch.equal(*each) for each in zip((x, latent, direction), given)), CONTROL_SAYS["input"], **inputs)
        require(got.shape == x.shape, CONTROL_SAYS["shape"], got=f"shape {list(got.shape)}", **inputs)
        require(got.dtype == x.dtype, CONTROL_SAYS["dtype"], got=f"{got.dtype}", **inputs)
        change = (got - x).double()
        size, wanted = change.norm(dim=-1), 1.7 * latent.double()
        require(size.max() > 1e-3, CONTROL_SAYS["nothing"], **inputs)
        require(size[latent == 0].max() < 1e-3, CONTROL_SAYS["where"], got=size[latent == 0], **inputs)
        along = torch.cosine_similarity(change, direction.double(), dim=-1)[(latent > 0.1) & (size > 0)].abs()
        cosines = f"cosines up to {along.max():.2g}"
        require(along.max() < 0.6, CONTROL_SAYS["same"], got=cosines, **inputs)
        require(((size - wanted).abs() <= 0.02 * wanted + 1e-3).all(), CONTROL_SAYS["length"],
                got=size[0], expected=wanted[0], **inputs)
        require(along.max() < 1e-3, CONTROL_SAYS["partly"], got=cosines, expected="0", **inputs)


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
        id="09.mixed_activations",
        title="What to train it on",
        reference=mixed_activations,
        check=is_a_mixture,
        hints=(
            "An autoencoder learns what it sees often. What share of repeats would you show it?",
            "`torch.randperm(len(stories))` has the numbers of all rows in a random order: take as many as you need.",
            "`torch.cat([stories[torch.randperm(len(stories))[: number - half]], repeats[torch.randperm(len(repeats))"
            "[:half]]])`, with `half = number // 2`.",
        ),
        minutes=5,
        difficulty=1,
    ),
    Exercise(
        id="09.same_token_auc",
        title="Compare like with like",
        reference=same_token_auc,
        check=CompareThenState(compare_cases(auc_cases, AUC_MISTAKES, keeps_inputs=True), refuses_no_pairs),
        hints=(
            "Take one present token at a time: `here = present == token`. Among its positions `auc` does the work.",
            "A token has labelled × others pairs. With none, leave it out (`auc` would raise ValueError); else add "
            "`pairs * auc(latents[here], labels[here])` to a sum.",
            "Divide that sum by the number of all pairs: `total / pairs`, both summed over `present.unique()`. "
            "`if not pairs: raise ValueError(\"no pairs\")` before that.",
        ),
        minutes=8,
        difficulty=2,
    ),
    Exercise(
        id="09.control",
        title="A control of your own",
        reference=control,
        check=is_a_control,
        hints=(
            "Taking the latent out changes x by `latent[..., None] * direction`. What should a control share with that "
            "change, and in what must it differ?",
            "The same positions, the same size, another direction: any vector as long as `direction` and at right "
            "angles to it. Take one at random and subtract its part along `direction`.",
            "`v = torch.randn(direction.shape, generator=torch.Generator().manual_seed(0))`, "
            "`v = v - (v @ direction) / (direction @ direction) * direction`, then "
            "`x - latent[..., None] * v * direction.norm() / v.norm()`.",
        ),
        minutes=8,
        difficulty=2,
    ),
    Exercise(
        id="09.effect_of",
        title="The ablation",
        reference=effect_of,
        check=compare_cases(effect_cases, EFFECT_MISTAKES, keeps_inputs=True, atol=1e-4),
        hints=(
            "One pass with two hooks: at `hook_name` the stream is replaced, at `blocks.{layer}.attn.hook_pattern` the "
            "pattern is noted. The layer is in the name: `hook_name.split(\".\")[1]`.",
            "A hook gets (value, hook); what it returns replaces the value. "
            "`model.run_with_hooks(tokens, fwd_hooks=[(hook_name, put), (pattern_name, read)])` gives the logits.",
            "`put` returns `torch.cat([x[:, :1], change(x)[:, 1:]], dim=1)`; `read` appends `pattern.sum(1)` to a "
            "list. Then return `patterns[0], kl_divergence(p_logits, q_logits)`.",
        ),
        minutes=12,
        difficulty=3,
    ),
]

IN_THE_PACKAGE = {"09.circuit_score": splicing.circuit_score, "09.same_token_auc": splicing.same_token_auc}
