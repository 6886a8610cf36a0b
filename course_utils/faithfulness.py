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

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from course_utils.faithfulness_report import RESAMPLES, Convention, FaithfulnessReport, Sums
from course_utils.house import bars_are_off
from course_utils.metrics import (
    bootstrap_interval,
    cross_entropy_by_position,
    delta_cross_entropy,
    explained_variance,
    js_of_log_probs,
    kl_divergence,
    kl_of_log_probs,
    log_softmax,
    pooled_mean,
    reconstruction_score,
)
from course_utils.passes import (
    CleanRun,
    Keeper,
    Site,
    all_but_first,
    checked_mask,
    counted_positions,
    followed,
    over_batches,
    put_back,
    what_is_run,
)
from course_utils.sae_formats import check_own_call, encode_decode, refuse_transcoder
from course_utils.wide import Firing, HasEncodeDecode, in_parts

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

__all__ = [
    "COURSE", "LOGITS", "RESAMPLES", "SAEBENCH", "SAELENS", "Convention", "FaithfulnessReport", "HasEncodeDecode",
    "all_but_first", "at_a_time", "bootstrap_interval", "cross_entropy_by_position", "delta_cross_entropy",
    "evaluate_sae", "evaluate_saes", "explained_variance", "kl_divergence", "kl_of_log_probs", "log_softmax",
    "patched_logits", "pooled_mean", "reconstruct", "reconstruction_score", "run_and_reconstruct", "site_of",
]

LOGITS = 5_000_000      # that exist at once, for each model: 20 MB, those of 100 positions with 50,000 tokens
STRIP = 200_000         # of these, how many are compared at once: fits the cache, a third faster than all
ALIKE = 1e-5            # nats: log-probabilities of two positions that differ by no more are the same

LogProbs = Callable[[Int[Tensor, "place"]], "Float[Tensor, 'place vocab'] | _Rows"]     # from places in a flat batch


# --- conventions -----------------------------------------------------------------------------------------------------


COURSE = Convention()
SAELENS = Convention(drop_last=False, ablate_everywhere=True, batch_ratios=True)   # run_evals of SAELens 6.54
SAEBENCH = Convention(drop_last=False, ablate_everywhere=True, patch_everywhere=True)


# --- the evaluation --------------------------------------------------------------------------------------------------


@torch.no_grad()
def evaluate_sae(
    model: TransformerBridge, sae: HasEncodeDecode, tokens: Int[Tensor, "n pos"], *, hook_name: str | None = None,
    head: int | None = None, mask: Bool[Tensor, "n pos"] | None = None, batch_size: int = 8,
    convention: Convention = COURSE, everything: bool = True, resamples: int = RESAMPLES, seed: int = 0,
    force: bool = False, folder: str | Path | None = None,
) -> FaithfulnessReport:
    """Every metric of `FaithfulnessReport`, on these tokens. Memory does not grow with their number.

    One clean pass; each patched pass runs only the layers above the activation. If the activation is the residual
    stream, a constant in its place gives every sequence the same predictions: that pass runs one sequence.

    Args:
        sae: ours, SAELens's, or any object with `encode` and `decode`. In half precision it computes in that.
        hook_name, head: where it goes; None: where it says that it was trained.
        mask: which positions are patched and counted; None: all but the first (BOS). Padded text needs one: see
            `passes.without_padding`. The last position before padding does not count, nor does the last of a row.
        convention: see `Convention`.
        everything: False leaves out what the peers do not have: reverse_kl, js, ce_mean.
        resamples, seed: of the bootstrap behind the intervals; 0 for none. (Which scores are defined is then still
            judged with 200.)
        force: evaluate an autoencoder somewhere other than where it was trained, or in a model in half precision.
        folder: where to keep the sums, about once a minute. A run that was stopped continues there.
    Raises:
        ValueError: if the place or the width is wrong, the mask does not fit, is empty, counts padding or what comes
            after it, or is missing although the text is padded, an activation is not finite, the object does
            something other than decode(encode(x)), the model is in half precision, or the folder holds another run
            or a damaged file.
    """
    evaluation = Evaluation(
        model, sae, tokens, hook_name=hook_name, head=head, mask=mask, batch_size=batch_size, convention=convention,
        everything=everything, resamples=resamples, seed=seed, force=force)
    keep = Keeper(folder, evaluation.settings()) if folder else None
    sums = evaluation.sums(keep=keep)
    if everything:
        sums = sums + evaluation.mean_ablation(sums.mean_activation, keep=keep)
    return sums.report()


