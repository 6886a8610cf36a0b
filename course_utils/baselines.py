"""How much harm would *any* error of this size do? Other vectors in the activation's place, beside the reconstruction.

x is the activation, x̂ its reconstruction, ε = ‖x̂ − x‖, and g a vector of independent normal numbers:

    epsilon_random      x + ε g / ‖g‖                           as far away, in a direction at random (Gurnee 2024)
    covariance_random   the same with g of the activations' covariance (Lee and Heimersheim 2024, 2410.12555)
    theta_random        x̂ rotated about x into a direction at random: as long, as far away, at the same angle
    norm_only           x ‖x̂‖ / ‖x‖                             the right direction, the wrong length: shrinkage alone
    norm_corrected      x̂ ‖x‖ / ‖x̂‖                             the reconstruction without its shrinkage
    zero, mean          nothing at all, and the mean activation

If x̂ does much more harm than a random error of its size, its error is not noise: it hits what the model reads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from course_utils.faithfulness import (
    LOGITS,
    HasEncodeDecode,
    at_a_time,
    check_precision,
    run_and_reconstruct,
    site_of,
)
from course_utils.house import bars_are_off
from course_utils.language import Sample
from course_utils.metrics import defined_ratio, interval, kl_of_log_probs, log_softmax
from course_utils.passes import (
    CleanRun,
    Keeper,
    Pooled,
    Site,
    checked_mask,
    counted_positions,
    followed,
    over_batches,
    put_back,
    read_activation,
    what_is_run,
)

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

RANDOM = ("epsilon_random", "covariance_random", "theta_random")
KINDS = (*RANDOM, "norm_only", "norm_corrected", "zero", "mean")


# --- the vectors -----------------------------------------------------------------------------------------------------


def epsilon_random(
    x: Float[Tensor, "*pos d"], x_hat: Float[Tensor, "*pos d"], noise: Float[Tensor, "*pos d"]
) -> Float[Tensor, "*pos d"]:
    """As far from x as x_hat is, in the direction of the noise."""
    distance = (x_hat - x).norm(dim=-1, keepdim=True)
    return x + distance * noise / noise.norm(dim=-1, keepdim=True)


def theta_random(
    x: Float[Tensor, "*pos d"], x_hat: Float[Tensor, "*pos d"], noise: Float[Tensor, "*pos d"]
) -> Float[Tensor, "*pos d"]:
    """x_hat turned about x: its part along x stays, the rest gets the direction of the noise.

    Length, distance from x and angle with x are those of x_hat.
    """
    unit = x / x.norm(dim=-1, keepdim=True)
    along = (x_hat * unit).sum(dim=-1, keepdim=True) * unit
    across = noise - (noise * unit).sum(dim=-1, keepdim=True) * unit
    length = (x_hat - along).norm(dim=-1, keepdim=True)
    return along + length * across / across.norm(dim=-1, keepdim=True)


def covariance_root(covariance: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """R such that noise @ R has this covariance if the noise is white: the symmetric square root."""
    variances, directions = torch.linalg.eigh(covariance)
    return directions * variances.clamp_min(0).sqrt() @ directions.T


class Moments:
    """Sums of an activation x, and of the products of its numbers, over counted positions; in float64."""

    def __init__(self) -> None:
        self.done = 0                                                               # sequences
        self.x: Float[Tensor, "width"] = torch.zeros((), dtype=torch.float64)
        self.products: Float[Tensor, "width width"] = torch.zeros((), dtype=torch.float64)

    def add(self, x: Float[Tensor, "counted width"]) -> None:
        x = x.double()
        self.x, self.products = self.x.to(x.device) + x.sum(0), self.products.to(x.device) + x.T @ x

    def tensors(self) -> dict[str, Tensor]:
        return {"x": self.x, "products": self.products, "done": torch.tensor(self.done)}

    def take(self, tensors: dict[str, Tensor]) -> None:
        self.x, self.products, self.done = tensors["x"], tensors["products"], int(tensors["done"])


def activation_statistics(
    model: TransformerBridge, site: Site, tokens: Int[Tensor, "n pos"], counted: Bool[Tensor, "n pos"],
    batch_size: int = 32, keep: Keeper | None = None,
) -> tuple[Float[Tensor, "width"], Float[Tensor, "width width"]]:
    """Mean and covariance of the activation over the counted positions, in float64, summed batch by batch.

    Raises:
        ValueError: if an activation is not finite.
    """
    def add(moments: Moments, rows: Int[Tensor, "batch"]) -> None:
        x = site.flat(read_activation(model, tokens[rows], site.hook_name))
        moments.add(x[counted[rows]])

    moments = over_batches(Moments(), torch.arange(len(tokens)), batch_size, add, "activations", keep)
    n = int(counted.sum())
    mean = moments.x / n
    if not mean.isfinite().all():
        raise ValueError(f"{site.hook_name} has activations that are not finite (NaN or infinite)")
    return mean, moments.products / n - mean[:, None] * mean


# --- the comparison --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NoiseFloor:
    """What `noise_floor` found: for each kind, and for "sae", mean harm per counted position in nats.

    Attributes:
        kl, delta_ce: KL(p‖q) and ΔCE, averaged over the draws.
        spread: standard deviation of the KL from draw to draw; NaN for what is not random.
        ratio: the autoencoder's KL divided by this kind's; NaN, not defined, where that may be 0.
        kl_intervals, ratio_intervals: 95 %, from resampling the sequences.
        kl_by_position: KL at each position; NaN where none is counted.
    """

    kl: dict[str, float]
    delta_ce: dict[str, float]
    spread: dict[str, float]
    ratio: dict[str, float]
    kl_intervals: dict[str, tuple[float, float]]
    ratio_intervals: dict[str, tuple[float, float]]
    kl_by_position: dict[str, Float[Tensor, "pos"]] = field(repr=False)

    def to_frame(self) -> pd.DataFrame:
        """A table, one row for each kind. KL and ΔCE in nats."""
        import pandas as pd

        rows = []
        for kind in self.kl:
            low, high = self.kl_intervals[kind]
            ratio_low, ratio_high = self.ratio_intervals[kind]
            rows.append({"kind": kind, "KL": self.kl[kind], "low": low, "high": high,
                         "spread of draws": self.spread[kind], "ΔCE": self.delta_ce[kind],
                         "SAE / this": self.ratio[kind], "ratio low": ratio_low, "ratio high": ratio_high})
        return pd.DataFrame(rows).set_index("kind")


@torch.no_grad()
def noise_floor(
    model: TransformerBridge, sae: HasEncodeDecode, tokens: Int[Tensor, "n pos"], kinds: tuple[str, ...] = KINDS,
    draws: int = 3, *, hook_name: str | None = None, head: int | None = None, mask: Bool[Tensor, "n pos"] | None = None,
    at: int | None = None, batch_size: int = 8, resamples: int = 200, seed: int = 0, force: bool = False,
    folder: str | Path | None = None,
) -> NoiseFloor:
    """KL and ΔCE with each kind of vector in the activation's place, beside those of the reconstruction.

    One clean pass for each batch; every other pass runs only the layers above the activation.
    Args:
        kinds: some of KINDS.
        draws: how often each random kind is drawn. A sequence gets the same noise whatever the batch size.
        at: change this position alone, and count it and what follows.
        hook_name, head, mask, force, folder: as in `evaluate_sae`.
        resamples, seed: of the bootstrap; the seed also draws the noise.
    Raises:
        ValueError: if a kind is unknown, or draws or `at` are out of range, or as `evaluate_sae` does.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"there is no kind {', '.join(map(repr, unknown))}; there are {', '.join(KINDS)}")
    if draws < 1 or resamples < 1:
        raise ValueError(f"draws is {draws} and resamples {resamples}; both must be at least 1")
    check_precision(model, force)
    site, mask = site_of(model, sae, hook_name, head, force), checked_mask(model, tokens, mask)
    counts = counted_positions(mask, followed(model, tokens, mask))
    if at is not None:
        mask, counts = _only(at, mask, counts)
    keep = None
    if folder:
        keep = Keeper(folder, what_is_run(model, sae, site, tokens, mask) | {
            "kinds": kinds, "draws": draws, "at": at, "resamples": resamples, "seed": seed, "batch_size": batch_size})
    mean, covariance = activation_statistics(model, site, tokens, counts, batch_size, keep)
    mean, root = mean.float(), covariance_root(covariance).float()
    passes = {kind: [f"{kind} {draw}" for draw in range(draws if kind in RANDOM else 1)] for kind in ("sae", *kinds)}

    def add(pooled: Pooled, rows: Int[Tensor, "batch"]) -> None:
        clean, x, x_hat = run_and_reconstruct(model, sae, tokens[rows], site)
        noise = [torch.stack([_noise(seed, draw, row, x[0]) for row in rows.tolist()]) for draw in range(draws)]
        finals = {}
        for kind, names in passes.items():
            for name, drawn in zip(names, noise):
                new = _vectors(kind, x, x_hat, drawn, mean.to(x), root.to(x))
                finals[name] = site.continue_with(clean, torch.where(mask[rows][..., None], new, x))
        for what, values in zip(("kl", "delta_ce"), harm(clean, finals, counts[rows])):
            pooled.add(rows, counts[rows], {f"{what} {name}": value for name, value in values.items()})

    pooled = Pooled(len(tokens), resamples, seed)
    return _summary(over_batches(pooled, torch.arange(len(tokens)), batch_size, add, "batches", keep), passes)


