"""What settles the arguments about faithfulness: is ΔCE the KL, how noisy is it, which tokens decide?

p is the model's prediction, q the patched model's, P the distribution that the next tokens really come
from. All logarithms are natural.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from course_utils.faithfulness import log_softmax, reconstruction_score
from course_utils.pooling import interval


def expected_delta_ce(
    true_log_probs: Float[Tensor, "*position vocab"], p_logits: Float[Tensor, "*position vocab"],
    q_logits: Float[Tensor, "*position vocab"],
) -> Float[Tensor, "*position"]:
    """Σ_y P(y) ln(p(y) / q(y)), in nats: ΔCE averaged over the tokens that could have come.

    It equals KL(P‖q) − KL(P‖p), and KL(p‖q) if P is p.
    """
    return (true_log_probs.exp() * (log_softmax(p_logits) - log_softmax(q_logits))).sum(dim=-1)


def tokens_needed(
    p_logits: Float[Tensor, "position vocab"], q_logits: Float[Tensor, "position vocab"],
    precision: float = 0.1,
) -> float:
    """How many tokens, drawn from p, until mean ΔCE has a standard error of `precision` times the KL.

    ΔCE at a position has mean KL(p‖q) and variance Σ_y p(y) (ln(p(y) / q(y)) − KL)²; the mean of n
    tokens has the mean variance divided by n. If the KL is small: about 2 / (KL · precision²).
    """
    log_p, log_q = log_softmax(p_logits), log_softmax(q_logits)
    p, r = log_p.exp(), log_p - log_q
    kl = (p * r).sum(dim=-1)
    variance = (p * (r - kl[..., None]) ** 2).sum(dim=-1)
    return (variance.mean() / (precision * kl.mean()) ** 2).item()


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


def confidently_wrong(
    p_logits: Float[Tensor, "batch pos vocab"], tokens: Int[Tensor, "batch pos"],
    confidence: float = 0.5,
) -> Bool[Tensor, "batch pos-1"]:
    """Where the model gave its favourite token more than `confidence`, and another one came."""
    probability, favourite = p_logits[:, :-1].softmax(dim=-1).max(dim=-1)
    return (probability > confidence) & (favourite != tokens[:, 1:])


def kl_terms(
    p_logits: Float[Tensor, "*position vocab"], q_logits: Float[Tensor, "*position vocab"]
) -> Float[Tensor, "*position vocab"]:
    """p ln(p / q) − p + q: what each token adds to KL(p‖q). None is negative; their sum is the KL."""
    log_p, log_q = log_softmax(p_logits), log_softmax(q_logits)
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0) - p + log_q.exp()
