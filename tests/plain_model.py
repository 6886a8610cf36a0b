"""A Hugging Face model read and changed through PyTorch hooks on its own modules, one full pass at a time.

Nothing here knows TransformerLens or the course. Where a family's modules are is found by looking: names for attention,
output projection and MLP; for the rest, which module's output is whose input in one traced pass.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from copy import deepcopy
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

ATTENTION = ("self_attn", "attn", "attention", "self_attention")
OUT = ("o_proj", "c_proj", "out_proj", "dense", "o")
MLP = ("mlp", "block_sparse_moe", "feed_forward", "ffn")
DOWN = ("down_proj", "c_proj", "fc_out", "fc2", "dense_4h_to_h")


class OnlyRefusal(Exception):
    """For this model the function has no right value: to say so is the only right answer."""


class Enough(Exception):
    """What was wanted from a pass is there."""


def _enough(_: Tensor) -> None:
    raise Enough


def first(value: Any) -> Tensor:
    """The activation in what a module gave: some give a tuple."""
    return value[0] if isinstance(value, (tuple, list)) else value


def is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


class Softmaxes(TorchFunctionMode):
    """Notes what every softmax over [batch, head, query, key] or [batch * head, query, key] takes in and gives out."""

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self.n_heads, self.scores, self.patterns = n_heads, [], []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function is torch.nn.functional.softmax and out.ndim > 2:
            self.scores.append(args[0].reshape(-1, self.n_heads, *out.shape[-2:]))
            self.patterns.append(out.reshape(-1, self.n_heads, *out.shape[-2:]))
        return out


class Plain:
    """The model, its layers, and of each layer the modules that matter here."""

    def __init__(self, model: nn.Module) -> None:
        self.model = deepcopy(model)
        config = model.config
        self.n_layers, self.n_heads = config.num_hidden_layers, config.num_attention_heads
        self.d_model, self.vocab = config.hidden_size, config.vocab_size
        self.layers = next(module for module in self.model.modules()
                           if isinstance(module, nn.ModuleList) and len(module) == self.n_layers)
        self.attention = [self._attention(layer) for layer in self.layers]
        self.out = [[module for name, module in attention.named_children() if name in OUT][-1]
                    for attention in self.attention]
        self.lm_head = self.model.get_output_embeddings()
        self.takes_positions = "position_ids" in inspect.signature(self.model.forward).parameters
        self._trace()
        self.d_head = self.z(torch.zeros(1, 1, dtype=torch.long), 0).shape[-1]
        self.centres = any(centres(norm) for norm in [*self.ln1, self.ln_final] if norm is not None)

    @staticmethod
    def _attention(layer: nn.Module) -> nn.Module:
        found = next(module for name, module in layer.named_children() if name in ATTENTION)
        return getattr(found, "attention", found)

    def _trace(self) -> None:
        """Which norm feeds an attention, which stands behind one, and which comes last."""
        seen: list[tuple[nn.Module, Tensor, Tensor]] = []

        def note(module: nn.Module, args: tuple, kwargs: dict, out: Any) -> None:
            given = kwargs.get("hidden_states", args[0] if args else None)
            if isinstance(first(out), Tensor) and isinstance(given, Tensor):
                seen.append((module, given.detach().clone(), first(out).detach().clone()))

        with ExitStack() as stack:
            for module in self.model.modules():
                stack.callback(module.register_forward_hook(note, with_kwargs=True).remove)
            self.run(torch.arange(5)[None])
        given = {id(module): before for module, before, _ in seen}
        gave = {id(module): after for module, _, after in seen}

        def norm_where(layer: nn.Module, test: Callable[[nn.Module], bool]) -> nn.Module | None:
            return next((m for m in layer.modules() if is_norm(m) and id(m) in gave and test(m)), None)

        self.ln1, self.mlp_writer, self.attention_writer = [], [], []
        for layer, attention, out in zip(self.layers, self.attention, self.out):
            reads = given[id(attention)]
            self.ln1.append(norm_where(layer, lambda m: torch.equal(gave[id(m)].reshape(-1), reads.reshape(-1))))
            for writers, own in ((self.attention_writer, out), (self.mlp_writer, self._mlp(layer))):
                after = norm_where(layer, lambda m: torch.equal(given[id(m)].reshape(-1), gave[id(own)].reshape(-1)))
                writers.append([own] if after is None else [own, after])
        inside = {id(module) for layer in self.layers for module in layer.modules()}
        order = [id(module) for module, _, _ in seen]
        last = order.index(id(self.layers[-1]))
        later = [module for module, _, _ in seen[last:] if is_norm(module) and id(module) not in inside]
        self.ln_final = later[0] if later else None

    @staticmethod
    def _mlp(layer: nn.Module) -> nn.Module:
        own = next((module for name, module in layer.named_children() if name in MLP), layer)
        return next((module for name, module in own.named_children() if name in DOWN), own)

    # --- passes ----------------------------------------------------------------------------------------------------

    def run(self, tokens: Tensor, *changes: tuple[nn.Module, str, Callable], **arguments: Any) -> Any:
        """A pass with some modules' inputs ("in") or outputs ("out") replaced: change(activation) gives the new one."""
        with self.changed(*changes):
            return self.model(input_ids=tokens, use_cache=False, **arguments)

    @contextmanager
    def changed(self, *changes: tuple[nn.Module, str, Callable]) -> Iterator[None]:
        with ExitStack() as stack:
            for module, side, change in changes:
                if side == "in":
                    handle = module.register_forward_pre_hook(_input_hook(change), with_kwargs=True)
                else:
                    handle = module.register_forward_hook(_output_hook(change))
                stack.callback(handle.remove)
            yield

    def log_probs(self, tokens: Tensor, *changes: tuple) -> Tensor:
        return self.run(tokens, *changes).logits.float().log_softmax(-1)

    def loss(self, tokens: Tensor, *changes: tuple, start: int = 0) -> Tensor:
        """Mean cross-entropy of the tokens at positions start + 1 … last."""
        log_probs = self.log_probs(tokens, *changes)[:, start:-1]
        return -log_probs.gather(2, tokens[:, start + 1:, None]).mean()

    def value_of(self, tokens: Tensor, module: nn.Module, side: str, *changes: tuple, **arguments: Any) -> Tensor:
        """What goes into a module, or comes out of it, [batch, pos, width]."""
        kept = []
        self.run(tokens, *changes, (module, side, lambda value: kept.append(value.clone())), **arguments)
        return kept[0].reshape(*tokens.shape, -1)

    def streams(self, tokens: Tensor) -> list[Tensor]:
        """What enters each layer, then what leaves the last."""
        return [*(self.value_of(tokens, layer, "in") for layer in self.layers),
                self.value_of(tokens, self.layers[-1], "out")]

    def z(self, tokens: Tensor, layer: int, *changes: tuple) -> Tensor:
        """What each head has gathered, [batch, pos, head, d_head]."""
        return self.value_of(tokens, self.out[layer], "in", *changes).unflatten(-1, (self.n_heads, -1))

    def value_bias(self, layer: int) -> Tensor:
        """What a head gathers where its attention reads nothing but the norm's shift, [head, d_head]."""
        norm = self.ln1[layer]
        nothing = (self.attention[layer], "in", lambda x: norm.forward(x * 0) if norm is not None else x * 0)
        return self.z(torch.zeros(1, 1, dtype=torch.long), layer, nothing)[0, 0]

    def softmaxes(self, tokens: Tensor, *changes: tuple, layers: int | None = None, **arguments: Any) -> Softmaxes:
        """All softmaxes of a pass, or those of the first few layers."""
        with Softmaxes(self.n_heads) as seen, suppress(Enough):
            stop = [(self.layers[layers - 1], "out", _enough)] if layers else []
            self.run(tokens, *changes, *stop, **arguments)
        return seen

    def patterns(self, tokens: Tensor) -> Tensor:
        """[layer, batch, head, query, key]"""
        return torch.stack([each[..., :tokens.shape[1]] for each in self.softmaxes(tokens).patterns])

    # --- single parts, fed by hand ---------------------------------------------------------------------------------

    def pair_scores(self, layer: int, keys: Tensor, queries: Tensor, distance: int = 0) -> Tensor:
        """Scores before the softmax of each query for its key `distance` earlier, [n, head]; these feed attention."""
        pairs = torch.stack([keys, queries], dim=1)                             # [n, 2, d_model]
        tokens, arguments = torch.zeros(len(pairs), 2, dtype=torch.long), {}
        if self.takes_positions:
            arguments = {"position_ids": torch.tensor([[0, distance]]).expand(len(pairs), 2),
                         "attention_mask": torch.ones_like(tokens)}
        return self.softmaxes(tokens, (self.attention[layer], "in", lambda _: pairs),
                              layers=layer + 1, **arguments).scores[layer][:, :, 1, 0]

    def head_writes(self, layer: int, head: int, z: Tensor) -> Tensor:
        """What the output projection, without its bias, makes of a head's z: [batch, pos, d_head] -> [..., d_model]."""
        alone = z.new_zeros(*z.shape[:2], self.n_heads, self.d_head)
        alone[:, :, head] = z
        both = torch.cat([alone, torch.zeros_like(alone)]).flatten(2)
        written, nothing = self.out[layer](both).chunk(2)
        return written - nothing

    def moved(self, layer: int, head: int, inputs: Tensor) -> Tensor:
        """What a head writes for a token that looks at itself alone, attention fed with these inputs, [n, d_model].

        A norm behind the attention acts with its weights; its scale is left out.
        """
        tokens = torch.zeros(len(inputs), 1, dtype=torch.long)
        z = self.z(tokens, layer, (self.attention[layer], "in", lambda _: inputs[:, None]))[:, :, head]
        written = self.head_writes(layer, head, z)[:, 0]
        return written if len(self.attention_writer[layer]) == 1 else unscaled(self.attention_writer[layer][1], written)

    def reads(self, layer: int, stream: Tensor) -> Tensor:
        """What attention reads of a stream, with the norm's weights but neither its scale nor its shift."""
        return stream if self.ln1[layer] is None else unscaled(self.ln1[layer], stream)

    def unembedded(self, stream: Tensor) -> Tensor:
        """The linear part of what follows the last layer: [n, d_model] -> [n, vocab].

        The final norm acts with its weights; its scale and all shifts are left out.
        """
        given = torch.cat([stream, torch.zeros_like(stream)])[:, None]
        changes = [(self.layers[-1], "out", lambda _: given)]
        if self.ln_final is not None:
            changes.append((self.ln_final, "out", lambda _: unscaled(self.ln_final, given)))
        logits = self.value_of(torch.zeros(len(given), 1, dtype=torch.long), self.lm_head, "out", *changes)[:, 0]
        return logits[:len(stream)] - logits[len(stream):]

    def relative(self, logits: Tensor) -> Tensor:
        """Logits minus their mean over the vocabulary; as they are before a soft cap, which a shift would change."""
        capped = getattr(self.model.config, "final_logit_softcapping", None)
        return logits if capped else logits - logits.mean(-1, keepdim=True)

    # --- variants --------------------------------------------------------------------------------------------------

    @lru_cache
    def without_positions(self) -> Plain:
        """The same model with nothing of the positions in the stream (rotary positions are not in it)."""
        other = Plain(self.model)
        inside = {id(module) for layer in other.layers for module in layer.modules()}
        for module in other.model.modules():
            if id(module) in inside or module is other.model.get_input_embeddings():
                continue
            if isinstance(module, nn.Embedding):
                module.weight.data.zero_()
            elif hasattr(module, "weights"):                                    # a table that is computed
                module.weights.zero_()
        return other

    @lru_cache
    def without_caps(self) -> Plain:
        """The same model without a cap on attention scores."""
        other = Plain(self.model)
        for attention in other.attention:
            if hasattr(attention, "attn_logit_softcapping"):
                attention.attn_logit_softcapping = None
        return other

    @lru_cache
    def only_products(self) -> Plain:
        """The same model without biases in attention and before it, and without a cap on attention scores."""
        other = Plain(self.without_positions().without_caps().model)
        for attention, norm in zip(other.attention, other.ln1):
            for module in (attention, *([] if norm is None else [norm])):
                for name, weight in module.named_parameters():
                    if name.endswith("bias"):
                        weight.data.zero_()
        return other

    @lru_cache
    def embeddings(self) -> Tensor:
        """What each token alone puts into layer 0, without its position, [vocab, d_model]."""
        return self.without_positions().streams(torch.arange(self.vocab)[:, None])[0][:, 0]

    def position_vectors(self, n: int) -> Tensor:
        """What the positions add to that, [n, d_model]."""
        tokens = torch.ones(1, n, dtype=torch.long)
        return self.streams(tokens)[0][0] - self.without_positions().streams(tokens)[0][0]

    def centred(self, stream: Tensor) -> Tensor:
        """Without the mean that no LayerNorm lets through; as it is where norms do not centre."""
        return stream - stream.mean(-1, keepdim=True) if self.centres else stream


