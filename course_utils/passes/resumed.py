"""A pass that is remembered, so that later passes do only the work that a patch changes.

A patch at layer L and position p changes nothing below L, and nothing before p (attention is causal). So a patched
pass may start at block L with the clean residual stream, run positions p and later alone, and read the keys and
values of the earlier positions from the clean pass. TransformerLens's own `start_at_layer` computes the skipped
blocks all the same and then throws their output away (seen in 4.3.0).
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from course_utils.passes.bare import Built, is_bare, is_untouched, run_bare
from course_utils.passes.products import BLOCK, wide_product

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Residual = Float[Tensor, "batch pos d_model"]
See = Callable[[int, Float[Tensor, "batch head query key"]], None]      # is shown each layer's attention pattern


class ResumedPass:
    """The clean pass of a model over some tokens, continued in the way that `resumes` says.

    `resumes`, `built`: see `Traits`. With `built`, `hooks` and `see` look at this pass; to end it they raise `Enough`,
    and if it is not to be continued (`keep=False`) nothing of it stays in memory.
    """

    @torch.no_grad()
    def __init__(
        self, model: TransformerBridge, tokens: Int[Tensor, "batch pos"], names: Sequence[str] = (), *,
        resumes: str, built: Sequence[Built] = (), hooks: Sequence = (), see: See | None = None, keep: bool = True,
    ) -> None:
        self.model, self.tokens, self.resumes, self.built, self._see = model, tokens, resumes, built, see
        self.residuals: list[Residual] = []
        self.activations: dict[str, Tensor] = {}
        self._keys_values = _KeysValues() if keep else _KeysValues({})
        self._block_arguments: list[dict[str, Any]] = []
        with model.hooks(fwd_hooks=[*((name, self._keep) for name in names), *hooks]):
            pre_hooks = [(block, self._remember) for block in model.blocks] + [(model.ln_final, self._end)]
            _run(model, tokens, pre_hooks)
            if built:                                                       # the run ended at the first block
                self._block_arguments *= len(built)                         # all blocks get the same
                stream = self.residuals[:1]                                 # (none if it ended before that)
                for layer, arguments in enumerate(self._block_arguments):
                    stream = [self._through_block(layer, stream[0], arguments)]
                    self.residuals += stream if keep else []
        self._see = None

    def _remember(self, block, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Note what a block is called with, and let it hand its keys and values to us.

        Hugging Face's blocks name their arguments, and those names have changed between versions (the cache was
        `past_key_value` once, and is `cache` from 5.24 on). So they are bound to the signature of the block's own
        `forward`, and the cache is `cache`, or the one whose name holds "past". That was tried with transformers
        5.23.0; with 5.24.0 passes resume by blocks, which is slower. How a model at hand resumes is tried when it is
        loaded (`Traits.resumes`).
        """
        signature = inspect.signature(block.original_component.forward)
        arguments = signature.bind(*args, **kwargs).arguments
        arguments.update(arguments.pop("kwargs", {}))
        residual, *others = arguments.pop("args") if "args" in arguments else [arguments.pop("hidden_states")]
        names = (*arguments, *signature.parameters)
        past = "cache" if "cache" in names else next((name for name in names if "past" in name), "past_key_values")
        arguments[past] = self._keys_values if self.resumes == "positions" else None
        self.residuals.append(residual)
        self._block_arguments.append(arguments)
        if self.built:
            raise Enough
        return (residual, *others), arguments

    def _keep(self, value: Tensor, hook) -> None:
        self.activations[hook.name] = value

    def _end(self, ln_final, args: tuple, kwargs: dict) -> None:
        """Note what leaves the last block, and end the pass: the unembedding is not needed."""
        self.residuals.append(args[0])
        raise Enough

    def rotary(self, layer: int) -> tuple[Float[Tensor, "1 pos d"], Float[Tensor, "1 pos d"]] | None:
        """The cosines and sines by which a block rotates its queries and keys; None if it gets none."""
        return self._block_arguments[layer].get("position_embeddings")

    @torch.no_grad()
    def continue_from(
        self, layer: int, residual: Float[Tensor, "rows pos-start d_model"], *, start: int = 0, stop: int | None = None
    ) -> Residual:
        """Run blocks `layer` … `stop` − 1 (default: the last) on positions `start` … last; return what leaves them.

        Before `start` everything is as in the clean pass. `rows` is a multiple of the clean batch, in its order.
        Hooks that are on the model (`with model.hooks(...)`) act in these blocks as they do in a full pass.
        """
        times = len(residual) // len(self.tokens)
        if self.resumes == "positions":
            return self._through_blocks(layer, residual, start, stop, times)
        before = self.residuals[layer][:, :start].repeat(times, 1, 1)
        residual = torch.cat([before, residual], dim=1)
        through = self._through_blocks if self.resumes == "blocks" else self.through_model
        return through(layer, residual, 0, stop, times)[:, start:]

    def _through_blocks(self, first: int, residual: Residual, start: int, stop: int | None, times: int) -> Residual:
        stop = len(self.model.blocks) if stop is None else stop
        for layer in range(first, stop):
            later = _later(self._block_arguments[layer], start, times, len(self.tokens))
            residual = self._through_block(layer, residual, later)
        return residual

    def _through_block(self, layer: int, residual: Residual, arguments: dict[str, Any]) -> Residual:
        block = self.model.blocks[layer]
        if self.built and is_bare(block, self.built[layer], residual):
            keys_values = next(value for value in arguments.values() if isinstance(value, _KeysValues))
            return run_bare(block, residual, arguments, partial(keys_values.update, layer=layer),
                            partial(self._see, layer) if self._see else None)
        with self.model.hooks(fwd_hooks=[_showing(layer, self._see)] if self._see else []):
            out = block(residual, **arguments)
        return out[0] if isinstance(out, tuple) else out

    def through_model(self, layer: int, residual: Residual, start: int, stop: int | None, times: int) -> Residual:
        """The slow way, for any model: a whole pass in which what enters one block is replaced."""
        places, left = [*self.model.blocks, self.model.ln_final], []
        stop = len(self.model.blocks) if stop is None else stop

        def enter(block, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            return ((residual, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": residual})

        def leave(block, args: tuple, kwargs: dict) -> None:
            left.append(args[0] if args else kwargs["hidden_states"])
            raise Enough

        if stop <= layer:
            return residual
        _run(self.model, self.tokens.repeat(times, 1), [(places[layer], enter), (places[stop], leave)])
        return left[0]

    @torch.no_grad()
    def logits(self, residual: Float[Tensor, "... d_model"]) -> Float[Tensor, "... vocab"]:
        """The final norm, the unembedding and what the model does to logits after it, for any residual vectors."""
        flat = residual.reshape(1, -1, residual.shape[-1])                          # [1, positions, d_model]
        logits = after_unembedding(self.model, unembedded(self.model, self.model.ln_final(flat)))
        return logits.reshape(*residual.shape[:-1], self.model.cfg.d_vocab)


def unembedded(model: TransformerBridge, normed: Float[Tensor, "1 pos d_model"]) -> Float[Tensor, "1 pos vocab"]:
    """What the unembedding makes of the normed stream; if it is plain and nothing looks on, block after block."""
    unembed, inner = model.unembed, model.unembed.original_component
    if normed.device.type != "cpu" or model.cfg.d_vocab < 2 * BLOCK:
        return unembed(normed)
    if not isinstance(inner, torch.nn.Linear) or hasattr(inner, "_hf_hook") or not is_untouched(unembed):
        return unembed(normed)                                                      # (weights may be elsewhere)
    bias = inner.bias if inner.bias is not None and inner.bias.any() else None     # zeros cost as much as others
    return wide_product(normed, inner.weight.T, bias)


def after_unembedding(model: TransformerBridge, logits: Float[Tensor, "... vocab"]) -> Float[Tensor, "... vocab"]:
    """What some models do to their logits at the end: a soft cap, or a scale."""
    transform = getattr(getattr(model, "adapter", None), "apply_output_logits_transform", None)
    return logits if transform is None else transform(logits)


def output_factor(model: TransformerBridge) -> float:
    """What the model multiplies its logits by at the end (Granite, Cohere); 1 if it does nothing, or caps them."""
    one, two = after_unembedding(model, torch.tensor([1.0, 2.0], device=model.cfg.device)).tolist()
    return one if abs(two - 2 * one) < 1e-6 * abs(one) else 1.0


def _run(model: TransformerBridge, tokens: Int[Tensor, "batch pos"], pre_hooks: list, fwd_hooks: Sequence = ()) -> None:
    """A pass that may end early (`Enough`), with functions called before some modules (and their hooks), and hooks."""
    handles = [module.register_forward_pre_hook(hook, with_kwargs=True, prepend=True) for module, hook in pre_hooks]
    try:
        model.run_with_hooks(tokens, return_type=None, fwd_hooks=list(fwd_hooks))
    except Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()


def end_early(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], built: Sequence[Built], see: See | None = None,
    hooks: Sequence = (),
) -> None:
    """A pass that is looked at until somebody raises Enough; without their hooks where nobody looks, if blocks can."""
    if not built:
        _run(model, tokens, [], [*hooks, *(_showing(layer, see) for layer in range(len(model.blocks)) if see)])
    else:
        with contextlib.suppress(Enough):
            ResumedPass(model, tokens, resumes="positions", built=built, hooks=hooks, see=see, keep=False)


def _showing(layer: int, see: See) -> tuple[str, Callable[[Tensor, object], None]]:
    """A hook by which a block shows its attention pattern."""
    return f"blocks.{layer}.attn.hook_pattern", lambda pattern, hook: see(layer, pattern)


class Enough(Exception):
    """Ends a forward pass early."""


class _KeysValues:
    """Takes the place of a key-value cache: remembers a clean pass, or puts its earlier positions before new ones."""

    def __init__(self, clean: dict[int, tuple[Tensor, Tensor]] | None = None, start: int = 0) -> None:
        self.clean, self.start = clean, start
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}                    # layer: two [batch, head, pos, d_head]

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any) -> tuple[Tensor, Tensor]:
        if self.clean is None:
            self.seen[layer] = keys, values
        elif self.start:
            keys, values = (self._after(past, new) for past, new in zip(self.clean[layer], (keys, values)))
        return keys, values

    def _after(self, past: Tensor, new: Float[Tensor, "rows head pos d_head"]) -> Tensor:
        """`new`, after the earlier positions of `past` for each copy of the batch, which are written once."""
        copies = new.unflatten(0, (-1, len(past)))                          # [copy, batch, head, pos, d_head]
        return torch.cat([past[:, :, :self.start].expand(len(copies), *[-1] * 4), copies], dim=3).flatten(0, 1)


