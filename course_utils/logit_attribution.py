"""Direct logit attribution: how much each part of the model adds to the logit of the token that came.

The last residual stream is a sum: embeddings, the output of every head, the attention biases, every MLP. With the
final norm's scale held fixed, the unembedding is linear, so each logit is the sum of one term per part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from course_utils.circuits import token_vectors
from course_utils.passes import (
    after_unembedding,
    check_unpadded,
    head_weights,
    hook_z,
    mlp_out,
    output_factor,
    output_scale,
    require,
)

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def logit_contributions(
    component: Float[Tensor, "batch pos d_model"], scale: Float[Tensor, "batch pos 1"],
    W_U: Float[Tensor, "d_model vocab"], tokens: Int[Tensor, "batch pos"],
) -> Float[Tensor, "batch pos-1"]:
    """What a component adds directly to the logit of each token that came next.

    Entry j is (component[:, j] / scale[:, j]) · W_U[:, tokens[:, j + 1]]. `scale` is what the final norm divides by;
    its centring and its weights are folded into the other weights. W_U is centred: logits are relative to the mean
    over the vocabulary.
    """
    directions = W_U.T[tokens[:, 1:]]                                           # [batch, pos-1, d_model]
    return (component[:, :-1] / scale[:, :-1] * directions).sum(dim=-1)


@torch.no_grad()
def direct_logit_attribution(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"]
) -> dict[str, Float[Tensor, "batch pos-1"]]:
    """{part: what it adds to the logit of the token that came next}; the parts sum to the logits.

    Parts: "embed", "pos_embed" (if the model has one), "L.H" for each head, "attn L bias", "mlp L", "unembed bias".
    Needs a model from `load_model`: final norm folded into the unembedding, W_U centred. The scale of a norm that
    follows the attention (Gemma 2) is held fixed as the final norm's is. Where the model caps its logits softly
    (Gemma 2), the parts sum to the logits before the cap, since nothing linear sums to those after it; and W_U is
    not centred there, since a shift would change what the cap does.

    Raises:
        ValueError: if a row looks padded.
        NotForThisModel: if the logits are not such a sum in this model (see `passes.NEEDS`).
    """
    traits = require(model, "direct logit attribution", "unembedding", "parts", "writes", "embedding")
    check_unpadded(model, tokens)
    layers = range(model.cfg.n_layers)
    wanted = {"blocks.0.hook_resid_pre", "ln_final.hook_scale"}
    wanted |= {name(layer) for layer in layers for name in (hook_z, mlp_out)}
    wanted |= {f"blocks.{layer}.ln1_post.hook_scale" for layer in layers}
    _, cache = model.run_with_cache(tokens, names_filter=lambda name: name in wanted)
    parts = {"embed": token_vectors(model)[tokens]}                             # each [batch, pos, d_model]
    if traits.has_positions:
        parts["pos_embed"] = cache["blocks.0.hook_resid_pre"] - parts["embed"]
    for layer in layers:
        z, scale = cache[hook_z(layer)], output_scale(cache, layer)             # z: [batch, pos, head, d_head]
        weights = [head_weights(model, layer, head) for head in range(model.cfg.n_heads)]
        parts |= {f"{layer}.{head}": z[:, :, head] @ each["O"] / scale for head, each in enumerate(weights)}
        if getattr(model.blocks[layer].attn, "b_O", None) is not None:
            parts[f"attn {layer} bias"] = weights[0]["b_O"].expand_as(parts["embed"]) / scale
        if mlp_out(layer) in cache:
            parts[f"mlp {layer}"] = cache[mlp_out(layer)]
    scale, W_U, factor = cache["ln_final.hook_scale"], model.W_U, output_factor(model)
    added = {part: factor * logit_contributions(output, scale, W_U, tokens) for part, output in parts.items()}
    return added | {"unembed bias": factor * model.b_U[tokens[:, 1:]]}


def capped(model: TransformerBridge, total: Float[Tensor, "*position"]) -> Float[Tensor, "*position"]:
    """The logits, from the sum of the parts: that sum, or softly capped where the model does so at the end."""
    return after_unembedding(model, total / output_factor(model))
