"""Exercises of lesson 05: the K-composition circuit."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from transformer_lens import FactoredMatrix
from transformer_lens.model_bridge import TransformerBridge

from course_utils import circuits, path_patching
from course_utils.circuits import composition_score
from course_utils.exercises.checking import Case, Exercise, compare_cases, property_check, require
from course_utils.exercises.checks.shared import drawn, grouped_query_model, planted_model, random_model
from course_utils.exercises.mistakes import seen, variants
from course_utils.passes import head_weights
from course_utils.path_patching import head_reading

# --- the course's answers: those of the package also take other models, and more options ------------------------------


def K_comp_full_circuit(
    model: TransformerBridge, prev_token_layer_index: int, ind_layer_index: int, prev_token_head_index: int,
    ind_head_index: int
) -> FactoredMatrix:
    """(W_E W_Q)(W_E W_V W_O W_K)^T: rows are the query's token, columns the token before the key.

    Q and K of the induction head, V and O of the previous-token head.
    """
    previous = head_weights(model, prev_token_layer_index, prev_token_head_index)
    induction = head_weights(model, ind_layer_index, ind_head_index)
    queries = model.W_E @ induction["Q"]                                            # [vocab, d_head]
    keys = model.W_E @ previous["V"] @ previous["O"] @ induction["K"]
    return FactoredMatrix(queries, keys.T)


def random_head_pairs(
    n_layers: int, n_heads: int, n_pairs: int, *, exclude: Sequence[tuple[int, int]] = (), seed: int = 0
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Different pairs ((layer, head), (later layer, head)), none with an excluded head.

    Each such pair is equally likely. The same seed gives the same pairs, another seed others.
    """
    heads = [(layer, head) for layer in range(n_layers) for head in range(n_heads) if (layer, head) not in exclude]
    pairs = [(first, second) for first in heads for second in heads if first[0] < second[0]]
    return random.Random(seed).sample(pairs, n_pairs)


def share_of_effect(clean: float, path: float, total: float) -> float:
    """How much of a sender's effect goes through one path, from the three losses: 0 none of it, 1 all of it."""
    return (path - clean) / (total - clean)


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

PAIR_MISTAKES = variants(composition_score, {
    "the other order: `first` writes, `second` reads, so the product is first @ second":
        {"(first @ second)": "(second @ first)"},
    "one of the two is transposed in the product: vectors are rows, so it is first @ second as they are":
        ({"(first @ second)": "(first.T @ second)"}, {"(first @ second)": "(first @ second.T)"}),
    "this is the norm of the product: divide by both norms, or large weights win": "(first @ second).norm().item()",
    "divided by one norm only: divide by both": (
        "((first @ second).norm() / first.norm()).item()", "((first @ second).norm() / second.norm()).item()"),
    "divided by the sum of the norms: the norm of a product is at most their product":
        {"first.norm() * second.norm()": "first.norm() + second.norm()"},
    "this is the largest singular value: take the Frobenius norm, the root of all squares summed":
        "((first @ second).S[0] / (first.S[0] * second.S[0])).item()",
})


WRONG_VALUES = [{'previous["V"]': f"(V := model.blocks[prev_token_layer_index].attn.W_V)[{own}]"}
                for own in ("prev_token_head_index % len(V)", "min(prev_token_head_index, len(V) - 1)")]
WRONG_KEYS = [{'induction["K"]': f"(K := model.blocks[ind_layer_index].attn.W_K)[{own}]"}
              for own in ("ind_head_index % len(K)", "min(ind_head_index, len(K) - 1)")]
