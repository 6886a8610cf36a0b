"""Transcoders: an MLP as a sum of few features, each of which reads one direction and writes one.

    f = act(x W_enc + b_enc)                  the features: not negative, most of them 0
    y = f W_dec + b_dec (+ W_skip x)          what the MLP would write

x is what the MLP's own weights read, after the norm (`blocks.L.mlp.hook_in`); y is to be what it adds to the residual
stream (`blocks.L.hook_mlp_out`). An autoencoder reconstructs what it read, and says nothing of how it came to be; a
transcoder computes what a layer computes, so that its features' inputs and outputs may be followed through the model.

Sources: Dunefsky et al., "Transcoders find interpretable LLM feature circuits" (2024, arXiv 2406.11944); the linear
path W_skip: Paulo et al., "Transcoders beat sparse autoencoders" (2025, arXiv 2501.18823). `save` and `load` use the
form of SAELens on disk; it knows the kinds relu and jumprelu, with and without W_skip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from course_utils.house import WEIGHTS
from course_utils.passes import CleanRun, checked_mask, mlp_out, require
from course_utils.sae import SparseAutoencoder
from course_utils.sae_formats import read_transcoder
from course_utils.sae_training import TrainingConfig, fit

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

KINDS = ("relu", "topk", "jumprelu")
TRANSCODERS_FOLDER = WEIGHTS / "transcoders"


class Transcoder(SparseAutoencoder):
    """A transcoder of one MLP; the module's docstring has the formulas.

    Attributes:
        W_enc [d_in, d_sae], b_enc [d_sae], W_dec [d_sae, d_in], b_dec [d_in]; with a skip connection W_skip [d_in,
        d_in], its rows what is written; jumprelu has threshold [d_sae]. d_in is d_model, d_sae the number of features.
    """

    def __init__(
        self, d_in: int, d_sae: int, kind: str = "relu", *, k: int | None = None, skip: bool = False,
        hook_name: str | None = None, hook_name_out: str = "", model_name: str | None = None, seed: int = 0,
    ) -> None:
        """
        Args:
            d_in, d_sae: d_model, number of features.
            kind: relu, topk or jumprelu.
            k: number of active features; topk needs it, the others have none.
            skip: whether there is a linear path W_skip from what is read to what is written.
            hook_name, hook_name_out, model_name: where it reads, where it writes.
        Raises:
            ValueError: for another kind, sizes that are not positive, or a k that does not fit.
        """
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}; a transcoder's must be one of {', '.join(KINDS)}")
        super().__init__(d_in, d_sae, kind, k=k, hook_name=hook_name, model_name=model_name, subtract_b_dec=False,
                         seed=seed)
        self.skip, self.hook_name_out = skip, hook_name_out
        if skip:
            self.W_skip = nn.Parameter(torch.zeros(d_in, d_in))

    def extra_repr(self) -> str:
        return super().extra_repr().replace("normalize=none", f"skip={self.skip}")

    def write(
        self, latents: Float[Tensor, "... d_sae"], x: Float[Tensor, "... d_in"] | None
    ) -> Float[Tensor, "... d_in"]:
        """f W_dec + b_dec + W_skip x. Raises ValueError if there is a skip connection and x is missing."""
        if not self.skip:
            return super().write(latents, x)
        if x is None:
            raise ValueError("this transcoder has a skip connection: decode(features, x) needs x, what was read")
        return super().write(latents, x) + x @ self.W_skip.T

    _read_files = staticmethod(read_transcoder)


def mlp_in(layer: int) -> str:
    """The hook at what a layer's MLP reads, after the norm, [batch, pos, d_model]."""
    return f"blocks.{layer}.mlp.hook_in"


def check_blocks(model: TransformerBridge, what: str) -> None:
    """Raise NotForThisModel unless each MLP reads the stream through a norm of its own, and adds to it what it writes.

    Where a norm follows the MLP (Gemma 2), it counts as a part of it: what it gives is what is written.
    """
    require(model, what, "parts", "mlps")


