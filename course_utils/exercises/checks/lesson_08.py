"""Exercises of lesson 08: the arguments."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from course_utils import metrics
from course_utils.baselines import covariance_root, epsilon_random, theta_random
from course_utils.exercises.checking import (
    Case,
    CompareCases,
    CompareThenState,
    Exercise,
    compare_cases,
    or_raised,
    property_check,
    require,
)
from course_utils.exercises.checks.shared import FAR_APART, drawn, random_logits, shown
from course_utils.exercises.comparing import describe, first_difference
from course_utils.exercises.mistakes import seen, variants

# --- the course's answers, where they are plainer than the package's functions -----------------------------------


def expected_delta_ce(
    true_log_probs: Float[Tensor, "*position vocab"], p_logits: Float[Tensor, "*position vocab"],
    q_logits: Float[Tensor, "*position vocab"],
) -> Float[Tensor, "*position"]:
    """Σ_y P(y) ln(p(y) / q(y)), in nats: ΔCE at each position, averaged over the tokens that could have come."""
    P = true_log_probs.exp()
    log_p, log_q = p_logits.log_softmax(dim=-1), q_logits.log_softmax(dim=-1)
    return (P * (log_p - log_q)).sum(dim=-1)


def counter_example() -> tuple[list[float], list[float], list[float]]:
    """(P, p, q): the data, the model and the patched model. The patch puts the model right: q is P."""
    return [0.7, 0.3], [0.6, 0.4], [0.7, 0.3]


def tokens_needed(
    p_logits: Float[Tensor, "position vocab"], q_logits: Float[Tensor, "position vocab"],
    precision: float = 0.1,
) -> float:
    """How many tokens, drawn from p, until mean ΔCE has a standard error of `precision` times the KL."""
    log_p, log_q = p_logits.log_softmax(dim=-1), q_logits.log_softmax(dim=-1)
    p, r = log_p.exp(), log_p - log_q                                   # ΔCE is r where the token is drawn
    kl = (p * r).sum(dim=-1)                                            # its mean and its variance at each position
    variance = (p * (r - kl[:, None]) ** 2).sum(dim=-1)
    return (variance.mean() / (precision * kl.mean()) ** 2).item()


def texts_needed(a: Float[Tensor, "n"], b: Float[Tensor, "n"], smallest: float) -> float:
    """How many texts until two standard errors of the mean paired difference are `smallest`."""
    difference = a - b                                                  # of the same text: what both share cancels
    return (2 * difference.std() / smallest).item() ** 2


def score_interval(
    ce_clean: Float[Tensor, "n"], ce_sae: Float[Tensor, "n"], ce_zero: Float[Tensor, "n"],
    draws: Int[Tensor, "resample n"],
) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles of (L_zero − L_sae) / (L_zero − L_clean) over resampled sequences."""
    clean, sae, zero = (losses[draws].mean(dim=1) for losses in (ce_clean, ce_sae, ce_zero))    # [resample]
    score = (zero - sae) / (zero - clean)
    return score.quantile(0.025).item(), score.quantile(0.975).item()


# --- inputs ----------------------------------------------------------------------------------------------------


def expected_cases() -> list[Case]:
    def three(*shape, seed):
        truth, p, q = (2 * drawn(*shape, seed=seed + i) for i in range(3))
        return truth.log_softmax(-1), p, q
    return [
        Case(*three(2, 5, 7, seed=0), label="2 × 5 positions"),
        Case(*three(6, seed=3), label="one position alone"),
        Case(*three(2, 3, 2, 4, seed=6), label="2 × 3 × 2 positions"),
    ]


def needed_cases() -> list[Case]:
    p = random_logits(1, 6, 9)[0]
    near = p + torch.linspace(0.1, 1.5, 6)[:, None] * drawn(6, 9, seed=1)
    return [
        Case(p, near, 0.3, label="6 positions, a small KL"),
        Case(random_logits(1, 8, 5, seed=2)[0], random_logits(1, 8, 5, seed=3)[0], label="8 positions, a large KL"),
        Case(p, near, precision=0.05, label="another precision"),
    ]


def interval_cases() -> list[Case]:
    def texts(n, resamples, seed):
        rng = torch.Generator().manual_seed(seed)
        clean = torch.linspace(1, 6, n)[torch.randperm(n, generator=rng)]               # some texts are hard
        cost = 2 + 3 * drawn(n, seed=seed + 1).abs()
        loss = 0.05 * drawn(n, seed=seed + 2) + 0.02
        return clean, clean + loss * cost, clean + cost, torch.randint(0, n, (resamples, n), generator=rng)
    return [
        Case(*texts(6, 41, 0), label="6 sequences, 41 resamples"),
        Case(*texts(12, 201, 5), label="12 sequences, 201 resamples"),
    ]


