"""Means over all counted positions of all batches, and how sure they are: one sum, divided once."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

TOO_SMALL = 1e-6  # nats, or activations squared: what is smaller divides nothing


class Pooled:
    """Running sums of per-position values: row 0 for all sequences, the other rows for resamples of them (bootstrap).

    A resample draws as many sequences as there are, with replacement; row r counts sequence i weights[r, i] times.
    Memory grows with the number of positions of one sequence and of resamples, not with the number of sequences.
    """

    def __init__(self, n: int, resamples: int, seed: int) -> None:
        drawn = resample(n, resamples, seed)
        times = torch.zeros(resamples, n, dtype=torch.int32).scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.int32))
        self.weights = torch.cat([torch.ones(1, n, dtype=torch.int32), times])
        self.sums: dict[str, Float[Tensor, "row pos"]] = {}
        self.counts: dict[str, Float[Tensor, "row pos"]] = {}

    def add(
        self, rows: Int[Tensor, "batch"], counted: Bool[Tensor, "batch pos"],
        values: dict[str, Float[Tensor, "batch pos"]],
    ) -> None:
        """Add the values of some sequences at the positions that are counted."""
        weights, counted = self.weights[:, rows].double(), counted.cpu()
        for name, value in values.items():
            value = torch.where(counted, value.cpu().double(), 0.0)
            self.sums[name] = self.sums.get(name, 0.0) + weights @ value
            self.counts[name] = self.counts.get(name, 0.0) + weights @ counted.double()

    def mean(self, name: str) -> Float[Tensor, "row"]:
        """The mean over counted positions, of all sequences and of each resample."""
        return self.sums[name].sum(1) / self.counts[name].sum(1)

    def by_position(self, name: str) -> Float[Tensor, "pos"]:
        """The mean over sequences; NaN where none is counted."""
        return self.sums[name][0] / self.counts[name][0]


def resample(n: int, resamples: int, seed: int) -> Int[Tensor, "resample n"]:
    """For each resample the n sequences that it draws, with replacement."""
    return torch.randint(0, n, (resamples, n), generator=torch.Generator().manual_seed(seed))


def interval(resampled: Float[Tensor, "resample"]) -> tuple[float, float]:
    """Where the middle 95 % of the resampled values lie; a resample without a counted position has none."""
    return tuple(resampled.nanquantile(resampled.new_tensor([0.025, 0.975])).tolist())


def defined_ratio(above: Float[Tensor, "row"], below: Float[Tensor, "row"]) -> Float[Tensor, "row"]:
    """above / below, of all sequences (row 0) and of each resample; NaN, not defined, where `below` may be 0.

    That is so in all rows if its 95 % interval holds 0, to 1e-6: what is divided by noise is a number of any size.
    """
    low, high = interval(below[1:])
    return above / below if low > TOO_SMALL or high < -TOO_SMALL else torch.full_like(below, torch.nan)


def mean_and_error(values: Float[Tensor, "n pos"]) -> tuple[float, float]:
    """The mean, and its standard error over sequences (not tokens: those of one text are not independent)."""
    by_sequence = values.double().mean(dim=1)
    return by_sequence.mean().item(), (by_sequence.std() / len(by_sequence) ** 0.5).item()
