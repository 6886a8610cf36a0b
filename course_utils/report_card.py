"""One page on one autoencoder: is it faithful on text, is its error more than noise, and does it keep the circuit?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from course_utils.baselines import noise_floor
from course_utils.faithfulness import HasEncodeDecode, evaluate_sae
from course_utils.heads import best_head, induction_scores
from course_utils.metrics import defined_ratio, interval, resample
from course_utils.repeated_tokens import check_repeated_length, generate_repeated_tokens, repeated_token_report
from course_utils.splicing import residual_site, spliced
from course_utils.text import sample_text
from course_utils.viz import OKABE_ITO, new_axes

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

SHARES = ("reconstruction score", "explained variance, text", "explained variance, repeats", "circuit: gain kept",
          "circuit: attention kept")  # 1 is perfect: these are drawn


@dataclass(frozen=True)
class ReportCard:
    """What `report_card` found: {name: (value, low, high, unit)}; low and high are NaN where there is no interval.

    A ratio is NaN where what it divides by may be 0; in the unit's place stands "not defined", and why.
    """

    title: str
    rows: dict[str, tuple[float, float, float, str]] = field(repr=False)

    def to_frame(self) -> pd.DataFrame:
        """All rows as a table, with 95 % intervals from resampled sequences."""
        import pandas as pd

        return pd.DataFrame.from_dict(self.rows, orient="index", columns=["value", "low", "high", "unit"])

    def plot(self, ax: Axes | None = None) -> Figure:
        """The shares, 0 to 1, with their intervals: text above, circuit below."""
        ax = ax or new_axes(2.8)
        for i, name in enumerate(SHARES):
            value, low, high, _ = self.rows[name]
            ax.barh(i, max(0.0, value), color=OKABE_ITO[1 if "circuit" in name or "repeats" in name else 0])
            if low == low:
                ax.plot([min(max(0.0, end), 1.15) for end in (low, high)], [i, i], color="black", linewidth=2)
            ax.text(1.02, i, f"{value:.3f}" if value == value else "not defined", va="center", fontsize=9)
        ax.set_yticks(range(len(SHARES)), SHARES, fontsize=9)
        ax.invert_yaxis()
        ax.set(xlim=(0, 1.15), xlabel="share (1 is perfect)", title=self.title)
        ax.grid(axis="x", alpha=0.3)
        return ax.figure


@torch.no_grad()
def report_card(
    model: TransformerBridge, sae: HasEncodeDecode, *, text: Int[Tensor, "n pos"] | None = None,
    mask: Bool[Tensor, "n pos"] | None = None, seq_len: int = 50, batch: int = 16, draws: int = 2, batch_size: int = 8,
    seed: int = 0,
) -> ReportCard:
    """Everything this course would ask of an autoencoder of the residual stream, yours included.

    Args:
        text: BOS first; None: 24 rows of `sample_text`.
        mask: which positions of the text count, as in `evaluate_sae`; needed if it is padded.
        seq_len, batch: of the repeated tokens.
        draws: of each random baseline.
    Raises:
        ValueError: as `evaluate_sae` does, or if the autoencoder does not read the residual stream.
    """
    site = residual_site(model, sae)                                # refuses what cannot be spliced, before any work
    check_repeated_length(model, seq_len, batch)
    text = sample_text(model, 24, min(128, model.cfg.n_ctx), seed=seed + 5) if text is None else text
    repeats = generate_repeated_tokens(model, seq_len, batch, seed=seed)
    settings = {"batch_size": batch_size, "seed": seed}
    on_text, on_repeats = (evaluate_sae(model, sae, tokens, mask=which, everything=False, **settings)
                           for tokens, which in ((text, mask), (repeats, None)))
    floor = noise_floor(model, sae, text, ("epsilon_random", "covariance_random"), draws, mask=mask, **settings)
    clean, heads = repeated_token_report(model, seq_len, batch, seed=seed), _scores(model, repeats, seq_len)
    with spliced(model, sae):
        patched, heads_then = repeated_token_report(model, seq_len, batch, seed=seed), _scores(model, repeats, seq_len)
    rows = {
        "KL": _of(on_text, "kl", "nats"), "ΔCE": _of(on_text, "delta_ce", "nats"),
        "reconstruction score": _of(on_text, "reconstruction_score"),
        "explained variance, text": _of(on_text, "explained_variance"),
        "explained variance, repeats": _of(on_repeats, "explained_variance"),
        "L0": _of(on_text, "l0"), "dead latents": (on_text.dead_fraction, torch.nan, torch.nan, "share"),
        "KL / ε-random": _ratio(floor, "epsilon_random"), "KL / covariance-matched": _ratio(floor, "covariance_random"),
        "KL, repeats": _of(on_repeats, "kl", "nats"),
        "second copy, clean": (clean.inner_log_prob, torch.nan, torch.nan, "nats"),
        "second copy, spliced": (patched.inner_log_prob, torch.nan, torch.nan, "nats"),
    }
    kept = circuit_scores(clean.log_probs, patched.log_probs, seed=seed)
    rows["circuit: gain kept"] = (kept[0].item(), *interval(kept[1:]), "not defined: the clean gain may be 0"
                                  if kept[0].isnan() else "share")
    layer, head = best_head(heads.mean(dim=0))
    before, after = heads[:, layer, head], heads_then[:, layer, head]
    drawn = resample(len(before), 400, seed)
    rows["circuit: attention kept"] = ((after.sum() / before.sum()).item(), *interval(
        after[drawn].sum(1) / before[drawn].sum(1)), f"share, head {layer}.{head}")
    return ReportCard(f"{model.cfg.model_name}: {site.hook_name}", rows)


def circuit_scores(
    clean: Float[Tensor, "batch 2*seq_len"], changed: Float[Tensor, "batch 2*seq_len"], resamples: int = 400, seed: int = 0
) -> Float[Tensor, "1+resample"]:
    """`circuit_score` of all sequences, and of each resample; NaN where the clean gain may be 0."""
    drawn = [torch.arange(len(clean)), *resample(len(clean), resamples, seed)]
    n = clean.shape[1] // 2
    gains = [each[:, n + 1 :].mean(dim=1) - each[:, :n].mean(dim=1) for each in (changed, clean)]          # [batch]
    return defined_ratio(*(torch.stack([gain[rows].mean() for rows in drawn]) for gain in gains))


def circuit_interval(
    clean: Float[Tensor, "batch 2*seq_len"], changed: Float[Tensor, "batch 2*seq_len"], resamples: int = 400, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of `circuit_score`, both sides from the same resampled sequences; NaN where it is not defined."""
    return interval(circuit_scores(clean, changed, resamples, seed)[1:])


def _scores(model: TransformerBridge, tokens: Int[Tensor, "batch pos"], seq_len: int) -> Float[Tensor, "batch layer head"]:
    """Induction scores of each sequence by itself."""
    return torch.stack([induction_scores(model, row[None], seq_len) for row in tokens])


def _of(report, name: str, unit: str = "") -> tuple[float, float, float, str]:
    return (getattr(report, name), *report.intervals[name], report.undefined.get(name, unit))


def _ratio(floor, kind: str) -> tuple[float, float, float, str]:
    ratio = floor.ratio[kind]
    return ratio, *floor.ratio_intervals[kind], "" if ratio == ratio else "not defined: that harm may be 0"
