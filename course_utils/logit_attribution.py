"""Direct logit attribution: how much each part of the model adds to the logit of the token that came.

The last residual stream is a sum: embeddings, the output of every head, the attention biases, every MLP. With the
final norm's scale held fixed, the unembedding is linear, so each logit is the sum of one term per part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from course_utils.ablation import hook_z, mlp_out
from course_utils.padding import check_unpadded

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
    Needs a model from `load_model`: final norm folded into the unembedding, W_U centred.
    Raises:
        ValueError: if a row looks padded.
    """
    check_unpadded(model, tokens)
    layers = range(model.cfg.n_layers)
    names = ["hook_embed", *(["hook_pos_embed"] if hasattr(model, "pos_embed") else []), "ln_final.hook_scale"]
    names += [name(layer) for layer in layers for name in (hook_z, mlp_out)]
    _, cache = model.run_with_cache(tokens, names_filter=names)
    parts = {name.removeprefix("hook_"): cache[name] for name in names if name.endswith("embed")}
    for layer in layers:
        z, W_O = cache[hook_z(layer)], model.blocks[layer].attn.W_O             # [batch, pos, head, d_head]; [head, …]
        for head in range(model.cfg.n_heads):
            parts[f"{layer}.{head}"] = z[:, :, head] @ W_O[head]
        bias = getattr(model.blocks[layer].attn, "b_O", None)
        if bias is not None:
            parts[f"attn {layer} bias"] = bias.expand(*tokens.shape, -1)
        parts[f"mlp {layer}"] = cache[mlp_out(layer)]
    scale, W_U = cache["ln_final.hook_scale"], model.W_U
    added = {part: logit_contributions(output, scale, W_U, tokens) for part, output in parts.items()}
    return added | {"unembed bias": model.b_U[tokens[:, 1:]]}
