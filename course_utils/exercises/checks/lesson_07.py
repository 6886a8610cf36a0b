"""Exercises of lesson 07: is a sparse autoencoder faithful?"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from course_utils.exercises.checking import (
    Case,
    CompareThenState,
    Exercise,
    Mistake,
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
from course_utils.metrics import cross_entropy_by_position, delta_cross_entropy, pooled_mean

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# --- the course's answers; `course_utils.faithfulness` has the same in shared pieces -----------------------


def patched_logits(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], hook_name: str,
    reconstruct,
) -> Float[Tensor, "batch pos vocab"]:
    """Logits with reconstruct(activation) in the activation's place, everywhere but at position 0."""

    def put(activation, hook):
        return torch.cat([activation[:, :1], reconstruct(activation[:, 1:])], dim=1)

    return model.run_with_hooks(tokens, fwd_hooks=[(hook_name, put)])


def kl_divergence(
    p_logits: Float[Tensor, "*position vocab"], q_logits: Float[Tensor, "*position vocab"]
) -> Float[Tensor, "*position"]:
    """KL(p‖q) = Σ_y p(y) ln(p(y) / q(y)) in nats at each position."""
    log_p, log_q = p_logits.log_softmax(dim=-1), q_logits.log_softmax(dim=-1)
    p = log_p.exp()
    terms = torch.where(p > 0, p * (log_p - log_q), 0.0)                # 0 ln 0 = 0
    return terms.sum(dim=-1).clamp_min(0)                               # rounding alone can make it negative


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


def explained_variance(x: Float[Tensor, "tokens d"], x_hat: Float[Tensor, "tokens d"]) -> float:
    """1 − E‖x̂ − x‖² / E‖x − E x‖², with all components and all tokens pooled."""
    error = (x_hat - x).pow(2).sum()
    variance = (x - x.mean(dim=0)).pow(2).sum()                         # as many terms: the two counts cancel
    return (1 - error / variance).item()


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
    sae, other = RandomAutoencoder(16, 1), RandomAutoencoder(24, 5)
    return [
        Case(random_model(), random_tokens(3, 6), "blocks.1.hook_resid_pre", sae,
             label="3 rows, residual stream, layer 1"),
        Case(random_model(), random_tokens(2, 7, seed=1), "blocks.0.hook_mlp_out", sae,
             label="what MLP 0 adds"),
        Case(grouped_query_model(), random_tokens(2, 5, seed=2), "blocks.0.hook_resid_pre", other,
             label="layer 0 of a grouped-query model"),
    ]


