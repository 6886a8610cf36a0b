"""The formulas of faithfulness: tensors in, numbers out, no model in them.

p is the model's prediction, q the prediction of the patched model, P the distribution that the next tokens really come
from. All logarithms are natural, so every entropy and divergence is in nats; a bit is ln 2 nats.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

TOO_SMALL = 1e-6  # nats, or activations squared: a denominator below this counts as zero


# --- two predictions, position by position ----------------------------------------------------------------------------


def kl_divergence(
    p_logits: Float[Tensor, "*position vocab"], q_logits: Float[Tensor, "*position vocab"]
) -> Float[Tensor, "*position"]:
    """KL(p‖q) = Σ_y p(y) ln(p(y) / q(y)), in nats, at each position; not negative.

    Tokens that p rules out (logit −inf) count for nothing; one that q alone rules out makes it infinite.
    Raises:
        ValueError: if the shapes differ.
    """
    if p_logits.shape != q_logits.shape:
        raise ValueError(f"p_logits are {tuple(p_logits.shape)} and q_logits {tuple(q_logits.shape)}; they must agree")
    return kl_of_log_probs(log_softmax(p_logits), log_softmax(q_logits))


def log_softmax(logits: Float[Tensor, "*position vocab"]) -> Float[Tensor, "*position vocab"]:
    """Log-probabilities, in float32 at least: a bfloat16's eight bits are too few for a sum over a vocabulary."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)


def kl_of_log_probs(
    log_p: Float[Tensor, "*position vocab"], log_q: Float[Tensor, "*position vocab"],
    p: Float[Tensor, "*position vocab"] | None = None,
) -> Float[Tensor, "*position"]:
    """`kl_divergence`, of log-probabilities (and of p = exp(log_p), if it is at hand)."""
    p = log_p.exp() if p is None else p
    kl = (p * (log_p - log_q)).sum(dim=-1)                          # (a dot product of 50,000 terms would round more)
    if kl.isnan().any():                                            # p rules a token out: 0 ln 0 = 0
        kl = torch.where(p > 0, p * (log_p - log_q), 0.0).sum(dim=-1)
    return kl.clamp_min(0)                                          # rounding alone can make it negative


def js_of_log_probs(
    log_p: Float[Tensor, "*position vocab"], log_q: Float[Tensor, "*position vocab"]
) -> Float[Tensor, "*position"]:
    """Jensen-Shannon divergence in nats: ½ KL(p‖m) + ½ KL(q‖m) with m = (p + q) / 2. At most ln 2."""
    p, q = log_p.exp(), log_q.exp()
    log_m = ((p + q) / 2).log()
    return (kl_of_log_probs(log_p, log_m, p) + kl_of_log_probs(log_q, log_m, q)) / 2


def kl_terms(
    p_logits: Float[Tensor, "*position vocab"], q_logits: Float[Tensor, "*position vocab"]
) -> Float[Tensor, "*position vocab"]:
    """p ln(p / q) − p + q: what each token adds to KL(p‖q). None is negative; their sum is the KL."""
    log_p, log_q = log_softmax(p_logits), log_softmax(q_logits)
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0) - p + log_q.exp()


def delta_cross_entropy(
    p_logits: Float[Tensor, "batch pos vocab"], q_logits: Float[Tensor, "batch pos vocab"],
    tokens: Int[Tensor, "batch pos"],
) -> Float[Tensor, "batch pos-1"]:
    """ΔCE at each position but the last: ln p(t) − ln q(t) at the token t that came next, in nats.

    What the patch costs; negative where the patched model did better by that token.
    Raises:
        ValueError: if the shapes do not fit.
    """
    _check_predictions(p_logits, q_logits, tokens)
    next_tokens = tokens[:, 1:, None]                               # position j predicts the token at j + 1
    log_p = log_softmax(p_logits[:, :-1]).gather(2, next_tokens)    # [batch, pos-1, 1]
    log_q = log_softmax(q_logits[:, :-1]).gather(2, next_tokens)
    return (log_p - log_q)[..., 0]


