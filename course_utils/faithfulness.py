"""Is a sparse autoencoder faithful to the model? Put its reconstruction in the activation's place, and compare.

p is the model's prediction, q the prediction of the model with the reconstruction x̂ in the place of the activation x.
All logarithms are natural, so every entropy and divergence is in nats; a bit is ln 2 nats.

One rule holds throughout, because libraries that break it disagree with each other. One mask says which positions
are patched and which positions count, and every pass and every metric uses it. A position that is left out keeps its
own activation in every pass; the last position of a text never counts, since nothing follows it. Means are sums over
all counted positions divided once, never means of the means of batches.

A score divides by what an ablation costs. Where the 95 % interval of that cost holds 0, the score is not defined: NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from course_utils.house import bars_are_off
from course_utils.metrics import (
    bootstrap_interval,
    cross_entropy_by_position,
    defined_ratio,
    delta_cross_entropy,
    explained_variance,
    interval,
    js_of_log_probs,
    kl_divergence,
    kl_of_log_probs,
    log_softmax,
    pooled_mean,
    reconstruction_score,
)
from course_utils.passes import (
    CleanRun,
    Pooled,
    Site,
    all_but_first,
    checked_mask,
    counted_positions,
    followed,
    put_back,
)
from course_utils.sae_formats import check_own_call, encode_decode, refuse_transcoder
from course_utils.wide import Firing, in_parts

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

__all__ = [
    "COURSE", "LOGITS", "RESAMPLES", "SAEBENCH", "SAELENS", "Convention", "FaithfulnessReport", "HasEncodeDecode",
    "all_but_first", "at_a_time", "bootstrap_interval", "cross_entropy_by_position", "delta_cross_entropy",
    "evaluate_sae", "explained_variance", "kl_divergence", "kl_of_log_probs", "log_softmax", "patched_logits",
    "pooled_mean", "reconstruct", "reconstruction_score", "run_and_reconstruct", "site_of",
]

LOGITS = 5_000_000      # that exist at once, for each model: 20 MB, those of 100 positions with 50,000 tokens
STRIP = 200_000         # of these, how many are compared at once: fits the cache, a third faster than all
RESAMPLES = 200         # of the bootstrap

LogProbs = Callable[[Int[Tensor, "place"]], Float[Tensor, "place vocab"]]   # from places in a flattened batch


# --- conventions -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Convention:
    """What libraries decide differently. The defaults are the course's rule."""

    drop_last: bool = True            # the last position never counts; if False, only cross-entropy leaves it out
    ablate_everywhere: bool = False   # the ablated passes also replace the positions that the mask leaves out
    patch_everywhere: bool = False    # the autoencoder's pass does, too
    batch_ratios: bool = False        # `peers` gets two means of the ratios of batches; they depend on batch_size


COURSE = Convention()
SAELENS = Convention(drop_last=False, ablate_everywhere=True, batch_ratios=True)   # run_evals of SAELens 6.54
SAEBENCH = Convention(drop_last=False, ablate_everywhere=True, patch_everywhere=True)


# --- the report ------------------------------------------------------------------------------------------------------

DIVIDED_BY = {"reconstruction_score": "ce_zero − ce_clean", "reconstruction_score_mean": "ce_mean − ce_clean",
              "kl_score": "kl_zero", "fvu": "the variance of x", "explained_variance": "the variance of x",
              "relative_reconstruction_bias": "E[x·x̂]"}
IN_NATS = ("ce_clean", "ce_sae", "ce_zero", "ce_mean", "delta_ce", "kl", "reverse_kl", "js", "kl_zero")