def entropy_cases() -> list[Case]:
    return [
        Case(random_logits(3, 6, 9), random_tokens(3, 6, 9), label="3 rows of 6 tokens"),
        Case(random_logits(4, 5, 7, seed=1), random_tokens(4, 5, 7, seed=1), label="4 rows of 5"),
        Case(random_logits(1, 4, 9, seed=2), random_tokens(1, 4, 9, seed=2), label="1 row"),
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


def variance_cases() -> list[Case]:
    x = drawn(40, 6) * torch.linspace(0.5, 3, 6) + torch.tensor([4.0, -2, 0, 1, 3, 0])
    good = x + 0.3 * drawn(40, 6, seed=1) + torch.tensor([0.5, 0, 0.2, 0, 0, -0.4])
    return [
        Case(x, good, label="a fair reconstruction, with a constant error in it"),
        Case(x[:25], x[:25].mean(dim=0).expand(25, 6), label="the mean, always: 0"),
        Case(x[:30], 0.1 * x[:30], label="far too short: below 0"),
    ]


# --- known mistakes -------------------------------------------------------------------------------------------


def _patched(value, names=lambda hook_name, n_layers: [hook_name]):
    """Wrong logits: value(activation, reconstruct) at each of the hooks names(hook_name, n_layers)."""

    def logits(model, tokens, hook_name, reconstruct):
        hooks = [(name, lambda activation, hook: value(activation, reconstruct))
                 for name in names(hook_name, model.cfg.n_layers)]
        return model.run_with_hooks(tokens, fwd_hooks=hooks)

    return logits


def _but_bos(activation, new):
    return torch.cat([activation[:, :1], new[:, 1:]], dim=1)


def _right_value(activation, reconstruct):
    return _but_bos(activation, reconstruct(activation))


def _first_row_only(activation, reconstruct):
    return torch.cat([_right_value(activation[:1], reconstruct), activation[1:]])


def _this_and_later(hook_name, n_layers):
    layer = int(re.search(r"\d+", hook_name)[0])
    return [hook_name.replace(f".{layer}.", f".{each}.") for each in range(layer, n_layers)]


def _without_final_norm(model, tokens, hook_name, reconstruct):
    kept = {}
    hooks = [(hook_name, lambda activation, hook: _right_value(activation, reconstruct)),
             (f"blocks.{model.cfg.n_layers - 1}.hook_resid_post", lambda x, hook: kept.update(last=x))]
    model.run_with_hooks(tokens, fwd_hooks=hooks)
    return model.unembed(kept["last"])


PATCH_MISTAKES = [
    Mistake("position 0 is patched too: BOS keeps its own activation",
            _patched(lambda old, reconstruct: reconstruct(old))),
    Mistake("the reconstruction is put in at every later layer, too: put it in once, then let the model go on",
            _patched(_right_value, _this_and_later)),
    Mistake("the reconstruction is put in at every later layer, and at BOS: put it in once, from position 1 on",
            _patched(lambda old, reconstruct: reconstruct(old), _this_and_later)),
    Mistake("the reconstruction is added to the activation: it takes its place",
            _patched(lambda old, reconstruct: _but_bos(old, old + reconstruct(old)))),
    Mistake("the error x̂ − x is put in: put in the reconstruction x̂ itself",
            _patched(lambda old, reconstruct: _but_bos(old, reconstruct(old) - old)),
            _patched(lambda old, reconstruct: _but_bos(old, old - reconstruct(old)))),
    Mistake("the error is added with the wrong sign: x̂ is x + (x̂ − x)",
            _patched(lambda old, reconstruct: _but_bos(old, 2 * old - reconstruct(old)))),
    Mistake("only the first row of the batch is patched: positions are the second axis, `[:, 1:]`",
            _patched(_first_row_only)),
    Mistake("the first row is spared instead of position 0: positions are the second axis, `[:, 1:]`",
            _patched(lambda old, reconstruct: torch.cat([old[:1], reconstruct(old[1:])]))),
    Mistake("only the last position is patched: all but position 0 should be",
            _patched(lambda old, reconstruct: torch.cat([old[:, :-1], reconstruct(old[:, -1:])], dim=1))),
    Mistake("these are the clean logits: does the hook return the new activation, and are these the logits "
            "of the run with the hook?", lambda model, tokens, hook_name, reconstruct: model(tokens)),
    Mistake("the final norm is left out: it stands between the last layer and the unembedding",
            _without_final_norm),
    Mistake("these are probabilities or their logarithms: return the logits",
            lambda *args: patched_logits(*args).softmax(-1), lambda *args: patched_logits(*args).log_softmax(-1)),
]


def _came(logits, tokens):
    """The log-probability of the token that came, at each position but the last."""
    return logits[:, :-1].log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0]


def _there(logits, tokens):
    """That of the token which is there itself, at each position."""
    return logits.log_softmax(-1).gather(2, tokens[..., None])[..., 0]


NOT_SHIFTED = "these are about the tokens that are there: the logits at position j are about token j + 1"
TOO_LATE = "shifted the wrong way: the logits at position j are about token j + 1, not j − 1"
IN_BITS = "these are bits: take the natural logarithm for nats"

