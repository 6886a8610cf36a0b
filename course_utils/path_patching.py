"""Path patching: does one head act *through* the keys (queries, values) of another?

A weight circuit says what a path could carry. Path patching says what it does carry: only what the receiving heads
read of the sender is changed, and everything else stays as in the clean pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from course_utils.ablation import ablate, check_kind, check_zero, mean_loss, replace_head
from course_utils.passes import CleanRun, Head, check_head, head_weights, hook_z, key_value_head, require
from course_utils.repeated_tokens import check_repeated

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class PathEffect:
    """Loss on the second copy (nats) without a patch, with the path patched, and with the sender ablated altogether."""

    clean: float
    path: float
    total: float

    @property
    def share(self) -> float:
        """(path − clean) / (total − clean): how much of the sender's effect goes through this path.

        Shares of several paths need not sum to 1: effects interact. NaN if the sender has no effect.
        """
        return share_of_effect(self.clean, self.path, self.total) if self.total != self.clean else math.nan


def share_of_effect(clean: float, path: float, total: float) -> float:
    """(path − clean) / (total − clean).

    Raises:
        ZeroDivisionError: if ablating the sender changes nothing.
    """
    return (path - clean) / (total - clean)


@torch.no_grad()
def path_patching(
    model: TransformerBridge, tokens: Int[Tensor, "batch 1+2*seq_len"], seq_len: int, sender: Head,
    receivers: Sequence[Head], *, into: str = "k", kind: str = "mean",
) -> PathEffect:
    """Ablate what `sender` writes, but only where the `receivers`' keys (or queries, values) read it.

    The receivers' inputs are computed from the clean residual stream with the sender's output replaced (see
    `ablation.ablate`), the norm's scale included; then the rest of the model runs. Each receiver's input is made
    from the clean stream: what an earlier receiver changes does not reach the patched inputs of a later one. Under
    grouped-query attention keys and values are shared: the other heads of a receiver's group get the patched ones
    too.

    Args:
        into: "q", "k", "v", or several of them, such as "qk".
    Raises:
        ValueError: if tokens are not two copies, a head is out of range, no receiver is given or one is not in a
            later layer than the sender's, or `into` or `kind` is unknown.
    Source: Wang et al., "Interpretability in the Wild" (2022); Goldowsky-Dill et al. (2023).
    """
    check_repeated(tokens, seq_len)
    check_paths(model, sender, receivers, into)
    check_kind(kind, len(tokens))
    check_zero(model, kind)
    require(model, "path patching", "logits", "parts", "reads", *(["own"] if set(into) & set("qk") else []))
    layer, head = sender
    first = min(layer for layer, _ in receivers)
    clean = CleanRun(model, tokens, [hook_z(layer)])
    z = clean.activations[hook_z(layer)][:, :, head]                                # [batch, pos, d_head]
    ablated = [(hook_z(layer), replace_head(head, ablate(z, kind)))]
    change = attention_output(clean, layer, ablated) - attention_output(clean, layer)
    patches = [patch for receiver in receivers for patch in new_readings(clean, change, receiver, into)]
    return PathEffect(
        clean=mean_loss(clean, clean.residuals[-1], seq_len).item(),
        path=_loss_with(clean, first, patches, seq_len),
        total=_loss_with(clean, layer, ablated, seq_len),
    )


def attention_output(
    clean: CleanRun, layer: int, patches: Sequence[tuple[str, Callable]] = ()
) -> Float[Tensor, "batch pos d_model"]:
    """What a layer's attention adds to the stream, with some of its activations replaced."""
    kept = []
    keep = (f"blocks.{layer}.hook_attn_out", lambda out, hook: kept.append(out))
    with clean.model.hooks(fwd_hooks=[*patches, keep]):
        clean.continue_from(layer, clean.residuals[layer], stop=layer + 1)
    return kept[0]


