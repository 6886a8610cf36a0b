"""Exercises of lesson 06: sparse autoencoders."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from course_utils.checking import Case, Exercise, Mistake, compare_cases
from course_utils.latents import auc, dead_latents, top_activations
from course_utils.sae import top_k

# --- the course's answers; `SparseAutoencoder` does the same in its own methods -----------------------------------------


def encode(
    x: Float[Tensor, "... d_in"], W_enc: Float[Tensor, "d_in d_sae"], b_enc: Float[Tensor, "d_sae"],
    b_dec: Float[Tensor, "d_in"],
) -> Float[Tensor, "... d_sae"]:
    """The latents of a ReLU autoencoder: relu((x − b_dec) W_enc + b_enc)."""
    return ((x - b_dec) @ W_enc + b_enc).relu()


def sae_loss(
    x: Float[Tensor, "tokens d_in"], x_hat: Float[Tensor, "tokens d_in"], latents: Float[Tensor, "tokens d_sae"],
    sparsity: float,
) -> Float[Tensor, ""]:
    """Mean over tokens of the squared error (summed over components) plus sparsity times Σ|f|."""
    return ((x_hat - x).pow(2).sum(dim=1) + sparsity * latents.abs().sum(dim=1)).mean()


def reconstruct_rescaled(
    x: Float[Tensor, "tokens d_in"], autoencoder: Callable[[Tensor], Tensor]
) -> Float[Tensor, "tokens d_in"]:
    """The reconstruction of x by an autoencoder that was made for activations of norm √d_in."""
    scale = x.norm(dim=1, keepdim=True) / x.shape[1] ** 0.5
    return autoencoder(x / scale) * scale


def jump_relu(pre: Float[Tensor, "... d_sae"], threshold: Float[Tensor, "d_sae"]) -> Float[Tensor, "... d_sae"]:
    """pre where it exceeds the threshold of its latent, else 0. Thresholds are not negative."""
    return pre * (pre > threshold)


def gated(
    pre: Float[Tensor, "... d_sae"], b_gate: Float[Tensor, "d_sae"], b_mag: Float[Tensor, "d_sae"],
    r_mag: Float[Tensor, "d_sae"],
) -> Float[Tensor, "... d_sae"]:
    """The latents of a gated autoencoder, from its pre-activations (x − b_dec) W_enc."""
    return (pre + b_gate > 0) * (pre * r_mag.exp() + b_mag).relu()


# --- inputs --------------------------------------------------------------------------------------------------------


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def encode_cases() -> list[Case]:
    return [Case(drawn(4, 5), drawn(5, 8, seed=1), drawn(8, seed=2), drawn(5, seed=3), label="4 tokens, 5 -> 8"),
            Case(drawn(2, 3, 4, seed=4), drawn(4, 6, seed=5), drawn(6, seed=6), drawn(4, seed=7), label="[2, 3, 4], 4 -> 6")]


EXERCISES = [
    Exercise(
        id="06.encode",
        title="Encode",
        reference=encode,
        check=compare_cases(encode_cases, [
            Mistake("b_dec is not subtracted from x", lambda x, W_enc, b_enc, b_dec: (x @ W_enc + b_enc).relu()),
        ]),
        hints=("Subtract b_dec, multiply by W_enc, add b_enc.", "`@` multiplies the last axis of x by W_enc.",
               "`((x - b_dec) @ W_enc + b_enc).relu()`"),
        minutes=4,
        difficulty=1,
    ),
]
