"""Exercises of lesson 05: the K-composition circuit."""

from __future__ import annotations

import torch
from transformer_lens import FactoredMatrix

from course_utils.checking import Case, Exercise, Mistake, compare_cases, property_check, require
from course_utils.checks.shared import grouped_query_model, planted_model, random_model
from course_utils.circuits import K_comp_full_circuit, composition_score, head_weights, random_head_pairs
from course_utils.path_patching import head_reading, share_of_effect

# --- inputs --------------------------------------------------------------------------------------------------------


def _draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pair_cases() -> list[Case]:
    first = FactoredMatrix(_draw(6, 2), _draw(2, 6, seed=1))
    second = FactoredMatrix(_draw(6, 3, seed=2), _draw(3, 6, seed=3))
    return [
        Case(first, second, label="random matrices"),
        Case(3 * second, first, label="the other way round, one of them three times as large"),
    ]


def circuit_cases() -> list[Case]:
    return [
        Case(random_model(), 0, 2, 1, 0, label="heads 0.1 and 2.0 of a random model"),
        Case(planted_model(), 0, 1, 0, 0, label="the planted circuit"),
        Case(grouped_query_model(), 0, 1, 4, 2, label="heads 0.4 and 1.2 of a grouped-query model"),
    ]


def reading_cases() -> list[Case]:
    return [
        Case(random_model(), 1, 1, "k", _draw(2, 3, 16), label="keys of head 1.1 of a random model"),
        Case(random_model(), 2, 0, "q", _draw(1, 4, 16, seed=1), label="queries of head 2.0"),
        Case(grouped_query_model(), 1, 4, "k", _draw(2, 3, 24, seed=2), label="keys of head 1.4, grouped queries"),
        Case(grouped_query_model(), 0, 2, "v", _draw(1, 2, 24, seed=3), label="values of head 0.2, grouped queries"),
    ]


def share_cases() -> list[Case]:
    return [
        Case(1.0, 3.0, 5.0, label="half of the effect"),
        Case(0.5, 0.5, 4.0, label="none of it"),
        Case(2.0, 5.0, 4.0, label="more than the whole"),
    ]


# --- known mistakes ------------------------------------------------------------------------------------------------

PAIR_MISTAKES = [
    Mistake("the other order: `first` writes, `second` reads, so the product is first @ second",
            lambda first, second: composition_score(second, first)),
    Mistake("this is the norm of the product: divide by both norms, or large weights win",
            lambda first, second: (first @ second).norm().item()),
    Mistake("divided by one norm only: divide by both",
            lambda first, second: ((first @ second).norm() / first.norm()).item()),
    Mistake("divided by one norm only: divide by both",
            lambda first, second: ((first @ second).norm() / second.norm()).item()),
    Mistake("divided by the sum of the norms: the norm of a product is at most their product",
            lambda first, second: ((first @ second).norm() / (first.norm() + second.norm())).item()),
    Mistake("this is the largest singular value: take the Frobenius norm, the root of all squares summed",
            lambda first, second: (torch.linalg.matrix_norm((first @ second).AB, 2) / (
                torch.linalg.matrix_norm(first.AB, 2) * torch.linalg.matrix_norm(second.AB, 2))).item()),
]


def _built(build):
    """A wrong circuit from (W_E, weights of the previous-token head, weights of the induction head)."""

    def circuit(model, prev_layer, ind_layer, prev_head, ind_head, **_):
        return build(model.W_E, head_weights(model, prev_layer, prev_head), head_weights(model, ind_layer, ind_head))

    return circuit


def _wrong_groups(model, prev_layer, ind_layer, prev_head, ind_head, **_):
    previous, induction = head_weights(model, prev_layer, prev_head), head_weights(model, ind_layer, ind_head)
    n_kv = len(model.blocks[0].attn.W_K)
    V, K = model.blocks[prev_layer].attn.W_V[prev_head % n_kv], model.blocks[ind_layer].attn.W_K[ind_head % n_kv]
    return FactoredMatrix(model.W_E @ induction["Q"], (model.W_E @ V @ previous["O"] @ K).T)