CIRCUIT_MISTAKES = variants(K_comp_full_circuit, {
    "W_E is missing: rows and columns are tokens, so both sides begin with the embedding":
        ({"model.W_E @ ": ""}, {"keys = model.W_E @ ": "keys = "}, {"queries = model.W_E @ ": "queries = "}),
    "this reads a model that is not its argument (another size of vocabulary comes out): use the `model` passed "
    "in. The article's code has the same slip":
        seen(lambda got, expected: got.AB.ndim == 2 and got.AB.shape != expected.AB.shape),
    "transposed: rows are the query's token, columns the key's": "FactoredMatrix(keys, queries.T)",
    "the key or value head is the wrong one under grouped-query attention: use `head_weights`":
        (*WRONG_VALUES, *WRONG_KEYS, *(value | key for value, key in zip(WRONG_VALUES, WRONG_KEYS))),
    "V and O are the induction head's own: what the key says was written by the previous-token head":
        {"previous[": "induction["},
    "the previous-token head is not in it: this is the induction head's plain QK circuit":
        {'previous["V"] @ previous["O"] @ ': ""},
    "this is Q-composition: the previous-token head's V and O belong on the key's side":
        "FactoredMatrix(model.W_E @ previous['V'] @ previous['O'] @ induction['Q'], (model.W_E @ induction['K']).T)",
    "V and O are on both sides: the query comes from the token's own embedding":
        {"queries = model.W_E @": 'queries = model.W_E @ previous["V"] @ previous["O"] @'},
    "Q is the previous-token head's: it is the induction head that asks": {'induction["Q"]': 'previous["Q"]'},
    "K is the previous-token head's: it is the induction head that reads the key": {'induction["K"]': 'previous["K"]'},
    "Q and K are swapped: the query's side is E W_Q":
        {'W_E @ induction["Q"]': 'W_E @ induction["K"]', '"O"] @ induction["K"]': '"O"] @ induction["Q"]'},
})


NORMED, BIAS = "model.blocks[layer].ln1(residual)", ' + weights[f"b_{name.upper()}"]'       # parts of the solution
READING_MISTAKES = variants(head_reading, {
    "the queries are those of another head: only keys and values are shared, every head has its own queries":
        {"weights =": "if name == 'q': head //= model.cfg.n_heads // len(model.blocks[layer].attn.W_K)\nweights ="},
    "the norm is left out: a head reads ln1 of the residual stream": {NORMED: "residual"},
    "the bias is left out": {BIAS: ""},
    "norm and bias are left out: a head reads ln1 of the residual stream": {NORMED: "residual", BIAS: ""},
    "the key or value head is the wrong one under grouped-query attention: use `head_weights`":
        {"weights[name.upper()]": "(W := getattr(model.blocks[layer].attn, 'W_' + name.upper()))[head % len(W)]"},
    "`name` is ignored: this always gives the keys": {"name.upper()": "'K'"},
    "`name` is ignored: this always gives the queries": {"name.upper()": "'Q'"},
    "`name` is ignored: this always gives the values": {"name.upper()": "'V'"},
    "all heads are there: one head's [batch, pos, d_head]": seen(lambda got, expected: got.ndim == 4),
})


SHARE_MISTAKES = variants(share_of_effect, {
    "this is path / total: subtract the clean loss from both, the effect is a difference": "path / total",
    "this is what the path leaves out: (path − clean) / (total − clean)": "(total - path) / (total - clean)",
    "upside down: divide the path's effect by the total effect":
        "(total - clean) / (path - clean) if path != clean else 0.0",
    "this is the path's effect in nats: divide by the total effect": "path - clean",
    "a share above 1 is cut off, or one below 0: effects interact, so let it stand": (
        "min(1.0, max(0.0, (path - clean) / (total - clean)))", "max(0.0, (path - clean) / (total - clean))",
        "min(1.0, (path - clean) / (total - clean))"),
    "the sign is lost: a path whose patch lowers the loss has a share below 0":
        "abs(path - clean) / abs(total - clean)",
})


PAIRS_SAY = {
    "earlier": "the second head must be in a later layer than the first: it reads what the first wrote",
    "reversed": "each pair comes the wrong way round: (earlier head, later head)",
    "same": "a pair comes twice: draw without replacement",
    "excluded": "an excluded head is in a pair: it would be its own control",
    "missing": "some pairs can never come: every pair of an earlier and a later head is possible, those that skip "
               "layers too",
    "uneven": "some pairs come more often than others: draw from the list of all pairs, not one head after the other",
    "seed": "the same seed gave two different draws: use a generator of your own, made from `seed`",
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
    rare, often = min(counts, key=lambda pair: counts[pair]), max(counts, key=lambda pair: counts[pair])
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
        on_any_model=circuits.K_comp_full_circuit,
    ),
    Exercise(
        id="05.random_head_pairs",
        title="A control group of head pairs",
        reference=random_head_pairs,
        check=random_pairs_check,
        hints=(
            "List all heads that are not excluded, then all pairs whose second head is in a later layer.",
            "`random.Random(seed).sample(pairs, n_pairs)` draws without replacement, the same for the same seed.",
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

IN_THE_PACKAGE = {
    "05.K_comp_full_circuit": circuits.K_comp_full_circuit,
    "05.random_head_pairs": circuits.random_head_pairs,
    "05.share_of_effect": path_patching.share_of_effect,
}
