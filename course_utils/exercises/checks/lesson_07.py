"""Exercises of lesson 07: is a sparse autoencoder faithful?"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from course_utils import faithfulness, metrics
from course_utils.exercises.checking import (
    Case,
    CompareThenState,
    Exercise,
    compare_cases,
    or_raised,
    property_check,
    require,
)
from course_utils.exercises.checks.shared import (
    FAR_APART,
    drawn,
    grouped_query_model,
    random_logits,
    random_model,
    random_tokens,
    shown,
)
from course_utils.exercises.comparing import describe
from course_utils.exercises.mistakes import seen, variants
from course_utils.metrics import pooled_mean

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# --- the course's answers, where they are plainer than the package's functions -----------------------------------


def patched_logits(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], hook_name: str, reconstruct
) -> Float[Tensor, "batch pos vocab"]:
    """Logits with reconstruct(activation) in the activation's place, everywhere but at position 0."""

    def put(activation, hook):
        return torch.cat([activation[:, :1], reconstruct(activation[:, 1:])], dim=1)

    return model.run_with_hooks(tokens, fwd_hooks=[(hook_name, put)])


def delta_cross_entropy(
    p_logits: Float[Tensor, "batch pos vocab"], q_logits: Float[Tensor, "batch pos vocab"],
    tokens: Int[Tensor, "batch pos"],
) -> Float[Tensor, "batch pos-1"]:
    """ln p(t) − ln q(t) at each position but the last, for the token t that came next, in nats."""
    log_p, log_q = p_logits.log_softmax(dim=-1), q_logits.log_softmax(dim=-1)
    change = (log_p - log_q)[:, :-1]                                    # of every token
    return change.gather(2, tokens[:, 1:, None])[..., 0]                # of the actual next one


def kl_divergence(
    p_logits: Float[Tensor, "*position vocab"], q_logits: Float[Tensor, "*position vocab"]
) -> Float[Tensor, "*position"]:
    """KL(p‖q) = Σ_y p(y) ln(p(y) / q(y)) in nats at each position."""
    log_p, log_q = p_logits.log_softmax(dim=-1), q_logits.log_softmax(dim=-1)
    p = log_p.exp()
    terms = torch.where(p > 0, p * (log_p - log_q), 0.0)                # 0 ln 0 = 0
    return terms.sum(dim=-1)


def reconstruction_score(clean: float, patched: float, ablated: float) -> float:
    """(L_ablated − L_patched) / (L_ablated − L_clean); NaN where |L_ablated − L_clean| is below 1e-6 nats."""
    cost = ablated - clean
    return (ablated - patched) / cost if abs(cost) >= 1e-6 else torch.nan