@torch.no_grad()
def mlp_inputs_and_outputs(
    model: TransformerBridge, layer: int, tokens: Int[Tensor, "n pos"], mask: Bool[Tensor, "n pos"] | None = None, *,
    batch_size: int = 32,
) -> tuple[Float[Tensor, "counted d_model"], Float[Tensor, "counted d_model"]]:
    """What a layer's MLP reads after the norm, and what it writes, at every counted position, in order, on the CPU.

    Args:
        mask: which positions; None: all but the first (BOS).
    Raises:
        ValueError: if there is no such layer, or as `passes.checked_mask` does.
        NotForThisModel: see `check_blocks`.
    """
    check_blocks(model, "a transcoder")
    if not 0 <= layer < model.cfg.n_layers:
        raise ValueError(f"there is no layer {layer}: this model has layers 0 to {model.cfg.n_layers - 1}")
    mask, names = checked_mask(model, tokens, mask), (mlp_in(layer), mlp_out(layer))
    found: tuple[list[Tensor], list[Tensor]] = [], []
    for batch, counted in zip(tokens.split(batch_size), mask.split(batch_size)):
        seen = CleanRun(model, batch, names).activations
        for each, name in zip(found, names):
            each.append(seen[name][counted.to(seen[name].device)].cpu())
    return torch.cat(found[0]), torch.cat(found[1])


def train_transcoder(
    model: TransformerBridge, layer: int, tokens: Int[Tensor, "n pos"], config: TrainingConfig, *, skip: bool = False,
    folder: str | Path | None = None, mask: Bool[Tensor, "n pos"] | None = None,
) -> Transcoder:
    """A transcoder of one layer's MLP, trained on every position but the first; see `sae_training.train_sae`.

    Raises:
        ValueError, OSError: as `train_sae` does, and for a layer that is not there or a norm in the configuration.
        NotForThisModel: see `check_blocks`.
    """
    transcoder = Transcoder(
        model.cfg.d_model, config.d_sae, config.kind, k=config.k, skip=skip, hook_name=mlp_in(layer),
        hook_name_out=mlp_out(layer), model_name=model.cfg.model_name, seed=config.seed)
    x, y = mlp_inputs_and_outputs(model, layer, tokens, mask)
    return fit(transcoder.to(model.cfg.device), x, config, folder, targets=y)


@torch.no_grad()
def replaced_logits(
    model: TransformerBridge, transcoders: Mapping[int, nn.Module], tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos vocab"]:
    """Logits when the MLPs of some layers are replaced by transcoders, {layer: transcoder}, without their errors.

    Any module may take a transcoder's place that gives d_model numbers for d_model numbers.

    At the first position the MLPs stay: no transcoder has learned from it. All else is computed anew.
    Raises:
        NotForThisModel: see `check_blocks`.
    """
    check_blocks(model, "a transcoder")

    def write(layer: int, x: Tensor, y: Tensor) -> Float[Tensor, "batch pos d_model"]:
        return torch.cat([y[:, :1], transcoders[layer](x[:, 1:])], dim=1)

    return logits_with_mlps(model, tokens, transcoders, write)


def logits_with_mlps(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], layers: Iterable[int],
    write: Callable[[int, Float[Tensor, "batch pos d_model"], Float[Tensor, "batch pos d_model"]],
                    Float[Tensor, "batch pos d_model"]],
) -> Float[Tensor, "batch pos vocab"]:
    """Logits when the MLP of each of these layers reads x and writes write(layer, x, y) in the place of its own y."""
    read: dict[int, Tensor] = {}

    def keep(layer: int, x: Tensor, hook) -> None:
        read[layer] = x

    def rewrite(layer: int, y: Tensor, hook) -> Float[Tensor, "batch pos d_model"]:
        return write(layer, read[layer], y)

    hooks = [(name(layer), partial(function, layer)) for layer in layers
             for name, function in ((mlp_in, keep), (mlp_out, rewrite))]
    return model.run_with_hooks(tokens, fwd_hooks=hooks)


# --- those that come with the course: training/train_transcoders.py made them ----------------------------------------


def shipped_transcoders(model_name: str) -> list[int]:
    """The layers for which a transcoder comes with the course; none for most models."""
    return sorted(int(file.parent.name) for file in (TRANSCODERS_FOLDER / model_name).glob("*/cfg.json"))


def load_shipped_transcoder(model_name: str, layer: int) -> Transcoder:
    """The transcoder of one layer's MLP, in float32.

    Raises:
        ValueError: if there is none.
    """
    if layer not in shipped_transcoders(model_name):
        raise ValueError(f"no transcoder of layer {layer} is shipped for {model_name}; there are: "
                         f"{', '.join(map(str, shipped_transcoders(model_name))) or 'none'}")
    return Transcoder.load(TRANSCODERS_FOLDER / model_name / str(layer)).float()