@dataclass(frozen=True)
class FaithfulnessReport:
    """What `evaluate_sae` found. Cross-entropies and divergences are means per counted position, in nats.

    NaN means "not defined" (then `undefined` says why), or "not asked for" (`everything=False`).
    """

    ce_clean: float                       # cross-entropy of the model
    ce_sae: float                         # with the reconstruction in the activation's place
    ce_zero: float                        # with zeros there
    ce_mean: float                        # with the mean activation there
    delta_ce: float                       # ce_sae − ce_clean
    reconstruction_score: float           # (ce_zero − ce_sae) / (ce_zero − ce_clean)
    reconstruction_score_mean: float      # the same with ce_mean in the place of ce_zero
    kl: float                             # KL(p‖q)
    reverse_kl: float                     # KL(q‖p)
    js: float                             # Jensen-Shannon
    kl_zero: float                        # KL(p‖prediction with zeros)
    kl_score: float                       # 1 − kl / kl_zero
    l0: float                             # latents that are not 0
    l1: float                             # Σ|f|
    mse: float                            # Σ_d (x̂ − x)², over the width: not divided by it
    explained_variance: float             # 1 − E‖x̂ − x‖² / (E‖x‖² − ‖E x‖²)
    fvu: float                            # 1 − explained_variance
    cosine: float                         # cosine of x and x̂
    l2_ratio: float                       # ‖x̂‖ / ‖x‖
    l2_in: float                          # ‖x‖
    l2_out: float                         # ‖x̂‖
    relative_reconstruction_bias: float   # E‖x̂‖² / E[x·x̂]; below 1 is shrinkage (arXiv 2404.16014, eq. 10)
    dead_fraction: float                  # latents that were active nowhere
    n_sequences: int
    n_positions: int                      # counted ones
    intervals: dict[str, tuple[float, float]] = field(repr=False)       # 95 %, from resampling the sequences
    by_position: dict[str, Float[Tensor, "pos"]] = field(repr=False)    # means over the sequences; NaN: not counted
    density: Float[Tensor, "d_sae"] = field(repr=False)                 # share of positions where each latent is active
    active_sequences: Int[Tensor, "d_sae"] = field(repr=False)          # in how many sequences each is active
    peers: dict[str, float] = field(repr=False, default_factory=dict)   # what only another convention has
    undefined: dict[str, str] = field(default_factory=dict)             # {metric that is not defined: why}

    @property
    def ce_clean_by_position(self) -> Float[Tensor, "pos"]:
        """CE_j of the model, in nats."""
        return self.by_position["ce_clean"]

    @property
    def delta_ce_by_position(self) -> Float[Tensor, "pos"]:
        """ΔCE_j in nats."""
        return self.by_position["delta_ce"]

    @property
    def kl_by_position(self) -> Float[Tensor, "pos"]:
        """KL(p‖q) at each position, in nats."""
        return self.by_position["kl"]

    def to_frame(self, unit: str = "nats") -> pd.DataFrame:
        """A table: each metric with its unit and its interval, entropies in nats or bits; or why it is not defined.

        Raises:
            ValueError: if the unit is neither.
        """
        import pandas as pd

        if unit not in ("nats", "bits"):
            raise ValueError(f"unit is {unit!r}; it must be nats or bits")
        rows = []
        for metric in [each.name for each in fields(self) if each.type == "float"]:
            scale = 1 / math.log(2) if unit == "bits" and metric in IN_NATS else 1.0
            low, high = self.intervals.get(metric, (math.nan, math.nan))
            rows.append({"metric": metric, "value": getattr(self, metric) * scale, "low": low * scale,
                         "high": high * scale,
                         "unit": unit if metric in IN_NATS else self.undefined.get(metric, "")})
        return pd.DataFrame(rows).set_index("metric")


# --- the evaluation --------------------------------------------------------------------------------------------------


class HasEncodeDecode(Protocol):
    """All that an autoencoder needs to be evaluated."""

    def encode(self, x: Tensor, /) -> Tensor: ...
    def decode(self, latents: Tensor, /) -> Tensor: ...