@torch.no_grad()
def evaluate_saes(
    model: TransformerBridge, saes: Mapping[str, HasEncodeDecode], tokens: Int[Tensor, "n pos"], *,
    batch_size: int = 8, everything: bool = True, **options: Any,
) -> dict[str, FaithfulnessReport]:
    """`evaluate_sae` of several autoencoders, at one place or at different ones: they share the clean pass.

    Options, and errors, are those of `evaluate_sae`, without `folder`.
    """
    each = {name: Evaluation(model, sae, tokens, batch_size=batch_size, everything=everything, **options)
            for name, sae in saes.items()}
    sums = {name: one.empty() for name, one in each.items()}
    with_zeros = {name: one.with_zeros() for name, one in each.items()}
    recorded = [hook_name for one in each.values() for hook_name in one.site.recorded]
    batches = torch.arange(len(tokens)).split(batch_size)
    for rows in tqdm(batches, desc="batches", delay=1, disable=bars_are_off()):
        clean = CleanRun(model, tokens[rows], recorded)
        for name, one in each.items():
            one.add(sums[name], rows, clean, with_zeros[name])
    if everything:
        sums = {name: found + each[name].mean_ablation(found.mean_activation) for name, found in sums.items()}
    return {name: found.report() for name, found in sums.items()}


class Evaluation:
    """`evaluate_sae` of some sequences here and of others there: in several processes, or on several GPUs.

        evaluation = Evaluation(model, sae, tokens)                                     # in each process
        sums = evaluation.sums(torch.arange(1000))                                      # each has other rows
        total = sum_of_one + sum_of_another                                             # in one of them
        total.report()

    Sums are of the same tokens, seed and number of resamples, so that they add up to those of all rows. For ce_mean
    every process then needs `total.mean_activation`: add up what `mean_ablation` gives, too. The whole program is
    `training/evaluate_in_parts.py`.
    """

    def __init__(
        self, model: TransformerBridge, sae: HasEncodeDecode, tokens: Int[Tensor, "n pos"], *,
        hook_name: str | None = None, head: int | None = None, mask: Bool[Tensor, "n pos"] | None = None,
        batch_size: int = 8, convention: Convention = COURSE, everything: bool = True, resamples: int = RESAMPLES,
        seed: int = 0, force: bool = False,
    ) -> None:
        """Arguments, and errors, are those of `evaluate_sae`."""
        check_precision(model, force)
        self.model, self.sae, self.tokens, self.batch_size = model, sae, tokens, batch_size
        self.site = site_of(model, sae, hook_name, head, force)
        self.mask = checked_mask(model, tokens, mask)
        self.known = followed(model, tokens, self.mask)
        self.counts = counted_positions(self.mask, self.known, convention.drop_last)
        self.convention, self.everything, self.resamples, self.seed = convention, everything, resamples, seed

    def empty(self) -> Sums:
        """Sums of no sequence."""
        return Sums(len(self.tokens), self.resamples, self.seed)

    def settings(self) -> dict[str, Any]:
        """What sums depend on, in short."""
        return what_is_run(self.model, self.sae, self.site, self.tokens, self.mask) | {
            "convention": asdict(self.convention), "everything": self.everything, "resamples": self.resamples,
            "seed": self.seed, "batch_size": self.batch_size}

    @torch.no_grad()
    def sums(self, rows: Int[Tensor, "some"] | None = None, keep: Keeper | None = None) -> Sums:
        """All sums of these sequences (None: of all) but the mean ablation's. Raises as `evaluate_sae` does."""
        with_zeros = self.with_zeros()

        def add(sums: Sums, batch: Int[Tensor, "batch"]) -> None:
            self.add(sums, batch, CleanRun(self.model, self.tokens[batch], self.site.recorded), with_zeros)

        return self._over(rows, keep, "batches", add)

    def with_zeros(self) -> _ConstantPass:
        """Passes with zeros in the activation's place."""
        return _ConstantPass(self.model, self.site, self.tokens, self.mask, torch.zeros(self.site.width),
                             self.convention)

    @torch.no_grad()
    def mean_ablation(
        self, mean_activation: Float[Tensor, "width"], rows: Int[Tensor, "some"] | None = None,
        keep: Keeper | None = None,
    ) -> Sums:
        """The sums of these sequences with the mean activation of all in the activation's place."""
        with_mean = _ConstantPass(self.model, self.site, self.tokens, self.mask, mean_activation, self.convention)
        return self._over(rows, keep, "mean ablation", lambda sums, batch: self._add_mean(sums, batch, with_mean))

    def _over(
        self, rows: Int[Tensor, "some"] | None, keep: Keeper | None, desc: str, add: Callable[[Sums, Tensor], None]
    ) -> Sums:
        rows = torch.arange(len(self.tokens)) if rows is None else rows
        return over_batches(self.empty(), rows, self.batch_size, add, desc, keep)

    def add(self, sums: Sums, rows: Int[Tensor, "batch"], clean: CleanRun, with_zeros: _ConstantPass) -> None:
        """Add all sums of these sequences but the mean ablation's. Raises as `evaluate_sae` does."""
        keep, counted, known = self.mask[rows], self.counts[rows], self.known[rows]
        x = read(clean, self.site)
        firing = Firing(counted)
        x_hat = reconstruct(self.sae, x, self.site, firing)
        patched = x_hat if self.convention.patch_everywhere else torch.where(keep[..., None], x_hat, x)
        final = self.site.continue_with(clean, patched)
        sums.add_activations(rows, counted, x, x_hat, firing, self.convention)
        losses, divergences = _compare(clean, final, with_zeros.log_probs(clean, keep), counted, self.everything)
        sums.add(rows, counted & known, losses)                     # no loss where the next token is not known
        sums.add(rows, counted, divergences)

    def _add_mean(self, sums: Sums, rows: Int[Tensor, "batch"], with_mean: _ConstantPass) -> None:
        run = None if with_mean.same_for_all else CleanRun(self.model, self.tokens[rows], self.site.recorded)
        log_probs = with_mean.log_probs(run, self.mask[rows])
        loss = _cross_entropy(log_probs, self.tokens[rows], at_a_time(self.model, LOGITS))
        sums.add(rows, self.counts[rows] & self.known[rows], {"ce_mean": loss})


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
    clean = CleanRun(model, tokens, site.recorded)
    x = read(clean, site)
    return clean, x, reconstruct(sae, x, site)