ENTROPY_MISTAKES = [
    Mistake("the sign is lost: a cross-entropy is minus the mean log-probability",
            lambda logits, tokens: _came(logits, tokens).mean(0)),
    Mistake(NOT_SHIFTED, lambda logits, tokens: -_there(logits, tokens).mean(0),
            lambda logits, tokens: -_there(logits, tokens).mean(0)[:-1],
            lambda logits, tokens: -_there(logits, tokens).mean(0)[1:]),
    Mistake(TOO_LATE, lambda logits, tokens: -_came(logits.flip(1), tokens.flip(1)).mean(0).flip(0)),
    Mistake("this is a mean over positions, one number for each row: take the mean over the batch",
            lambda logits, tokens: -_came(logits, tokens).mean(1)),
    Mistake("this is one number: keep the positions, take the mean over the batch only",
            lambda logits, tokens: -_came(logits, tokens).mean()),
    Mistake("no mean is taken: the mean over the batch is still to come",
            lambda logits, tokens: -_came(logits, tokens)),
    Mistake("summed over the batch: divide by the number of rows",
            lambda logits, tokens: -_came(logits, tokens).sum(0)),
    Mistake(IN_BITS, lambda logits, tokens: -_came(logits, tokens).mean(0) / math.log(2)),
    Mistake("softmax is applied twice: cross_entropy and log_softmax take logits",
            lambda logits, tokens: -_came(logits.softmax(-1), tokens).mean(0)),
    Mistake("this is the logarithm of the mean probability: take logarithms first, then their mean",
            lambda logits, tokens: -_came(logits, tokens).exp().mean(0).log()),
    Mistake("these are logits, not log-probabilities: log_softmax is missing",
            lambda logits, tokens: -logits[:, :-1].gather(2, tokens[:, 1:, None])[..., 0].mean(0)),
]

DELTA_MISTAKES = [
    Mistake("the sign is turned: ln p − ln q, so that harm is positive",
            lambda p, q, t: _came(q, t) - _came(p, t)),
    Mistake(NOT_SHIFTED, lambda p, q, t: _there(p, t) - _there(q, t),
            lambda p, q, t: (_there(p, t) - _there(q, t))[:, :-1],
            lambda p, q, t: (_there(p, t) - _there(q, t))[:, 1:]),
    Mistake(TOO_LATE, lambda p, q, t: (_came(p.flip(1), t.flip(1)) - _came(q.flip(1), t.flip(1))).flip(1)),
    Mistake("this is about the model's favourite token: ask about the token that came",
            lambda p, q, t: _there(p, p.argmax(-1)) - _there(q, p.argmax(-1)),
            lambda p, q, t: (_there(p, p.argmax(-1)) - _there(q, p.argmax(-1)))[:, :-1]),
    Mistake("this is a mean: keep rows and positions apart",
            *(lambda p, q, t, dim=dim: (_came(p, t) - _came(q, t)).mean(dim) for dim in (None, 0, 1))),
    Mistake("all tokens of the vocabulary are here: keep the one that came (`gather`)",
            lambda p, q, t: p.log_softmax(-1) - q.log_softmax(-1),
            lambda p, q, t: (p.log_softmax(-1) - q.log_softmax(-1))[:, :-1]),
    Mistake("this is a difference of logits: log_softmax makes log-probabilities of them",
            lambda p, q, t: (p - q)[:, :-1].gather(2, t[:, 1:, None])[..., 0]),
    Mistake("this is a difference of probabilities: take their logarithms first",
            lambda p, q, t: _came(p, t).exp() - _came(q, t).exp()),
    Mistake("this is the ratio p / q: its logarithm is missing",
            lambda p, q, t: (_came(p, t) - _came(q, t)).exp()),
    Mistake("the size alone: ΔCE has both signs", lambda p, q, t: (_came(p, t) - _came(q, t)).abs()),
    Mistake("each difference is weighted by p: that belongs to the KL; here the token that came counts once",
            lambda p, q, t: _came(p, t).exp() * (_came(p, t) - _came(q, t))),
    Mistake("this is the KL: it asks about all tokens, ΔCE about the one that came",
            lambda p, q, t: kl_divergence(p, q), lambda p, q, t: kl_divergence(p, q)[:, :-1]),
    Mistake(IN_BITS, lambda p, q, t: (_came(p, t) - _came(q, t)) / math.log(2)),
]