def texts_cases() -> list[Case]:
    def pilot(n, seed):
        hard = 0.02 * drawn(n, seed=seed).abs()                                         # shared by both
        return hard + 0.004 * drawn(n, seed=seed + 1) + 0.01, 1.4 * hard + 0.003 * drawn(n, seed=seed + 2)
    return [
        Case(*pilot(12, 0), 0.005, label="a pilot of 12 texts"),
        Case(*pilot(30, 3), smallest=0.001, label="of 30, a smaller difference"),
    ]


def noise_cases() -> list[Case]:
    def three(*shape, seed):
        n = math.prod(shape[:-1])
        x = 2 * drawn(*shape, seed=seed) + 0.5
        share = torch.linspace(-0.7, 1.2, n).reshape(*shape[:-1], 1)                    # of x in x̂: also below 0
        x_hat = share * x + 0.8 * drawn(*shape, seed=seed + 1)
        return x, x_hat, drawn(*shape, seed=seed + 2) * torch.linspace(0.3, 4, n).reshape(*shape[:-1], 1)
    return [
        Case(*three(2, 3, 5, seed=0), label="2 × 3 positions"),
        Case(*three(4, seed=3), label="one vector alone"),
        Case(*three(2, 2, 3, 4, seed=6), label="2 × 2 × 3 positions"),
    ]


def root_cases() -> list[Case]:
    return [
        Case(_covariance(4, 9).double(), label="4 × 4, float64"),
        Case(_covariance(6, 20, seed=1), label="6 × 6, float32"),
        Case(torch.tensor([[2.0, -0.5], [-0.5, 1.0]]), label="2 × 2"),
    ]


def _covariance(d: int, n: int, seed: int = 0) -> Tensor:
    x = drawn(n, d, seed=seed) * torch.linspace(0.7, 2, d)
    return x.T @ x / n


# --- known mistakes --------------------------------------------------------------------------------------------


def at_favourite(terms: str, of: str) -> str:
    """The text of these terms at the token that is most likely in `of`."""
    return f"({terms}).gather(-1, {of}.argmax(-1, keepdim=True))[..., 0]"


EXPECTED_MISTAKES = variants(expected_delta_ce, {
    "weighted by p, the model's opinion: this is KL(p‖q), the slip of the thread. The weight is P, "
    "true_log_probs.exp()": "(log_p.exp() * (log_p - log_q)).sum(dim=-1)",
    "weighted by q: the weight is P, true_log_probs.exp()": "(log_q.exp() * (log_p - log_q)).sum(dim=-1)",
    "every token counts alike: weigh it by P, true_log_probs.exp()":
        ("(log_p - log_q).sum(dim=-1)", "(log_p - log_q).mean(dim=-1)"),
    "this is a mean over the vocabulary: P gives the weights already, so take the sum": {".sum(": ".mean("},
    "the sign is flipped: it is ln p − ln q, so that harm is positive": {"log_p - log_q": "log_q - log_p"},
    "weighted by ln P: `true_log_probs` are logarithms, take `.exp()`": {"true_log_probs.exp()": "true_log_probs"},
    "this is KL(P‖q) alone: subtract KL(P‖p), the distance that the clean model already had":
        {"log_p - log_q": "true_log_probs - log_q"},
    "this is KL(P‖p), about the clean model alone: where is q?": {"log_p - log_q": "true_log_probs - log_p"},
    "this is the patched model's expected loss: subtract the clean model's": "-(P * log_q).sum(dim=-1)",
    "the distances have their arguments reversed: a loss on the data is KL(P‖·), with P first":
        "(log_q.exp() * (log_q - true_log_probs) - log_p.exp() * (log_p - true_log_probs)).sum(dim=-1)",
    "this is the rest alone, Σ (P − p) ln(p / q): weigh by P, not by P − p":
        "((P - log_p.exp()) * (log_p - log_q)).sum(dim=-1)",
    "this is a difference of logits, weighted: log_softmax makes log-probabilities of them":
        {"log_p - log_q": "p_logits - q_logits"},
    "this is a difference of probabilities: take their logarithms first":
        {"log_p - log_q": "log_p.exp() - log_q.exp()"},
    "this is about the most likely token alone: every token that could have come counts":
        (at_favourite("P * (log_p - log_q)", "P"), at_favourite("P * (log_p - log_q)", "log_p"),
         at_favourite("log_p - log_q", "P"), at_favourite("log_p - log_q", "log_p")),
    "the size of each difference is taken: the ΔCE of a token may have either sign":
        "(P * (log_p - log_q).abs()).sum(dim=-1)",
    "these are bits: take the natural logarithm for nats": "(P * (log_p - log_q)).sum(dim=-1) / math.log(2)",
    "these are the terms: sum them over the vocabulary": "P * (log_p - log_q)",
    "this is one number: keep the positions, sum over the last axis only":
        seen(lambda got, expected: got.ndim == 0 and expected.ndim > 0),
})


