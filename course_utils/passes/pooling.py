"""Means over all counted positions of all batches, and how sure they are: one sum, divided once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from course_utils.metrics import resample


class Pooled:
    """Running sums of per-position values: row 0 for all sequences, the other rows for resamples of them (bootstrap).

    A resample draws as many sequences as there are, with replacement; row r counts sequence i weights[r, i] times.
    Memory grows with the number of positions of one sequence and of resamples, not with the number of sequences.
    """

    def __init__(self, n: int, resamples: int, seed: int) -> None:
        drawn = resample(n, resamples, seed)                                        # [resample, n]
        times = torch.zeros(resamples, n, dtype=torch.int32)                        # how often each drew each sequence
        times.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.int32))
        self.weights = torch.cat([torch.ones(1, n, dtype=torch.int32), times])
        self.sums: dict[str, Float[Tensor, "row pos"]] = {}
        self.counts: dict[str, Float[Tensor, "row pos"]] = {}
        self.done = 0                                                               # sequences (`over_batches`)

    def add(
        self, rows: Int[Tensor, "batch"], counted: Bool[Tensor, "batch pos"],
        values: dict[str, Float[Tensor, "batch pos"]],
    ) -> None:
        """Add the values of some sequences at the positions that are counted."""
        weights, counted = self.weights[:, rows].double(), counted.cpu()            # [row, batch], [batch, pos]
        counts = weights @ counted.double()                                         # [row, pos]
        for name, value in values.items():
            value = torch.where(counted, value.cpu().double(), 0.0)
            self.sums[name] = self.sums.get(name, 0.0) + weights @ value
            self.counts[name] = self.counts.get(name, 0.0) + counts

    def mean(self, name: str) -> Float[Tensor, "row"]:
        """The mean over counted positions, of all sequences and of each resample."""
        return self.sums[name].sum(1) / self.counts[name].sum(1)

    def by_position(self, name: str) -> Float[Tensor, "pos"]:
        """The mean over sequences; NaN where none is counted."""
        return self.sums[name][0] / self.counts[name][0]

    def tensors(self) -> dict[str, Tensor]:
        """All of it but the weights of the resamples, which the seed gives."""
        found = {f"{kind}/{name}": value for kind in ("sums", "counts") for name, value in getattr(self, kind).items()}
        return found | {"done": torch.tensor(self.done)}

    def take(self, tensors: dict[str, Tensor]) -> None:
        """Put what `tensors` gave in the place of what is here. Raises KeyError if something is missing."""
        for name, value in tensors.items():
            if "/" in name:
                kind, name = name.split("/")
                getattr(self, kind)[name] = value
        self.done = int(tensors["done"])


def put_back(chunks: Sequence[Float[Tensor, "some"]], counted: Bool[Tensor, "batch pos"]) -> Float[Tensor, "batch pos"]:
    """Values of the counted positions, chunk after chunk, at their places in the batch; 0 elsewhere."""
    values = torch.cat([torch.zeros(0, device=counted.device), *chunks])                    # [counted]
    return values.new_zeros(counted.shape).masked_scatter(counted, values)