def bootstrap_interval(
    values: Float[Tensor, "n pos"], mask: Bool[Tensor, "n pos"], draws: Int[Tensor, "resample n"]
) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles of the pooled mean over resampled sequences."""
    sums, counts = torch.where(mask, values, 0.0).sum(dim=1), mask.sum(dim=1)           # [n]
    means = sums[draws].sum(dim=1) / counts[draws].sum(dim=1)                           # [resample]
    return means.quantile(0.025).item(), means.quantile(0.975).item()


def paired_interval(
    first: Float[Tensor, "n pos"], second: Float[Tensor, "n pos"], mask: Bool[Tensor, "n pos"],
    draws: Int[Tensor, "resample n"],
) -> tuple[float, float, float]:
    """The pooled mean of first − second, and its 95 % interval over resampled sequences: (difference, low, high)."""
    change = first - second                                             # what makes a text hard for both cancels here
    return pooled_mean([change], [mask]), *bootstrap_interval(change, mask, draws)


def explained_variance(x: Float[Tensor, "tokens d"], x_hat: Float[Tensor, "tokens d"]) -> float:
    """1 − E‖x̂ − x‖² / E‖x − E x‖², with all components and all tokens pooled."""
    error = (x_hat - x).pow(2).sum()
    variance = (x - x.mean(dim=0)).pow(2).sum()                         # as many terms: the two counts cancel
    return (1 - error / variance).item()


def known_cases(x: Float[Tensor, "tokens d"]) -> dict[str, tuple[Float[Tensor, "tokens d"], float]]:
    """{name: (a reconstruction of x, its explained variance)}, such that every wrong formula is caught."""
    mean = x.mean(dim=0)
    shift = (x - mean).pow(2).sum(dim=1).mean().sqrt()                  # as long as x is away from its mean
    along_one_axis = torch.zeros_like(mean)
    along_one_axis[0] = shift
    return {
        "perfect": (x, 1.0),
        "the mean, always": (mean.expand_as(x), 0.0),
        "half way to the mean": ((x + mean) / 2, 0.75),                 # half of the error, a quarter of its square
        "perfect but for a shift": (x + along_one_axis, 0.0),           # its square is the variance
    }


# --- inputs ---------------------------------------------------------------------------------------------------


class RandomAutoencoder:
    """A function of each activation alone that is far from the identity."""

    def __init__(self, width: int, seed: int) -> None:
        self.W_enc, self.W_dec = drawn(width, 9, seed=seed) / 4, drawn(9, width, seed=seed + 1) / 3
        self.bias = drawn(width)

    def __call__(self, x: Tensor) -> Tensor:
        return ((x - self.bias).to(self.W_enc) @ self.W_enc).relu() @ self.W_dec + self.bias

    def __repr__(self) -> str:
        return "an autoencoder with random weights"


def patch_cases() -> list[Case]:
    sae, other, bos_twice = RandomAutoencoder(16, 1), RandomAutoencoder(24, 5), random_tokens(2, 6, seed=3)
    bos_twice[:, 3] = bos_twice[0, 0]
    return [
        Case(random_model(), random_tokens(3, 6), "blocks.1.hook_resid_pre", sae,
             label="3 rows, residual stream, layer 1"),
        Case(random_model(), random_tokens(2, 7, seed=1), "blocks.0.hook_mlp_out", sae,
             label="what MLP 0 adds"),
        Case(grouped_query_model(), random_tokens(2, 5, seed=2), "blocks.0.hook_resid_pre", other,
             label="layer 0 of a grouped-query model"),
        Case(random_model(), bos_twice, "blocks.1.hook_resid_pre", sae, label="a text with BOS in the middle, too"),
    ]


def delta_cases() -> list[Case]:
    return [
        Case(random_logits(3, 6, 9), random_logits(3, 6, 9, seed=1), random_tokens(3, 6, 9),
             label="3 rows of 6 tokens"),
        Case(random_logits(4, 5, 7, seed=2), random_logits(4, 5, 7, seed=3), random_tokens(4, 5, 7, seed=1),
             label="4 rows of 5"),
    ]


def divergence_cases() -> list[Case]:
    p, q = random_logits(2, 5, 7), random_logits(2, 5, 7, seed=1)
    q[0, 1] = p[0, 1] + 2                                               # the same distribution: KL 0
    return [
        Case(p, q, label="2 × 5 positions, one of them with equal distributions"),
        Case(random_logits(1, 4, 6, seed=2)[0], random_logits(1, 4, 6, seed=3)[0], label="4 positions"),
    ]


def score_cases() -> list[Case]:
    return [
        Case(3.0, 3.5, 11.0, label="an ordinary autoencoder"),
        Case(3.0, 12.0, 10.0, label="worse than zeros: below 0"),
        Case(3.0, 2.8, 9.0, label="better than clean: above 1"),
        Case(3.0, 3.25, 2.5, label="an ablation that helps"),
        Case(2.0, 2.004, 2.01, label="a small cost is a cost"),
        Case(10.0, 10 + 2**-18, 10 + 2**-17, label="a cost of 8e-6"),                   # exact in float32, too
        Case(2**-10, 2**-10 + 2**-20, 2**-10 + 2**-19, label="a cost of 2e-6"),
    ]


def pool_cases() -> list[Case]:
    def batches(sizes, length, seed):
        values = drawn(sum(sizes), length, seed=seed).abs() * torch.arange(1, sum(sizes) + 1)[:, None]
        ends = torch.linspace(2, length, len(values)).long()[:, None]
        mask = (torch.arange(length) < ends) & (torch.arange(length) > 0)
        return list(values.split(sizes)), list(mask.split(sizes))
    return [
        Case(*batches((3, 3, 1), 6, 0), label="three batches of different lengths"),
        Case(*batches((2, 5), 9, 1), label="two batches"),
    ]


def bootstrap_cases() -> list[Case]:
    def ragged(n, length, resamples, seed):
        values = drawn(n, length, seed=seed).exp() * torch.linspace(4, 1, n)[:, None]
        mask = torch.arange(length) < torch.linspace(2, length, n).long()[:, None]
        mask[:, 0] = False
        return values, mask, torch.randint(0, n, (resamples, n), generator=torch.Generator().manual_seed(seed))
    return [
        Case(*ragged(6, 9, 41, 0), label="6 sequences of different lengths, 41 resamples"),
        Case(*ragged(12, 5, 201, 1), label="12 sequences, 201 resamples"),
    ]


def paired_cases() -> list[Case]:
    def pairs(n, length, resamples, seed):
        hard = 5 * drawn(n, 1, seed=seed).exp() * torch.linspace(4, 1, n)[:, None]      # for both
        first, second = (hard + drawn(n, length, seed=seed + i) + i / 3 for i in (1, 2))
        mask = torch.arange(length) < torch.linspace(2, length, n).long()[:, None]
        draws = torch.randint(0, n, (resamples, n), generator=torch.Generator().manual_seed(seed))
        return first, second, mask, draws
    return [Case(*pairs(6, 9, 41, 0), label="6 sequences of different lengths, 41 resamples"),
            Case(*pairs(12, 5, 201, 4), label="12 sequences, 201 resamples")]


def variance_cases() -> list[Case]:
    x = drawn(40, 6) * torch.linspace(0.5, 3, 6) + torch.tensor([4.0, -2, 0, 1, 3, 0])
    good = x + 0.3 * drawn(40, 6, seed=1) + torch.tensor([0.5, 0, 0.2, 0, 0, -0.4])
    return [
        Case(x, good, label="a fair reconstruction, with a constant error in it"),
        Case(x[:25], x[:25].mean(dim=0).expand(25, 6), label="the mean, always: 0"),
        Case(x[:30], 0.1 * x[:30], label="far too short: below 0"),
    ]


# --- known mistakes -------------------------------------------------------------------------------------------


def this_and_later(hook_name: str, n_layers: int) -> list[str]:
    """The hook of this name in its own layer and in all later ones."""
    layer = int(hook_name.split(".")[1])
    return [hook_name.replace(f".{layer}.", f".{each}.") for each in range(layer, n_layers)]


NEW = "torch.cat([activation[:, :1], reconstruct(activation[:, 1:])], dim=1)"           # parts of the solution
X_HAT = "reconstruct(activation[:, 1:])"
HERE = "[(hook_name, put)]"
LATER_TOO = "[(name, put) for name in this_and_later(hook_name, model.cfg.n_layers)]"
PATCH_MISTAKES = variants(patched_logits, {
    "position 0 is patched too: BOS keeps its own activation": {NEW: "reconstruct(activation)"},
    "the reconstruction is put in at every later layer, too: put it in once, then let the model go on":
        {HERE: LATER_TOO},
    "the reconstruction is put in at every later layer, and at BOS: put it in once, from position 1 on":
        {NEW: "reconstruct(activation)", HERE: LATER_TOO},
    "the reconstruction is added to the activation: it must take its place": {X_HAT: f"activation[:, 1:] + {X_HAT}"},
    "the error x̂ − x is put in: put in the reconstruction x̂ itself":
        ({X_HAT: f"{X_HAT} - activation[:, 1:]"}, {X_HAT: f"activation[:, 1:] - {X_HAT}"}),
    "the error is added with the wrong sign: x̂ is x + (x̂ − x)": {X_HAT: f"2 * activation[:, 1:] - {X_HAT}"},
    "only the first row of the batch is patched: positions are the second axis, `[:, 1:]`":
        {NEW: f"torch.cat([{NEW}[:1], activation[1:]])"},
    "every token that equals BOS is spared: only position 0 is":
        {NEW: "torch.where((tokens == tokens[0, 0])[..., None], activation, reconstruct(activation))"},
    "the first row is left alone instead of position 0: positions are the second axis, `[:, 1:]`":
        {NEW: "torch.cat([activation[:1], reconstruct(activation[1:])])"},
    "only the last position is patched: all but position 0 should be": {"[:, :1]": "[:, :-1]", "[:, 1:]": "[:, -1:]"},
    "these are the clean logits: does the hook return the new activation, and are these the logits "
    "of the run with the hook?": ("model(tokens)", {"return torch.cat": "torch.cat"}),
    "the final norm is left out: it stands between the last layer and the unembedding":
        "with model.hooks(fwd_hooks=[(hook_name, put)]):\n"
        "    _, cache = model.run_with_cache(tokens)\n"
        "return model.unembed(cache[f'blocks.{model.cfg.n_layers - 1}.hook_resid_post'])",
    "these are probabilities or their logarithms: return the logits":
        (f"model.run_with_hooks(tokens, fwd_hooks={HERE}).softmax(dim=-1)",
         f"model.run_with_hooks(tokens, fwd_hooks={HERE}).log_softmax(dim=-1)"),
}, names={"this_and_later": this_and_later})


NOT_SHIFTED = "these are about the tokens that are there: the logits at position j are about token j + 1"
TOO_LATE = "shifted the wrong way: the logits at position j are about token j + 1, not j − 1"
IN_BITS = "these are bits: take the natural logarithm for nats"

UNSHIFTED = (                                           # the tokens that are there: all, or without the last or first
    {"[:, :-1]": "", "[:, 1:, None]": "[:, :, None]"}, {"[:, 1:, None]": "[:, :-1, None]"}, {"[:, :-1]": "[:, 1:]"})
BACKWARDS = {"[:, :-1]": "[:, 1:]", "[:, 1:, None]": "[:, :-1, None]"}

OF_FAVOURITE = "log_p.argmax(dim=-1, keepdim=True)"
DELTA_MISTAKES = variants(delta_cross_entropy, {
    "the sign is flipped: it is ln p − ln q, so that harm is positive": {"log_p - log_q": "log_q - log_p"},
    NOT_SHIFTED: UNSHIFTED,
    TOO_LATE: BACKWARDS,
    "this is about the model's favourite token: ask about the actual next token":
        (f"(log_p - log_q).gather(2, {OF_FAVOURITE})[..., 0]", f"change.gather(2, {OF_FAVOURITE}[:, :-1])[..., 0]"),
    "this is a mean: keep rows and positions apart":
        ({"[..., 0]": "[..., 0].mean()"}, {"[..., 0]": "[..., 0].mean(dim=0)"}, {"[..., 0]": "[..., 0].mean(dim=1)"}),
    "all tokens of the vocabulary are kept: keep only the actual next one (`gather`)": ("log_p - log_q", "change"),
    "this is a difference of logits: log_softmax makes log-probabilities of them": {".log_softmax(dim=-1)": ""},
    "this is a difference of probabilities: take their logarithms first": {".log_softmax(": ".softmax("},
    "this is the ratio p / q: its logarithm is missing": {"(log_p - log_q)": "(log_p - log_q).exp()"},
    "this is the size alone: ΔCE may have either sign": {"(log_p - log_q)": "(log_p - log_q).abs()"},
    "each difference is weighted by p: that belongs to the KL; here the actual next token counts once":
        {"(log_p - log_q)": "(log_p.exp() * (log_p - log_q))"},
    "this is the KL: it asks about all tokens, ΔCE about the actual next one":
        ("(log_p.exp() * (log_p - log_q)).sum(dim=-1)", "(log_p.exp()[:, :-1] * change).sum(dim=-1)"),
    IN_BITS: {"[..., 0]": "[..., 0] / math.log(2)"},
})


KL_MISTAKES = variants(kl_divergence, {
    "there are NaNs everywhere: `F.kl_div` takes ln q and p, or ln q and ln p with log_target=True":
        seen(lambda got, expected: bool(got.isnan().all())),
    "this is the other direction, KL(q‖p): p gives the weights (`F.kl_div` takes ln q first, then p)":
        {"log_p, log_q =": "log_q, log_p ="},
    "the first argument of `F.kl_div` must be log-probabilities: ln q, then p":
        ("(p * (log_p - log_q.exp())).sum(dim=-1)", "(log_q.exp() * (log_q - p)).sum(dim=-1)"),
    "this is a mean over the vocabulary: p gives the weights already, so take the sum": "terms.mean(dim=-1)",
    "the sign is flipped: it is p ln(p / q), not p ln(q / p)": {"log_p - log_q": "log_q - log_p"},
    "the logarithm of p is left out: this is the cross-entropy −Σ p ln q": "-(p * log_q).sum(dim=-1)",
    "every token counts alike: weigh it by p": "(log_p - log_q).sum(dim=-1)",
    "this is about p's favourite token alone: all tokens count":
        ("terms.gather(-1, p.argmax(dim=-1, keepdim=True))[..., 0]",
         "(log_p - log_q).gather(-1, p.argmax(dim=-1, keepdim=True))[..., 0]"),
    "this is a difference of logits, weighted: log_softmax makes log-probabilities of them":
        {"log_p - log_q": "p_logits - q_logits"},
    "this is the Jensen-Shannon divergence: compare p with q itself":
        "q = log_q.exp()\n"
        "middle = ((p + q) / 2).log()\n"
        "return (p * (log_p - middle) + q * (log_q - middle)).sum(dim=-1) / 2",
    IN_BITS: "terms.sum(dim=-1) / math.log(2)",
    "these are the terms: sum them over the vocabulary": "terms",
    "this is one number: keep the positions (`F.kl_div`: reduction='none', then sum the last axis)":
        seen(lambda got, expected: got.ndim == 0),
})


SCORE_MISTAKES = variants(reconstruction_score, {
    "this is the share that is lost: the score is 1 minus that": "(patched - clean) / cost",
    "numerator and denominator are swapped": "cost / (ablated - patched)",
    "divided by a loss: divide by what the ablation costs, L_ablated − L_clean":
        ("(ablated - patched) / clean", "(ablated - patched) / ablated"),               # also 1 − patched / ablated
    "this is a ratio of losses: the score is a ratio of two differences, from L_ablated":
        ("clean / patched", "patched / ablated", "1 - (patched - clean) / clean", "1 - patched / clean",
         "1 - (patched - clean) / ablated"),
    "the sign is flipped: both differences start from L_ablated": "(patched - ablated) / cost",
    "clipped: below 0 is worse than the ablation and above 1 is better than clean, and both happen":
        ("min(1.0, max(0.0, (ablated - patched) / cost))", "max(0.0, (ablated - patched) / cost)",
         "min(1.0, (ablated - patched) / cost)"),
    "NaN too early: the score is undefined only where the cost is below 1e-6 nats, whatever the losses":
        seen(lambda got, expected: math.isnan(got) and expected <= 1),
    "the size of a difference is taken: its sign counts":
        ("abs((ablated - patched) / cost)", "(ablated - patched) / abs(cost)", "1 - abs(patched - clean) / abs(cost)"),
    "this is NaN where the ablation helps: the score is undefined only where the cost is near 0":
        seen(lambda got, expected: expected > 1 and math.isnan(got)),
    "this is in per cent: 1 is perfect": "100 * (ablated - patched) / cost",
})


POOL_MISTAKES = variants(pooled_mean, {
    "this is the mean of the batches' means: a batch with few counted positions weighs too much":
        {"value[mask]": "value[mask].mean(dim=0, keepdim=True)"},
    "this is the mean of the sequences' means: every counted position weighs the same":
        {"value[mask]": "(value * mask).sum(dim=1) / mask.sum(dim=1)"},
    "divided by the number of all positions: divide by the number of counted ones":
        {"value[mask]": "(value * mask).flatten()"},
    "the masks are not used: only positions whose mask is True count": {"value[mask]": "value.flatten()"},
    "the masks are the wrong way round: True means counted": {"value[mask]": "value[~mask]"},
    "this is the sum: divide by the number of counted positions": "counted.sum().item()",
    "divided by the number of batches: divide by the number of counted positions":
        "counted.sum().item() / len(values)",
    "this is one batch only: pool all of them":
        ("values[0][masks[0]].mean().item()", "values[-1][masks[-1]].mean().item()"),
})


def two_sided(middle: str, error: str) -> str:
    """The text of middle ± 1.96 · error."""
    return f"({middle} - 1.96 * {error}).item(), ({middle} + 1.96 * {error}).item()"


MEANS = "sums[draws].sum(dim=1) / counts[draws].sum(dim=1)"             # a part of the solution
BOOTSTRAP_MISTAKES = variants(bootstrap_interval, {
    "tokens are drawn: `draws` names sequences, and a sequence brings all its counted tokens":
        {MEANS: "values[mask][draws].mean(dim=1)"},
    "this takes means of the sequences' means: pool the tokens, so that long sequences weigh more":
        {MEANS: "(sums / counts)[draws].mean(dim=1)"},
    "a sequence that is drawn twice must count twice: here it counts once":
        {MEANS: "torch.stack([sums[row.unique()].sum() / counts[row.unique()].sum() for row in draws])"},
    "this is the mean ± 1.96 standard errors: take quantiles of the resampled means": (
        two_sided("means.mean()", "means.std()"),
        two_sided("values[mask].mean()", "values[mask].std() / mask.sum() ** 0.5"),
        two_sided("values[mask].mean()", "(sums / counts).std() / len(values) ** 0.5")),
    "these are the 5 % and 95 % quantiles: the middle 95 % leaves 2.5 % at each end":
        "means.quantile(0.05).item(), means.quantile(0.95).item()",
    "`quantile` takes shares, 0.025 and 0.975; `percentile` takes 2.5 and 97.5":
        "means.quantile(0.00025).item(), means.quantile(0.00975).item()",
    "these are the smallest and the largest resampled mean: leave out 2.5 % at each end":
        "means.min().item(), means.max().item()",
    "low and high are swapped": "means.quantile(0.975).item(), means.quantile(0.025).item()",
    "the mask is not used: only positions whose mask is True count": {MEANS: "values[draws].mean(dim=(1, 2))"},
    "divided by the number of all positions: divide by the number of counted ones":
        {"counts[draws].sum(dim=1)": "mask.numel()"},
    "these are sums: divide each by the number of counted positions in its resample":
        {MEANS: "sums[draws].sum(dim=1)"},
    "these are the quantiles of the tokens: take those of the resampled means": {MEANS: "values[mask]"},
})


TWO_INTERVALS = "one, two = bootstrap_interval(first, mask, draws), bootstrap_interval(second, mask, draws)\n"
PAIRED_MISTAKES = variants(paired_interval, {
    "these are two separate intervals, one subtracted from the other: take the difference first, token by token": (
        TWO_INTERVALS + "return pooled_mean([change], [mask]), one[0] - two[1], one[1] - two[0]",
        TWO_INTERVALS + "return pooled_mean([change], [mask]), one[0] - two[0], one[1] - two[1]"),
    "the two are resampled separately: a resample draws the same sequences for both":
        """sums, others, counts = ((each * mask).sum(dim=1) for each in (first, second, torch.ones_like(first)))
