"""What each public function of the course says, worked out slowly from the definition: one full pass for every number.

All take a `Plain`, the untouched Hugging Face model. Conventions of the course: position 0 (BOS) keeps its own in every
ablation; zero is where a head gathers nothing but its value bias (TransformerLens counts that bias to the output's).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import lru_cache

import torch
from plain_model import OnlyRefusal, Plain, is_norm, scale, unscaled
from torch import Tensor

KEYS, QUERIES = torch.arange(1, 9), torch.arange(9, 15)         # tokens at which circuits are compared


def instead(activation: Tensor, kind: str, zero: Tensor | float = 0.0) -> Tensor:
    """What stands for an activation [batch, pos, ...] that is ablated at every position but the first."""
    new = activation.clone()
    if kind == "zero":
        new[:, 1:] = zero
    elif kind == "mean":
        new[:, 1:] = activation[:, 1:].mean((0, 1))
    else:
        new[:, 1:] = activation[[*range(1, len(activation)), 0], 1:]
    return new


def put_head(p: Plain, layer: int, head: int, new: Tensor) -> tuple:
    """A change: one head's z [batch, pos, d_head]."""
    def change(z: Tensor) -> Tensor:
        z = z.clone().unflatten(-1, (p.n_heads, -1))
        z[..., head, :] = new.reshape(z[..., head, :].shape)
        return z.flatten(-2)

    return p.out[layer], "in", change


def put(module, side: str, new: Tensor) -> tuple:
    """A change: a whole activation."""
    return module, side, lambda old: new.reshape(old.shape)


def from_last_layer(p: Plain, tokens: Tensor, stream: Tensor) -> Tensor:
    """Log-probabilities, given what leaves the last layer."""
    return p.log_probs(tokens, put(p.layers[-1], "out", stream))


def continued(p: Plain, tokens: Tensor, layer: int, change: Tensor, start: int) -> Tensor:
    """Log-probabilities where `change` [batch, pos - start, d_model] is added to what enters a layer."""
    def add(stream: Tensor) -> Tensor:
        stream = stream.clone()
        stream[:, start:] += change
        return stream

    return p.log_probs(tokens, (p.layers[layer], "in", add) if layer < p.n_layers else (p.layers[-1], "out", add))


# --- ablation, sweeps ------------------------------------------------------------------------------------------------


def head_ablation(p: Plain, tokens: Tensor, kind: str, start: int = 0) -> Tensor:
    clean, scores = p.loss(tokens, start=start), torch.zeros(p.n_layers, p.n_heads)
    for layer in range(p.n_layers):
        z, bias = p.z(tokens, layer), p.value_bias(layer)
        for head in range(p.n_heads):
            change = put_head(p, layer, head, instead(z[:, :, head], kind, bias[head]))
            scores[layer, head] = p.loss(tokens, change, start=start) - clean
    return scores


def mlp_output(p: Plain, tokens: Tensor, layer: int) -> Tensor:
    return p.value_of(tokens, p.mlp_writer[layer][-1], "out")


def mlp_ablation(p: Plain, tokens: Tensor, kind: str, start: int = 0) -> Tensor:
    clean = p.loss(tokens, start=start)
    return torch.stack([p.loss(tokens, put(p.mlp_writer[layer][-1], "out", instead(mlp_output(p, tokens, layer), kind)),
                               start=start) - clean for layer in range(p.n_layers)])


def mlp_sweep(p: Plain, tokens: Tensor, n: int, as_published: bool) -> Tensor:
    clean, sweep = p.loss(tokens, start=n), torch.zeros(p.n_layers, n)
    for layer in range(p.n_layers):
        output = mlp_output(p, tokens, layer)
        for i in range(n):
            new, there = output.clone(), i + (0 if as_published else 1)
            new[:, n + there] = output[:, there]
            sweep[layer, i] = p.loss(tokens, put(p.mlp_writer[layer][-1], "out", new), start=n) - clean
    return sweep


