"""Exercises of lesson 05: the K-composition circuit."""

from __future__ import annotations

from collections import Counter

import torch
from transformer_lens import FactoredMatrix

from course_utils.circuits import K_comp_full_circuit, composition_score, random_head_pairs
from course_utils.exercises.checking import Case, Exercise, Mistake, compare_cases, property_check, require
from course_utils.exercises.checks.shared import drawn, grouped_query_model, planted_model, random_model
from course_utils.passes import head_weights, key_value_head
from course_utils.path_patching import head_reading, share_of_effect

# --- inputs --------------------------------------------------------------------------------------------------------


def pair_cases() -> list[Case]:
    first = FactoredMatrix(drawn(6, 2), drawn(2, 6, seed=1))
    second = FactoredMatrix(drawn(6, 3, seed=2), drawn(3, 6, seed=3))
    return [
        Case(first, second, label="random matrices"),
        Case(3 * second, first, label="the other way round, one of them three times as large"),
    ]


def circuit_cases() -> list[Case]:
    return [
        Case(random_model(), 0, 2, 1, 0, label="heads 0.1 and 2.0 of a random model"),
        Case(planted_model(), 0, 1, 0, 0, label="the planted circuit"),
        Case(grouped_query_model(), 0, 1, 4, 1, label="heads 0.4 and 1.1 of a grouped-query model"),
        Case(grouped_query_model(), 0, 1, 2, 4, label="its heads 0.2 and 1.4: keys and values, each by its own group"),
    ]


def reading_cases() -> list[Case]:
    return [
        Case(random_model(), 1, 1, "k", drawn(2, 3, 16), label="keys of head 1.1 of a random model"),
        Case(random_model(), 2, 0, "q", drawn(1, 4, 16, seed=1), label="queries of head 2.0"),
        Case(grouped_query_model(), 1, 4, "k", drawn(2, 3, 24, seed=2), label="keys of head 1.4, grouped queries"),
        Case(grouped_query_model(), 0, 1, "v", drawn(1, 2, 24, seed=3), label="values of head 0.1, grouped queries"),
        Case(grouped_query_model(), 1, 4, "q", drawn(1, 2, 24, seed=4), label="queries of its head 1.4: its own"),
    ]


def share_cases() -> list[Case]:
    return [
        Case(1.0, 3.0, 5.0, label="half of the effect"),
        Case(0.5, 0.5, 4.0, label="none of it"),
        Case(2.0, 5.0, 4.0, label="more than the whole"),
        Case(2.0, 1.5, 4.0, label="a path that helps: below 0"),
    ]


# --- known mistakes ------------------------------------------------------------------------------------------------

