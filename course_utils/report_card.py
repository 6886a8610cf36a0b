"""One page on one autoencoder: is it faithful on text, is its error more than noise, and does it keep the circuit?"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from course_utils.baselines import NoiseFloor, noise_floor
from course_utils.faithfulness import FaithfulnessReport, HasEncodeDecode, check_precision, evaluate_sae
from course_utils.heads import best_head, induction_scores
from course_utils.metrics import defined_ratio, interval, resample
from course_utils.repeated_tokens import check_repeated_length, generate_repeated_tokens, repeated_token_report
from course_utils.splicing import residual_site, spliced
from course_utils.text import sample_text
from course_utils.viz import OKABE_ITO, new_axes

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

ON_TEXT = ("reconstruction score", "explained variance, text")
ON_REPEATS = ("explained variance, repeats", "circuit: gain kept", "circuit: attention kept")
SHARES = (*ON_TEXT, *ON_REPEATS)  # 1 is perfect: these are drawn


class Row(NamedTuple):
    """A number and its 95 % interval, NaN where there is none. If the number is not defined, `unit` says why."""

    value: float
    low: float
    high: float
    unit: str


@dataclass(frozen=True)
class ReportCard:
    """What `report_card` found: {name: row}. A ratio is NaN, "not defined", where its denominator may be 0."""

    title: str
    rows: dict[str, Row] = field(repr=False)

    def to_frame(self) -> pd.DataFrame:
        """All rows as a table, with 95 % intervals from resampled sequences."""
        import pandas as pd

        return pd.DataFrame.from_dict(self.rows, orient="index", columns=Row._fields)

    def plot(self, ax: Axes | None = None) -> Figure:
        """The shares, 0 to 1, with their intervals: text above, circuit below."""
        ax = ax or new_axes(2.8)
        for i, name in enumerate(SHARES):
            value, low, high, _ = self.rows[name]
            ax.barh(i, max(0.0, value), color=OKABE_ITO[1 if name in ON_REPEATS else 0])
            if not math.isnan(low):
                ax.plot(np.clip([low, high], 0, 1.15), [i, i], color="black", linewidth=2)
            label = "not defined" if math.isnan(value) else f"{value:.3f}"
            ax.text(1.02, i, label, va="center", fontsize=9)
        ax.set_yticks(range(len(SHARES)), SHARES, fontsize=9)
        ax.invert_yaxis()
        ax.set(xlim=(0, 1.15), xlabel="share (1 is perfect)", title=self.title)
        ax.grid(axis="x", alpha=0.3)
        return ax.figure


@torch.no_grad()
def report_card(
    model: TransformerBridge, sae: HasEncodeDecode, *, text: Int[Tensor, "n pos"] | None = None,
    mask: Bool[Tensor, "n pos"] | None = None, seq_len: int = 50, batch: int = 16, draws: int = 2, batch_size: int = 8,
    seed: int = 0, folder: str | Path | None = None,
) -> ReportCard:
    """Everything this course would ask of an autoencoder of the residual stream, yours included.

    Args:
        text: BOS first; None: 24 rows of `sample_text`.
        mask: which positions of the text count, as in `evaluate_sae`; needed if it is padded.
        seq_len, batch: of the repeated tokens.
        draws: of each random baseline.
        folder: where to keep the sums over the texts, as in `evaluate_sae`; the passes for the circuit, seconds each,
            are run again.
    Raises:
        ValueError: as `evaluate_sae` does, or if the autoencoder does not read the residual stream.
    """
    site = residual_site(model, sae)                                # refuses what cannot be spliced, before any work
    check_precision(model)
    check_repeated_length(model, seq_len, batch)
    text = sample_text(model, 24, min(128, model.cfg.n_ctx), seed=seed + 5) if text is None else text
    repeats = generate_repeated_tokens(model, seq_len, batch, seed=seed)
    in_text, in_repeats, in_noise = (
        {"batch_size": batch_size, "seed": seed, "folder": folder and Path(folder) / name}
        for name in ("text", "repeats", "noise"))
    on_text = evaluate_sae(model, sae, text, mask=mask, everything=False, **in_text)
    on_repeats = evaluate_sae(model, sae, repeats, everything=False, **in_repeats)
    floor = noise_floor(model, sae, text, ("epsilon_random", "covariance_random"), draws, mask=mask, **in_noise)
    clean = repeated_token_report(model, seq_len, batch, seed=seed)
    clean_heads = _scores(model, repeats, seq_len)                  # [batch, layer, head]
    with spliced(model, sae):
        patched = repeated_token_report(model, seq_len, batch, seed=seed)
        patched_heads = _scores(model, repeats, seq_len)
    rows = {
        "KL": _row(on_text, "kl", "nats"),
        "ΔCE": _row(on_text, "delta_ce", "nats"),
        "reconstruction score": _row(on_text, "reconstruction_score"),
        "explained variance, text": _row(on_text, "explained_variance"),
        "explained variance, repeats": _row(on_repeats, "explained_variance"),
        "L0": _row(on_text, "l0"),
        "dead latents": Row(on_text.dead_fraction, math.nan, math.nan, "share"),
        "KL / ε-random": _ratio(floor, "epsilon_random"),
        "KL / covariance-matched": _ratio(floor, "covariance_random"),
        "KL, repeats": _row(on_repeats, "kl", "nats"),
        "second copy, clean": Row(clean.inner_log_prob, math.nan, math.nan, "nats"),
        "second copy, spliced": Row(patched.inner_log_prob, math.nan, math.nan, "nats"),
        "circuit: gain kept": _gain_kept(circuit_scores(clean.log_probs, patched.log_probs, seed=seed)),
        "circuit: attention kept": _attention_kept(clean_heads, patched_heads, seed),
    }
    return ReportCard(f"{model.cfg.model_name}: {site.hook_name}", rows)


def circuit_scores(
    clean: Float[Tensor, "batch 2*seq_len"], changed: Float[Tensor, "batch 2*seq_len"], resamples: int = 400,
    seed: int = 0,
) -> Float[Tensor, "1+resample"]:
    """`circuit_score` of all sequences, and of each resample; NaN where the clean gain may be 0."""
    drawn = [torch.arange(len(clean)), *resample(len(clean), resamples, seed)]
    n = clean.shape[1] // 2
    gains = [each[:, n + 1 :].mean(dim=1) - each[:, :n].mean(dim=1) for each in (changed, clean)]   # each [batch]
    left, whole = (torch.stack([gain[rows].mean() for rows in drawn]) for gain in gains)            # [1 + resample]
    return defined_ratio(left, whole)


def circuit_interval(
    clean: Float[Tensor, "batch 2*seq_len"], changed: Float[Tensor, "batch 2*seq_len"], resamples: int = 400,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % interval of `circuit_score`, both sides from the same resampled sequences; NaN where it is not defined."""
    return interval(circuit_scores(clean, changed, resamples, seed)[1:])