def _input_hook(change: Callable) -> Callable:
    def hook(module, args, kwargs):
        if "hidden_states" in kwargs:
            new = change(kwargs["hidden_states"])
            return None if new is None else (args, {**kwargs, "hidden_states": new})
        new = change(args[0])
        return None if new is None else ((new, *args[1:]), kwargs)

    return hook


def _output_hook(change: Callable) -> Callable:
    def hook(module, args, out):
        new = change(first(out))
        return None if new is None else (new, *out[1:]) if isinstance(out, (tuple, list)) else new

    return hook


# --- norms -----------------------------------------------------------------------------------------------------------


def size(norm: nn.Module) -> int:
    return next((len(weight) for weight in norm.parameters()), None) or norm.normalized_shape[0]


def centres(norm: nn.Module) -> bool:
    """Whether a norm takes the mean away."""
    x = torch.arange(size(norm)).float().sin()[None]
    return torch.allclose(norm.forward(x), norm.forward(x + 1), atol=1e-4)


def unscaled(norm: nn.Module, x: Tensor) -> Tensor:
    """A norm's output without its shift and before the division: its weights times the (centred) input."""
    inner = x - x.mean(-1, keepdim=True) if centres(norm) else x
    large = norm.forward(1e4 * x) - norm.forward(torch.zeros_like(x))           # such an input dwarfs its epsilon
    return large * inner.pow(2).mean(-1, keepdim=True).sqrt()


def scale(norm: nn.Module, x: Tensor) -> Tensor:
    """What a norm divides by, its epsilon included, [..., 1]."""
    before, after = unscaled(norm, x), norm.forward(x) - norm.forward(torch.zeros_like(x))
    return (before * after).sum(-1, keepdim=True) / after.pow(2).sum(-1, keepdim=True)