def _summed(terms):
    """A wrong divergence: the sum over the vocabulary of terms(log p, log q)."""
    return lambda p, q: terms(p.log_softmax(-1), q.log_softmax(-1)).sum(-1)


def _at_favourite(weigh):
    def divergence(p, q):
        log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
        best, top = p.argmax(-1, keepdim=True), log_p.amax(-1)
        return (top.exp() if weigh else 1) * (top - log_q.gather(-1, best)[..., 0])
    return divergence


KL_MISTAKES = [
    Mistake("there are NaNs everywhere: `F.kl_div` takes ln q and p, or ln q and ln p with log_target=True",
            predicate=lambda got, expected: bool(got.isnan().all())),
    Mistake("this is the other direction, KL(q‖p): p gives the weights (`F.kl_div` takes ln q first, then p)",
            lambda p, q: kl_divergence(q, p)),
    Mistake("the first argument of `F.kl_div` must be log-probabilities: ln q, then p",
            _summed(lambda log_p, log_q: log_p.exp() * (log_p - log_q.exp())),
            _summed(lambda log_p, log_q: log_q.exp() * (log_q - log_p.exp()))),
    Mistake("this is a mean over the vocabulary: p gives the weights already, so take the sum",
            lambda p, q: kl_divergence(p, q) / p.shape[-1]),
    Mistake("the sign is turned: p ln(p / q), not p ln(q / p)", lambda p, q: -kl_divergence(p, q)),
    Mistake("the logarithm of p is left out: this is the cross-entropy −Σ p ln q",
            _summed(lambda log_p, log_q: -log_p.exp() * log_q)),
    Mistake("every token counts alike: weigh it by p", _summed(lambda log_p, log_q: log_p - log_q)),
    Mistake("this is about p's favourite token alone: all tokens count", _at_favourite(True), _at_favourite(False)),
    Mistake("this is a difference of logits, weighted: log_softmax makes log-probabilities of them",
            lambda p, q: (p.softmax(-1) * (p - q)).sum(-1)),
    Mistake("this is the Jensen-Shannon divergence: compare p with q itself",
            lambda p, q: _jensen_shannon(p.softmax(-1), q.softmax(-1))),
    Mistake(IN_BITS, lambda p, q: kl_divergence(p, q) / math.log(2)),
    Mistake("these are the terms: sum them over the vocabulary",
            lambda p, q: p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))),
    Mistake("this is one number: keep the positions (`F.kl_div`: reduction='none', then sum the last axis)",
            predicate=lambda got, expected: got.ndim == 0),
]


def _jensen_shannon(p, q):
    middle = ((p + q) / 2).log()
    return ((p * (p.log() - middle)).sum(-1) + (q * (q.log() - middle)).sum(-1)) / 2