def _scores(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], seq_len: int
) -> Float[Tensor, "batch layer head"]:
    """Induction scores of each sequence by itself."""
    return torch.stack([induction_scores(model, row[None], seq_len) for row in tokens])


def _row(report: FaithfulnessReport, name: str, unit: str = "") -> Row:
    return Row(getattr(report, name), *report.intervals[name], report.undefined.get(name, unit))


def _ratio(floor: NoiseFloor, kind: str) -> Row:
    ratio = floor.ratio[kind]
    return Row(ratio, *floor.ratio_intervals[kind], "not defined: that harm may be 0" if math.isnan(ratio) else "")


def _gain_kept(scores: Float[Tensor, "1+resample"]) -> Row:
    unit = "not defined: the clean gain may be 0" if scores[0].isnan() else "share"
    return Row(scores[0].item(), *interval(scores[1:]), unit)


def _attention_kept(
    clean: Float[Tensor, "batch layer head"], patched: Float[Tensor, "batch layer head"], seed: int
) -> Row:
    """What is left of the induction score of the clean model's best head."""
    layer, head = best_head(clean.mean(dim=0))
    before, after = clean[:, layer, head], patched[:, layer, head]                                  # [batch]
    drawn = resample(len(before), 400, seed)                                                        # [resample, batch]
    share, resampled = after.sum() / before.sum(), after[drawn].sum(1) / before[drawn].sum(1)
    return Row(share.item(), *interval(resampled), f"share, head {layer}.{head}")
