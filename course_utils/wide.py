"""Wide dictionaries: codes in which almost every latent is 0, a few positions at a time.

65,000 latents turn a batch of 1,000 positions into 65 million numbers, of which 50,000 are not 0. To write and read all
of them takes longer than the products do. So positions are taken in parts, and what is active alone is decoded and
counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from course_utils.passes import largest, wide_product
from course_utils.sae import SparseAutoencoder
from course_utils.sae_formats import acts_by_sequence, encode_decode

NUMBERS_AT_A_TIME = 6 * 2**20   # latents of a part: below 32 MB freed memory is used again, not asked for anew
FEW = 1 / 32                    # where a smaller share is active, decoding those alone is faster than the product


class HasEncodeDecode(Protocol):
    """All that an autoencoder needs to be evaluated."""

    def encode(self, x: Tensor, /) -> Tensor: ...
    def decode(self, latents: Tensor, /) -> Tensor: ...


class Active(NamedTuple):
    """The latents that are not 0, in the order of positions: at places[i], latents[i] of `d_sae` is values[i]."""

    places: Int[Tensor, "active"]
    latents: Int[Tensor, "active"]
    values: Float[Tensor, "active"]
    d_sae: int


def active_latents(latents: Float[Tensor, "m d_sae"]) -> Active:
    """Those that are not 0."""
    places, which = latents.nonzero(as_tuple=True)
    return Active(places, which, latents[places, which], latents.shape[1])


def top_active(pre: Float[Tensor, "m d_sae"], k: int) -> Active:
    """`active_latents(top_k(pre, k))`, which is not written out."""
    values, latents = largest(pre, k)
    latents, order = latents.sort(dim=-1)                           # in whatever order a device finds them
    values = values.gather(-1, order)
    places, rank = (values > 0).nonzero(as_tuple=True)
    return Active(places, latents[places, rank], values[places, rank], pre.shape[1])


def decode_active(active: Active, W_dec: Float[Tensor, "d_sae d_in"], m: int) -> Float[Tensor, "m d_in"]:
    """f W_dec at m positions, from the rows of W_dec whose latents are active."""
    counts = active.places.bincount(minlength=m)
    return embedding_bag(active.latents, W_dec, counts.cumsum(0) - counts, mode="sum",
                         per_sample_weights=active.values)


def in_parts(sae: HasEncodeDecode, x: Float[Tensor, "batch pos *width"]) -> Iterator[tuple[Active, Tensor]]:
    """What is active, and the reconstruction, of some positions after the other."""
    if type(sae) is SparseAutoencoder:
        for part in x.flatten(0, 1).split(max(1, NUMBERS_AT_A_TIME // sae.d_sae)):
            yield _own(sae, part)
        return
    width = getattr(sae, "d_sae", None) or getattr(getattr(sae, "cfg", None), "d_sae", None)
    at_a_time = max(1, NUMBERS_AT_A_TIME // (x.shape[1] * width)) if width else len(x)
    for rows in x.split(at_a_time) if at_a_time < len(x) and acts_by_sequence(sae, x) else [x]:
        latents, x_hat = encode_decode(sae, rows)
        yield active_latents(latents.to_dense().reshape(rows.shape[0] * rows.shape[1], -1)), x_hat


def _own(sae: SparseAutoencoder, x: Float[Tensor, "m d_in"]) -> tuple[Active, Float[Tensor, "m d_in"]]:
    if sae.kind == "topk":
        seen = sae.normalized(x)
        active = top_active(wide_product(seen - sae.b_dec if sae.subtract_b_dec else seen, sae.W_enc, sae.b_enc),
                            sae.k or 0)
    else:
        latents = sae.encode(x)
        active = active_latents(latents)
        if len(active.values) > FEW * latents.numel():
            return active, sae.decode(latents, x)
    return active, sae.undo_norm(decode_active(active, sae.W_dec, len(x)) + sae.b_dec, x)


class Firing:
    """How many latents are active at each position, and at how many counted positions each latent is.

    Attributes:
        l0, l1: [batch, pos], the number of active latents and the sum of their sizes.
        active, sequences: [d_sae], at how many counted positions and in how many sequences each is active.
    """

    def __init__(self, counted: Bool[Tensor, "batch pos"]) -> None:
        self.counted, self._done = counted.cpu(), 0
        self.l0, self.l1 = torch.zeros(counted.shape), torch.zeros(counted.shape, dtype=torch.float64)
        self.active: Int[Tensor, "d_sae"] = torch.zeros((), dtype=torch.long)
        self._in_sequence: Bool[Tensor, "batch d_sae"] = torch.zeros((), dtype=torch.bool)

    @property
    def sequences(self) -> Int[Tensor, "d_sae"]:
        return self._in_sequence.sum(0)

    def add(self, active: Active, m: int) -> None:
        """Count the next m positions."""
        places, latents, values = (each.cpu() for each in active[:3])
        here, self._done = slice(self._done, self._done + m), self._done + m
        self.l0.view(-1)[here] = places.bincount(minlength=m).float()
        self.l1.view(-1)[here].index_add_(0, places, values.abs().double())
        places = places + here.start
        counted = self.counted.flatten()[places]
        places, latents = places[counted], latents[counted]
        self.active = self.active + latents.bincount(minlength=active.d_sae)
        if not self._in_sequence.ndim:
            self._in_sequence = torch.zeros(len(self.counted), active.d_sae, dtype=torch.bool)
        self._in_sequence[places // self.counted.shape[1], latents] = True