PAIR_MISTAKES = [
    Mistake("the other order: `first` writes, `second` reads, so the product is first @ second",
            lambda first, second: composition_score(second, first)),
    Mistake("one of the two is transposed in the product: vectors are rows, so it is first @ second as they are",
            lambda first, second: composition_score(first.T, second),
            lambda first, second: composition_score(first, second.T)),
    Mistake("this is the norm of the product: divide by both norms, or large weights win",
            lambda first, second: (first @ second).norm().item()),
    Mistake("divided by one norm only: divide by both",
            lambda first, second: ((first @ second).norm() / first.norm()).item(),
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


def _wrong_groups(choose, which):
    """Right but for the choice of the value head, the key head or both."""

    def circuit(model, prev_layer, ind_layer, prev_head, ind_head, **_):
        previous, induction = head_weights(model, prev_layer, prev_head), head_weights(model, ind_layer, ind_head)
        W_V, W_K = model.blocks[prev_layer].attn.W_V, model.blocks[ind_layer].attn.W_K
        V = W_V[choose(prev_head, len(W_V))] if "V" in which else previous["V"]
        K = W_K[choose(ind_head, len(W_K))] if "K" in which else induction["K"]
        return FactoredMatrix(model.W_E @ induction["Q"], (model.W_E @ V @ previous["O"] @ K).T)

    return circuit


def _of_another_vocabulary(got, expected):
    return got.AB.ndim == 2 and got.AB.shape != expected.AB.shape


CIRCUIT_MISTAKES = [
    Mistake("W_E is missing: rows and columns are tokens, so both sides begin with the embedding",
            _built(lambda E, prev, ind: FactoredMatrix(ind["Q"], (prev["V"] @ prev["O"] @ ind["K"]).T)),
            _built(lambda E, prev, ind: FactoredMatrix(E @ ind["Q"], (prev["V"] @ prev["O"] @ ind["K"]).T)),
            _built(lambda E, prev, ind: FactoredMatrix(ind["Q"], (E @ prev["V"] @ prev["O"] @ ind["K"]).T))),
    Mistake(
        "this reads a model that is not its argument (another size of vocabulary comes out): use the `model` passed "
        "in. The article's code has the same slip",
        predicate=_of_another_vocabulary,
    ),
    Mistake("transposed: rows are the query's token, columns the key's",
            lambda *args, **_: K_comp_full_circuit(*args).T),
    Mistake("the key or value head is the wrong one under grouped-query attention: use `head_weights`", *(
        _wrong_groups(choose, which)
        for choose in (lambda head, n_kv: head % n_kv, lambda head, n_kv: min(head, n_kv - 1))
        for which in ("VK", "V", "K"))),
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


def _key_head_for_queries(model, layer, head, name, residual):
    own = key_value_head(head, model.cfg.n_heads, len(model.blocks[layer].attn.W_K))
    return head_reading(model, layer, own if name == "q" else head, name, residual)


READING_MISTAKES = [
    Mistake("the queries are those of another head: only keys and values are shared, every head has its own queries",
            _key_head_for_queries),
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
            lambda clean, path, total: min(1.0, max(0.0, (path - clean) / (total - clean))),
            lambda clean, path, total: max(0.0, (path - clean) / (total - clean)),
            lambda clean, path, total: min(1.0, (path - clean) / (total - clean))),
    Mistake("the sign is lost: a path whose patch lowers the loss has a share below 0",
            lambda clean, path, total: abs(path - clean) / abs(total - clean)),
]

PAIRS_SAY = {
    "earlier": "the second head must be in a later layer than the first: it reads what the first wrote",
    "reversed": "each pair comes the wrong way round: (earlier head, later head)",
    "same": "a pair comes twice: draw without putting back",
    "excluded": "an excluded head is in a pair: it would be its own control",
    "missing": "some pairs can never come: all pairs of an earlier and a later head are possible, whole layers are not "
               "left out",
    "uneven": "some pairs come more often than others: draw from the list of all pairs, not one head after the other",
    "seed": "the same seed gave two different draws: use a generator of its own, made from `seed`",
    "fixed": "different seeds give the same pairs: the draw does not depend on `seed`",
    "number": "the number of pairs is not the one asked for",
    "range": "there is no such head: layers are 0 … n_layers − 1, heads 0 … n_heads − 1",
}


@property_check(mistakes=tuple(PAIRS_SAY.values()))
def random_pairs_check(attempt):
    """18 pairs of 4 layers × 3 heads, two heads excluded; seeds; 600 single draws, all pairs about as often"""
    draw = _pairs_as_tuples(attempt)
    exclude = [(0, 2), (1, 1)]
    pairs = draw(4, 3, 18, exclude=exclude, seed=1)
    shown = {"got": pairs[:4]}
    require(len(pairs) == 18, PAIRS_SAY["number"], got=len(pairs), expected=18)
    heads = [head for pair in pairs for head in pair]
    require(all(0 <= layer < 4 and 0 <= head < 3 for layer, head in heads), PAIRS_SAY["range"], **shown)
    require(any(first[0] < second[0] for first, second in pairs), PAIRS_SAY["reversed"], **shown)
    require(all(first[0] < second[0] for first, second in pairs), PAIRS_SAY["earlier"], **shown)
    require(len(set(pairs)) == 18, PAIRS_SAY["same"], **shown)
    require(not set(heads) & set(exclude), PAIRS_SAY["excluded"], **shown)
    require(draw(4, 3, 18, exclude=exclude, seed=1) == pairs, PAIRS_SAY["seed"])
    require(draw(4, 3, 18, exclude=exclude, seed=2) != pairs, PAIRS_SAY["fixed"])
    require_all_alike(draw)


def _pairs_as_tuples(attempt):
    return lambda *args, **kwargs: [tuple(map(tuple, pair)) for pair in attempt(*args, **kwargs)]


def require_all_alike(draw):
    """600 draws of one of 18 pairs: none is missing, and the counts are as even as chance makes them (chi-square)."""
    counts = Counter(pair for seed in range(600) for pair in draw(4, 2, 1, exclude=[(3, 1)], seed=seed))
    require(len(counts) == 18, PAIRS_SAY["missing"], got=f"{len(counts)} different pairs in 600 draws", expected=18)
    unevenness = sum((count - 600 / 18) ** 2 for count in counts.values()) / (600 / 18)
    rare, often = min(counts, key=counts.get), max(counts, key=counts.get)
    require(unevenness < 60, PAIRS_SAY["uneven"], expected="each about 33 times in 600 draws",
            got=f"{rare}: {counts[rare]} times, {often}: {counts[often]} times")


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
        on_any_model=K_comp_full_circuit,
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