def _check_predictions(p_logits: Tensor, q_logits: Tensor, tokens: Tensor) -> None:
    """Raise ValueError unless both logits are [batch, pos, vocab], and tokens [batch, pos]."""
    if p_logits.shape != q_logits.shape or p_logits.shape[:2] != tokens.shape:
        raise ValueError(f"p_logits {tuple(p_logits.shape)}, q_logits {tuple(q_logits.shape)} and tokens "
                         f"{tuple(tokens.shape)} do not fit: they are [batch, pos, vocab] twice and [batch, pos]")


def expected_delta_ce(
    true_log_probs: Float[Tensor, "*position vocab"], p_logits: Float[Tensor, "*position vocab"],
    q_logits: Float[Tensor, "*position vocab"],
) -> Float[Tensor, "*position"]:
    """Σ_y P(y) ln(p(y) / q(y)), in nats: ΔCE averaged over the tokens that could have come.

    It equals KL(P‖q) − KL(P‖p), and KL(p‖q) if P is p.
    """
    return (true_log_probs.exp() * (log_softmax(p_logits) - log_softmax(q_logits))).sum(dim=-1)


def cross_entropy_by_position(
    logits: Float[Tensor, "batch pos vocab"], tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "pos-1"]:
    """CE_j = −(1/N) Σ_i ln p(t_{i, j+1}), in nats: entry j is about the logits at position j."""
    log_probs = log_softmax(logits[:, :-1]).gather(2, tokens[:, 1:, None])[..., 0]      # [batch, pos-1]
    return -log_probs.mean(dim=0)


def confidently_wrong(
    p_logits: Float[Tensor, "batch pos vocab"], tokens: Int[Tensor, "batch pos"],
    confidence: float = 0.5,
) -> Bool[Tensor, "batch pos-1"]:
    """Where the model gave its favourite token a probability above `confidence`, and another one came."""
    probability, favourite = p_logits[:, :-1].softmax(dim=-1).max(dim=-1)
    return (probability > confidence) & (favourite != tokens[:, 1:])


# --- scores -----------------------------------------------------------------------------------------------------------


def reconstruction_score(
    clean: Float[Tensor, "*any"] | float, patched: Float[Tensor, "*any"] | float, ablated: Float[Tensor, "*any"] | float
) -> Float[Tensor, "*any"] | float:
    """(L_ablated − L_patched) / (L_ablated − L_clean), of mean cross-entropies: 1 for a perfect patch, 0 for one that
    is as bad as the ablation. Also called CE loss score, or loss recovered.

    NaN, "not defined", where the ablation costs less than 1e-6 nats in absolute value: there is nothing to recover.
    """
    given = (clean, patched, ablated)
    clean, patched, ablated = (torch.as_tensor(loss, dtype=torch.float64) for loss in given)
    score = _ratio(ablated - patched, ablated - clean)
    return score if any(isinstance(loss, Tensor) for loss in given) else score.item()


def explained_variance(x: Float[Tensor, "tokens d"], x_hat: Float[Tensor, "tokens d"]) -> float:
    """1 − E‖x̂ − x‖² / E‖x − E x‖², with all components and all tokens pooled.

    NaN, "not defined", where the activations do not vary.
    """
    x, x_hat = x.double(), x_hat.double()
    error = (x_hat - x).pow(2).sum()
    variation = (x - x.mean(dim=0)).pow(2).sum()
    return (1 - _ratio(error, variation)).item()


def defined_ratio(above: Float[Tensor, "row"], below: Float[Tensor, "row"]) -> Float[Tensor, "row"]:
    """above / below, of all sequences (row 0) and of each resample; NaN, not defined, in all rows if `below` may be 0.

    It may be if its 95 % interval comes within 1e-6 of 0: a quotient by noise is a number of any size.
    """
    low, high = interval(below[1:])
    if low > TOO_SMALL or high < -TOO_SMALL:
        return above / below
    return torch.full_like(below, torch.nan)