def harm(
    clean: CleanRun, finals: dict[str, Float[Tensor, "batch pos d_model"]], counted: Bool[Tensor, "batch pos"]
) -> tuple[dict[str, Float[Tensor, "batch pos"]], dict[str, Float[Tensor, "batch pos"]]]:
    """KL(p‖q) and ΔCE of several patched passes, each {name: values}, at every counted position; 0 elsewhere.

    `finals` are what leaves the last block in each. A few positions' logits exist at a time.
    """
    next_tokens = clean.tokens.roll(-1, dims=1).flatten()                           # [batch * pos]
    kl: dict[str, list[Tensor]] = {name: [] for name in finals}
    delta_ce: dict[str, list[Tensor]] = {name: [] for name in finals}
    for chunk in counted.flatten().nonzero()[:, 0].split(at_a_time(clean.model, LOGITS)):
        target = next_tokens[chunk, None]                                           # [chunk, 1]
        log_p = log_softmax(clean.logits(clean.residuals[-1].flatten(0, 1)[chunk]))
        p = log_p.exp()
        for name, final in finals.items():
            log_q = log_softmax(clean.logits(final.flatten(0, 1)[chunk]))           # [chunk, vocab]
            kl[name].append(kl_of_log_probs(log_p, log_q, p))
            delta_ce[name].append((log_p - log_q).gather(1, target)[:, 0])
    return ({name: put_back(chunks, counted) for name, chunks in kl.items()},
            {name: put_back(chunks, counted) for name, chunks in delta_ce.items()})


