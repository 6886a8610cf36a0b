"""Who knows a fact, and who can change it: probes, axes, and steering along a direction.

A probe is a direction: the larger x · direction, the likelier the label. It is judged by its AUC on texts that had no
part in choosing it, with one number for each text, so that two probes can be compared text by text. `sparse_probe` is
the k-sparse probing of Gurnee et al. (2023, arXiv 2305.01610) with its cheapest choice: the k whose means differ most.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from course_utils.latents import linear_direction

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

NEWTON_STEPS = 50


# --- reading ----------------------------------------------------------------------------------------------------------


def difference_of_means(x: Float[Tensor, "m d"], labels: Bool[Tensor, "m"]) -> Float[Tensor, "d"]:
    """The mean of the labelled activations minus that of the others.

    Raises:
        ValueError: if all positions, or none, are labelled.
    """
    check_two_sided(labels)
    return x[labels].mean(dim=0) - x[~labels].mean(dim=0)


def sparse_probe(latents: Float[Tensor, "m d_sae"], labels: Bool[Tensor, "m"], k: int) -> Float[Tensor, "d_sae"]:
    """A direction with at most k entries that are not 0, which tells labelled positions from the others."""
    difference = latents[labels].mean(dim=0) - latents[~labels].mean(dim=0)
    chosen = difference.abs().topk(k).indices
    probe = torch.zeros_like(latents[0])
    probe[chosen] = linear_direction(latents[:, chosen], labels)
    return probe


def logistic_probe(x: Float[Tensor, "m d"], labels: Bool[Tensor, "m"], *, ridge: float = 1e-3) -> Float[Tensor, "d"]:
    """Logistic regression of the label on all d numbers: the dense probe.

    Minimises mean cross-entropy (nats) + ridge/2 · Σ (weight · the number's standard deviation)², by Newton's method
    in float64; the intercept is not penalised, and not returned.

    Raises:
        ValueError: if all positions, or none, are labelled, or ridge is not positive (two classes that a plane
            separates would want infinite weights).
    """
    check_two_sided(labels)
    if not ridge > 0:
        raise ValueError(f"ridge is {ridge}; it must be positive")
    spread = x.double().std(dim=0, correction=0).clamp(min=1e-9)
    z = (x.double() - x.double().mean(dim=0)) / spread
    z = torch.cat([z, torch.ones_like(z[:, :1])], dim=1)                            # the last weight is the intercept
    penalty = torch.full_like(z[0], ridge)
    penalty[-1] = 0
    wanted, weights = labels.to(z), torch.zeros_like(z[0])

    def loss(at: Float[Tensor, "d+1"]) -> Float[Tensor, ""]:
        scores = z @ at
        return (torch.nn.functional.softplus(scores) - wanted * scores).mean() + (penalty * at * at).sum() / 2

    for _ in range(NEWTON_STEPS):
        p = (z @ weights).sigmoid()
        slope = z.T @ (p - wanted) / len(z) + penalty * weights
        spread_out = (z * (p * (1 - p)).sqrt()[:, None]).float()                    # the slope says where to stop
        curvature = (spread_out.T @ spread_out).double() / len(z) + penalty.clamp(min=1e-9).diag()
        step, length = torch.linalg.solve(curvature, slope), 1.0
        while loss(weights - length * step) > loss(weights) and length > 1e-6:      # too far: halve the step
            length /= 2
        weights = weights - length * step
        if slope.norm() < 1e-7:
            break
    return (weights[:-1] / spread).to(x)


def principal_axes(x: Float[Tensor, "m d"]) -> Float[Tensor, "d d"]:
    """The axes along which x varies, most first: a row is an axis of norm 1, its largest entry positive."""
    centred = (x - x.mean(dim=0)).double()
    axes = torch.linalg.eigh(centred.T @ centred).eigenvectors.T.flip(0)
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    return (axes * largest.sign()).to(x)


def auc_by_text(
    values: Float[Tensor, "n pos"], labels: Bool[Tensor, "n pos"], known: Bool[Tensor, "n pos"]
) -> Float[Tensor, "n"]:
    """The AUC of all texts together, as one number for each: n · AUC − (n − 1) · AUC without the text.

    These jackknife pseudo-values (Tukey, 1958) average about the AUC, and two probes' can be paired text by text,
    although an AUC compares positions of different texts. Positions where `known` is False do not count.

    Raises:
        ValueError: if without one of the texts all positions, or none, are labelled.
    """
    n, pos = values.shape
    yes, no = labels & known, ~labels & known
    others = values.double().masked_fill(~no, torch.inf).sort(dim=1).values         # [n, pos]: the others of each text
    asked = values.double()[yes].expand(n, -1).contiguous()                         # [n, labelled of all texts]
    count = no.sum(dim=1, keepdim=True)
    smaller = torch.searchsorted(others, asked).minimum(count)
    not_larger = torch.searchsorted(others, asked, right=True).minimum(count)
    of_text = torch.arange(n, device=values.device)[:, None].expand(n, pos)[yes]
    won = torch.zeros(n, n, dtype=torch.float64, device=values.device)              # [text of the label, of the other]
    won.index_add_(0, of_text, (smaller + not_larger).T.double() / 2)
    pairs = yes.sum(dim=1).double()[:, None] * no.sum(dim=1).double()

    def without(table: Float[Tensor, "n n"]) -> Float[Tensor, "n"]:
        return table.sum() - table.sum(dim=0) - table.sum(dim=1) + table.diagonal()

    if (without(pairs) <= 0).any():
        raise ValueError("without one of the texts all positions, or none, are labelled: nothing is left to tell apart")
    return (n * won.sum() / pairs.sum() - (n - 1) * without(won) / without(pairs)).float()


# --- changing ---------------------------------------------------------------------------------------------------------


def steering(
    direction: Float[Tensor, "d"], strength: float | Float[Tensor, "n"], start: int = 1
) -> Callable[[Float[Tensor, "n pos d"], Any], Float[Tensor, "n pos d"]]:
    """A hook that moves the stream along a direction, from position `start` on, by `strength` (in the stream's unit).

    The direction's own length does not count. A strength for each text is possible.

    Raises:
        ValueError: if the direction is 0 or not finite.
    """
    unit = _unit(direction)

    def hook(x: Float[Tensor, "n pos d"], hook: Any) -> Float[Tensor, "n pos d"]:
        x = x.clone()
        x[:, start:] += torch.as_tensor(strength).to(x).reshape(-1, 1, 1) * unit.to(x)
        return x
    return hook


def setting(
    direction: Float[Tensor, "d"], level: float, start: int = 1
) -> Callable[[Float[Tensor, "n pos d"], Any], Float[Tensor, "n pos d"]]:
    """A hook that sets the stream's share along a direction, x · direction / ‖direction‖, to `level`, from `start` on.

    With the mean over text as `level` it ablates the direction; all else that is in the stream stays.

    Raises:
        ValueError: as `steering` does.
    """
    unit = _unit(direction)

    def hook(x: Float[Tensor, "n pos d"], hook: Any) -> Float[Tensor, "n pos d"]:
        x, along = x.clone(), unit.to(x)
        x[:, start:] += (level - x[:, start:] @ along)[..., None] * along
        return x
    return hook


@torch.no_grad()
def hooked_logits(
    model: TransformerBridge, tokens: Tensor, hook_name: str, hook: Callable
) -> Float[Tensor, "n vocab"]:
    """The logits at the last position of a pass with this hook."""
    return model.run_with_hooks(tokens, fwd_hooks=[(hook_name, hook)])[:, -1]


def kl_from_truth(true_log_probs: Float[Tensor, "*n vocab"], logits: Float[Tensor, "*n vocab"]) -> Float[Tensor, "*n"]:
    """KL(truth‖model) in nats: tokens that the truth rules out (log-probability −inf) count 0."""
    p = true_log_probs.exp()
    log_q = logits.log_softmax(dim=-1)
    return torch.where(p > 0, p * (true_log_probs - log_q), 0.0).sum(dim=-1)


# --- checks -----------------------------------------------------------------------------------------------------------


def check_two_sided(labels: Bool[Tensor, "m"]) -> None:
    """Raises ValueError if all positions, or none, are labelled."""
    if labels.all() or not labels.any():
        raise ValueError(f"{int(labels.sum())} of {len(labels)} positions are labelled: there is nothing to tell apart")


def _unit(direction: Float[Tensor, "d"]) -> Float[Tensor, "d"]:
    length = direction.norm()
    if not 0 < length < torch.inf:
        raise ValueError(f"the direction's length is {length:g}: it must be positive and finite")
    return direction / length
