"""The parts of a model, the same for every family: one head's weights, its norms, what block 0 makes of a vector."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from course_utils.passes.resumed import Enough

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Head = tuple[int, int]      # (layer, its number in that layer)


def key_value_head(head: int, n_heads: int, n_key_value_heads: int) -> int:
    """Which key and value head a query head reads: neighbouring query heads share one, group by group."""
    return head // (n_heads // n_key_value_heads)


def head_weights(model: TransformerBridge, layer: int, head: int) -> dict[str, Tensor]:
    """{"Q", "K", "V": [d_model, d_head], "O": [d_head, d_model], "b_Q", "b_K", "b_V": [d_head]} of one head.

    Also "b_O": [d_model], of the layer. Where a norm follows the attention (Gemma 2), its weights are folded into O
    and b_O; its scale is left out, as those of all norms are. Under grouped-query attention several query heads share
    one key and value head (see `key_value_head`). Biases that the model does not have are zero.
    Raises:
        ValueError: if layer or head is out of range.
    """
    check_head(model, layer, head)
    attn, found = model.blocks[layer].attn, {}
    for name in "QKV":
        weights = getattr(attn, f"W_{name}")                            # [heads or key-value heads, d_model, d_head]
        own = key_value_head(head, model.cfg.n_heads, len(weights))
        bias = getattr(attn, f"b_{name}", None)
        found[name] = weights[own]
        found[f"b_{name}"] = weights.new_zeros(weights.shape[-1]) if bias is None else bias[own]
    bias = getattr(attn, "b_O", None)
    gain = _gain_after(model, layer)                                    # [d_model]
    return found | {"O": attn.W_O[head] * gain, "b_O": gain * (0 if bias is None else bias)}


def _gain_after(model: TransformerBridge, layer: int) -> Float[Tensor, "d_model"]:
    """The weights of the norm that follows a layer's attention; ones where there is none."""
    norm = getattr(model.blocks[layer], "ln1_post", None)
    return gain_of(norm, model.W_E.new_ones(model.cfg.d_model), model.cfg.eps)


def gain_of(norm: torch.nn.Module | None, ones: Float[Tensor, "d"], eps: float) -> Float[Tensor, "d"]:
    """The weights of an RMSNorm, in whatever form it keeps them; ones if there is no norm.

    They are what it makes of ones, times the scale that it divides ones by, sqrt(1 + eps).
    """
    if norm is None:
        return ones
    return (norm(ones[None, None]) * (1 + eps) ** 0.5)[0, 0].detach()


def output_scale(cache: Mapping[str, Tensor], layer: int) -> Tensor | float:
    """What the norm that follows a layer's attention divides by, [batch, pos, 1]; 1 where there is none."""
    name = f"blocks.{layer}.ln1_post.hook_scale"
    return cache[name] if name in cache.keys() else 1.0


def normed_reading(
    model: TransformerBridge, layer: int, name: str, values: Float[Tensor, "... d_head"]
) -> Float[Tensor, "... d_head"]:
    """Queries ("q") or keys ("k") of a head, normed where the model does that (Qwen 3, Gemma 3); else as they are."""
    norm = getattr(model.blocks[layer].attn, f"{name}_norm", None)
    return values if norm is None else norm(values)


def check_head(model: TransformerBridge, layer: int, head: int) -> None:
    """Raise ValueError if the model has no such head."""
    if not (0 <= layer < model.cfg.n_layers and 0 <= head < model.cfg.n_heads):
        raise ValueError(f"there is no head {layer}.{head}: this model has layers 0 to {model.cfg.n_layers - 1} "
                         f"with heads 0 to {model.cfg.n_heads - 1}")


def after_block_0(
    model: TransformerBridge, tokens: Int[Tensor, "some"], vectors: Float[Tensor, "some d_model"],
    heads: Sequence[int] = (), mlp: bool = True,
) -> Float[Tensor, "some d_model"]:
    """What block 0 makes of some vectors, each alone in a sequence; only `heads` attend (none: no b_O either)."""
    silent = [head for head in range(model.cfg.n_heads) if head not in heads]
    left: dict[str, Tensor] = {}

    def attend(z: Float[Tensor, "some 1 head d_head"], hook) -> Float[Tensor, "some 1 head d_head"]:
        return z.index_fill(2, torch.tensor(silent, dtype=torch.long, device=z.device), 0)

    def attended(out: Float[Tensor, "some 1 d_model"], hook) -> Float[Tensor, "some 1 d_model"]:
        left["attention"] = out if len(heads) else torch.zeros_like(out)
        return left["attention"]

    def end(out: Float[Tensor, "some 1 d_model"], hook) -> None:
        left["block"] = out
        raise Enough

    hooks = {"hook_resid_pre": lambda x, hook: vectors[:, None], "attn.hook_z": attend, "hook_attn_out": attended,
             "hook_resid_post": end}
    with contextlib.suppress(Enough):
        model.run_with_hooks(tokens[:, None], return_type=None,
                             fwd_hooks=[(f"blocks.0.{name}", hook) for name, hook in hooks.items()])
    return left["block"][:, 0] if mlp else vectors + left["attention"][:, 0]


def normalize(model: TransformerBridge, vectors: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
    """What the model's norms do when their weights are folded away: centre (LayerNorm only) and divide by the scale."""
    vectors = centred(model, vectors)
    return vectors / (vectors.pow(2).mean(dim=-1, keepdim=True) + model.cfg.eps).sqrt()


def centred(model: TransformerBridge, vectors: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
    """Vectors without their mean over d_model, which a LayerNorm subtracts; as they are where norms are RMSNorms."""
    rms = "RMS" in str(model.cfg.normalization_type)
    return vectors if rms else vectors - vectors.mean(dim=-1, keepdim=True)