WEIGHTED = "(p * (r - kl[:, None]) ** 2).sum(dim=-1)"
FAVOURITE = at_favourite("r", "p")
NEEDED_MISTAKES = variants(tokens_needed, {
    "precision is not squared: the standard error falls with √n, so n = variance / (precision · KL)²":
        "(variance.mean() / (precision * kl.mean() ** 2)).item()",
    "the KL is not squared: n = variance / (precision · KL)²":
        "(variance.mean() / (precision ** 2 * kl.mean())).item()",
    "nothing is squared in the denominator: n = variance / (precision · KL)²":
        "(variance.mean() / (precision * kl.mean())).item()",
    "this has a standard deviation where the variance belongs: n = variance / (precision · KL)²": (
        "(variance.mean() ** 0.5 / (precision * kl.mean()) ** 2).item()",
        "(variance.sqrt().mean() / (precision * kl.mean()) ** 2).item()",
        "(variance.mean() ** 0.5 / (precision * kl.mean())).item()",
        "(variance.sqrt().mean() / (precision * kl.mean())).item()"),
    "this takes the mean of the standard deviations: take the mean of the variances":
        {"variance.mean()": "variance.sqrt().mean() ** 2"},
    "this is the rule of thumb: it holds for a small KL only. Compute the variance":
        "(2 / (kl.mean() * precision ** 2)).item()",
    "every token counts alike in this variance: weigh the squares by p": (
        {WEIGHTED: "((r - kl[:, None]) ** 2).mean(dim=-1)"}, {WEIGHTED: "((r - kl[:, None]) ** 2).sum(dim=-1)"},
        {WEIGHTED: "r.var(-1)"}, {WEIGHTED: "r.var(-1, unbiased=False)"}),
    "this is the mean square of ln(p / q), not its variance: subtract the KL first": {"r - kl[:, None]": "r"},
    "this subtracts one mean KL at all positions: each position's variance is about its own KL":
        {"kl[:, None]": "kl.mean()"},
    "this is the variance of the terms p ln(p / q): that of ln(p / q) is Σ p (ln(p / q) − KL)²":
        {WEIGHTED: "(p * r).var(-1)"},
    "this is how the KL differs from position to position: take the variance over tokens, at each position":
        ({WEIGHTED: "kl.var()"}, {WEIGHTED: "kl.var(unbiased=False)"}),
    "this is about the model's favourite tokens: any token may be drawn, each as often as p says":
        ({WEIGHTED: f"{FAVOURITE}.var()"}, {WEIGHTED: f"{FAVOURITE}.var()", "kl.mean()": f"{FAVOURITE}.mean()"}),
    "this is the mean of a ratio at each position: take both means first, then one ratio":
        "(variance / (precision * kl) ** 2).mean().item()",
    "this squares each KL and takes the mean: take the mean KL first, then its square":
        "(variance.mean() / (precision ** 2 * (kl ** 2).mean())).item()",
    "these are sums over positions: take means": {".mean()": ".sum()"},
    "precision is not used": ({"precision *": "1 *"}, {"precision *": "0.1 *"}),
    "precision is a share of the KL: the standard error should be precision · KL":
        "(variance.mean() / precision ** 2).item()",
    "p and q are swapped: tokens are drawn from p": lambda p, q, precision=0.1: tokens_needed(q, p, precision),
    "these are differences of logits: log_softmax makes log-probabilities of them":
        {"log_p - log_q": "p_logits - q_logits"},
    "rounded: return the number as it is":
        seen(lambda got, expected: abs(got - expected) <= 1 and float(got) == int(got)),
})


SCORE = "(zero - sae) / (zero - clean)"
EACH_SCORE = "((ce_zero - ce_sae) / (ce_zero - ce_clean))"


def two_sided(middle: str, error: str) -> str:
    """The text of middle ± 1.96 · error."""
    return f"({middle} - 1.96 * {error}).item(), ({middle} + 1.96 * {error}).item()"