def _vectors(
    kind: str, x: Float[Tensor, "batch pos d"], x_hat: Float[Tensor, "batch pos d"],
    noise: Float[Tensor, "batch pos d"], mean: Float[Tensor, "d"], root: Float[Tensor, "d d"],
) -> Float[Tensor, "batch pos d"]:
    if kind == "epsilon_random":
        return epsilon_random(x, x_hat, noise)
    if kind == "covariance_random":
        return epsilon_random(x, x_hat, noise @ root)
    if kind == "theta_random":
        return theta_random(x, x_hat, noise)
    length_ratio = x_hat.norm(dim=-1, keepdim=True) / x.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    if kind == "norm_only":
        return x * length_ratio
    if kind == "norm_corrected":
        return x_hat / length_ratio.clamp_min(1e-12)
    return {"sae": x_hat, "zero": torch.zeros_like(x), "mean": mean.expand_as(x)}[kind]


def _noise(seed: int, draw: int, row: int, like: Float[Tensor, "pos d"]) -> Float[Tensor, "pos d"]:
    """White noise for one sequence: a function of these three numbers alone, and the same where more positions follow.

    (`torch.randn` fills in blocks of 16; an incomplete last block would get other numbers.)
    """
    rng = torch.Generator().manual_seed(seed + 1_000_003 * (draw + 1) + 1_000_000_007 * (row + 1))
    whole_blocks = 16 * math.ceil(like.numel() / 16)
    return torch.randn(whole_blocks, generator=rng)[:like.numel()].reshape(like.shape).to(like)


def _only(
    at: int, mask: Bool[Tensor, "n pos"], counts: Bool[Tensor, "n pos"]
) -> tuple[Bool[Tensor, "n pos"], Bool[Tensor, "n pos"]]:
    """One position to change, and those from it on to count."""
    if not 0 < at < mask.shape[1] - 1:
        raise ValueError(f"at is {at}; it must be from 1 to {mask.shape[1] - 2}, a position that is neither BOS nor "
                         "the last")
    positions = torch.arange(mask.shape[1], device=mask.device)
    mask, counts = mask & (positions == at), counts & (positions >= at)
    if not (mask.any() and counts.any()):
        raise ValueError(f"the mask leaves no position to change at {at}, or no position to count from there on")
    return mask, counts


