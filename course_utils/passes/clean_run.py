"""The clean pass that patched passes are continued from: as far inside as the model's record allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from course_utils.passes.resumed import Enough, ResumedPass, See, end_early
from course_utils.passes.traits import require, traits_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class CleanRun(ResumedPass):
    """The clean pass of a model over some tokens.

    How it is continued depends on what the model can do (`Traits.resumes`): most run from any block and position on;
    where a block needs more than the course knows of, the whole model runs again with the stream replaced.

    Attributes:
        residuals: n_layers + 1 tensors [batch, pos, d_model]: what enters each block, then what leaves the last.
        activations: {hook name: value} of the names asked for, up to the last block.
    """

    def __init__(self, model: TransformerBridge, tokens: Int[Tensor, "batch pos"], names: Sequence[str] = ()) -> None:
        traits = traits_of(model)
        super().__init__(model, tokens, names, resumes=traits.resumes, built=traits.built)

    @torch.no_grad()
    def logits(self, residual: Float[Tensor, "... d_model"]) -> Float[Tensor, "... vocab"]:
        """The final norm, the unembedding and what the model does to logits after it, for any residual vectors.

        Raises:
            NotForThisModel: if that is not all that happens after the last block.
        """
        require(self.model, "a pass continued from inside", "logits")
        return super().logits(residual)


def read_activation(model: TransformerBridge, tokens: Int[Tensor, "batch pos"], hook_name: str) -> Tensor:
    """One activation; what comes after it is not run."""
    seen = []

    def keep(value: Tensor, hook) -> None:
        seen.append(value)
        raise Enough

    built = traits_of(model).built if hook_name.startswith("blocks.") else ()
    end_early(model, tokens, built, hooks=[(hook_name, keep)])
    return seen[0]


def see_patterns(model: TransformerBridge, tokens: Int[Tensor, "batch pos"], see: See) -> None:
    """Call `see(layer, pattern)` with each attention pattern as it is computed; the pass ends with the last of them."""

    def look(layer: int, pattern: Float[Tensor, "batch head query key"]) -> None:
        see(layer, pattern)
        if layer == model.cfg.n_layers - 1:
            raise Enough

    end_early(model, tokens, traits_of(model).built, look)