INTERVAL_MISTAKES = variants(score_interval, {
    "this takes means of the sequences' scores: take the three means of a resample, then one ratio":
        {"[draws].mean(dim=1)": "[draws]", SCORE: f"({SCORE}).mean(dim=1)"},
    "these are the 5 % and 95 % quantiles: the middle 95 % leaves 2.5 % at each end":
        "score.quantile(0.05).item(), score.quantile(0.95).item()",
    "these are the smallest and the largest resampled score: leave out 2.5 % at each end":
        "score.min().item(), score.max().item()",
    "these are the 0.025 % and 0.975 % quantiles: percentiles are counted in percent, 2.5 and 97.5":
        "score.quantile(0.00025).item(), score.quantile(0.00975).item()",
    "low and high are swapped": "score.quantile(0.975).item(), score.quantile(0.025).item()",
    "this is a mean ± 1.96 standard errors: take quantiles of the resampled scores": (
        two_sided("score.mean()", "score.std()"),
        two_sided(f"{EACH_SCORE}.mean()", f"{EACH_SCORE}.std() / len(ce_zero) ** 0.5"),
        two_sided("(ce_zero - ce_sae).mean() / (ce_zero - ce_clean).mean()",
                  f"{EACH_SCORE}.std() / len(ce_zero) ** 0.5")),
    "the draws are not used: these are quantiles of the sequences' own scores": {"[draws].mean(dim=1)": ""},
    "this is 1 − score, ΔCE / (L_zero − L_clean): the numerator is L_zero − L_sae": {"(zero - sae)": "(sae - clean)"},
    "numerator and denominator are swapped": {SCORE: "(zero - clean) / (zero - sae)"},
    "this is not the score but another quantity: (L_zero − L_sae) / (L_zero − L_clean)":
        ({SCORE: "sae - clean"}, {SCORE: "sae"}, {SCORE: "clean / sae"}, {SCORE: "(zero - sae) / zero"},
         {SCORE: "zero - sae"}),
    "one of the two differences is over all sequences: take both from the resample":
        ({"(zero - clean)": "(ce_zero - ce_clean).mean()"}, {"(zero - sae)": "(ce_zero - ce_sae).mean()"}),
    "a sequence that is drawn twice must count twice: here it counts once":
        {"losses[draws].mean(dim=1)": "torch.stack([losses[row.unique()].mean() for row in draws])"},
    "a score may be above 1, when the patch helps: do not clip it": {SCORE: f"({SCORE}).clamp(0, 1)"},
    "this interval is far too wide: does one row of `draws` serve all three losses?":
        seen(lambda got, expected: float(got[1]) - float(got[0]) > 3 * (expected[1] - expected[0])),
})


TEXTS_MISTAKES = variants(texts_needed, {
    "the two are taken for independent samples: they are about the same texts, so take the spread of a − b": (
        "(4 * (a.var() + b.var()) / smallest ** 2).item()", "(2 * (a.std() + b.std()) / smallest).item() ** 2",
        "(2 * (a.var() + b.var()).sqrt() / smallest).item()"),
    "this is the difference of two spreads: take the spread of the differences": (
        "(2 * (a.std() - b.std()) / smallest).item() ** 2", "(4 * (a.var() - b.var()) / smallest ** 2).item()"),
    "this is about one of the two alone: take the spread of a − b":
        ({"a - b": "a"}, {"a - b": "b"}),
    "this has the standard error of the pilot: the spread of single texts is needed, `(a - b).std()`":
        {"difference.std()": "difference.std() / len(a) ** 0.5"},
    "two standard errors must be `smallest`, not one: n = (2 · spread / smallest)²":
        {"2 * difference": "difference"},
    "only a part is squared: the standard error falls with √n, so n = (2 · spread / smallest)²": (
        "(2 * difference.std() / smallest).item()", "(2 * difference.std() ** 2 / smallest).item()",
        "(2 * difference.std() / smallest ** 2).item()", "(2 * difference.var() / smallest ** 2).item()"),
    "the variance stands where the standard deviation belongs: n = (2 · spread / smallest)²":
        {"difference.std()": "difference.var()"},
    "this divides by n in the variance: a sample's spread divides by n − 1, as `std()` does":
        {"difference.std()": "difference.std(unbiased=False)"},
    "this divides by the difference that the pilot happened to find: plan for `smallest`":
        {"smallest)": "difference.mean())"},
    "rounded: return the number as it is":
        seen(lambda got, expected: abs(got - expected) <= 1 and float(got) == int(got)),
})


