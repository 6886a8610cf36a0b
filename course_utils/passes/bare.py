"""A block without its hooks: the same sums in fewer steps, for the passes that nobody looks into.

At each of its hooks a bridge computes what a hook might want to see: every norm twice, attention scores and patterns
whole. Where there is no hook, that is a third of the time of a small model (measured: `tiny`). So a block of a
well-known kind is run here by its formula, with PyTorch's own attention, which never has all scores at once.

When a model is loaded it is tried whether this gives what the block itself gives (`Traits.built`). Afterwards a block
is run this way only while it is as it was then: no hook more, no module exchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.nn.modules.module import _has_any_global_hook

if TYPE_CHECKING:
    from transformer_lens.model_bridge.generalized_components.block import BlockBridge

Built = tuple[tuple[type, tuple[int, ...], bool, bool], ...]

# Blocks that are norm, attention, norm and MLP, one after the other, and nothing that shows only on other texts, such
# as a cap or a clip.
KINDS = ("GPT2Block", "LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer")

OURS = ("transformers", "transformer_lens", "course_utils")     # their hooks on a block do nothing that is missed here


def how_built(block: BlockBridge) -> Built:
    """The kind of each module, the numbers of its hooks, whether its forward is its own, and whether it trains."""
    return tuple((type(module), (*module._forward_hooks, *module._forward_pre_hooks),
                  "forward" in vars(module), module.training) for module in block.modules())


def is_untouched(part: torch.nn.Module) -> bool:
    """Whether nobody has put a hook or another forward on this part of a model, be it one that only looks on."""
    if _has_any_global_hook():
        return False
    for module in part.modules():
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        foreign = any((getattr(hook, "__module__", None) or "").split(".")[0] not in OURS for hook in hooks)
        if foreign or getattr(module, "fwd_hooks", None) or "forward" in vars(module):
            return False
    return True


def is_bare(block: BlockBridge, built: Built, residual: Float[Tensor, "rows pos d_model"]) -> bool:
    """Whether `run_bare` gives what the block gives: it is as it was when that was tried, in float32 or float64."""
    return residual.dtype in (torch.float32, torch.float64) and how_built(block) == built and not _has_any_global_hook()


def run_bare(
    block: BlockBridge, residual: Float[Tensor, "rows pos d_model"], arguments: dict[str, Any],
    after_earlier: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    see: Callable[[Float[Tensor, "rows head query key"]], None] | None = None,
) -> Float[Tensor, "rows pos d_model"]:
    """What leaves the block, given its own arguments; `after_earlier` puts earlier keys and values before these.

    `see` is shown the attention pattern, which otherwise never exists as a whole. Each module's new result is changed
    in place: memory that is fetched anew costs more than the sums.
    """
    attn = block.attn
    normed = _normed(residual, block.ln1.original_component)
    q, k, v = (getattr(attn, name).original_component(normed).unflatten(-1, (-1, attn.config.d_head)).transpose(1, 2)
               for name in "qkv")                                                   # each [rows, head, pos, d_head]
    if (rotary := arguments.get("position_embeddings")) is not None:
        q, k = rotated(q, *rotary), rotated(k, *rotary)
    k, v = after_earlier(k, v)
    mask = additive_mask(arguments.get("attention_mask"), q, k)
    if see is None:
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
    else:
        if q.shape[1] != k.shape[1]:                                                # one for each query head
            k, v = (each.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for each in (k, v))
        pattern = (q.mul_(attn.config.d_head**-0.5) @ k.mT).add_(mask).softmax(-1)
        see(pattern)
        z = pattern @ v
    residual = attn.o.original_component(z.transpose(1, 2).flatten(2)).add_(residual)
    normed = _normed(residual, block.ln2.original_component)
    mlp = block.mlp.original_component
    if not hasattr(mlp, "gate_proj"):
        return mlp(normed).add_(residual)
    gate, is_silu = mlp.gate_proj(normed), type(mlp.act_fn).__name__ in ("SiLU", "SiLUActivation")
    gate = F.silu(gate, inplace=True) if is_silu else mlp.act_fn(gate)
    return mlp.down_proj(gate.mul_(mlp.up_proj(normed))).add_(residual)


def _normed(x: Float[Tensor, "rows pos d_model"], norm: torch.nn.Module) -> Float[Tensor, "rows pos d_model"]:
    """The norm as it is; but what Llama's kind has in float32, by the root mean square, without keeping squares."""
    if x.dtype != torch.float32 or not hasattr(norm, "variance_epsilon"):
        return norm(x)
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)                        # [rows, pos, 1]
    return (x * (size.square() / x.shape[-1] + norm.variance_epsilon).rsqrt()).mul_(norm.weight)


def rotated(
    x: Float[Tensor, "rows head pos d_head"], cos: Float[Tensor, "1 pos d_head"], sin: Float[Tensor, "1 pos d_head"]
) -> Float[Tensor, "rows head pos d_head"]:
    """Queries or keys, turned by their positions: coordinate i together with i + d_head / 2."""
    out, half = x * cos[:, None], x.shape[-1] // 2
    out[..., :half].addcmul_(x[..., half:], sin[:, None, :, :half], value=-1)
    out[..., half:].addcmul_(x[..., :half], sin[:, None, :, half:])
    return out


def additive_mask(
    mask: Tensor | None, q: Float[Tensor, "rows head query d_head"], k: Float[Tensor, "rows head key d_head"]
) -> Float[Tensor, "*rows query key"]:
    """0 where a query sees a key, else minus infinity (or nearly so); causal if there is no mask. Queries come last."""
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - q.shape[2])
    return mask if mask.is_floating_point() else torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -torch.inf)
