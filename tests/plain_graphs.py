"""Slow passes for transcoders and attribution graphs; see plain_passes.py. Of a transcoder they read the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from plain_model import OnlyRefusal, Plain, centres, is_norm, scale, size, unscaled
from plain_passes import mlp_output, multipliers
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Write = Callable[[int, Tensor, Tensor], Tensor]         # (layer, what its MLP reads, what it would write) -> new
Answers = list[int | tuple[int, int]]


# --- MLPs -------------------------------------------------------------------------------------------------------------


@lru_cache
def norms(p: Plain, layer: int) -> list[nn.Module]:
    """The norms in a layer that are as wide as the stream."""
    return [module for module in p.layers[layer].modules() if is_norm(module) and size(module) == p.d_model]


@lru_cache
def mlp_norm(p: Plain, layer: int) -> nn.Module:
    """The norm that feeds a layer's MLP: a nudge of it moves the MLP, though the attention stays as it was."""
    tokens, nudge = torch.arange(3)[None], torch.arange(p.d_model).float().cos()
    writer, attention = p.mlp_writer[layer][0], p.attention_writer[layer][-1]
    same = p.value_of(tokens, attention, "out")
    before = p.value_of(tokens, writer, "out")
    for norm in norms(p, layer):
        if norm not in (attention, *p.mlp_writer[layer][1:]):
            moved = p.value_of(tokens, writer, "out", (norm, "out", lambda out: out + nudge),
                               (attention, "out", lambda out: same.reshape(out.shape)))
            if not torch.allclose(moved, before):
                return norm
    raise OnlyRefusal("no norm in front of the MLP")


def direction(norm: nn.Module, x: Tensor, divisor: Tensor) -> Tensor:
    """What a norm makes of a vector but for its weights."""
    return (x - x.mean(-1, keepdim=True) if centres(norm) else x) / divisor


def mlp_read(p: Plain, tokens: Tensor, layer: int) -> Tensor:
    """What a layer's MLP reads, the norm's weights counted as the MLP's."""
    norm = mlp_norm(p, layer)
    given = p.value_of(tokens, norm, "in")
    return direction(norm, given, scale(norm, given))


def mlp_written(p: Plain, tokens: Tensor, layer: int) -> Tensor:
    """What it adds to the stream."""
    return p.centred(multipliers(p, layer)[1] * mlp_output(p, tokens, layer))


def rewritten(
    p: Plain, tokens: Tensor, write: Write, *changes: tuple, scales: Mapping[nn.Module, Tensor] | None = None
) -> tuple[list[Tensor], Tensor]:
    """What each MLP reads, and the logits, of a pass in which each writes write(…). `scales`: what norms divide by."""
    reads: dict[int, Tensor] = {}
    hooks: list[tuple] = []
    for layer in range(p.n_layers):
        norm, (_, m) = mlp_norm(p, layer), multipliers(p, layer)

        def read(given: Tensor, layer: int = layer, norm: nn.Module = norm) -> None:
            given = given.reshape(*tokens.shape, -1)
            reads[layer] = direction(norm, given, scales[norm] if scales else scale(norm, given))

        def put(y: Tensor, layer: int = layer, m: float = m) -> Tensor:
            return (write(layer, reads[layer], m * y.reshape(*tokens.shape, -1)) / m).reshape(y.shape)

        hooks += [(norm, "in", read), (p.mlp_writer[layer][-1], "out", put)]
    logits = p.run(tokens, *changes, *hooks).logits
    return [reads[layer] for layer in range(p.n_layers)], logits


def features_of(transcoder: Any, x: Tensor) -> Tensor:
    """A relu transcoder's features; none at the first position."""
    f = (x @ transcoder.W_enc + transcoder.b_enc).relu()
    return torch.cat([0 * f[:, :1], f[:, 1:]], dim=1)


def written_by(transcoder: Any, f: Tensor, x: Tensor) -> Tensor:
    return f @ transcoder.W_dec + transcoder.b_dec + x @ transcoder.W_skip.T