def slopes(p: Plain, tokens: Tensor, n: int, places: list[tuple]) -> list[tuple[Tensor, Tensor]]:
    """(activation, gradient of the second copy's loss at it) at several modules' inputs or outputs."""
    kept = []

    def keep(value: Tensor) -> Tensor:
        kept.append(value if value.requires_grad else value.detach().requires_grad_())
        return kept[-1].clone()                                         # some models add to it in place

    with torch.enable_grad():
        loss = p.loss(tokens, *((module, side, keep) for module, side in places), start=n)
    found = torch.autograd.grad(loss, kept)
    return [(x.detach().reshape(*tokens.shape, -1), slope.reshape(*tokens.shape, -1)) for x, slope in zip(kept, found)]


def mlp_attribution(p: Plain, tokens: Tensor, n: int) -> Tensor:
    found = slopes(p, tokens, n, [(writer[-1], "out") for writer in p.mlp_writer])
    return torch.stack([((x[:, 1:n + 1] - x[:, n + 1:]) * slope[:, n + 1:]).sum((0, 2)) for x, slope in found])


def head_attribution(p: Plain, tokens: Tensor, n: int, kind: str) -> Tensor:
    rows = []
    for layer, (x, slope) in enumerate(slopes(p, tokens, n, [(out, "in") for out in p.out])):
        x = x.unflatten(-1, (p.n_heads, -1))
        change = instead(x, kind, p.value_bias(layer)) - x
        rows.append((change * slope.reshape(x.shape)).sum((0, 1, 3)))
    return torch.stack(rows)


# --- patterns --------------------------------------------------------------------------------------------------------


def stripe(p: Plain, tokens: Tensor, wanted: Callable[[int], int | None]) -> Tensor:
    """Mean attention from each query to the key that is wanted for it, [layer, head]."""
    pairs, patterns = [(query, wanted(query)) for query in range(tokens.shape[1])], p.patterns(tokens)
    return torch.stack([patterns[..., query, key] for query, key in pairs if key is not None]).mean((0, 2))


# --- circuits --------------------------------------------------------------------------------------------------------


def turns(p: Plain) -> bool:
    """Whether positions turn queries and keys: some score depends on the distance that it is told."""
    if not p.takes_positions:
        return False
    x, y = torch.randn(2, 4, p.d_model, generator=torch.Generator().manual_seed(0))
    return any(not torch.allclose(p.pair_scores(layer, x, y, 0), p.pair_scores(layer, x, y, 3), atol=1e-4)
               for layer in range(p.n_layers))


def check_products(p: Plain, layer: int, keys: Tensor, queries: Tensor) -> None:
    """Scores are products of what query and key read (or, behind norms of their own, of its direction)."""
    nothing = p.pair_scores(layer, torch.zeros_like(keys), torch.zeros_like(queries))
    once, twice = (p.pair_scores(layer, keys * c, queries * c) - nothing for c in (1, 2))
    if not (torch.allclose(twice, 4 * once, rtol=1e-3, atol=1e-3) or torch.allclose(twice, once, rtol=1e-3, atol=1e-3)):
        raise OnlyRefusal("scores are no products of query and key")


def qk_scores(
    p: Plain, keys: Callable[[int], Tensor], queries: Callable[[int], Tensor], distances: tuple[int, ...]
) -> Tensor:
    """[layer, head, distance, query, key]: scores of stated inputs to each layer's attention.

    Comparable within a row: relative to the mean over keys, which takes away what positions alone add.
    """
    p = p.only_products()
    if set(distances) != {0} and not turns(p):
        raise OnlyRefusal("positions do not turn queries and keys")
    rows = []
    for layer in range(p.n_layers):
        k, q = keys(layer), queries(layer)
        pairs = k.repeat(len(q), 1), q.repeat_interleave(len(k), 0)
        check_products(p, layer, *pairs)
        scores = torch.stack([p.pair_scores(layer, *pairs, d) for d in distances])          # [distance, pair, head]
        rows.append(scores.unflatten(1, (len(q), len(k))).permute(3, 0, 1, 2))
    scores = torch.stack(rows)
    return scores - scores.mean(-1, keepdim=True)


def full_QK(p: Plain, distances: tuple[int, ...] = (0,)) -> Tensor:
    e, bare = p.embeddings(), p.only_products()
    return qk_scores(
        p, lambda layer: bare.reads(layer, e[KEYS]), lambda layer: bare.reads(layer, e[QUERIES]), distances)