SCORE_MISTAKES = [
    Mistake("this is the share that is lost: the score is 1 minus that",
            lambda clean, patched, ablated: (patched - clean) / (ablated - clean)),
    Mistake("numerator and denominator are swapped",
            lambda clean, patched, ablated: (ablated - clean) / (ablated - patched)),
    Mistake("divided by a loss: divide by what the ablation costs, L_ablated − L_clean",
            lambda clean, patched, ablated: (ablated - patched) / clean,
            lambda clean, patched, ablated: (ablated - patched) / ablated),         # also 1 − patched / ablated
    Mistake("this is a ratio of losses: the score is a ratio of two differences, from L_ablated",
            lambda clean, patched, ablated: clean / patched,
            lambda clean, patched, ablated: patched / ablated,
            lambda clean, patched, ablated: 1 - (patched - clean) / clean,
            lambda clean, patched, ablated: 1 - patched / clean,
            lambda clean, patched, ablated: 1 - (patched - clean) / ablated),
    Mistake("the sign is turned: both differences start from L_ablated",
            lambda clean, patched, ablated: (patched - ablated) / (ablated - clean)),
    Mistake("clipped: below 0 is worse than the ablation and above 1 is better than clean, and both happen",
            lambda clean, patched, ablated: min(1.0, max(0.0, (ablated - patched) / (ablated - clean)))),
    Mistake("the size of a difference is taken: its sign counts",
            lambda clean, patched, ablated: abs((ablated - patched) / (ablated - clean)),
            lambda clean, patched, ablated: (ablated - patched) / abs(ablated - clean),
            lambda clean, patched, ablated: 1 - abs(patched - clean) / abs(ablated - clean)),
    Mistake("this is NaN where the ablation helps: the score is undefined only where the cost is near 0",
            predicate=lambda got, expected: expected > 1 and math.isnan(got)),
    Mistake("this is in per cent: 1 is perfect",
            lambda clean, patched, ablated: 100 * (ablated - patched) / (ablated - clean)),
]


POOL_MISTAKES = [
    Mistake("this is the mean of the batches' means: a batch with few counted positions weighs too much",
            lambda values, masks: sum(v[m].mean() for v, m in zip(values, masks)) / len(values)),
    Mistake("this is the mean of the sequences' means: every counted position weighs the same",
            lambda values, masks: torch.cat([(v * m).sum(1) / m.sum(1) for v, m in zip(values, masks)]).mean()),
    Mistake("divided by the number of all positions: divide by the number of counted ones",
            lambda values, masks: torch.cat([(v * m).flatten() for v, m in zip(values, masks)]).mean()),
    Mistake("the masks are not used: only positions whose mask is True count",
            lambda values, masks: torch.cat([v.flatten() for v in values]).mean()),
    Mistake("the masks are the wrong way round: True means counted",
            lambda values, masks: torch.cat([v[~m] for v, m in zip(values, masks)]).mean()),
    Mistake("this is the sum: divide by the number of counted positions",
            lambda values, masks: sum(v[m].sum() for v, m in zip(values, masks))),
    Mistake("divided by the number of batches: divide by the number of counted positions",
            lambda values, masks: sum(v[m].sum() for v, m in zip(values, masks)) / len(values)),
    Mistake("this is one batch only: pool all of them",
            lambda values, masks: values[0][masks[0]].mean(), lambda values, masks: values[-1][masks[-1]].mean()),
]


def _resampled(statistic, low=0.025, high=0.975):
    """A wrong interval: quantiles of statistic(values, mask) over the sequences of each resample."""

    def interval(values, mask, draws):
        found = torch.stack([statistic(values[row], mask[row]) for row in draws])
        return found.quantile(low).item(), found.quantile(high).item()

    return interval


def _pool(values, mask):
    return values[mask].mean()


def _drawn_tokens(values, mask, draws):
    found = values[mask][draws].mean(1)
    return found.quantile(0.025).item(), found.quantile(0.975).item()


def _drawn_as_sets(values, mask, draws):
    found = torch.stack([_pool(values[row.unique()], mask[row.unique()]) for row in draws])
    return found.quantile(0.025).item(), found.quantile(0.975).item()


def _two_standard_errors(values, mask, draws):
    found = torch.stack([_pool(values[row], mask[row]) for row in draws])
    return (found.mean() - 1.96 * found.std()).item(), (found.mean() + 1.96 * found.std()).item()


def _predicted_from(spread_of):
    def interval(values, mask, draws):
        spread, mean = spread_of(values, mask), _pool(values, mask)
        return (mean - 1.96 * spread).item(), (mean + 1.96 * spread).item()
    return interval


def _sequence_means(values, mask):
    return (values * mask).sum(1) / mask.sum(1)


