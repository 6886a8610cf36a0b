"""The report on an autoencoder's faithfulness, and the sums that it is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from course_utils.metrics import defined_ratio, interval
from course_utils.passes import Pooled
from course_utils.wide import Firing

if TYPE_CHECKING:
    import pandas as pd

RESAMPLES = 200         # of the bootstrap
LATENTS = ("active", "active_sequences")
DIVIDED_BY = {"reconstruction_score": "ce_zero − ce_clean", "reconstruction_score_mean": "ce_mean − ce_clean",
              "kl_score": "kl_zero", "fvu": "the variance of x", "explained_variance": "the variance of x",
              "relative_reconstruction_bias": "E[x·x̂]"}
IN_NATS = ("ce_clean", "ce_sae", "ce_zero", "ce_mean", "delta_ce", "kl", "reverse_kl", "js", "kl_zero")


@dataclass(frozen=True)
class Convention:
    """What libraries decide differently. The defaults are the course's rule."""

    drop_last: bool = True            # the last position never counts; if False, only cross-entropy leaves it out
    ablate_everywhere: bool = False   # the ablated passes also replace the positions that the mask leaves out
    patch_everywhere: bool = False    # the autoencoder's pass does, too
    batch_ratios: bool = False        # `peers` gets two means of the ratios of batches; they depend on batch_size


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


# --- the sums --------------------------------------------------------------------------------------------------------


class Sums(Pooled):
    """The sums behind a report. Those of two parts of the same tokens add up: `+`."""

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

    def __add__(self, other: Sums) -> Sums:
        """Sums of the sequences of both. Raises ValueError if they are of other tokens, resamples or seeds."""
        if not torch.equal(self.weights, other.weights):
            raise ValueError("these sums do not belong together: another number of sequences or resamples, or another "
                             "seed")
        total = Sums(1, 1, 0)
        total.weights, total.with_intervals = self.weights, self.with_intervals
        for name in {**self.sums, **other.sums}:
            total.sums[name] = self.sums.get(name, 0.0) + other.sums.get(name, 0.0)
            total.counts[name] = self.counts.get(name, 0.0) + other.counts.get(name, 0.0)
        total.sum_x = self.sum_x + other.sum_x
        total.active, total.active_sequences = (getattr(self, name) + getattr(other, name) for name in LATENTS)
        total.bias_of_batches = self.bias_of_batches + other.bias_of_batches
        total.done = self.done + other.done
        return total

    def tensors(self) -> dict[str, Tensor]:
        """All of it but the weights of the resamples, which the seed gives."""
        found = {name: getattr(self, name) for name in (*LATENTS, "sum_x")}
        return super().tensors() | found | {"bias": torch.tensor(self.bias_of_batches, dtype=torch.float64)}

    def take(self, tensors: dict[str, Tensor]) -> None:
        """Put what `tensors` gave in the place of what is here. Raises KeyError if something is missing."""
        super().take(tensors)
        self.active, self.active_sequences, self.sum_x = (tensors[name] for name in (*LATENTS, "sum_x"))
        self.bias_of_batches = tensors["bias"].tolist()

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
