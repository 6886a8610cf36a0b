"""Slow passes for edges and for a direction in the stream; see plain_passes.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from plain_model import OnlyRefusal, Plain
from plain_passes import mlp_output, multipliers, put
from plain_paths import columns
from torch import Tensor

Where = tuple[str, int, int]                # what reads: "q", "k", "v", "mlp" or "logits"; its layer; a head of it


def answer(p: Plain, tokens: Tensor, *changes: tuple) -> Tensor:
    """A difference of two logits at the last position, for each text."""
    logits = p.run(tokens, *changes).logits[:, -1]
    return logits[:, 4] - logits[:, 9]


# --- who writes, who reads --------------------------------------------------------------------------------------------


def written(p: Plain, tokens: Tensor, *changes: tuple) -> Tensor:
    """What the embedding, then of each layer every head and the MLP add to the stream, [sender, batch, pos, d_model].

    Of a head without what biases add: the same in every text.
    """
    seen: dict[tuple, Tensor] = {}

    def note(place: tuple) -> tuple:
        return *place, lambda value: seen.update({place: value.clone().reshape(*tokens.shape, -1)})

    gathered, mlps = [(out, "in") for out in p.out], [(writer[-1], "out") for writer in p.mlp_writer]
    p.run(tokens, *changes, *map(note, [(p.layers[0], "in"), *gathered, *mlps]))
    parts = [seen[p.layers[0], "in"]]
    for layer in range(p.n_layers):
        if len(p.attention_writer[layer]) > 1:
            raise OnlyRefusal("a norm of all heads together stands between a head and the stream")
        a, m = multipliers(p, layer)
        z = seen[gathered[layer]].unflatten(-1, (p.n_heads, -1))
        parts += [a * p.head_writes(layer, head, z[:, :, head]) for head in range(p.n_heads)]
        parts.append(m * seen[mlps[layer]])
    return torch.stack(parts)


@lru_cache
def readers(p: Plain) -> list[tuple[Where, int]]:
    """All that read, in the course's order, and how many senders stand before each."""
    found: list[tuple[Where, int]] = []
    for layer in range(p.n_layers):
        before = 1 + layer * (p.n_heads + 1)
        for part in "qkv":
            own: dict[tuple, int] = {}                              # heads that share their keys are one: the first
            for head in range(p.n_heads):
                module, places = columns(p, layer)[part, head]
                own.setdefault((id(module), *places), head)
            found += [((part, layer, head), before) for head in own.values()]
        found.append((("mlp", layer, 0), before if beside(p, layer) else before + p.n_heads))
    return [*found, (("logits", p.n_layers, 0), 1 + p.n_layers * (p.n_heads + 1))]


def beside(p: Plain, layer: int) -> bool:
    """Whether the MLP does not read what the attention of its layer writes."""
    tokens = torch.arange(3)[None]
    louder = p.value_of(tokens, p.mlp_writer[layer][-1], "out",
                        (p.attention_writer[layer][-1], "out", lambda out: out + torch.arange(p.d_model)))
    return torch.allclose(louder, mlp_output(p, tokens, layer))


def reading(p: Plain, tokens: Tensor, where: Where, more: Tensor, *changes: tuple) -> tuple:
    """The change that lets one part read `more` [batch, pos, d_model] than what stands in the stream, and no other."""
    part, layer, head = where

    def add(stream: Tensor) -> Tensor:
        return stream + more

    if part == "logits":
        return p.layers[-1], "out", add
    if part == "mlp":                                               # the attention of its layer stays as it is
        writer, attention = p.mlp_writer[layer][-1], p.attention_writer[layer][-1]
        same = put(attention, "out", p.value_of(tokens, attention, "out", *changes))
        return put(writer, "out", p.value_of(tokens, writer, "out", *changes, same, (p.layers[layer], "in", add)))
    module, own = columns(p, layer)[part, head]
    new = p.value_of(tokens, module, "out", *changes, (p.layers[layer], "in", add))

    def read(old: Tensor) -> Tensor:
        old = old.clone()
        old[..., own] = new.reshape(old.shape)[..., own]
        return old

    return module, "out", read


# --- edges ------------------------------------------------------------------------------------------------------------


def exact(p: Plain, clean: Tensor, corrupted: Tensor) -> Tensor:
    """[receiver, sender, text]: the answer's change where one receiver reads of one sender what it writes elsewhere."""
    change, before = written(p, corrupted) - written(p, clean), answer(p, clean)
    scores = torch.zeros(len(readers(p)), *change.shape[:2])
    for row, (where, senders) in zip(scores, readers(p)):
        texts = clean.repeat(senders, 1)                            # one copy for each sender
        row[:senders] = answer(p, texts, reading(p, texts, where, change[:senders].flatten(0, 1))).unflatten(
            0, (senders, -1)) - before
    return scores


def attributed(p: Plain, clean: Tensor, corrupted: Tensor, ways: tuple[float, ...]) -> Tensor:
    """[receiver, sender, text]: the sender's change times the answer's slope at what the receiver reads.

    The mean over passes whose first layer is entered by a mixture of both texts: `ways` along from one to the other.
    """
    own, other = written(p, clean), written(p, corrupted)
    scores = torch.zeros(len(readers(p)), *own.shape[:2])
    for way in ways:
        mixed = put(p.layers[0], "in", own[0] + way * (other[0] - own[0]))
        for row, (where, senders) in zip(scores, readers(p)):
            with torch.enable_grad():
                nothing = torch.zeros_like(own[0], requires_grad=True)
                found = answer(p, clean, mixed, reading(p, clean, where, nothing, mixed))
                slope, = torch.autograd.grad(found.sum(), nothing)
            row[:senders] += ((other - own) * slope).sum((2, 3))[:senders] / len(ways)
    return scores


def circuit(p: Plain, clean: Tensor, corrupted: Tensor, kept: Callable[[int, int], bool]) -> Tensor:
    """Log-probabilities where receiver r reads of sender s what it writes here if kept(r, s), else elsewhere."""
    other, changes = written(p, corrupted), []
    for r, (where, senders) in enumerate(readers(p)):
        change = other - written(p, clean, *changes)
        more = sum((change[s] for s in range(senders) if not kept(r, s)), torch.zeros_like(other[0]))
        changes.append(reading(p, clean, where, more, *changes))
    return p.log_probs(clean, *changes)


# --- a direction ------------------------------------------------------------------------------------------------------


def moved(p: Plain, tokens: Tensor, layer: int, side: str, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Log-probabilities at the last position where the stream is changed, vector by vector, from position 2 on."""
    stream = p.centred(p.value_of(tokens, p.layers[layer], side))
    for row in stream:
        for position in range(2, tokens.shape[1]):
            row[position] = change(row[position])
    return p.log_probs(tokens, put(p.layers[layer], side, stream))[:, -1]