means = (sums[draws].sum(dim=1) / counts[draws].sum(dim=1)
         - others[draws.flip(0)].sum(dim=1) / counts[draws.flip(0)].sum(dim=1))
return pooled_mean([change], [mask]), means.quantile(0.025).item(), means.quantile(0.975).item()""",
    "the sign is flipped: it is first − second": {"first - second": "second - first"},
    "the size of each difference is taken: its sign counts": {"first - second": "(first - second).abs()"},
    "the mask is not used: only positions whose mask is True count":
        {"[mask]": "[mask | True]", "mask, draws": "mask | True, draws"},
    "the first number is the difference over all sequences, not the middle of the interval":
        "sum(bootstrap_interval(change, mask, draws)) / 2, *bootstrap_interval(change, mask, draws)",
    "low and high are swapped": "pooled_mean([change], [mask]), *bootstrap_interval(change, mask, draws)[::-1]",
})


VARIANCE = "(x - x.mean(dim=0)).pow(2).sum()"                           # a part of the solution
VARIANCE_MISTAKES = variants(explained_variance, {
    "the denominator is measured about zero: a variance is measured about the mean, x − x.mean(dim=0)":
        {VARIANCE: "x.pow(2).sum()"},
    "this is SAEBench's denominator: subtract the mean activation from x, then square":
        {VARIANCE: "x.pow(2).sum() - len(x) * x.pow(2).mean() ** 2"},
    "this is a mean of the tokens' ratios: take both means first, then one ratio":
        {".sum()": ".sum(dim=1)", "error / variance": "(error / variance).mean()"},
    "this is a mean of the components' ratios: sum over components first, then one ratio":
        {".sum()": ".sum(dim=0)", "error / variance": "(error / variance).mean()"},
    "this forgives a constant error: take the mean square of x̂ − x, not its variance":
        "(1 - (x_hat - x).var(dim=0).sum() / x.var(dim=0).sum()).item()",
    "this subtracts one mean of all entries from x: every component has its own mean, x.mean(dim=0)":
        {"x.mean(dim=0)": "x.mean()"},
    "this subtracts each token's own mean: the mean is over tokens, x.mean(dim=0)":
        {"x.mean(dim=0)": "x.mean(dim=1, keepdim=True)"},
    "this is the unexplained share (FVU): the explained share is 1 minus that": "(error / variance).item()",
    "the error is divided by the number of tokens twice: `mean` has already done it":
        "(1 - error / len(x) / variance).item()",
    "numerator and denominator are averaged differently: treat both alike":
        ("(1 - error / x.shape[1] / variance).item()", "(1 - error * x.shape[1] / variance).item()",
         "(1 - error * len(x) / variance).item()"),
    "`var` divides by n − 1: for means over tokens `var(dim=0, unbiased=False)`":
        "(1 - error / len(x) / x.var(dim=0).sum()).item()",
    "these are lengths: take their squares": {".pow(2).sum()": ".norm(dim=1).sum()"},
    "clipped: below 0 it is worse than the mean, and that happens": "max(0.0, (1 - error / variance).item())",
    "x and x̂ are swapped: the variance is that of x": {VARIANCE: "(x_hat - x_hat.mean(dim=0)).pow(2).sum()"},
    "this is the variance of x̂ over that of x: compare x̂ with x, token by token":
        "(x_hat.var(dim=0).sum() / x.var(dim=0).sum()).item()",
})


# --- what a comparison cannot state: NaN, exceptions, and inputs on which a usual answer breaks ---------------


INFINITE = ("a token that q alone rules out (logit −inf) makes the KL infinite: leave out the terms where p is 0, and "
            "no others")
RULED_OUT = ("a token that both rule out (logit −inf) must add 0, and 0 · (−inf + inf) is NaN: leave out the "
             "terms where p is 0 (`torch.where`)")


@property_check(mistakes=[FAR_APART, RULED_OUT, INFINITE])
def kl_extremes(attempt):
    """logits hundreds and thousands apart; a token that both rule out, or q alone; one position alone"""
    p = torch.tensor([[0.0, 300.0, -200.0], [0.0, 2000.0, 1.0], [0.5, -0.2, 0.1], [0.0, 200.0, 0.0]])
    q = torch.tensor([[250.0, 0.0, 0.0], [0.0, 1.0, 3000.0], [0.1, 0.4, -1.0], [0.0, 0.0, 0.0]])
    _agrees(attempt, p, q, FAR_APART)
    p, q = random_logits(1, 3, 5)[0], random_logits(1, 3, 5, seed=1)[0]
    p[:, 2] = q[:, 2] = -torch.inf
    _agrees(attempt, p, q, RULED_OUT)
    q[1, 0] = -torch.inf
    _agrees(attempt, p, q, INFINITE)
    p, q = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 0.0, 3.0])
    _agrees(attempt, p, q, "this breaks where the logits are those of one position, [vocab]: use the last axis")


def _agrees(attempt, p, q, message):
    got, expected = attempt(p.clone(), q.clone()), kl_divergence(p, q)
    same = torch.allclose(torch.as_tensor(got).to(expected), expected, atol=1e-4, rtol=1e-3)
    inputs = f"p_logits = {describe(p)}\nq_logits = {describe(q)}"
    require(same, message, input=inputs, got=got, expected=expected)


@property_check(mistakes=[FAR_APART])
def delta_far_apart(attempt):
    """logits hundreds apart"""
    p, q = torch.tensor([[[0.0, 200.0], [0.0, 0.0]]]), torch.tensor([[[0.0, 150.0], [0.0, 0.0]]])
    got = attempt(p.clone(), q.clone(), torch.tensor([[1, 0]]))
    case = f"p_logits = {describe(p)}\nq_logits = {describe(q)}\ntokens = [[1, 0]]"
    require(torch.as_tensor(got).shape == (1, 1) and abs(float(got) + 50) < 1e-3, FAR_APART, input=case, got=got,
            expected="-50, at one position")


UNDEFINED = "where the ablation costs nothing the score is not defined: NaN, not infinity, 0, 1, None or an error"


@property_check(mistakes=[UNDEFINED], none_is_fine=True)
def score_undefined(attempt):
    """NaN where the ablation costs less than 1e-6 nats, of either sign"""
    losses = [(2.0, 2.0, 2.0), (2.0, 2.5, 2.0), (2.0, 2.125, 2.0 + 1e-8), (3.0, 3.5, 3.0 - 5e-7)]
    for clean, patched, ablated in losses:
        case = {"input": f"clean = {clean}\npatched = {patched}\nablated = {ablated}", "expected": "NaN"}
        got = or_raised(attempt, ZeroDivisionError, clean, patched, ablated)
        is_nan = got is not None and not isinstance(got, Exception) and math.isnan(got)
        require(is_nan, UNDEFINED, got=str(shown(got)), **case)


MULTIPLIED = "a value that is not counted spoils the mean: NaN times False is NaN. Select with `values[mask]`"
EMPTY_BATCH = "a batch in which nothing is counted spoils the mean: its own mean is 0 / 0. Add sums and counts"
EMPTY = "no position is counted at all: raise a ValueError that says so"


@property_check(mistakes=[MULTIPLIED, EMPTY_BATCH, EMPTY])
def pool_extremes(attempt):
    """NaN and infinity where nothing is counted; a batch, and then all, without a counted position"""
    some, none = torch.tensor([[False, True, True]]), torch.zeros(1, 3, dtype=torch.bool)
    values = torch.tensor([[torch.nan, 1.0, 2.0]]), torch.tensor([[torch.inf, 5.0, 3.0]])
    got = attempt([value.clone() for value in values], [some, some.clone()])
    case = f"values = {[value.tolist() for value in values]}\nmasks = {[some.tolist()] * 2}"
    require(abs(float(got) - 2.75) < 1e-5, MULTIPLIED, input=case, got=got, expected=2.75)
    got = attempt([torch.ones(1, 3), torch.full((1, 3), 3.0)], [none.clone(), some.clone()])
    case = "two batches; the first one's mask is False everywhere"
    require(abs(float(got) - 3) < 1e-5, EMPTY_BATCH, input=case, got=got, expected=3.0)
    got = or_raised(attempt, Exception, [torch.ones(1, 3)] * 2, [none.clone(), none.clone()])
    case = "two batches whose masks are False everywhere"
    require(isinstance(got, ValueError), EMPTY, input=case, got=shown(got), expected="ValueError")


NOT_SO = "the explained variance of one of your reconstructions is not what you say"
MISSED = "a wrong formula agrees with you on all your reconstructions: add one on which it does not"


@property_check(mistakes=[NOT_SO, MISSED])
def cases_catch(attempt):
    """explained variances as stated, on two sets of activations; and each of five wrong formulas caught"""
    for seed in (0, 3):
        x = drawn(60, 8, seed=seed) * torch.linspace(0.5, 3, 8) + 2 * drawn(8, seed=seed + 1)
        found = attempt(x.clone())
        for name, (x_hat, stated) in found.items():
            right = explained_variance(x, x_hat)
            require(abs(right - float(stated)) < 1e-3, NOT_SO, input=name, got=f"{float(stated):.4f} stated",
                    expected=f"{right:.4f}")
        for formula, wrong in WRONG_FORMULAS.items():
            caught = any(not abs(float(wrong(x, x_hat)) - float(stated)) < 1e-2 for x_hat, stated in found.values())
            require(caught, MISSED, input=f"x = {describe(x)}", got=f"not caught: {formula}",
                    expected="a difference of at least 0.01 somewhere")


WRONG_FORMULAS = {
    "about zero": lambda x, x_hat: 1 - (x_hat - x).pow(2).sum() / x.pow(2).sum(),
    "mean of the tokens' ratios":
        lambda x, x_hat: (1 - (x_hat - x).pow(2).sum(dim=1) / (x - x.mean(dim=0)).pow(2).sum(dim=1)).mean(),
    "lengths, not squares":
        lambda x, x_hat: 1 - (x_hat - x).norm(dim=1).mean() / (x - x.mean(dim=0)).norm(dim=1).mean(),
    "forgives a shift": lambda x, x_hat: 1 - (x_hat - x).var(dim=0).sum() / x.var(dim=0).sum(),
    "SAEBench's": lambda x, x_hat: 1 - (x_hat - x).pow(2).sum(dim=1).mean() / (
        x.pow(2).sum(dim=1).mean() - x.pow(2).mean() ** 2),
}


EXERCISES = [
    Exercise(
        id="07.patched_logits",
        title="The downstream pass",
        reference=patched_logits,
        check=compare_cases(patch_cases, PATCH_MISTAKES, keeps_inputs=True, atol=1e-4),
        hints=(
            "Write a hook that gives back a new activation, and run the model once with it at `hook_name`.",
            "The new activation is activation[:, :1] as it was and reconstruct(activation[:, 1:]): "
            "`torch.cat([…, …], dim=1)`.",
            "`model.run_with_hooks(tokens, fwd_hooks=[(hook_name, put)])` returns the logits, where "
            "`put(activation, hook)` returns the new activation.",
        ),
        minutes=8,
        difficulty=2,
    ),
    Exercise(
        id="07.delta_cross_entropy",
        title="ΔCE, token by token",
        reference=delta_cross_entropy,
        check=CompareThenState(compare_cases(delta_cases, DELTA_MISTAKES, keeps_inputs=True), delta_far_apart),
        hints=(
            "Take log-probabilities of both models, and from each the entry of the actual next token, tokens[:, 1:].",
            "`log_p[:, :-1].gather(2, tokens[:, 1:, None])[..., 0]` is ln p(t), [batch, pos-1]. No mean.",
            "The same with q_logits gives ln q(t); return ln p(t) minus ln q(t).",
        ),
        minutes=7,
        difficulty=1,
    ),
    Exercise(
        id="07.kl_divergence",
        title="KL",
        reference=kl_divergence,
        check=CompareThenState(compare_cases(divergence_cases, KL_MISTAKES, keeps_inputs=True), kl_extremes),
        hints=(
            "ln(p / q) is ln p − ln q. `log_softmax` gives both without dividing or taking a logarithm of 0.",
            "p is log_p.exp(). Sum p (ln p − ln q) over the vocabulary; where p is 0 the term is 0, even "
            "if both logarithms are −inf.",
            "`torch.where(p > 0, p * (log_p - log_q), 0.0).sum(dim=-1)`",
        ),
        minutes=8,
        difficulty=2,
    ),
    Exercise(
        id="07.reconstruction_score",
        title="The reconstruction score",
        reference=reconstruction_score,
        check=CompareThenState(
            compare_cases(score_cases, SCORE_MISTAKES, loose_scalars=True, rtol=1e-3), score_undefined),
        hints=(
            "First compute what the ablation costs, ablated − clean. When is it too small to divide by?",
            "If `abs(cost) < 1e-6`, return `float(\"nan\")`; a cost may be negative, too.",
            "Otherwise `(ablated - patched) / cost`, without clipping.",
        ),
        minutes=4,
        difficulty=1,
    ),
    Exercise(
        id="07.pooled_mean",
        title="One mean",
        reference=pooled_mean,
        check=CompareThenState(
            compare_cases(pool_cases, POOL_MISTAKES, keeps_inputs=True, loose_scalars=True), pool_extremes),
        hints=(
            "Collect every counted value of every batch, then take one mean.",
            "`values[mask]` keeps the values whose mask is True. If none is left, raise a ValueError.",
            "`torch.cat([v[m] for v, m in zip(values, masks)])`, then its length and its mean.",
        ),
        minutes=6,
        difficulty=1,
    ),
    Exercise(
        id="07.bootstrap_interval",
        title="How sure?",
        reference=bootstrap_interval,
        check=compare_cases(bootstrap_cases, BOOTSTRAP_MISTAKES, keeps_inputs=True, loose_scalars=True),
        hints=(
            "A sequence needs only two numbers: the sum of its counted values, and how many there are.",
            "`sums[draws]` is [resample, n], a sequence that is drawn twice in it twice. Add up each "
            "row's sums and counts.",
            "`means = sums[draws].sum(1) / counts[draws].sum(1)`, then `means.quantile(0.025)` and "
            "`means.quantile(0.975)`.",
        ),
        minutes=10,
        difficulty=2,
    ),
    Exercise(
        id="07.paired_interval",
        title="Which of two is better?",
        reference=paired_interval,
        check=compare_cases(paired_cases, PAIRED_MISTAKES, keeps_inputs=True, loose_scalars=True),
        hints=(
            "A text that is hard for one autoencoder is hard for the other. In which quantity does that cancel?",
            "In first − second, token by token. Of that you want a mean and an interval, and you have functions for "
            "both.",
            "`change = first - second`; then `pooled_mean([change], [mask])` and `bootstrap_interval(change, mask, "
            "draws)`.",
        ),
        minutes=6,
        difficulty=1,
    ),
    Exercise(
        id="07.explained_variance",
        title="Explained variance",
        reference=explained_variance,
        check=compare_cases(variance_cases, VARIANCE_MISTAKES, keeps_inputs=True, loose_scalars=True),
        hints=(
            "E x is a vector, the mean over tokens: `x.mean(dim=0)`. ‖·‖² is a sum over components.",
            "Both are means over the same tokens, so two sums over everything have the same ratio.",
            "`1 - (x_hat - x).pow(2).sum() / (x - x.mean(dim=0)).pow(2).sum()`",
        ),
        minutes=5,
        difficulty=1,
    ),
    Exercise(
        id="07.known_cases",
        title="Catch the wrong ones",
        reference=known_cases,
        check=cases_catch,
        hints=(
            "For which reconstructions do you know E‖x̂ − x‖² as a share of E‖x − E x‖² without computing it? The "
            "mean gives 1. What gives 0, and what ¼?",
            "The mean catches what is measured about zero; half way between x and the mean, what forgets the square. "
            "For the other two let every token have the *same* error, with a length that you choose.",
            "With `m = x.mean(0)`: `(m.expand_as(x), 0.0)`, `((x + m) / 2, 0.75)`, and `(x + v, 0.0)` for a vector v "
            "whose squared length is `(x - m).pow(2).sum(1).mean()`.",
        ),
        minutes=18,
        difficulty=3,
    ),
]


def _patched_by_the_package(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], hook_name: str, reconstruct
) -> Float[Tensor, "batch pos vocab"]:
    """`faithfulness.patched_logits`, which takes an autoencoder, as the exercise has it."""
    sae = SimpleNamespace(encode=lambda x: x, decode=reconstruct)
    return faithfulness.patched_logits(model, sae, tokens, hook_name=hook_name)[1]


IN_THE_PACKAGE = {
    "07.patched_logits": _patched_by_the_package,
    "07.delta_cross_entropy": metrics.delta_cross_entropy,
    "07.kl_divergence": metrics.kl_divergence,
    "07.reconstruction_score": metrics.reconstruction_score,
    "07.bootstrap_interval": metrics.bootstrap_interval,
    "07.explained_variance": metrics.explained_variance,
}