CIRCUIT_MISTAKES = [
    Mistake(
        "this reads a model that is not its argument (another size of vocabulary comes out): use the `model` passed in. "
        "The article's code has the same slip",
        predicate=lambda got, expected: getattr(got, "shape", ())[-1:] != expected.shape[-1:],
    ),
    Mistake("transposed: rows are the query's token, columns the key's",
            lambda *args, **_: K_comp_full_circuit(*args).T),
    Mistake("the key or value head is the wrong one under grouped-query attention: use `head_weights`", _wrong_groups),
    Mistake("V and O are the induction head's own: what the key says was written by the previous-token head",
            _built(lambda E, prev, ind: FactoredMatrix(E @ ind["Q"], (E @ ind["V"] @ ind["O"] @ ind["K"]).T))),
    Mistake("the previous-token head is not in it: this is the induction head's plain QK circuit",
            _built(lambda E, prev, ind: FactoredMatrix(E @ ind["Q"], (E @ ind["K"]).T))),
    Mistake("this is Q-composition: the previous-token head's V and O belong on the key's side",
            _built(lambda E, prev, ind: FactoredMatrix(E @ prev["V"] @ prev["O"] @ ind["Q"], (E @ ind["K"]).T))),
    Mistake("V and O are on both sides: the query comes from the token's own embedding",
            _built(lambda E, prev, ind: FactoredMatrix(
                E @ prev["V"] @ prev["O"] @ ind["Q"], (E @ prev["V"] @ prev["O"] @ ind["K"]).T))),
    Mistake("Q is the previous-token head's: the induction head asks",
            _built(lambda E, prev, ind: FactoredMatrix(E @ prev["Q"], (E @ prev["V"] @ prev["O"] @ ind["K"]).T))),
    Mistake("K is the previous-token head's: the induction head reads the key",
            _built(lambda E, prev, ind: FactoredMatrix(E @ ind["Q"], (E @ prev["V"] @ prev["O"] @ prev["K"]).T))),
    Mistake("Q and K are swapped: the query's side is E W_Q",
            _built(lambda E, prev, ind: FactoredMatrix(E @ ind["K"], (E @ prev["V"] @ prev["O"] @ ind["Q"]).T))),
]


def _reading(norm=True, bias=True, name=None, head=None):
    def reading(model, layer, head_, name_, residual):
        weights = head_weights(model, layer, head(model, head_) if head else head_)
        which = (name or name_).upper()
        x = model.blocks[layer].ln1(residual) if norm else residual
        return x @ weights[which] + (weights[f"b_{which}"] if bias else 0)
    return reading


def _index_modulo(model, layer, head, name, residual):
    W = getattr(model.blocks[layer].attn, f"W_{name.upper()}")
    bias = head_weights(model, layer, head)[f"b_{name.upper()}"]
    return model.blocks[layer].ln1(residual) @ W[head % len(W)] + bias


READING_MISTAKES = [
    Mistake("the norm is left out: a head reads ln1 of the residual stream", _reading(norm=False)),
    Mistake("the bias is left out", _reading(bias=False)),
    Mistake("norm and bias are left out: a head reads ln1 of the residual stream", _reading(norm=False, bias=False)),
    Mistake("the key or value head is the wrong one under grouped-query attention: use `head_weights`", _index_modulo),
    *(Mistake(f"`name` is ignored: this always gives the {word}", _reading(name=letter))
      for letter, word in (("k", "keys"), ("q", "queries"), ("v", "values"))),
    Mistake("all heads are there: one head's [batch, pos, d_head]",
            predicate=lambda got, expected: getattr(got, "ndim", 0) == 4),
]


SHARE_MISTAKES = [
    Mistake("this is path / total: subtract the clean loss from both, the effect is a difference",
            lambda clean, path, total: path / total),
    Mistake("this is what the path leaves out: (path − clean) / (total − clean)",
            lambda clean, path, total: (total - path) / (total - clean)),
    Mistake("upside down: the path's effect is divided by the total effect",
            lambda clean, path, total: (total - clean) / (path - clean) if path != clean else 0.0),
    Mistake("this is the path's effect in nats: divide by the total effect",
            lambda clean, path, total: path - clean),
    Mistake("a share above 1 is cut off, or one below 0: effects interact, so let it stand",
            lambda clean, path, total: min(1.0, max(0.0, (path - clean) / (total - clean)))),
]

PAIRS_SAY = {
    "earlier": "the second head must be in a later layer than the first: it reads what the first wrote",
    "reversed": "each pair comes the wrong way round: (earlier head, later head)",
    "same": "a pair comes twice: draw without putting back",
    "excluded": "an excluded head is in a pair: it would be its own control",
    "missing": "some pairs can never come: all pairs of an earlier and a later head are possible, whole layers are not left out",
    "seed": "the same seed gave two different draws: use a generator of its own, made from `seed`",
    "fixed": "different seeds give the same pairs: the draw does not depend on `seed`",
    "number": "the number of pairs is not the one asked for",
    "range": "there is no such head: layers are 0 … n_layers − 1, heads 0 … n_heads − 1",
}