@torch.no_grad()
def path_logits(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], sender: Head, receivers: Sequence[Head],
    into: str = "k", *, restore: bool = False,
) -> Float[Tensor, "batch pos vocab"]:
    """Logits when one path is broken, everything else as in the clean pass; or with that path alone.

    Broken: the receivers' keys (queries, values) read a stream in which the sender's z is mean-ablated. Restored: the
    sender is ablated for all the model, and only those readings get what it would have written back.

    Raises ValueError as `path_patching` does, but the tokens need not be two copies.
    """
    check_paths(model, sender, receivers, into)
    require(model, "path patching", "parts", "reads", *(["own"] if set(into) & set("qk") else []))
    layer, head = sender
    clean = CleanRun(model, tokens, [hook_z(layer)])
    ablated = [(hook_z(layer), replace_head(head, ablate(clean.activations[hook_z(layer)][:, :, head], "mean")))]
    change = attention_output(clean, layer, ablated) - attention_output(clean, layer)
    always, change = (ablated, -change) if restore else ([], change)
    names = {layer: f"blocks.{layer}.hook_resid_pre" for layer, _ in receivers}
    with model.hooks(fwd_hooks=always):
        _, streams = model.run_with_cache(tokens, names_filter=list(names.values()))
    patches = []
    for layer, head in receivers:
        stream = streams[names[layer]] + change
        readings = {name: head_reading(model, layer, head, name, stream) for name in into}
        patches += [put_reading(model, layer, head, name, value) for name, value in readings.items()]
    return model.run_with_hooks(tokens, fwd_hooks=[*always, *patches])


def new_readings(
    clean: CleanRun, change: Float[Tensor, "batch pos d_model"], receiver: Head, into: str
) -> list[tuple[str, Callable]]:
    """Hooks that give a head the queries, keys or values it would have if `change` were added to what it reads."""
    (layer, head), model = receiver, clean.model
    stream = clean.residuals[layer] + change
    return [put_reading(model, layer, head, name, head_reading(model, layer, head, name, stream)) for name in into]


def put_reading(
    model: TransformerBridge, layer: int, head: int, name: str, value: Float[Tensor, "batch pos d_head"]
) -> tuple[str, Callable]:
    """The hook that gives a head these queries ("q"), keys ("k") or values ("v"): its name and its function.

    Where heads share keys and values, the other heads of its group get them, too.
    """
    n_heads = len(getattr(model.blocks[layer].attn, f"W_{name.upper()}"))           # fewer for k, v if they are shared
    return f"blocks.{layer}.attn.hook_{name}", replace_head(key_value_head(head, model.cfg.n_heads, n_heads), value)


def head_reading(
    model: TransformerBridge, layer: int, head: int, name: str, residual: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch pos d_head"]:
    """The queries ("q"), keys ("k") or values ("v") that a head reads from a residual stream: norm(x) W + b.

    Keys and queries are those before any rotation. Raises ValueError if there is no such head.
    """
    weights = head_weights(model, layer, head)
    return model.blocks[layer].ln1(residual) @ weights[name.upper()] + weights[f"b_{name.upper()}"]


def _loss_with(clean: CleanRun, layer: int, patches: list[tuple[str, Callable]], seq_len: int) -> float:
    with clean.model.hooks(fwd_hooks=patches):
        return mean_loss(clean, clean.continue_from(layer, clean.residuals[layer]), seq_len).item()


def check_paths(model: TransformerBridge, sender: Head, receivers: Sequence[Head], into: str) -> None:
    """Raise ValueError unless these heads exist, the receivers are in later layers, and `into` names their inputs."""
    for layer, head in [sender, *receivers]:
        check_head(model, layer, head)
    too_early = [f"{layer}.{head}" for layer, head in receivers if layer <= sender[0]]
    if too_early or not receivers:
        raise ValueError(f"receivers must be heads in layers after the sender's ({sender[0]}): "
                         + (f"{', '.join(too_early)} cannot read it" if too_early else "none was given"))
    check_into(into)


def check_into(into: str) -> None:
    """Raise ValueError unless `into` names inputs of a head."""
    if not into or set(into) - set("qkv"):
        raise ValueError(f'into is {into!r}; it must be "q", "k", "v" or several of them')