NORM = "norm(dim=-1, keepdim=True)"
EPSILON_MISTAKES = variants(epsilon_random, {
    "the noise keeps its own length: divide it by `noise.norm(dim=-1, keepdim=True)`": "x + distance * noise",
    "the noise is taken to be √d long: it may have any length, divide by `noise.norm(dim=-1, keepdim=True)`":
        "x + distance * noise / noise.shape[-1] ** 0.5",
    "this adds the noise as it is: give it the length ‖x̂ − x‖": "x + noise",
    "every point is at distance 1: multiply the direction by ‖x̂ − x‖": f"x + noise / noise.{NORM}",
    "this is the squared distance: take its root": {"x + distance": "x + distance ** 2"},
    "a length is taken over the whole tensor: each position has its own, `norm(dim=-1, keepdim=True)`":
        ({f"(x_hat - x).{NORM}": "(x_hat - x).norm()"}, {f"noise.{NORM}": "noise.norm()"}, {NORM: "norm()"}),
    "this is the mean distance everywhere: each position has its own": {"x + distance": "x + distance.mean()"},
    "a length is taken over the wrong axis: each vector's own is `norm(dim=-1, keepdim=True)`":
        ({"noise.norm(dim=-1": "noise.norm(dim=0"}, {"(x_hat - x).norm(dim=-1": "(x_hat - x).norm(dim=0"},
         {"dim=-1": "dim=0"}),
    "this starts from x_hat: the distance is from x, so start there": {"x + distance": "x_hat + distance"},
    "this is the error alone: add it to x": {"x + distance": "distance"},
    "this is x_hat itself: only the distance is kept, the direction is that of the noise": "x_hat",
    "the distance is the length of a vector here: it must be that from x to x_hat, ‖x̂ − x‖":
        ({"(x_hat - x).norm": "x_hat.norm"}, {"(x_hat - x).norm": "x.norm"},
         {f"(x_hat - x).{NORM}": f"(x_hat.{NORM} - x.{NORM}).abs()"}),
    "this goes against the noise: add the error, do not subtract it": {"x + distance": "x - distance"},
    "the noise is treated as a point (noise − x): it is itself the direction":
        f"x + distance * (noise - x) / (noise - x).{NORM}",
})


OFF_X = "- (noise * unit).sum(dim=-1, keepdim=True) * unit"             # the noise's part along x is subtracted
TURNED = f"along + length * across / across.{NORM}"
THETA_MISTAKES = variants(theta_random, {
    "the noise still has a part along x: subtract it, so that only what is across x is left": {OFF_X: ""},
    "the noise is made orthogonal to x_hat: make it orthogonal to x":
        {OFF_X: f"- (noise * x_hat).sum(dim=-1, keepdim=True) * x_hat / x_hat.{NORM} ** 2"},
    "the angle is right, but this is as long as x: here it is as long as x_hat":
        f"({TURNED}) / x_hat.{NORM} * x.{NORM}",
    "the angle is right, but the length is 1: multiply by ‖x̂‖": f"({TURNED}) / x_hat.{NORM}",
    "the part along x is lost: add it to the part across x": {"along + length": "length"},
    "‖x̂ − x‖ is not the length of the part across x: x̂ also differs from x along x":
        {"(x_hat - along).norm": "(x_hat - x).norm"},
    "‖x̂‖ is not the length of the part across x: subtract the part along x first":
        {"(x_hat - along).norm": "x_hat.norm"},
    "the part along x is x itself here: keep x_hat's part, (x̂ · x) x / ‖x‖²":
        ({"along + length": "x + length"}, {"along + length": "x + length", "(x_hat - along)": "(x_hat - x)"}),
    "the sign of the part along x is lost: x_hat may point away from x, at more than 90 degrees":
        {"along + length": f"along.{NORM} * unit + length"},
    "the part across x keeps the noise's length: divide by its length, then multiply by that of x_hat's part":
        ("along + length * across", "along + across"),
    "divided by the length of all the noise: subtract its part along x first, then divide by the length of the rest":
        {"across.norm": "noise.norm"},
    "x is not of length 1: the part of v along x is (v · x) x / ‖x‖²":
        ({"* unit)": "* x)"}, {f"x / x.{NORM}": "x"}, {"(x_hat * unit)": "(x_hat * x)"},
         {"(noise * unit)": "(noise * x)"}),
    "the whole tensor is treated as one vector: each position has its own, sum over the last axis":
        {"dim=-1, keepdim=True": ""},
    "this is x_hat itself: its part across x gets the direction of the noise": "x_hat",
    "this is ε-random: it has the distance of x_hat, but not its angle with x": epsilon_random,
    "this goes against the noise: add the part across x, do not subtract it": {"along + length": "along - length"},
})


def _product(root: Tensor) -> Tensor:
    """R.T @ R, in float64. Raises TypeError unless R is real."""
    if not root.is_floating_point():
        raise TypeError(f"real numbers are needed, not {root.dtype}")
    return root.double().mT @ root.double()


def _is_root(root: Tensor, expected: Tensor) -> bool:
    """Whether R.T @ R is the covariance, whatever R's dtype."""
    return torch.allclose(_product(root), _product(expected), atol=1e-4, rtol=1e-3)