def _summary(pooled: Pooled, passes: dict[str, list[str]]) -> NoiseFloor:
    """Average over the draws; ratios and intervals from the same resamples for numerator and denominator.

    `passes`: for each kind the names of its passes, one for each draw.
    """
    draws = {kind: torch.stack([pooled.mean(f"kl {name}") for name in names])                           # [draw, row]
             for kind, names in passes.items()}
    means = {kind: values.mean(0) for kind, values in draws.items()}                                    # [row]
    ratios = {kind: defined_ratio(means["sae"], mean) for kind, mean in means.items()}                  # [row]
    return NoiseFloor(
        kl={kind: mean[0].item() for kind, mean in means.items()},
        delta_ce={kind: sum(pooled.mean(f"delta_ce {name}")[0].item() for name in names) / len(names)
                  for kind, names in passes.items()},
        spread={kind: values[:, 0].std().item() if len(values) > 1 else math.nan for kind, values in draws.items()},
        ratio={kind: ratio[0].item() for kind, ratio in ratios.items()},
        kl_intervals={kind: interval(mean[1:]) for kind, mean in means.items()},
        ratio_intervals={kind: interval(ratio[1:]) for kind, ratio in ratios.items()},
        kl_by_position={kind: torch.stack([pooled.by_position(f"kl {name}") for name in names]).mean(0)
                        for kind, names in passes.items()},
    )


# --- the truth -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrueFloor:
    """What `true_noise_floor` found, in nats per counted position: {quantity: mean} and the 95 % intervals.

    kl_truth_model      KL(truth‖p): how far the model itself is from the truth
    kl_truth_patched    KL(truth‖q)
    expected_delta_ce   their difference: ΔCE without the luck of which token came
    delta_ce            ΔCE at the tokens that came
    kl                  KL(p‖q)
    kl_bfloat16         KL(p‖the same model computed in bfloat16)
    """

    mean: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    difference: float                               # E_truth[ΔCE] − KL(p‖q): 0 only by accident
    difference_interval: tuple[float, float]

    def to_frame(self) -> pd.DataFrame:
        """A table, in nats."""
        import pandas as pd

        rows = [{"quantity": name, "nats": value, "low": self.intervals[name][0], "high": self.intervals[name][1]}
                for name, value in self.mean.items()]
        return pd.DataFrame(rows).set_index("quantity")


@torch.no_grad()
def true_noise_floor(
    model: TransformerBridge, sae: HasEncodeDecode, sample: Sample, *, hook_name: str | None = None,
    mask: Bool[Tensor, "n pos"] | None = None, batch_size: int = 8, resamples: int = 200, seed: int = 0,
) -> TrueFloor:
    """The autoencoder's harm beside the model's own distance from the truth, where the truth is known.

    Args:
        sample: of `StoryLanguage.sample`, with its truth.
    Raises:
        ValueError: if the sample has no truth or another vocabulary, or as `evaluate_sae` does.
    """
    if sample.true_log_probs is None or sample.true_log_probs.shape[-1] != model.cfg.d_vocab:
        raise ValueError("the sample needs its truth (truth=True), for the model's own vocabulary")
    site, mask = site_of(model, sae, hook_name), checked_mask(model, sample.tokens, mask)
    counts, pooled = counted_positions(mask, followed(model, sample.tokens, mask)), Pooled(len(mask), resamples, seed)
    batches = torch.arange(len(sample.tokens)).split(batch_size)
    for rows in tqdm(batches, desc="batches", delay=1, disable=bars_are_off()):
        tokens = sample.tokens[rows].to(model.cfg.device)
        clean, x, x_hat = run_and_reconstruct(model, sae, tokens, site)
        final = site.continue_with(clean, torch.where(mask[rows].to(x.device)[..., None], x_hat, x))
        log_p = log_softmax(clean.logits(clean.residuals[-1]))                      # [batch, pos, vocab]
        log_q = log_softmax(clean.logits(final))
        truth = sample.true_log_probs[rows].to(log_p)
        before, after = kl_of_log_probs(truth, log_p), kl_of_log_probs(truth, log_q)
        next_tokens = tokens.roll(-1, dims=1)[..., None]                            # [batch, pos, 1]
        pooled.add(rows, counts[rows], {
            "kl_truth_model": before,
            "kl_truth_patched": after,
            "expected_delta_ce": after - before,
            "delta_ce": (log_p - log_q).gather(2, next_tokens)[..., 0],
            "kl": kl_of_log_probs(log_p, log_q),
            "kl_bfloat16": kl_of_log_probs(log_p, coarser_log_probs(model, tokens)),
        })
    means = {name: pooled.mean(name) for name in pooled.sums}
    difference = means["expected_delta_ce"] - means["kl"]
    return TrueFloor(
        mean={name: value[0].item() for name, value in means.items()},
        intervals={name: interval(value[1:]) for name, value in means.items()},
        difference=difference[0].item(),
        difference_interval=interval(difference[1:]),
    )


@torch.no_grad()
def coarser_log_probs(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], dtype: torch.dtype = torch.bfloat16
) -> Float[Tensor, "batch pos vocab"]:
    """Log-probabilities of the same model with its matrix products in a coarser number format."""
    with torch.autocast(torch.device(model.cfg.device).type, dtype=dtype):
        return log_softmax(model(tokens))