@property_check(mistakes=tuple(PAIRS_SAY.values()))
def random_pairs_check(attempt):
    """15 pairs of 4 layers × 3 heads, two heads excluded; all pairs of a small model; seeds"""
    exclude = [(0, 2), (1, 1)]
    pairs = [tuple(map(tuple, pair)) for pair in attempt(4, 3, 15, exclude=exclude, seed=1)]
    shown = {"got": pairs[:4]}
    require(len(pairs) == 15, PAIRS_SAY["number"], got=len(pairs), expected=15)
    heads = [head for pair in pairs for head in pair]
    require(all(0 <= layer < 4 and 0 <= head < 3 for layer, head in heads), PAIRS_SAY["range"], **shown)
    require(any(first[0] < second[0] for first, second in pairs), PAIRS_SAY["reversed"], **shown)
    require(all(first[0] < second[0] for first, second in pairs), PAIRS_SAY["earlier"], **shown)
    require(len(set(pairs)) == 15, PAIRS_SAY["same"], **shown)
    require(not set(heads) & set(exclude), PAIRS_SAY["excluded"], **shown)
    every = [tuple(map(tuple, pair)) for pair in attempt(3, 2, 8, exclude=[(0, 0)], seed=2)]
    require(len(set(every)) == 8, PAIRS_SAY["missing"], got=sorted(set(every)), expected="all 8 pairs without 0.0")
    again = [tuple(map(tuple, pair)) for pair in attempt(4, 3, 15, exclude=exclude, seed=1)]
    require(again == pairs, PAIRS_SAY["seed"])
    others = [tuple(map(tuple, pair)) for pair in attempt(4, 3, 15, exclude=exclude, seed=2)]
    require(others != pairs, PAIRS_SAY["fixed"])


EXERCISES = [
    Exercise(
        id="05.composition_score",
        title="Does one head read what another writes?",
        reference=composition_score,
        check=compare_cases(pair_cases, PAIR_MISTAKES, keeps_inputs=True, loose_scalars=True),
        hints=(
            "`first @ second` is a FactoredMatrix again, and `.norm()` is its Frobenius norm.",
            "The norm of a product is at most the product of the norms: divide by that.",
            "`((first @ second).norm() / (first.norm() * second.norm())).item()`",
        ),
        minutes=5,
        difficulty=1,
    ),
    Exercise(
        id="05.K_comp_full_circuit",
        title="Two heads, one circuit",
        reference=K_comp_full_circuit,
        check=compare_cases(circuit_cases, CIRCUIT_MISTAKES, keeps_inputs=True),
        hints=(
            "Two paths meet in one score. The query's: embedding, W_Q of the induction head. The key's: longer.",
            "Key's side: embedding, W_V and W_O of the previous-token head, W_K of the induction head.",
            'With `previous` and `induction` from `head_weights`: `FactoredMatrix(E @ induction["Q"], '
            '(E @ previous["V"] @ previous["O"] @ induction["K"]).T)`, E = model.W_E.',
        ),
        minutes=10,
        difficulty=2,
    ),
    Exercise(
        id="05.random_head_pairs",
        title="A control group of head pairs",
        reference=random_head_pairs,
        check=random_pairs_check,
        hints=(
            "List all heads that are not excluded, then all pairs whose second head is in a later layer.",
            "`random.Random(seed).sample(pairs, n_pairs)` draws without putting back, the same for the same seed.",
            "`pairs = [(a, b) for a in heads for b in heads if a[0] < b[0]]`",
        ),
        minutes=8,
        difficulty=2,
    ),
    Exercise(
        id="05.head_reading",
        title="What would this head read?",
        reference=head_reading,
        check=compare_cases(reading_cases, READING_MISTAKES, keeps_inputs=True),
        hints=(
            "Before attention stands `model.blocks[layer].ln1`. What comes then?",
            'One head\'s matrix and bias: `head_weights(model, layer, head)["K"]` and `["b_K"]`, for name "k".',
            "`model.blocks[layer].ln1(residual) @ weights[name.upper()] + weights[f\"b_{name.upper()}\"]`",
        ),
        minutes=6,
        difficulty=2,
    ),
    Exercise(
        id="05.share_of_effect",
        title="How much goes through this path?",
        reference=share_of_effect,
        check=compare_cases(share_cases, SHARE_MISTAKES, loose_scalars=True),
        hints=(
            "An effect is a loss minus the clean loss.",
            "Divide the path's effect by the total effect.",
            "`(path - clean) / (total - clean)`",
        ),
        minutes=3,
        difficulty=1,
    ),
]