def _entry_by_entry(got: Tensor, expected: Tensor) -> bool:
    """Whether each entry of `got` is the root of the covariance's; the sign may be kept."""
    if not got.is_floating_point():
        return False
    covariance, squares = _product(expected), got * got.abs()           # with their signs
    same = torch.allclose(squares.to(covariance), covariance, atol=1e-4)
    return same or torch.allclose(got.to(covariance), covariance.sqrt(), atol=1e-4, equal_nan=True)


ROOT_MISTAKES = variants(covariance_root, {
    "R @ R.T is the covariance, but noise @ R needs R.T @ R: transpose it (torch's Cholesky factor is lower; "
    "directions * roots needs `@ directions.T`)":
        seen(lambda got, expected: _is_root(got.mT, expected) and not _is_root(got, expected)),
    "this is not a root: R.T @ R is the covariance squared. Take the root of the variances": "covariance",
    "the root of the variances is missing, and so is `@ directions.T`": "directions * variances",
    "this is the inverse root, which turns coloured noise white: multiply by the roots, do not divide":
        "directions / variances.sqrt() @ directions.T",
    "this is the diagonal only: the components also vary together": "covariance.diag().sqrt().diag()",
    "the directions are missing: the variances are those along the directions, not along the axes":
        "variances.sqrt().diag()",
    "the directions are the columns: directions * roots @ directions.T, not the other way round":
        "directions.T * variances.sqrt() @ directions",
    "this is the root of each entry: a root of the matrix is needed, R.T @ R = covariance": seen(_entry_by_entry),
})


class ComparePairs(CompareCases):
    """Two numbers may also come as one tensor."""

    def _difference(self, got, expected):
        if isinstance(got, Tensor | np.ndarray) and got.shape == (2,):
            got = tuple(got.tolist())
        return first_difference(got, expected, **self.options)


class CompareProducts(CompareCases):
    """Compares R.T @ R: a covariance has many roots, and each of them is right."""

    def _difference(self, got, expected):
        if not isinstance(got, Tensor) or got.shape != expected.shape or not got.is_floating_point():
            return first_difference(got, expected, **self.options)
        if torch.finfo(got.dtype).bits < torch.finfo(expected.dtype).bits:
            return f"R is {got.dtype} and the covariance {expected.dtype}: noise of that dtype @ R would not work"
        return first_difference(_product(got), _product(expected), where="(R.T @ R)", **self.options)


# --- what a comparison cannot state ----------------------------------------------------------------------------


IMPOSSIBLE = ("where a token is impossible (true_log_probs −inf, P = 0) it must add 0, and 0 · (−inf) is NaN: weigh "
              "ln p − ln q by P, or leave such tokens out (`torch.where`)")