BOOTSTRAP_MISTAKES = [
    Mistake("tokens are drawn: `draws` names sequences, and a sequence brings all its counted tokens",
            _drawn_tokens),
    Mistake("this takes means of the sequences' means: pool the tokens, so that long sequences weigh more",
            _resampled(lambda values, mask: _sequence_means(values, mask).mean())),
    Mistake("a sequence that is drawn twice must count twice: here it counts once", _drawn_as_sets),
    Mistake("this is the mean ± 1.96 standard errors: take quantiles of the resampled means", _two_standard_errors,
            _predicted_from(lambda values, mask: values[mask].std() / mask.sum() ** 0.5),
            _predicted_from(lambda values, mask: _sequence_means(values, mask).std() / len(values) ** 0.5)),
    Mistake("these are the 5 % and 95 % quantiles: the middle 95 % leaves 2.5 % at each end",
            _resampled(_pool, 0.05, 0.95)),
    Mistake("these are the smallest and the largest resampled mean: leave out 2.5 % at each end",
            _resampled(_pool, 0.0, 1.0)),
    Mistake("low and high are swapped", _resampled(_pool, 0.975, 0.025)),
    Mistake("the mask is not used: only positions whose mask is True count",
            _resampled(lambda values, mask: values.mean())),
    Mistake("divided by the number of all positions: divide by the number of counted ones",
            _resampled(lambda values, mask: (values * mask).mean())),
    Mistake("these are sums: divide each by the number of counted positions in its resample",
            _resampled(lambda values, mask: values[mask].sum())),
    Mistake("these are the quantiles of the tokens: take those of the resampled means",
            lambda values, mask, draws: tuple(values[mask].quantile(q).item() for q in (0.025, 0.975))),
]


def _parts(x, x_hat):
    """‖x̂ − x‖² and ‖x − E x‖² of each token."""
    return (x_hat - x).pow(2).sum(1), (x - x.mean(0)).pow(2).sum(1)


def _one_minus(ratio):
    return lambda x, x_hat: (1 - ratio(x, x_hat, *_parts(x, x_hat))).item()


VARIANCE_MISTAKES = [
    Mistake("the denominator is about zero: variance is measured about the mean, x − x.mean(dim=0)",
            _one_minus(lambda x, x_hat, error, spread: error.sum() / x.pow(2).sum())),
    Mistake("this is SAEBench's denominator: take the mean activation off x, then square",
            _one_minus(lambda x, x_hat, error, spread: error.mean() / (
                x.pow(2).sum(1).mean() - x.pow(2).mean().pow(2)))),
    Mistake("this is a mean of the tokens' ratios: take both means first, then one ratio",
            _one_minus(lambda x, x_hat, error, spread: (error / spread).mean())),
    Mistake("this is a mean of the components' ratios: sum over components first, then one ratio",
            _one_minus(lambda x, x_hat, error, spread: (
                (x_hat - x).pow(2).mean(0) / x.var(0, unbiased=False)).mean())),
    Mistake("this forgives a constant error: take the mean square of x̂ − x, not its variance",
            _one_minus(lambda x, x_hat, error, spread: (x_hat - x).var(0).sum() / x.var(0).sum())),
    Mistake("this takes one mean of all entries off x: every component has its own mean, x.mean(dim=0)",
            _one_minus(lambda x, x_hat, error, spread: error.sum() / (x - x.mean()).pow(2).sum())),
    Mistake("this takes each token's own mean off: the mean is over tokens, x.mean(dim=0)",
            _one_minus(lambda x, x_hat, error, spread: error.sum() / (x - x.mean(1)[:, None]).pow(2).sum())),
    Mistake("this is the unexplained share (FVU): explained is 1 minus that",
            lambda x, x_hat: 1 - explained_variance(x, x_hat)),
    Mistake("the error is divided by the number of tokens twice: `mean` has done it already",
            _one_minus(lambda x, x_hat, error, spread: error.mean() / len(x) / spread.mean())),
    Mistake("numerator and denominator are averaged differently: treat both alike",
            _one_minus(lambda x, x_hat, error, spread: (x_hat - x).pow(2).mean() / spread.mean()),
            _one_minus(lambda x, x_hat, error, spread: error.mean() / (x - x.mean(0)).pow(2).mean()),
            _one_minus(lambda x, x_hat, error, spread: error.sum() / spread.mean())),
    Mistake("`var` divides by n − 1: for means over tokens `var(dim=0, unbiased=False)`",
            _one_minus(lambda x, x_hat, error, spread: error.mean() / x.var(0).sum())),
    Mistake("lengths instead of their squares",
            _one_minus(lambda x, x_hat, error, spread: error.sqrt().mean() / spread.sqrt().mean())),
    Mistake("x and x̂ are swapped: the variance is that of x",
            _one_minus(lambda x, x_hat, error, spread: error.sum() / (x_hat - x_hat.mean(0)).pow(2).sum())),
    Mistake("this is the variance of x̂ over that of x: compare x̂ with x, token by token",
            lambda x, x_hat: (x_hat.var(0).sum() / x.var(0).sum()).item()),
]