def full_OV(p: Plain) -> Tensor:
    """[layer, head, token attended to, token whose logit is raised]"""
    e, bare = p.embeddings()[KEYS], p.only_products()
    found = torch.stack([torch.stack([p.unembedded(bare.moved(layer, head, bare.reads(layer, e)))
                                     for head in range(p.n_heads)]) for layer in range(p.n_layers)])
    return found - found.mean(-1, keepdim=True)


def K_comp(p: Plain) -> Tensor:
    """[pair, query, key]: head 1.h reads what head 0.h moved."""
    e, bare = p.embeddings(), p.only_products()
    rows = []
    for head in range(p.n_heads):
        moved = bare.reads(1, bare.moved(0, head, bare.reads(0, e[KEYS])))
        rows.append(qk_scores(p, lambda layer: moved, lambda layer: bare.reads(layer, e[QUERIES]), (0,))[1, head, 0])
    return torch.stack(rows)


def effective_embedding(p: Plain, heads: list[int] | None, mlp: bool) -> Tensor:
    """What leaves layer 0 for a single token without a position: with no attention (None), or with some heads' part."""
    p = p.without_positions()
    tokens, changes = torch.arange(p.vocab)[:, None], []
    if heads is None:
        changes.append((p.attention_writer[0][-1], "out", torch.zeros_like))
    else:
        z = p.z(tokens, 0)
        new = p.value_bias(0).expand_as(z).clone()
        new[:, :, heads] = z[:, :, heads]
        changes.append(put(p.out[0], "in", new))
    if not mlp:
        changes.append((p.mlp_writer[0][-1], "out", torch.zeros_like))
    return p.centred(p.value_of(tokens, p.layers[0], "out", *changes)[:, 0])


@lru_cache(1)
def head_matrices(p: Plain) -> tuple[list[Tensor], list[Tensor]]:
    """Of each layer: what its heads write for each direction that they attend to [head, d_model, d_model], and the
    score of each direction (key) for each other (query)."""
    p = Plain(p.only_products().model)
    for norm in (module for attention in p.attention for module in attention.modules() if is_norm(module)):
        norm.register_forward_hook(lambda norm, args, out: unscaled(norm, args[0]))     # of any norm: its weights stay
    basis, d, writes, matches = torch.eye(p.d_model), p.d_model, [], []
    for layer in range(p.n_layers):
        x = p.reads(layer, basis)
        check_products(p, layer, x, x.roll(1, 0))
        writes.append(torch.stack([p.centred(p.moved(layer, head, x)) for head in range(p.n_heads)]))
        scores = p.pair_scores(layer, x.repeat_interleave(d, 0), x.repeat(d, 1))
        nothing = p.pair_scores(layer, torch.zeros_like(x[:1]), torch.zeros_like(x[:1]))    # what distance alone adds
        matches.append((scores - nothing).T.unflatten(1, (d, d)))
    return writes, matches


def composition(p: Plain, kind: str) -> Tensor:
    """‖A B‖ / (‖A‖ ‖B‖) of whole d_model × d_model matrices."""
    writes, matches = head_matrices(p)
    scores = torch.zeros(p.n_layers, p.n_heads, p.n_layers, p.n_heads)
    for l1, l2 in itertools.combinations(range(p.n_layers), 2):
        for h1, h2 in itertools.product(range(p.n_heads), repeat=2):
            a, b = writes[l1][h1], {"K": matches[l2][h2], "Q": matches[l2][h2].T, "V": writes[l2][h2]}[kind]
            scores[l1, h1, l2, h2] = (a @ b).norm() / (a.norm() * b.norm())
    return scores


def positional_pattern(p: Plain, n: int) -> Tensor:
    """[layer, head, query, key]: attention fed with W_pos[p] + mean W_E over the norm's mean scale at that position."""
    e, positions = p.centred(p.embeddings()), p.centred(p.position_vectors(n))
    if positions.abs().max() < 1e-5:
        raise OnlyRefusal("no position embeddings")
    x = positions + e.mean(0)
    x = x / (e + positions[:, None]).pow(2).mean((1, 2)).sqrt()[:, None]
    if any(norm is None for norm in p.ln1):
        raise OnlyRefusal("no norm in front of attention")
    tokens = torch.zeros(1, n, dtype=torch.long)
    rows = []
    for layer, norm in enumerate(p.ln1):
        fed = unscaled(norm, x) + norm.forward(torch.zeros_like(x))
        rows.append(p.softmaxes(tokens, (p.attention[layer], "in", lambda _: fed[None])).patterns[layer][0])
    return torch.stack(rows)


