"""An autoencoder in a circuit's way: the model computes with the reconstruction, and we look at what is left.

Lessons 01 to 05 took the induction circuit apart. Here the residual stream passes through an autoencoder somewhere on
that path. `spliced` does it for everything that runs the model inside its `with` block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from course_utils.faithfulness import HasEncodeDecode, reconstruct, run_and_reconstruct, site_of
from course_utils.latents import auc
from course_utils.passes import Site, require
from course_utils.path_patching import Head, check_into, new_readings
from course_utils.repeated_tokens import ROWS_AT_A_TIME, check_repeated, correct_token_log_probs

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from course_utils.sae import SparseAutoencoder


@contextmanager
def spliced(model: TransformerBridge, sae: HasEncodeDecode) -> Iterator[None]:
    """Within the block the model computes with the reconstruction, at every position but the first (BOS).

    Raises:
        ValueError: if the autoencoder does not fit the model, or reads something other than the residual stream.
    """
    site = residual_site(model, sae)

    def put(x: Float[Tensor, "batch pos d"], hook) -> Float[Tensor, "batch pos d"]:
        return torch.cat([x[:, :1], reconstruct(sae, x, site)[:, 1:]], dim=1)

    with model.hooks(fwd_hooks=[(site.hook_name, put)]):
        yield


@contextmanager
def without_latents(model: TransformerBridge, sae: SparseAutoencoder, which: Sequence[int]) -> Iterator[None]:
    """Within the block these latents' parts are subtracted from the residual stream; all else stays, the error too.

    Raises:
        ValueError: as `spliced` does, or if the autoencoder normalizes its input.
    """
    site = residual_site(model, sae)
    if sae.normalize != "none":
        raise ValueError("this autoencoder normalizes its input: its latents' parts are not in the stream's own units")

    def take_out(x: Float[Tensor, "batch pos d"], hook) -> Float[Tensor, "batch pos d"]:
        own = x.to(sae.W_dec)                                       # the autoencoder's device and dtype
        rest = remove_latents(own, sae.encode(own), sae.W_dec, list(which)).to(x)
        return torch.cat([x[:, :1], rest[:, 1:]], dim=1)

    with model.hooks(fwd_hooks=[(site.hook_name, take_out)]):
        yield


def remove_latents(
    x: Float[Tensor, "... d"], latents: Float[Tensor, "... d_sae"], W_dec: Float[Tensor, "d_sae d"],
    which: list[int],
) -> Float[Tensor, "... d"]:
    """The activation without what these latents add to it: x − Σ f_i W_dec[i]."""
    return x - latents[..., which] @ W_dec[which]


def circuit_score(
    clean: Float[Tensor, "batch 2*seq_len"], changed: Float[Tensor, "batch 2*seq_len"]
) -> float:
    """What share of the clean model's gain on the second copy is left.

    Both are log-probabilities of repeated tokens (`repeated_token_report`). The gain is the mean over the
    second copy, without its first token, which can only be guessed, minus the mean over the first copy, each
    over all sequences together. 1: all of it; 0: the repeat is as surprising as the first occurrence.
    """
    n = clean.shape[1] // 2
    left, whole = (each[:, n + 1:].mean() - each[:, :n].mean() for each in (changed, clean))
    return (left / whole).item()


@torch.no_grad()
def log_probs_reading(
    model: TransformerBridge, sae: HasEncodeDecode, tokens: Int[Tensor, "batch 1+2*seq_len"], seq_len: int,
    heads: Sequence[Head], into: str,
) -> Float[Tensor, "batch 2*seq_len"]:
    """Log-probabilities when only these heads' keys (queries, values) are read from the spliced model's stream.

    Everything else is as in the clean pass, so this says through which input the autoencoder disturbs the heads.
    Args:
        into: "q", "k", "v", or several of them, such as "qk".
    Raises:
        ValueError: if tokens are not two copies, a head lies below the autoencoder, or `into` is something else.
    """
    check_repeated(tokens, seq_len)
    check_into(into)
    used = [need for need, names in (("own", "qk"), ("patterns", "v")) if set(into) & set(names)]
    require(model, "reading a stream through single heads", "reads", *used)
    site = residual_site(model, sae)
    if too_low := [f"{layer}.{head}" for layer, head in heads if layer < site.enters]:
        raise ValueError(f"heads {', '.join(too_low)} lie below the autoencoder at {site.hook_name}: they do not read "
                         "it")
    layers = {layer for layer, _ in heads}
    found = []
    for rows in tokens.split(ROWS_AT_A_TIME):
        clean, x, x_hat = run_and_reconstruct(model, sae, rows, site)
        new = torch.cat([x[:, :1], x_hat[:, 1:]], dim=1)
        there = {layer: clean.continue_from(site.enters, new, stop=layer) for layer in layers}
        patches = [patch for layer, head in heads
                   for patch in new_readings(clean, there[layer] - clean.residuals[layer], (layer, head), into)]
        with model.hooks(fwd_hooks=patches):
            found.append(correct_token_log_probs(model(rows), rows))
    return torch.cat(found)


def after_token(tokens: Int[Tensor, "n pos"], token: int) -> Bool[Tensor, "n pos"]:
    """True at each position whose previous token is `token`; the first position has none."""
    before = torch.zeros_like(tokens, dtype=torch.bool)
    before[:, 1:] = tokens[:, :-1] == token
    return before


def same_token_auc(
    latents: Float[Tensor, "m d_sae"], labels: Bool[Tensor, "m"], present: Int[Tensor, "m"]
) -> Float[Tensor, "d_sae"]:
    """`auc`, comparing only positions that hold the same present token.

    P(f₊ > f₋) + ½ P(f₊ = f₋) over such pairs. If "up" mostly follows "picked", a latent for "up" looks as
    if it knew that "picked" came before. Here it gets ½: it is the same at all positions of one word.
    Raises:
        ValueError: if no token stands both at a labelled and at another position.
    """
    total, pairs = latents.new_zeros(latents.shape[1], dtype=torch.float64), 0
    for token in present[labels].unique():
        here = present == token
        labelled = int(labels[here].sum())
        number = labelled * (int(here.sum()) - labelled)
        if number:
            total += number * auc(latents[here], labels[here])
            pairs += number
    if not pairs:
        raise ValueError("no token stands both at a labelled and at another position")
    return (total / pairs).float()


def residual_site(model: TransformerBridge, sae: object) -> Site:
    """Where the autoencoder goes. Raises ValueError as `spliced` does."""
    site = site_of(model, sae)
    if not site.is_residual:
        raise ValueError(f"{site.hook_name} is not the residual stream: something would bypass the autoencoder")
    return site