# --- what a comparison cannot state: NaN, exceptions, and inputs on which a usual answer breaks ---------------


RULED_OUT = ("a token that both rule out (logit −inf) must add 0, and 0 · (−inf + inf) is NaN: leave out the "
             "terms where p is 0 (`torch.where`)")


@property_check(mistakes=[FAR_APART, RULED_OUT])
def kl_extremes(attempt):
    """logits hundreds and thousands apart; a token that both rule out; one position alone"""
    p = torch.tensor([[0.0, 300.0, -200.0], [0.0, 2000.0, 1.0], [0.5, -0.2, 0.1], [0.0, 200.0, 0.0]])
    q = torch.tensor([[250.0, 0.0, 0.0], [0.0, 1.0, 3000.0], [0.1, 0.4, -1.0], [0.0, 0.0, 0.0]])
    _agrees(attempt, p, q, FAR_APART)
    p, q = random_logits(1, 3, 5)[0], random_logits(1, 3, 5, seed=1)[0]
    p[:, 2] = q[:, 2] = -torch.inf
    _agrees(attempt, p, q, RULED_OUT)
    p, q = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 0.0, 3.0])
    _agrees(attempt, p, q, "this breaks where the logits are those of one position, [vocab]: use the last axis")


def _agrees(attempt, p, q, message):
    got, expected = attempt(p.clone(), q.clone()), kl_divergence(p, q)
    same = torch.allclose(torch.as_tensor(got).to(expected), expected, atol=1e-4, rtol=1e-3)
    inputs = f"p_logits = {describe(p)}\nq_logits = {describe(q)}"
    require(same, message, input=inputs, got=got, expected=expected)


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


MULTIPLIED = "a value that is not counted spoils the mean: NaN times False is NaN. Choose with `values[mask]`"
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
        id="07.cross_entropy_by_position",
        title="Cross-entropy, by position",
        reference=cross_entropy_by_position,
        check=compare_cases(entropy_cases, ENTROPY_MISTAKES, keeps_inputs=True),
        hints=(
            "`logits.log_softmax(-1)` gives ln p of every token. Which one came after position j?",
            "That is tokens[:, 1:]; take its entries of the log-probabilities at [:, :-1] with `gather`.",
            "`-log_p[:, :-1].gather(2, tokens[:, 1:, None])[..., 0].mean(dim=0)`",
        ),
        minutes=6,
        difficulty=1,
    ),
    Exercise(
        id="07.delta_cross_entropy",
        title="ΔCE, token by token",
        reference=delta_cross_entropy,
        check=compare_cases(delta_cases, DELTA_MISTAKES, keeps_inputs=True),
        hints=(
            "Take log-probabilities of both models, and from each the entry of the token that came.",
            "`log_p[:, :-1].gather(2, tokens[:, 1:, None])[..., 0]` is ln p(t), [batch, pos-1]. No mean.",
            "The same with q_logits gives ln q(t); return ln p(t) minus ln q(t).",
        ),
        minutes=5,
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
]