@torch.no_grad()
def evaluate_sae(
    model: TransformerBridge, sae: HasEncodeDecode, tokens: Int[Tensor, "n pos"], *, hook_name: str | None = None,
    head: int | None = None, mask: Bool[Tensor, "n pos"] | None = None, batch_size: int = 8,
    convention: Convention = COURSE, everything: bool = True, resamples: int = RESAMPLES, seed: int = 0,
    force: bool = False,
) -> FaithfulnessReport:
    """Every metric of `FaithfulnessReport`, on these tokens. Memory does not grow with their number.

    One clean pass; each patched pass runs only the layers above the activation. If the activation is the residual
    stream, a constant in its place gives every sequence the same predictions: that pass runs one sequence.

    Args:
        sae: ours, SAELens's, or any object with `encode` and `decode`.
        hook_name, head: where it goes; None: where it says that it was trained.
        mask: which positions are patched and counted; None: all but the first (BOS). Padded text needs one: see
            `passes.without_padding`. The last position before padding does not count, nor does the last of a row.
        convention: see `Convention`.
        everything: False leaves out what the peers do not have: reverse_kl, js, ce_mean.
        resamples, seed: of the bootstrap behind the intervals; 0 for none. (Which scores are defined is then still
            judged with 200.)
        force: evaluate an autoencoder somewhere other than where it was trained.
    Raises:
        ValueError: if the place or the width is wrong, the mask does not fit, is empty, counts padding or what comes
            after it, or is missing although the text is padded, an activation is not finite, or the object does
            something other than decode(encode(x)).
    """
    site = site_of(model, sae, hook_name, head, force)
    mask = checked_mask(model, tokens, mask)
    known = followed(model, tokens, mask)
    counts = counted_positions(mask, known, convention.drop_last)
    sums = _Sums(len(tokens), resamples, seed)
    with_zeros = _ConstantPass(model, site, tokens, mask, torch.zeros(site.width), convention)
    batches = torch.arange(len(tokens)).split(batch_size)
    for rows in tqdm(batches, desc="batches", delay=1, disable=bars_are_off()):
        keep, counted = mask[rows], counts[rows]
        clean, x = run_and_read(model, tokens[rows], site)
        firing = Firing(counted)
        x_hat = reconstruct(sae, x, site, firing)
        patched = x_hat if convention.patch_everywhere else torch.where(keep[..., None], x_hat, x)
        final = site.continue_with(clean, patched)
        sums.add_activations(rows, counted, x, x_hat, firing, convention)
        losses, divergences = _compare(clean, final, with_zeros.log_probs(clean, keep), counted, everything)
        sums.add(rows, counted & known[rows], losses)               # no loss where the next token is not known
        sums.add(rows, counted, divergences)
    if everything:
        with_mean = _ConstantPass(model, site, tokens, mask, sums.mean_activation, convention)
        for rows in tqdm(batches, desc="mean ablation", delay=1, disable=bars_are_off() or with_mean.same_for_all):
            run = None if with_mean.same_for_all else CleanRun(model, tokens[rows], site.recorded)
            loss = _cross_entropy(with_mean.log_probs(run, mask[rows]), tokens[rows], at_a_time(model, LOGITS))
            sums.add(rows, counts[rows] & known[rows], {"ce_mean": loss})
    return sums.report()


@torch.no_grad()
def patched_logits(
    model: TransformerBridge, sae: HasEncodeDecode, tokens: Int[Tensor, "batch pos"], *, hook_name: str | None = None,
    mask: Bool[Tensor, "batch pos"] | None = None,
) -> tuple[Float[Tensor, "batch pos vocab"], Float[Tensor, "batch pos vocab"]]:
    """Logits of the model, and with the reconstruction in the activation's place where the mask says so.

    All logits exist at once, so give it a few rows. `mask` is as in `evaluate_sae`; logits at padding mean nothing.
    Raises:
        ValueError: as `evaluate_sae` does.
    """
    site, mask = site_of(model, sae, hook_name), checked_mask(model, tokens, mask)
    clean, x, x_hat = run_and_reconstruct(model, sae, tokens, site)
    final = site.continue_with(clean, torch.where(mask[..., None], x_hat, x))
    return clean.logits(clean.residuals[-1]), clean.logits(final)


