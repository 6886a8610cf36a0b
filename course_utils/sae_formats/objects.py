"""Autoencoders of other libraries, as objects: is decode(encode(x)) all they do, and does it belong where they read?

Everything that the course says of an autoencoder is about decode(encode(x)) in the place of x. A transcoder does
something else (what it gives belongs elsewhere), and so does an object with a skip connection, or one that predicts
from earlier positions. Such objects are refused.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

COMPARED = 32    # positions on which an object's own call is compared
ROUNDING = 16    # ε, of the largest number: two orders of summing a thousand latents differ by up to 11 (measured)
ROUNDING_OF_HALF = 2  # with 16 bits: sums are kept in 32, so the last rounding alone counts (up to 0.8 measured)


def refuse_transcoder(sae: object, reads: str | None) -> None:
    """Raise ValueError if what the object gives belongs at another place than `reads`, or has another width."""
    cfg = getattr(sae, "cfg", None)
    gives = _said("hook_name_out", getattr(cfg, "metadata", None), cfg, sae)
    width_in, width_out = _said("d_in", cfg, sae), _said("d_out", cfg, sae)
    elsewhere = gives not in (None, reads)
    other_width = width_out is not None and width_in is not None and width_out != width_in
    named_so = getattr(cfg, "transcode", False) or "transcoder" in type(sae).__name__.lower()
    if elsewhere or other_width or named_so:
        raise ValueError(f"this {type(sae).__name__} is a transcoder: it reads {reads or 'one activation'} and gives "
                         f"{gives or 'another'}, so what it gives cannot stand in the place of what it read")


def _said(name: str, *places: object) -> Any:
    """The first value under this name that one of these objects has; None if none does."""
    return next((value for place in places if (value := getattr(place, name, None))), None)


def encode_decode(
    sae: Any, x: Float[Tensor, "batch pos *width"]
) -> tuple[Float[Tensor, "batch pos d_sae"], Float[Tensor, "batch pos *width"]]:
    """The latents and the reconstruction, as the object gives them.

    Raises:
        ValueError: if the latents are not a tensor, or the reconstruction is not as large as x.
    """
    latents = sae.encode(x)
    if not isinstance(latents, Tensor):
        raise ValueError(f"encode must give the latents, one tensor; this {type(sae).__name__} gives a "
                         f"{type(latents).__name__}: wrap it in an object whose encode and decode do")
    needs_x = getattr(sae, "normalize", "none") != "none"           # ours, with a norm to undo
    x_hat = sae.decode(latents, x) if needs_x else sae.decode(latents)
    if not isinstance(x_hat, Tensor) or x_hat.numel() != x.numel():
        found = tuple(x_hat.shape) if isinstance(x_hat, Tensor) else type(x_hat).__name__
        raise ValueError(f"decode must give a reconstruction of its activation, {tuple(x.shape)}; this "
                         f"{type(sae).__name__} gives {found}")
    return latents, x_hat


@torch.no_grad()
def check_own_call(sae: object, x: Float[Tensor, "batch pos *width"]) -> None:
    """Compare decode(encode(x)) with what the object does when it is called, on a few positions.

    Nothing is compared if it cannot be called with x alone, or gives several things, none shaped as x̂ is.
    Raises:
        ValueError: if they differ by more than rounding.
    """
    x = x[:1, :COMPARED]
    x_hat = encode_decode(sae, x)[1]
    calls = _own_reconstructions(sae, x, x_hat)
    if calls and not any(_alike(own, x_hat) for own in calls):
        raise ValueError(f"calling this {type(sae).__name__} does not give decode(encode(x)): it does more (a skip "
                         "connection, an error term, a prediction from earlier positions). What is measured here is "
                         "decode(encode(x)), which is not this object")


@torch.no_grad()
def acts_by_sequence(sae: object, x: Float[Tensor, "batch pos *width"]) -> bool:
    """Whether two sequences get the same reconstructions together and apart, so that a batch may be taken in parts.

    (In training, a batch's TopK shares its latents among all that it sees.)
    """
    x = x[:2, :COMPARED // 4]
    together, apart = encode_decode(sae, x)[1], torch.cat([encode_decode(sae, row)[1] for row in x.split(1)])
    return _alike(apart, together)


def _own_reconstructions(sae: object, x: Tensor, x_hat: Tensor) -> list[Tensor]:
    """What the call gives: the one tensor, or those of several that have the reconstruction's shape."""
    if not callable(sae):
        return []
    try:
        out = sae(x)
    except (TypeError, RuntimeError):                               # it needs more than x, or has no forward of its own
        return []
    if isinstance(out, Tensor):
        return [out]
    several = out if isinstance(out, (tuple, list)) else ()
    return [each for each in several if isinstance(each, Tensor) and each.shape == x_hat.shape]


def _alike(own: Tensor, x_hat: Tensor) -> bool:
    """Equal, up to the rounding of their dtype."""
    if own.shape != x_hat.shape:
        return False
    kind, largest = torch.finfo(x_hat.dtype), x_hat.nan_to_num(0, 0, 0).abs().max().item()
    limit = (ROUNDING_OF_HALF if kind.bits == 16 else ROUNDING) * kind.eps * largest
    return torch.allclose(own.double(), x_hat.double(), rtol=0, atol=limit, equal_nan=True)
