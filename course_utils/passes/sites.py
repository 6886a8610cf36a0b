"""Places in a model where an activation can be read, and where another can be put in its place."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from course_utils.house import bars_are_off
from course_utils.passes.clean_run import CleanRun, read_activation
from course_utils.passes.padding import checked_mask
from course_utils.passes.resumed import Residual
from course_utils.passes.traits import require

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

POINTS = ("hook_resid_pre", "hook_resid_post", "hook_mlp_out", "hook_attn_out", "attn.hook_z")


class Site:
    """One hook of one layer: blocks.L.hook_resid_pre, hook_resid_post, hook_mlp_out, hook_attn_out or attn.hook_z.

    Attributes:
        layer, point: the two parts of the name.
        head: with attn.hook_z, one head alone; None for all heads side by side.
        width: of the activation: d_model, or n_heads * d_head for z, or d_head for one head's z.
        compared: whether the autoencoder that goes here was compared with its own call (`faithfulness.reconstruct`).
    """

    compared = False

    def __init__(self, model: TransformerBridge, hook_name: str, head: int | None = None) -> None:
        """
        Raises:
            ValueError: if the model has no such hook, or no such head.
        """
        cfg = model.cfg
        match = re.fullmatch(r"blocks\.(0|[1-9][0-9]*)\.(.+)", hook_name)
        if not match or match[2] not in POINTS or int(match[1]) >= cfg.n_layers:
            raise ValueError(f"there is no place {hook_name!r} for an autoencoder in this model; it has "
                             f"blocks.0 to blocks.{cfg.n_layers - 1}, each with {', '.join(POINTS)}")
        self.hook_name, self.layer, self.point, self.head = hook_name, int(match[1]), match[2], head
        if head is not None and (self.point != "attn.hook_z" or not 0 <= head < cfg.n_heads):
            raise ValueError(f"head is {head}; only attn.hook_z has heads, in this model 0 to {cfg.n_heads - 1}")
        if self.point == "hook_mlp_out":
            require(model, "an autoencoder of an MLP's output", "parts")
        if self.point == "attn.hook_z":
            require(model, "an autoencoder of what heads gather", "zero")
        self.d_head = cfg.d_head
        if self.point != "attn.hook_z":
            self.width = cfg.d_model
        else:
            self.width = cfg.n_heads * cfg.d_head if head is None else cfg.d_head

    @property
    def is_residual(self) -> bool:
        """Whether the activation is the whole residual stream: nothing that came before bypasses it."""
        return self.point in ("hook_resid_pre", "hook_resid_post")

    @property
    def recorded(self) -> list[str]:
        """What a CleanRun has to keep for this place; it keeps the residual stream anyway."""
        return [] if self.is_residual else [self.hook_name]

    def read(self, clean: CleanRun) -> Float[Tensor, "batch pos width"]:
        """The activation in a clean run."""
        if self.is_residual:
            return clean.residuals[self.enters]
        return self.flat(clean.activations[self.hook_name])

    def flat(self, activation: Float[Tensor, "batch pos ..."]) -> Float[Tensor, "batch pos width"]:
        """An activation as the hook gives it, heads side by side or one alone."""
        if self.point != "attn.hook_z":
            return activation
        return activation.flatten(2) if self.head is None else activation[:, :, self.head]

    def continue_with(self, clean: CleanRun, new: Float[Tensor, "batch pos width"]) -> Residual:
        """What leaves the last block with `new` in the activation's place; the blocks below are not run again."""
        if self.is_residual:
            return clean.continue_from(self.enters, new)
        if self.point == "hook_mlp_out":                            # it is the last thing that its block adds
            after = clean.residuals[self.layer + 1] + (new - self.read(clean))
            return clean.continue_from(self.layer + 1, after)
        with clean.model.hooks(fwd_hooks=[(self.hook_name, lambda old, hook: self._put(old, new))]):
            return clean.continue_from(self.layer, clean.residuals[self.layer])

    @property
    def enters(self) -> int:
        """The block that this residual stream enters."""
        return self.layer + (self.point == "hook_resid_post")

    def _put(self, old: Float[Tensor, "batch pos ..."], new: Float[Tensor, "batch pos width"]) -> Tensor:
        if self.head is None:
            return new.reshape(old.shape)
        old = old.clone()
        old[:, :, self.head] = new
        return old


def activations_in_batches(
    model: TransformerBridge, site: Site, tokens: Int[Tensor, "n pos"], batch_size: int = 32
) -> Iterator[Float[Tensor, "batch pos width"]]:
    """The activation of every sequence, batch by batch; the layers above it are not run."""
    for batch in tqdm(tokens.split(batch_size), desc="activations", delay=1, disable=bars_are_off()):
        yield site.flat(read_activation(model, batch, site.hook_name))


@contextlib.contextmanager
def in_float64(model: TransformerBridge) -> Iterator[None]:
    """Let a float32 model compute in float64 for a while; afterwards its weights are what they were, to the last bit.

    Raises:
        ValueError: if it holds anything but float32.
    """
    formats = {tensor.dtype for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()}
    if formats != {torch.float32}:
        raise ValueError(f"only a float32 model comes back from float64 as it was; this one holds {formats}")
    model.double()
    try:
        yield
    finally:
        model.float()


@torch.no_grad()
def collect_activations(
    model: TransformerBridge, hook_name: str, tokens: Int[Tensor, "n pos"], *, head: int | None = None,
    batch_size: int = 32, mask: Bool[Tensor, "n pos"] | None = None, exact: bool = False,
) -> Float[Tensor, "counted width"]:
    """The activation at every counted position, in order, on the CPU.

    Args:
        mask: which positions; None: all but the first (BOS). Padded text needs one: see `passes.without_padding`.
        exact: compute in float64. Processors round sums differently: in float32 the activations agree to six or seven
            digits between machines, in float64 to fifteen. Training enlarges such differences. (Norms like Llama's
            compute in float32 whatever they are given: such a model gains nothing.)
    Raises:
        ValueError: if there is no such place, or as `passes.checked_mask` does; and, if exact, if the model is not
            float32.
    """
    site, mask = Site(model, hook_name, head), checked_mask(model, tokens, mask)
    with in_float64(model) if exact else contextlib.nullcontext():
        batches = zip(activations_in_batches(model, site, tokens, batch_size), mask.split(batch_size))
        return torch.cat([x[counted.to(x.device)].cpu() for x, counted in batches])


def hook_z(layer: int) -> str:
    """The hook at what each head of a layer has gathered, [batch, pos, head, d_head], before W_O."""
    return f"blocks.{layer}.attn.hook_z"


def mlp_out(layer: int) -> str:
    """The hook at what a layer's MLP adds to the residual stream, [batch, pos, d_model]."""
    return f"blocks.{layer}.hook_mlp_out"