def run_and_reconstruct(
    model: TransformerBridge, sae: HasEncodeDecode, tokens: Int[Tensor, "batch pos"], site: Site
) -> tuple[CleanRun, Float[Tensor, "batch pos width"], Float[Tensor, "batch pos width"]]:
    """A clean pass, the activation in it, and its reconstruction.

    Raises:
        ValueError: if an activation is not finite.
    """
    clean, x = run_and_read(model, tokens, site)
    return clean, x, reconstruct(sae, x, site)


def run_and_read(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], site: Site
) -> tuple[CleanRun, Float[Tensor, "batch pos width"]]:
    """A clean pass and the activation in it. Raises ValueError if it is not finite."""
    clean = CleanRun(model, tokens, site.recorded)
    x = site.read(clean)
    if not x.isfinite().all():
        raise ValueError(f"{site.hook_name} has activations that are not finite (NaN or infinite)")
    return clean, x


def reconstruct(
    sae: HasEncodeDecode, x: Float[Tensor, "batch pos width"], site: Site, firing: Firing | None = None
) -> Float[Tensor, "batch pos width"]:
    """The reconstruction in the activation's dtype, whatever kind of object the autoencoder is.

    Latents of a few positions exist at a time; `firing` counts them.
    Raises:
        ValueError: if what the object does is not decode(encode(x)), see `check_own_call`.
    """
    given = as_the_object_wants(sae, x, site)
    parts = []
    for active, x_hat in in_parts(sae, given):
        if firing is not None:
            firing.add(active, x_hat.numel() // site.width)
        parts.append(x_hat.reshape(-1, site.width))
    return torch.cat(parts).reshape(x.shape).to(x)


def latents_of(
    sae: HasEncodeDecode, x: Float[Tensor, "batch pos width"], site: Site
) -> Float[Tensor, "batch pos d_sae"]:
    """All latents at once. Raises ValueError as `reconstruct` does."""
    return encode_decode(sae, as_the_object_wants(sae, x, site))[0].to_dense()     # SAELens's TopK may give sparse ones


def as_the_object_wants(
    sae: HasEncodeDecode, x: Float[Tensor, "batch pos width"], site: Site
) -> Float[Tensor, "batch pos *width"]:
    """The activation in the shape, on the device and in the dtype of the autoencoder. Raises as `reconstruct` does."""
    if getattr(sae, "hook_z_reshaping_mode", False):                # SAELens: it wants the heads apart
        x = x.unflatten(-1, (-1, site.d_head))
    parameters = sae.parameters() if hasattr(sae, "parameters") else ()
    if (weight := next(iter(parameters), None)) is not None:
        x = x.to(weight)
    if not site.compared:                                           # once, on the first batch
        check_own_call(sae, x)
        site.compared = True
    return x


def site_of(
    model: TransformerBridge, sae: object, hook_name: str | None = None, head: int | None = None, force: bool = False
) -> Site:
    """Where the autoencoder goes.

    Raises:
        ValueError: as `evaluate_sae` does.
    """
    metadata = getattr(getattr(sae, "cfg", None), "metadata", None)             # SAELens
    trained_at = getattr(sae, "hook_name", None) or getattr(metadata, "hook_name", None)
    own_head = getattr(sae, "head", getattr(metadata, "hook_head_index", None))
    refuse_transcoder(sae, trained_at)
    place = hook_name or trained_at
    if place is None:
        raise ValueError("this autoencoder does not say where it belongs: give hook_name")
    if hook_name and trained_at and hook_name != trained_at and not force:
        raise ValueError(f"this autoencoder was trained at {trained_at}, not at {hook_name}: what it says there is not "
                         "about this activation. To see what happens all the same: force=True")
    if head is not None and own_head not in (None, head) and not force:
        raise ValueError(f"this autoencoder was trained on head {own_head}, not on head {head}; to see what happens "
                         "all the same: force=True")
    site = Site(model, place, own_head if head is None else head)
    width = getattr(sae, "d_in", getattr(getattr(sae, "cfg", None), "d_in", site.width))
    if width != site.width:
        raise ValueError(f"{site.hook_name} has width {site.width} here; this autoencoder was made for {width}")
    return site


def _compare(
    clean: CleanRun, final: Float[Tensor, "batch pos d_model"], log_probs_with_zeros: LogProbs,
    counted: Bool[Tensor, "batch pos"], everything: bool,
) -> tuple[dict[str, Float[Tensor, "batch pos"]], dict[str, Float[Tensor, "batch pos"]]]:
    """Cross-entropies and divergences of the clean pass, the patched one and the one with zeros; 0 where not counted.

    LOGITS of them exist at once, and are compared in strips of STRIP.
    """
    p_stream, q_stream = clean.residuals[-1].flatten(0, 1), final.flatten(0, 1)             # [batch * pos, d_model]
    next_tokens = clean.tokens.roll(-1, dims=1).flatten()                                   # [batch * pos]
    places = counted.flatten().nonzero()[:, 0]                                              # [counted]
    losses, divergences = [], []
    for chunk in places.split(at_a_time(clean.model, LOGITS)):
        p_logits, q_logits = clean.logits(p_stream[chunk]), clean.logits(q_stream[chunk])   # [chunk, vocab]
        zero_log_probs = log_probs_with_zeros(chunk)                                        # [chunk, vocab]
        for start in range(0, len(chunk), at_a_time(clean.model, STRIP)):
            strip = slice(start, start + at_a_time(clean.model, STRIP))
            log_p, log_q = log_softmax(p_logits[strip]), log_softmax(q_logits[strip])       # [strip, vocab]
            log_zero, p = zero_log_probs[strip], log_p.exp()
            target = next_tokens[chunk[strip], None]                                        # [strip, 1]
            losses.append({
                "ce_clean": -log_p.gather(1, target)[:, 0],
                "ce_sae": -log_q.gather(1, target)[:, 0],
                "ce_zero": -log_zero.gather(1, target)[:, 0],
            })
            divergences.append({"kl": kl_of_log_probs(log_p, log_q, p), "kl_zero": kl_of_log_probs(log_p, log_zero, p)})
            if everything:
                divergences[-1] |= {
                    "reverse_kl": kl_of_log_probs(log_q, log_p),
                    "js": js_of_log_probs(log_p, log_q),
                }
    return _put_back(losses, counted), _put_back(divergences, counted)


def at_a_time(model: TransformerBridge, logits: int) -> int:
    """How many positions have so many logits; one at least."""
    return max(1, logits // model.cfg.d_vocab)


def _put_back(
    strips: list[dict[str, Float[Tensor, "strip"]]], counted: Bool[Tensor, "batch pos"]
) -> dict[str, Float[Tensor, "batch pos"]]:
    """Each metric of the strips, at its places in the batch."""
    names = strips[0] if strips else ()
    return {name: put_back([strip[name] for strip in strips], counted) for name in names}


def _cross_entropy(
    log_probs: LogProbs, tokens: Int[Tensor, "batch pos"], positions: int
) -> Float[Tensor, "batch pos"]:
    """Cross-entropy of each next token, so many positions at a time; the last position's means nothing."""
    next_tokens = tokens.roll(-1, dims=1).flatten()                                         # [batch * pos]
    places = torch.arange(len(next_tokens), device=tokens.device)
    chunks = places.split(positions)
    losses = [-log_probs(chunk).gather(1, next_tokens[chunk, None])[:, 0] for chunk in chunks]
    return torch.cat(losses).reshape(tokens.shape)


class _ConstantPass:
    """Passes with a constant vector in the activation's place: zero, or the mean.

    If nothing about the sequence bypasses the constant, the predictions are the same for every sequence, and one
    sequence is run for all. That takes a residual stream, and a mask that leaves out nothing, or only the same first
    tokens in every row: BOS, usually.
    """

    def __init__(
        self, model: TransformerBridge, site: Site, tokens: Int[Tensor, "n pos"], mask: Bool[Tensor, "n pos"],
        value: Float[Tensor, "width"], convention: Convention,
    ) -> None:
        self.site, self.everywhere = site, convention.ablate_everywhere
        self.value = value.to(tokens.device, torch.float32)
        first = int(mask[0].int().argmax())                         # where the mask begins
        prefix_alike = (tokens[:, :first] == tokens[0, :first]).all()
        only_prefix_left_out = mask[:, first:].all() and not mask[:, :first].any()
        self.same_for_all = site.is_residual and bool(self.everywhere or (only_prefix_left_out and prefix_alike))
        if self.same_for_all:
            clean = CleanRun(model, tokens[:1])
            stream = self._final(clean, mask[:1])[0]                # [pos, d_model]
            parts = stream.split(at_a_time(model, LOGITS))
            self._shared = torch.cat([log_softmax(clean.logits(part)) for part in parts])   # [pos, vocab]

    def log_probs(self, clean: CleanRun | None, mask: Bool[Tensor, "batch pos"]) -> LogProbs:
        """Run one batch (`clean` may be None if the same holds for all); log-probabilities at the places asked for."""
        if self.same_for_all or clean is None:
            return lambda places: self._shared[places % len(self._shared)]
        stream = self._final(clean, mask).flatten(0, 1)             # [batch * pos, d_model]
        return lambda places: log_softmax(clean.logits(stream[places]))

    def _final(self, clean: CleanRun, mask: Bool[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        x = self.site.read(clean)
        constant = self.value.to(x).expand_as(x)
        new = constant if self.everywhere else torch.where(mask[..., None], constant, x)
        return self.site.continue_with(clean, new)


class _Sums(Pooled):
    """The sums behind a report."""

    def __init__(self, n: int, resamples: int, seed: int) -> None:
        super().__init__(n, resamples or RESAMPLES, seed)
        self.with_intervals = resamples > 0
        self.sum_x = torch.zeros((), dtype=torch.float64)           # [row, width], once something was added
        self.active = torch.zeros((), dtype=torch.long)             # [d_sae]: positions where each latent is active
        self.active_sequences = torch.zeros((), dtype=torch.long)   # [d_sae]: sequences where it is
        self.bias_of_batches: list[float] = []

    def add_activations(
        self, rows: Int[Tensor, "batch"], counted: Bool[Tensor, "batch pos"], x: Float[Tensor, "batch pos width"],
        x_hat: Float[Tensor, "batch pos width"], firing: Firing, convention: Convention,
    ) -> None:
        """Add what activations, reconstructions and latents say without the rest of the model."""
        x, x_hat = x.double(), x_hat.double()                       # a variance is a small difference of large sums
        norm_in, norm_out = x.norm(dim=-1), x_hat.norm(dim=-1)      # [batch, pos]
        values = {
            "l0": firing.l0,
            "l1": firing.l1,
            "mse": (x_hat - x).pow(2).sum(-1),
            "cosine": torch.nn.functional.cosine_similarity(x, x_hat, dim=-1),
            "l2_in": norm_in,
            "l2_out": norm_out,
            "l2_ratio": norm_out / torch.where(norm_in < 1e-4, 1.0, norm_in),
            "squared_in": norm_in.pow(2),
            "squared_out": norm_out.pow(2),
            "dot": (x * x_hat).sum(-1),
        }
        if convention.batch_ratios:
            from_mean = (x - x[counted].mean(dim=0)).pow(2).sum(-1)
            values["explained_variance_legacy"] = 1 - values["mse"] / from_mean
            self.bias_of_batches.append((values["squared_out"][counted].mean() / values["dot"][counted].mean()).item())
        self.add(rows, counted, values)
        sum_of_each = torch.where(counted[..., None], x, 0.0).sum(1).cpu()                  # [batch, width]
        self.sum_x = self.sum_x + self.weights[:, rows].double() @ sum_of_each
        self.active = self.active + firing.active.cpu()
        self.active_sequences = self.active_sequences + firing.sequences.cpu()

    @property
    def mean_activation(self) -> Float[Tensor, "width"]:
        """E x over the counted positions."""
        return (self.sum_x[0] / self.counts["l0"][0].sum()).float()

    def report(self) -> FaithfulnessReport:
        """Divide, once."""
        metrics = self._metrics()
        n_counted = self.counts["l0"][0].sum()
        undefined = {name: f"not defined: {below} may be 0"
                     for name, below in DIVIDED_BY.items() if metrics[name][0].isnan()}
        if "ce_mean" not in self.sums:
            undefined.pop("reconstruction_score_mean", None)        # not asked for
        by_position = {name: self.by_position(name) for name in self.sums if name in metrics}
        by_position["delta_ce"] = by_position["ce_sae"] - by_position["ce_clean"]
        peers = {}
        if self.bias_of_batches:
            peers = {"explained_variance_legacy": self.mean("explained_variance_legacy")[0].item(),
                     "relative_reconstruction_bias": sum(self.bias_of_batches) / len(self.bias_of_batches)}
        return FaithfulnessReport(
            **{name: values[0].item() for name, values in metrics.items()},
            dead_fraction=(self.active == 0).double().mean().item(),
            n_sequences=self.weights.shape[1],
            n_positions=int(n_counted),
            intervals={name: interval(values[1:]) for name, values in metrics.items()} if self.with_intervals else {},
            by_position=by_position,
            density=self.active / n_counted,
            active_sequences=self.active_sequences,
            peers=peers,
            undefined=undefined,
        )

    def _metrics(self) -> dict[str, Float[Tensor, "row"]]:
        """{field of the report: its value for all sequences (row 0) and for each resample}."""
        mean = {name: self.mean(name) for name in self.sums}                                # each [row]
        not_asked_for = torch.full_like(mean["kl"], torch.nan)
        ce_clean, ce_sae, ce_zero = mean["ce_clean"], mean["ce_sae"], mean["ce_zero"]
        ce_mean = mean.get("ce_mean", not_asked_for)
        mean_x = self.sum_x / self.counts["l0"].sum(1)[:, None]                             # [row, width]
        fvu = defined_ratio(mean["mse"], mean["squared_in"] - mean_x.pow(2).sum(1))
        return {
            "ce_clean": ce_clean,
            "ce_sae": ce_sae,
            "ce_zero": ce_zero,
            "ce_mean": ce_mean,
            "delta_ce": ce_sae - ce_clean,
            "reconstruction_score": defined_ratio(ce_zero - ce_sae, ce_zero - ce_clean),
            "reconstruction_score_mean": defined_ratio(ce_mean - ce_sae, ce_mean - ce_clean),
            "kl": mean["kl"],
            "reverse_kl": mean.get("reverse_kl", not_asked_for),
            "js": mean.get("js", not_asked_for),
            "kl_zero": mean["kl_zero"],
            "kl_score": 1 - defined_ratio(mean["kl"], mean["kl_zero"]),
            "l0": mean["l0"],
            "l1": mean["l1"],
            "mse": mean["mse"],
            "explained_variance": 1 - fvu,
            "fvu": fvu,
            "cosine": mean["cosine"],
            "l2_ratio": mean["l2_ratio"],
            "l2_in": mean["l2_in"],
            "l2_out": mean["l2_out"],
            "relative_reconstruction_bias": defined_ratio(mean["squared_out"], mean["dot"]),
        }
