"""One clean pass, remembered, so that later passes do only the work that a patch changes.

A patch at layer L and position p changes nothing below L, and nothing before p (attention is causal). So a patched
pass may start at block L with the clean residual stream, run positions p and later alone, and read the keys and
values of the earlier positions from the clean pass. TransformerLens's own `start_at_layer` computes the skipped
blocks all the same and then throws their output away (seen in 4.3.0).
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Residual = Float[Tensor, "batch pos d_model"]


class CleanRun:
    """The clean pass of a model over some tokens.

    Attributes:
        residuals: n_layers + 1 tensors [batch, pos, d_model]: what enters each block, then what leaves the last.
        activations: {hook name: value} of the names asked for, up to the last block.
    """

    @torch.no_grad()
    def __init__(self, model: TransformerBridge, tokens: Int[Tensor, "batch pos"], names: list[str] = ()) -> None:
        self.model, self.tokens = model, tokens
        self.residuals: list[Residual] = []
        self.activations: dict[str, Tensor] = {}
        self._keys_values = _KeysValues()
        self._block_arguments: list[dict[str, Any]] = []
        handles = [block.register_forward_pre_hook(self._remember, with_kwargs=True) for block in model.blocks]
        handles.append(model.ln_final.register_forward_pre_hook(self._end))
        keep = [(name, lambda value, hook: self.activations.__setitem__(hook.name, value)) for name in names]
        try:
            model.run_with_hooks(tokens, return_type=None, fwd_hooks=keep)
        except Enough:
            pass
        finally:
            for handle in handles:
                handle.remove()

    def _remember(self, block, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Note what a block is called with, and let it hand its keys and values to us."""
        signature = inspect.signature(block.original_component.forward)
        arguments = signature.bind(*args, **kwargs).arguments
        arguments.update(arguments.pop("kwargs", {}))
        residual = arguments.pop("hidden_states")
        arguments["past_key_values"] = self._keys_values
        self.residuals.append(residual)
        self._block_arguments.append(arguments)
        return (residual,), arguments

    def _end(self, ln_final, args: tuple) -> None:
        """Note what leaves the last block, and end the pass: the unembedding would be for nothing."""
        self.residuals.append(args[0])
        raise Enough

    @torch.no_grad()
    def continue_from(
        self, layer: int, residual: Float[Tensor, "rows pos-start d_model"], *, start: int = 0, stop: int | None = None
    ) -> Residual:
        """Run blocks `layer` … `stop` − 1 (default: the last) on positions `start` … last; return what leaves them.

        Before `start` everything is as in the clean pass. `rows` is a multiple of the clean batch, in its order.
        Hooks that are on the model (`with model.hooks(...)`) act in these blocks as they do in a full pass.
        """
        times = len(residual) // len(self.tokens)
        for block, arguments in zip(self.model.blocks[layer:stop], self._block_arguments[layer:stop]):
            out = block(residual, **_later(arguments, start, times))
            residual = out[0] if isinstance(out, tuple) else out
        return residual

    @torch.no_grad()
    def logits(self, residual: Float[Tensor, "... d_model"]) -> Float[Tensor, "... vocab"]:
        """The final norm and the unembedding, for as many residual vectors as are given."""
        flat = residual.reshape(1, -1, residual.shape[-1])                          # [1, positions, d_model]
        return self.model.unembed(self.model.ln_final(flat)).reshape(*residual.shape[:-1], self.model.cfg.d_vocab)


class Enough(Exception):
    """All that was wanted from a pass is there."""


class _KeysValues:
    """Takes the place of a key-value cache: remembers a clean pass, or puts its earlier positions before new ones."""

    def __init__(self, clean: dict[int, tuple[Tensor, Tensor]] | None = None, start: int = 0) -> None:
        self.clean, self.start, self.seen = clean, start, {}                # layer: two [batch, head, pos, d_head]

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any) -> tuple[Tensor, Tensor]:
        if self.clean is None:
            self.seen[layer] = keys, values
        elif self.start:
            times = len(keys) // len(self.clean[layer][0])
            past = (each[:, :, :self.start].repeat(times, 1, 1, 1) for each in self.clean[layer])
            keys, values = (torch.cat(pair, dim=2) for pair in zip(past, (keys, values)))
        return keys, values


def _later(arguments: dict[str, Any], start: int, times: int) -> dict[str, Any]:
    """A block's arguments for positions `start` … last, for `times` copies of the batch."""

    def cut(value: Tensor, dim: int) -> Tensor:
        value = value.narrow(dim, start, value.shape[dim] - start)
        return value if len(value) == 1 else value.repeat(times, *[1] * (value.ndim - 1))

    later = {**arguments, "past_key_values": _KeysValues(arguments["past_key_values"].seen, start)}
    if (mask := arguments.get("attention_mask")) is not None:
        later["attention_mask"] = cut(mask, 2)                              # [batch, 1, query, key]
    if (rotary := arguments.get("position_embeddings")) is not None:
        later["position_embeddings"] = tuple(cut(each, 1) for each in rotary)       # cos and sin: [1, pos, d_head]
    if (ids := arguments.get("position_ids")) is not None:
        later["position_ids"] = cut(ids, 1)                                 # [1, pos]
    return later
