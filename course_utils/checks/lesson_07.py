"""Exercises of lesson 07: is a sparse autoencoder faithful?"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from course_utils.checking import Case, Exercise, Mistake, compare_cases
from course_utils.faithfulness import (
    bootstrap_interval,
    cross_entropy_by_position,
    delta_cross_entropy,
    explained_variance,
    kl_divergence,
    pooled_mean,
    reconstruction_score,
)

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# --- the course's answer; `evaluate_sae` does the same without running the layers below again --------------------------


def patched_logits(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], hook_name: str, reconstruct: Callable[[Tensor], Tensor]
) -> Float[Tensor, "batch pos vocab"]:
    """Logits of the model with reconstruct(activation) in the activation's place, everywhere but at position 0."""

    def put(activation, hook):
        return torch.cat([activation[:, :1], reconstruct(activation[:, 1:])], dim=1)

    return model.run_with_hooks(tokens, fwd_hooks=[(hook_name, put)])