def replaced(p: Plain, tokens: Tensor, transcoders: Mapping[int, Any]) -> Tensor:
    """Log-probabilities when some layers' MLPs write what transcoders make of their input, but at the first position"""
    def write(layer: int, x: Tensor, y: Tensor) -> Tensor:
        if layer in transcoders:
            y[:, 1:] = written_by(transcoders[layer], features_of(transcoders[layer], x), x)[:, 1:]
        return y

    return rewritten(p, tokens, write)[1].log_softmax(-1)


def with_features(p: Plain, tokens: Tensor, transcoders: Mapping[int, Any], change: Callable) -> Tensor:
    """Log-probabilities when features are change(layer, features), whatever else an MLP writes."""
    def write(layer: int, x: Tensor, y: Tensor) -> Tensor:
        f = features_of(transcoders[layer], x)
        y[:, 1:] += ((change(layer, f) - f) @ transcoders[layer].W_dec)[:, 1:]
        return y

    return rewritten(p, tokens, write)[1].log_softmax(-1)


# --- patterns and scales as they are ----------------------------------------------------------------------------------


class Patterns(TorchFunctionMode):
    """Gives every attention the pattern that it had."""

    def __init__(self, patterns: list[Tensor]) -> None:
        super().__init__()
        self.left = list(patterns)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function is torch.nn.functional.softmax and out.ndim > 2:
            pattern = self.left.pop(0)
            return pattern.expand(out.numel() // pattern.numel(), *pattern.shape[1:]).reshape(out.shape).contiguous()
        return out


class Frozen:
    """One prompt [1, pos], its patterns and the scales of its norms, what its MLPs read and write, and the features."""

    def __init__(self, p: Plain, tokens: Tensor, transcoders: Mapping[int, Any]) -> None:
        if p.ln_final is None or any(norm is None for norm in p.ln1):
            raise OnlyRefusal("no norm")
        if getattr(p.model.config, "final_logit_softcapping", None):
            raise OnlyRefusal("capped logits are not a sum")
        self.p, self.tokens, self.transcoders = p, tokens, transcoders
        self.patterns = p.softmaxes(tokens).patterns
        self.given = {norm: p.value_of(tokens, norm, "in") for layer in range(p.n_layers) for norm in norms(p, layer)}
        self.given[p.ln_final] = p.value_of(tokens, p.ln_final, "in")
        self.scales = {norm: scale(norm, given) for norm, given in self.given.items()}
        self.embedded = p.centred(p.value_of(tokens, p.layers[0], "in"))
        self.read = [mlp_read(p, tokens, layer) for layer in range(p.n_layers)]
        self.written = [mlp_written(p, tokens, layer) for layer in range(p.n_layers)]
        self.features = [features_of(transcoders[layer], x) for layer, x in enumerate(self.read)]
        self.errors = [y - written_by(transcoders[layer], self.features[layer], self.read[layer])
                       for layer, y in enumerate(self.written)]

    def run(self, write: Write, embedded: Tensor) -> tuple[list[Tensor], Tensor]:
        """What MLPs read, and the logits, of several passes at once; `embedded` [row, pos, d_model] enters layer 0."""
        changes = [(self.p.layers[0], "in", lambda x: embedded)]
        for norm, divisor in self.scales.items():
            given: list[Tensor] = []

            def note(x: Tensor, given: list[Tensor] = given) -> None:
                given.append(x)

            def linear(out: Tensor, norm: nn.Module = norm, given: list[Tensor] = given, divisor=divisor) -> Tensor:
                x = given.pop().reshape(-1, *self.embedded.shape[1:])
                return (unscaled(norm, x) / divisor + norm.forward(torch.zeros_like(x))).reshape(out.shape)

            changes += [(norm, "in", note), (norm, "out", linear)]
        with Patterns(self.patterns):
            return rewritten(self.p, self.tokens.repeat(len(embedded), 1), write, *changes, scales=self.scales)

    def replacement(self, errors: bool) -> Tensor:
        """Log-probabilities of the replacement model."""
        def write(layer: int, x: Tensor, _: Tensor) -> Tensor:
            y = written_by(self.transcoders[layer], features_of(self.transcoders[layer], x), x)
            return torch.cat([self.written[layer][:, :1], (y + self.errors[layer] if errors else y)[:, 1:]], dim=1)

        return self.run(write, self.embedded)[1].log_softmax(-1)

    # --- the graph ----------------------------------------------------------------------------------------------------

    def sources(self) -> list[tuple[int, int, Tensor]]:
        """(layer, position, what it writes): features, errors, embeddings (of layer -1)."""
        found = [(layer, at, f[0, at, i] * self.transcoders[layer].W_dec[i]) for layer, f in enumerate(self.features)
                 for at, i in f[0].nonzero().tolist()]
        found += [(layer, at, error[0, at]) for layer, error in enumerate(self.errors)
                  for at in range(1, error.shape[1])]
        return found + [(-1, at, vector) for at, vector in enumerate(self.embedded[0])]

    def changed(self, rows: list[list[tuple[int, int, Tensor]]], answer: bool) -> tuple[list[Tensor], Tensor]:
        """A pass for each row, in which some more is written at some places. `answer`: whether active features do."""
        more = torch.zeros(len(rows), self.p.n_layers + 1, *self.embedded.shape[1:])
        for row, places in zip(more, rows):
            for layer, at, vector in places:
                row[layer + 1, at] += vector

        def write(layer: int, x: Tensor, _: Tensor) -> Tensor:
            transcoder, moved = self.transcoders[layer], x - self.read[layer]
            y = self.written[layer] + moved @ transcoder.W_skip.T + more[:, layer + 1]
            if answer:
                y = y + (moved @ transcoder.W_enc * (self.features[layer] > 0)) @ transcoder.W_dec
            return y

        return self.run(write, self.embedded + more[:, 0])

    def values(self, reads: list[Tensor], logits: Tensor, answers: Answers) -> Tensor:
        """Pre-activations of the active features, and the answers, [row, target]."""
        found = [(reads[layer][:, at] @ self.transcoders[layer].W_enc[:, i]) + self.transcoders[layer].b_enc[i]
                 for layer, f in enumerate(self.features) for at, i in f[0].nonzero().tolist()]
        return torch.cat([torch.stack(found, -1), answered(logits, answers)], -1)

    def graph(self, answers: Answers) -> dict[str, Tensor]:
        """An edge is what its target loses in a pass in which its source alone writes nothing; all this is linear."""
        sources = self.sources()
        silent = [[(layer, at, -vector)] for layer, at, vector in sources]
        rows = [[], *silent, [each for row in silent for each in row]]
        values = self.values(*self.changed(rows, answer=False), answers)
        return {"values": values[0], "edges": (values[0] - values[1:-1]).T, "constants": values[-1]}

    def interventions(self, answers: Answers, which: list[int], factor: float) -> dict[str, Tensor]:
        """What the answers gain if a source writes `factor` times what it does: here, and in the model itself."""
        sources = [self.sources()[i] for i in which]
        rows = [[], *([(layer, at, (factor - 1) * vector)] for layer, at, vector in sources)]
        predicted = answered(self.changed(rows, answer=True)[1], answers)
        measured = [answered(self.p.run(self.tokens).logits, answers)]
        for layer, at, vector in sources:

            def write(l: int, x: Tensor, y: Tensor, layer=layer, at=at, vector=vector) -> Tensor:
                y[:, at] += (factor - 1) * vector * (l == layer)
                return y

            measured.append(answered(rewritten(self.p, self.tokens, write)[1], answers))
        return {"predicted": predicted[1:] - predicted[:1], "measured": torch.cat(measured[1:]) - measured[0]}


def answered(logits: Tensor, answers: Answers) -> Tensor:
    """At the last position: a token's logit less the mean of all, or the difference of two, [row, answer]."""
    last = logits[:, -1].T
    return torch.stack([last[each[0]] - last[each[1]] if isinstance(each, tuple) else last[each] - last.mean(0)
                        for each in answers], -1)