def _later(arguments: dict[str, Any], start: int, times: int, batch: int) -> dict[str, Any]:
    """A block's arguments for positions `start` … last, for `times` copies of a batch of so many texts."""

    def cut(value: Tensor, dim: int, shared: bool) -> Tensor:               # shared: one row for all texts
        value = value.narrow(dim, start, value.shape[dim] - start)
        return value if shared else value.repeat(times, *[1] * (value.ndim - 1))

    later = {name: _KeysValues(value.seen, start) if isinstance(value, _KeysValues) else value
             for name, value in arguments.items()}
    if (mask := arguments.get("attention_mask")) is not None:
        shared = len(mask) == 1 < batch                 # some models want a row for each text, be it one
        later["attention_mask"] = cut(mask, 2, shared)                      # [batch, 1, query, key]
    if (rotary := arguments.get("position_embeddings")) is not None:
        later["position_embeddings"] = tuple(cut(each, 1, len(each) == 1) for each in rotary)   # two [1, pos, d_head]
    if (ids := arguments.get("position_ids")) is not None:
        later["position_ids"] = cut(ids, 1, len(ids) == 1)                                 # [1, pos]
    if (alibi := arguments.get("alibi")) is not None:
        later["alibi"] = alibi.repeat(times, *[1] * (alibi.ndim - 1))       # [batch * head, 1, key]
    return later