def _ratio(above: Float[Tensor, "*any"], below: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """above / below; NaN where there is nothing to divide by."""
    return torch.where(below.abs() < TOO_SMALL, torch.nan, above / below)


# --- means over a sample, and how sure they are -----------------------------------------------------------------------


def pooled_mean(values: list[Float[Tensor, "batch pos"]], masks: list[Bool[Tensor, "batch pos"]]) -> float:
    """The mean of all values whose mask is True, over all batches together.

    Raises:
        ValueError: if no position is counted.
    """
    counted = torch.cat([value[mask] for value, mask in zip(values, masks)])
    if not len(counted):
        raise ValueError("no position is counted: every mask is False")
    return counted.double().mean().item()


def mean_and_error(values: Float[Tensor, "n pos"]) -> tuple[float, float]:
    """The mean, and its standard error over sequences (not tokens: those of one text are not independent)."""
    by_sequence = values.double().mean(dim=1)
    return by_sequence.mean().item(), (by_sequence.std() / len(by_sequence) ** 0.5).item()


def wilson_interval(share: float, n: int) -> tuple[float, float, float]:
    """A share of n independent draws, and Wilson's 95 % interval around it: useful at 0 and 1, too.

    Source: Wilson (1927).
    """
    z2 = 1.96**2
    middle, spread = share + z2 / (2 * n), (z2 * share * (1 - share) / n + z2**2 / (4 * n**2)) ** 0.5
    low, high = ((middle + side * spread) / (1 + z2 / n) for side in (-1, 1))
    return share, max(0.0, min(low, share)), min(1.0, max(high, share))


def resample(n: int, resamples: int, seed: int) -> Int[Tensor, "resample n"]:
    """For each resample the n sequences that it draws, with replacement."""
    return torch.randint(0, n, (resamples, n), generator=torch.Generator().manual_seed(seed))


def interval(resampled: Float[Tensor, "resample"]) -> tuple[float, float]:
    """Where the middle 95 % of the resampled values lie; NaN (a resample without a counted position) is left out."""
    return tuple(resampled.nanquantile(resampled.new_tensor([0.025, 0.975])).tolist())


def bootstrap_interval(
    values: Float[Tensor, "n pos"], mask: Bool[Tensor, "n pos"], draws: Int[Tensor, "resample n"]
) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles of the pooled mean over resampled sequences.

    Row r of `draws` names the sequences of resample r; one that is drawn twice counts twice.
    """
    sums = torch.where(mask, values.double(), 0.0).sum(dim=1)                       # [n]: of each sequence
    counts = mask.sum(dim=1)
    return interval(sums[draws].sum(dim=1) / counts[draws].sum(dim=1))              # of [resample]


def score_interval(
    ce_clean: Float[Tensor, "n"], ce_sae: Float[Tensor, "n"], ce_zero: Float[Tensor, "n"],
    draws: Int[Tensor, "resample n"],
) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles of the reconstruction score over resampled sequences.

    Each of the three has one mean cross-entropy for each sequence. The same sequences are drawn for
    all three: they are three passes over the same text.
    """
    clean, sae, zero = (each[draws].mean(dim=1) for each in (ce_clean, ce_sae, ce_zero))
    return interval(reconstruction_score(clean, sae, zero))


def tokens_needed(
    p_logits: Float[Tensor, "position vocab"], q_logits: Float[Tensor, "position vocab"],
    precision: float = 0.1,
) -> float:
    """How many tokens, drawn from p, it takes until mean ΔCE has a standard error of `precision` times the KL.

    ΔCE at a position has mean KL(p‖q) and variance Σ_y p(y) (ln(p(y) / q(y)) − KL)²; the mean of n
    tokens has the mean variance divided by n. If the KL is small, that is about 2 / (KL · precision²).
    """
    log_p, log_q = log_softmax(p_logits), log_softmax(q_logits)
    p, r = log_p.exp(), log_p - log_q
    kl = (p * r).sum(dim=-1)                                                        # [position]
    variance = (p * (r - kl[..., None]) ** 2).sum(dim=-1)
    return (variance.mean() / (precision * kl.mean()) ** 2).item()