def read(clean: CleanRun, site: Site) -> Float[Tensor, "batch pos width"]:
    """The activation in a clean pass. Raises ValueError if it is not finite."""
    x = site.read(clean)
    if not x.isfinite().all():
        raise ValueError(f"{site.hook_name} has activations that are not finite (NaN or infinite)")
    return x


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


def check_precision(model: TransformerBridge, force: bool = False) -> None:
    """Raise ValueError if the model computes in float16 or bfloat16, unless that is wanted.

    Rounding is then part of what is reported. In `tiny` in bfloat16 it adds 0.0001 to a KL, twice a small error's own,
    and doubles an autoencoder's KL(q‖p); in float16 it changes the third or fourth digit. An autoencoder in half
    precision is another matter: what it rounds is its own error.
    """
    halves = {str(each.dtype) for each in model.parameters() if each.dtype in (torch.float16, torch.bfloat16)}
    if halves and not force:
        raise ValueError(f"this model computes in {', '.join(sorted(halves))}: its rounding would be part of every "
                         "number, and may be more than what a good autoencoder changes. Evaluate it in float32, "
                         "model.float(); to see the numbers all the same: force=True")


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
        p_logits, q_logits = clean.logits(torch.stack([p_stream[chunk], q_stream[chunk]]))  # each [chunk, vocab]
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
    losses = [-log_probs(chunk)[places[:len(chunk)], next_tokens[chunk]] for chunk in places.split(positions)]
    return torch.cat(losses).reshape(tokens.shape)


class _Rows:
    """Some rows of a wide table, looked up when a part of them is asked for: no copy of all."""

    def __init__(self, table: Float[Tensor, "row vocab"], rows: Int[Tensor, "place"]) -> None:
        self.table, self.rows = table, rows

    def __getitem__(self, part: slice | tuple[Tensor, Tensor]) -> Tensor:
        """The places of a slice, or one entry for each of some places."""
        return self.table[self.rows[part]] if isinstance(part, slice) else self.table[self.rows[part[0]], part[1]]


class _ConstantPass:
    """Passes with a constant vector in the activation's place: zero, or the mean.

    If nothing about the sequence bypasses the constant, the predictions are the same for every sequence, and one
    sequence is run for all. That takes a residual stream, and a mask that leaves out nothing, or only the same first
    tokens in every row: BOS, usually. Where nothing at all is left out, heads gather the same from any number of
    positions, so that two tokens stand for all; if those two differ (attention sinks count positions), all are run.
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
            self._shared = self._run_one(model, tokens[:1, :2 if self.everywhere else None], mask)      # [pos, vocab]
            if self.everywhere:
                alike = torch.allclose(self._shared[0], self._shared[-1], rtol=0, atol=ALIKE)
                self._shared = self._shared[:1] if alike else self._run_one(model, tokens[:1], mask)

    def _run_one(
        self, model: TransformerBridge, tokens: Int[Tensor, "1 pos"], mask: Bool[Tensor, "n all"]
    ) -> Float[Tensor, "pos vocab"]:
        """Log-probabilities of the first sequence, or of its beginning."""
        clean = CleanRun(model, tokens)
        final = self._final(clean, mask[:1, :tokens.shape[1]])[0]                                   # [pos, d_model]
        return torch.cat([log_softmax(clean.logits(part)) for part in final.split(at_a_time(model, LOGITS))])

    def log_probs(self, clean: CleanRun | None, mask: Bool[Tensor, "batch pos"]) -> LogProbs:
        """Run one batch (`clean` may be None if the same holds for all); log-probabilities at the places asked for."""
        if self.same_for_all and len(self._shared) == 1:
            return lambda places: self._shared.expand(len(places), -1)
        if self.same_for_all or clean is None:
            return lambda places: _Rows(self._shared, places % len(self._shared))
        stream = self._final(clean, mask).flatten(0, 1)             # [batch * pos, d_model]
        return lambda places: log_softmax(clean.logits(stream[places]))

    def _final(self, clean: CleanRun, mask: Bool[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        x = self.site.read(clean)
        constant = self.value.to(x).expand_as(x)
        new = constant if self.everywhere else torch.where(mask[..., None], constant, x)
        return self.site.continue_with(clean, new)