def score_by_distance(p: Plain, tokens: Tensor, most: int) -> Tensor:
    """[layer, head, distance]: mean score (before a cap) at that distance, over all pairs of positions of the text."""
    if not turns(p):
        raise OnlyRefusal("positions do not turn queries and keys")
    rows = []
    for layer in range(p.n_layers):
        x = p.value_of(tokens, p.attention[layer], "in")[:, 1:].flatten(0, 1)
        pairs = x.repeat(len(x), 1), x.repeat_interleave(len(x), 0)
        rows.append(torch.stack([p.without_caps().pair_scores(layer, *pairs, d).mean(0) for d in range(most + 1)], -1))
    return torch.stack(rows)


# --- direct logit attribution ----------------------------------------------------------------------------------------


def factors(
    total: Tensor, parts: list[Tensor], claim: str = "the stream is the sum of what its layers write"
) -> list[float]:
    """The numbers that make the parts sum to the total."""
    columns = torch.stack([part.flatten() for part in parts], 1).double()
    found = torch.linalg.lstsq(columns, total.flatten().double()[:, None]).solution
    off = (columns @ found)[:, 0] - total.flatten().double()
    if off.abs().max() > 1e-4 * total.abs().max():
        raise OnlyRefusal(f"it is not true that {claim}")
    return found[:, 0].tolist()


@lru_cache
def multipliers(p: Plain, layer: int) -> list[float]:
    """What a layer multiplies the outputs of its attention and its MLP by before it adds them to the stream."""
    tokens = torch.arange(9)[None]
    written = p.value_of(tokens, p.attention_writer[layer][-1], "out")
    before, after = (p.value_of(tokens, p.layers[layer], side) for side in ("in", "out"))
    return factors(after - before, [written, mlp_output(p, tokens, layer)])


def attribution(p: Plain, tokens: Tensor) -> dict[str, Tensor]:
    """{part: what it adds to the logit of the token that came, relative to the mean over the vocabulary}."""
    streams, positions = p.streams(tokens), p.position_vectors(tokens.shape[1]).expand(*tokens.shape, -1)
    parts = {"embed": streams[0] - positions, "pos_embed": positions}
    for layer in range(p.n_layers):
        written = p.value_of(tokens, p.attention_writer[layer][-1], "out")
        mlp = mlp_output(p, tokens, layer)
        a, m = multipliers(p, layer)
        z, bias = p.z(tokens, layer), p.value_bias(layer)
        for head in range(p.n_heads):
            own = p.head_writes(layer, head, z[:, :, head] - bias[head])
            if len(p.attention_writer[layer]) > 1:
                norm = p.attention_writer[layer][1]
                own = unscaled(norm, own) / scale(norm, p.value_of(tokens, p.attention_writer[layer][0], "out"))
            parts[f"{layer}.{head}"] = a * own
        parts[f"attn {layer} bias"] = a * written - sum(parts[f"{layer}.{head}"] for head in range(p.n_heads))
        parts[f"mlp {layer}"] = m * mlp
    if p.ln_final is None:
        raise OnlyRefusal("no final norm")
    size = scale(p.ln_final, streams[-1])
    logits, plain = p.run(tokens).logits, p.value_of(tokens, p.lm_head, "out")
    if getattr(p.model.config, "final_logit_softcapping", None):                # the parts are those of what is capped
        logits = plain
    factor, = factors(logits, [plain], "logits are linear")
    came = tokens[:, 1:, None]
    added = {}
    for name, part in parts.items():
        raised = p.relative(p.unembedded((part / size).flatten(0, 1))).unflatten(0, tokens.shape)
        added[name] = factor * raised[:, :-1].gather(2, came)[..., 0]
    relative = p.relative(logits)[:, :-1].gather(2, came)[..., 0]
    return added | {"unembed bias": relative - sum(added.values())}