@property_check(mistakes=[IMPOSSIBLE, FAR_APART])
def impossible_tokens(attempt):
    """tokens that the truth rules out; only one token possible; logits hundreds apart"""
    truth, p, q = random_logits(2, 3, 5), random_logits(2, 3, 5, seed=1), random_logits(2, 3, 5, seed=2)
    truth[:, :2, 3] = truth[:, 1, 0] = truth[0, 2, 1:] = -torch.inf
    _agrees(attempt, truth.log_softmax(-1), p, q, IMPOSSIBLE)
    p = torch.tensor([[0.0, 300.0, -200.0], [0.0, 200.0, 0.0]])
    q = torch.tensor([[250.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    _agrees(attempt, random_logits(1, 2, 3)[0].log_softmax(-1), p, q, FAR_APART)


def _agrees(attempt, truth, p, q, message):
    got, expected = attempt(truth.clone(), p.clone(), q.clone()), expected_delta_ce(truth, p, q)
    same = torch.allclose(torch.as_tensor(got).to(expected), expected, atol=1e-4, rtol=1e-3)
    inputs = f"true_log_probs = {describe(truth)}\np_logits = {describe(p)}\nq_logits = {describe(q)}"
    require(same, message, input=inputs, got=got, expected=expected)


@property_check(mistakes=[FAR_APART])
def needed_far_apart(attempt):
    """logits hundreds apart"""
    p, q = torch.zeros(2, 2), torch.tensor([[0.0, 200.0], [0.0, 0.0]])
    got, expected = attempt(p.clone(), q.clone()), tokens_needed(p, q)
    inputs = f"p_logits = {describe(p)}\nq_logits = {describe(q)}"
    require(abs(float(got) - expected) < 0.1, FAR_APART, input=inputs, got=got, expected=expected)


CONTAINERS = "return three lists of numbers, (P, p, q): a set or a dictionary has no order"
THREE = "return three distributions, in this order: (P, p, q)"
SAME_TOKENS = "P, p and q must be over the same tokens: three lists of the same length, 2 or more"
ABOVE_0 = "all probabilities must be above 0 (are these logarithms?)"
SUM_1 = "the probabilities of each distribution must sum to 1"
UNCHANGED = ("q equals p: the patch changes nothing, and E[ΔCE] and the KL are both 0. Move q away from p, towards P "
             "(the order is P, p, q)")
OWN_TEXT = ("P equals p: then E[ΔCE] is the KL, which is never negative. Let the model be wrong about the data: p must "
            "differ from P")
NO_NEARER = ("q is no nearer to P than p is, so the patch does no good: move q from p towards P (or are p and q "
             "swapped? The order is P, p, q)")
TOO_LITTLE = ("q is nearer to P than p is, but not by enough: E[ΔCE] must be below −0.01. Move q further towards P, or "
              "p further away from it")


@property_check(mistakes=[CONTAINERS, THREE, SAME_TOKENS, ABOVE_0, SUM_1, UNCHANGED, OWN_TEXT, NO_NEARER, TOO_LITTLE])
def is_counter_example(attempt):
    """three distributions over the same tokens, each above 0 with sum 1, and E[ΔCE] below −0.01 nats"""
    answer = attempt()
    parts = [answer, *answer] if isinstance(answer, (list, tuple)) else [answer]
    require(not any(isinstance(part, (set, frozenset, dict)) for part in parts), CONTAINERS, got=answer)
    require(hasattr(answer, "__len__") and len(answer) == 3, THREE, got=answer)
    P, p, q = found = [torch.as_tensor(each, dtype=torch.float64).detach() for each in answer]
    card = {"got": f"P = {describe(P)}\np = {describe(p)}\nq = {describe(q)}"}
    require(all(each.ndim == 1 and len(each) == len(P) >= 2 for each in found), SAME_TOKENS, **card)
    require(all(bool((each > 0).all()) for each in found), ABOVE_0, **card)
    require(all(abs(each.sum() - 1) < 1e-4 for each in found), SUM_1, **card)
    require(not torch.allclose(p, q, atol=1e-6), UNCHANGED, **card)
    require(not torch.allclose(P, p, atol=1e-6), OWN_TEXT, **card)
    harm = expected_delta_ce(P.log(), p.log(), q.log()).item()
    card["expected"] = f"E[ΔCE] below −0.01 nats; here it is {harm:.4f}"
    require(harm < 0, NO_NEARER, **card)
    require(harm < -0.01, TOO_LITTLE, **card)


CLAMP = "a variance is slightly below 0 by rounding, and its root is NaN: make it 0 first, `variances.clamp_min(0)`"
SINGULAR = ("this breaks where a direction has no variance: a Cholesky factor and an inverse need variances above 0. "
            "Use `torch.linalg.eigh`")
LINALG_ERRORS = (torch.linalg.LinAlgError, np.linalg.LinAlgError)


@property_check(mistakes=[CLAMP, SINGULAR])
def root_of_singular(attempt):
    """covariances with directions that have no variance, or one slightly below 0; float64 and float32"""
    directions = torch.linalg.qr(drawn(5, 5).double())[0]
    for least, dtype in ((-1e-9, torch.float64), (0.0, torch.float64), (-1e-6, torch.float32), (0.0, torch.float32)):
        variances = torch.tensor([least, least, 0.3, 1.0, 4.0], dtype=torch.float64)
        covariance = (directions * variances @ directions.T).to(dtype)
        root = or_raised(attempt, LINALG_ERRORS, covariance.clone())
        case = {"input": f"covariance = {describe(covariance)}, smallest variance {least:.0e}", "got": shown(root)}
        require(not isinstance(root, Exception), SINGULAR, **case)
        require(not root.isnan().any(), CLAMP, **case)
        real = root.is_floating_point() and root.shape == covariance.shape
        require(real, "R must always be real and have the covariance's shape", **case)
        difference = first_difference(_product(root), covariance, atol=1e-4, where="(R.T @ R)")
        require(not difference, f"where a direction has no variance: {difference}", **case)


EXERCISES = [
    Exercise(
        id="08.expected_delta_ce",
        title="What ΔCE expects",
        reference=expected_delta_ce,
        check=CompareThenState(compare_cases(expected_cases, EXPECTED_MISTAKES, keeps_inputs=True), impossible_tokens),
        hints=(
            "An expected value is a sum over all tokens: how often each comes, times its ln p(t) − ln q(t).",
            "How often a token comes is P: `true_log_probs.exp()`. The logarithms come from log_softmax of the logits.",
            "`(true_log_probs.exp() * (p_logits.log_softmax(-1) - q_logits.log_softmax(-1))).sum(dim=-1)`",
        ),
        minutes=5,
        difficulty=1,
    ),
    Exercise(
        id="08.counter_example",
        title="A patch that helps",
        reference=counter_example,
        check=is_counter_example,
        hints=(
            "E[ΔCE] = KL(P‖q) − KL(P‖p). It is negative where q is nearer to the data than p was.",
            "Take any P and a p that differs from it. Which q is as near to P as can be?",
            "q = P. Then E[ΔCE] is −KL(P‖p): `P = [0.7, 0.3]`, a `p` that is off by 0.1 or more, and "
            "`return P, p, P`.",
        ),
        minutes=5,
        difficulty=1,
    ),
    Exercise(
        id="08.tokens_needed",
        title="How many tokens?",
        reference=tokens_needed,
        check=CompareThenState(
            compare_cases(needed_cases, NEEDED_MISTAKES, keeps_inputs=True, loose_scalars=True, rtol=1e-3),
            needed_far_apart),
        hints=(
            "The standard error of a mean of n is √(variance / n). Set it to precision · KL, and solve for n.",
            "With r = ln(p / q), `kl = (p * r).sum(-1)` and `variance = (p * (r - kl[:, None]) ** 2).sum(-1)`, at each "
            "position.",
            "`(variance.mean() / (precision * kl.mean()) ** 2).item()`",
        ),
        minutes=8,
        difficulty=2,
    ),
    Exercise(
        id="08.texts_needed",
        title="Plan the comparison",
        reference=texts_needed,
        check=compare_cases(texts_cases, TEXTS_MISTAKES, keeps_inputs=True, loose_scalars=True, rtol=1e-3),
        hints=(
            "Both autoencoders read the same texts. What differs between texts is hard for both, and cancels in a − b.",
            "A mean of n differences has the standard error s / √n, with s the standard deviation of the pilot's "
            "differences. Set two of them to `smallest`, and solve for n.",
            "`(2 * (a - b).std() / smallest).item() ** 2`",
        ),
        minutes=6,
        difficulty=2,
    ),
    Exercise(
        id="08.score_interval",
        title="One draw for all three",
        reference=score_interval,
        check=compare_cases(interval_cases, INTERVAL_MISTAKES, keeps_inputs=True, loose_scalars=True,
                            kind=ComparePairs),
        hints=(
            "`ce_clean[draws]` is [resample, n]: the losses of the sequences of each resample. Do the same with the "
            "other two.",
            "Take the mean of each over the sequences (dim=1), then one score for each resample.",
            "`score = (zero - sae) / (zero - clean)` with `zero = ce_zero[draws].mean(1)` and so on; then "
            "`score.quantile(0.025).item()`, and the same with 0.975.",
        ),
        minutes=6,
        difficulty=2,
    ),
    Exercise(
        id="08.epsilon_random",
        title="As far away",
        reference=epsilon_random,
        check=compare_cases(noise_cases, EPSILON_MISTAKES, keeps_inputs=True),
        hints=(
            "How far is x_hat from x at each position? Go as far from x in another direction.",
            "A direction is a vector of length 1: `noise / noise.norm(dim=-1, keepdim=True)`.",
            "`x + (x_hat - x).norm(dim=-1, keepdim=True) * direction`",
        ),
        minutes=5,
        difficulty=1,
    ),
    Exercise(
        id="08.theta_random",
        title="As far away, at the same angle",
        reference=theta_random,
        check=compare_cases(noise_cases, THETA_MISTAKES, keeps_inputs=True, atol=1e-4),
        hints=(
            "Split x_hat into its part along x and the rest. Only the direction of the rest changes, not its length.",
            "With `unit = x / x.norm(dim=-1, keepdim=True)` the part of v along x is "
            "`(v * unit).sum(-1, keepdim=True) * unit`. Subtract it from the noise as well.",
            "`along + (x_hat - along).norm(dim=-1, keepdim=True) * across / across.norm(dim=-1, keepdim=True)`, where "
            "`across` is the noise without its part along x.",
        ),
        minutes=10,
        difficulty=3,
    ),
    Exercise(
        id="08.covariance_root",
        title="Noise that varies as activations do",
        reference=covariance_root,
        check=CompareThenState(
            compare_cases(root_cases, ROOT_MISTAKES, keeps_inputs=True, atol=1e-4, kind=CompareProducts),
            root_of_singular),
        hints=(
            "In the basis of its directions a covariance is diagonal: there the root is the root of each variance.",
            "`variances, directions = torch.linalg.eigh(covariance)`; the directions are the columns. "
            "`clamp_min(0)` before the root.",
            "`directions * variances.clamp_min(0).sqrt() @ directions.T`",
        ),
        minutes=6,
        difficulty=2,
    ),
]

IN_THE_PACKAGE = {
    "08.expected_delta_ce": metrics.expected_delta_ce,
    "08.tokens_needed": metrics.tokens_needed,
    "08.score_interval": metrics.score_interval,
}
