"""Exercises of lesson 05: the K-composition circuit."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import FactoredMatrix
from transformer_lens.model_bridge import TransformerBridge

from course_utils import circuits, path_patching
from course_utils.ablation import ablate
from course_utils.circuits import composition_score
from course_utils.exercises.checking import Case, Exercise, compare_cases, property_check, require
from course_utils.exercises.checks.shared import (
    drawn,
    grouped_query_model,
    own_norms_model,
    planted_model,
    random_model,
    repeated_distinct,
)
from course_utils.exercises.mistakes import seen, variants
from course_utils.passes import head_weights, hook_z
from course_utils.path_patching import head_reading, put_reading

# --- the course's answers: those of the package also take other models, and more options ------------------------------


def K_comp_full_circuit(
    model: TransformerBridge, prev_token_layer_index: int, ind_layer_index: int, prev_token_head_index: int,
    ind_head_index: int
) -> FactoredMatrix:
    """The induction head's score of every query's token (row) with a key that says "after this token" (column)."""
    previous = head_weights(model, prev_token_layer_index, prev_token_head_index)
    induction = head_weights(model, ind_layer_index, ind_head_index)
    queries = model.W_E @ induction["Q"]                                            # [vocab, d_head]
    keys = model.W_E @ previous["V"] @ previous["O"] @ induction["K"]
    return FactoredMatrix(queries, keys.T)


def random_head_pairs(
    n_layers: int, n_heads: int, n_pairs: int, *, exclude: Sequence[tuple[int, int]] = (), seed: int = 0
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Different pairs ((layer, head), (later layer, head)), none with an excluded head.

    Every set of n_pairs such pairs is equally likely; there are that many. The same seed gives the same pairs, another
    seed others.
    """
    heads = [(layer, head) for layer in range(n_layers) for head in range(n_heads) if (layer, head) not in exclude]
    pairs = [(first, second) for first in heads for second in heads if first[0] < second[0]]
    return random.Random(seed).sample(pairs, n_pairs)


def patch_path(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], sender: tuple[int, int],
    receivers: list[tuple[int, int]], into: str
) -> Float[Tensor, "batch pos vocab"]:
    """Logits when the sender is mean-ablated only where the receivers read it; all else is as in the clean pass."""
    _, cache = model.run_with_cache(tokens)
    z = cache[hook_z(sender[0])][:, :, sender[1]]                                   # [batch, pos, d_head]
    change = (ablate(z, "mean") - z) @ head_weights(model, *sender)["O"]            # [batch, pos, d_model]
    hooks = []
    for layer, head in receivers:
        for name in into:
            reading = head_reading(model, layer, head, name, cache[f"blocks.{layer}.hook_resid_pre"] + change)
            hooks.append(put_reading(model, layer, head, name, reading))
    return model.run_with_hooks(tokens, fwd_hooks=hooks)


def restore_path(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], sender: tuple[int, int],
    receivers: list[tuple[int, int]], into: str
) -> Float[Tensor, "batch pos vocab"]:
    """Logits when the sender is mean-ablated everywhere, except where the receivers read it."""
    z = model.run_with_cache(tokens)[1][hook_z(sender[0])][:, :, sender[1]]         # [batch, pos, d_head]
    change = (z - ablate(z, "mean")) @ head_weights(model, *sender)["O"]            # what is put back
    def remove(activation, hook):
        activation = activation.clone()
        activation[:, :, sender[1]] = ablate(z, "mean")
        return activation
    ablated = [(hook_z(sender[0]), remove)]
    with model.hooks(fwd_hooks=ablated):
        _, cache = model.run_with_cache(tokens)
    hooks = []
    for layer, head in receivers:
        for name in into:
            reading = head_reading(model, layer, head, name, cache[f"blocks.{layer}.hook_resid_pre"] + change)
            hooks.append(put_reading(model, layer, head, name, reading))
    return model.run_with_hooks(tokens, fwd_hooks=[*ablated, *hooks])


def _restored(model, tokens, sender, receivers, into):
    return path_patching.path_logits(model, tokens, sender, receivers, into, restore=True)


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
        Case(own_norms_model(), 0, 1, 1, 0, label="a model with value biases, heads 0.1 and 1.0"),
    ]


def reading_cases() -> list[Case]:
    return [
        Case(random_model(), 1, 1, "k", drawn(2, 3, 16), label="keys of head 1.1 of a random model"),
        Case(random_model(), 2, 0, "q", drawn(1, 4, 16, seed=1), label="queries of head 2.0"),
        Case(grouped_query_model(), 1, 4, "k", drawn(2, 3, 24, seed=2), label="keys of head 1.4, grouped queries"),
        Case(grouped_query_model(), 0, 1, "v", drawn(1, 2, 24, seed=3), label="values of head 0.1, grouped queries"),
        Case(grouped_query_model(), 1, 4, "q", drawn(1, 2, 24, seed=4), label="queries of its head 1.4: its own"),
        Case(own_norms_model(), 1, 0, "k", drawn(1, 3, 16, seed=5), label="a model whose norms all differ"),
        Case(own_norms_model(), 0, 1, "q", drawn(1, 3, 16, seed=6), label="its first layer"),
    ]


def path_cases() -> list[Case]:
    random_tokens, grouped = repeated_distinct(2, 5, vocab=40), repeated_distinct(2, 4, vocab=40, seed=1)
    return [
        Case(random_model(), random_tokens, (0, 1), [(1, 0)], "k", label="0.1 into the keys of 1.0"),
        Case(random_model(), random_tokens, (0, 0), [(2, 1), (1, 1)], "qv", label="0.0 into 2.1 and 1.1"),
        Case(grouped_query_model(), grouped, (0, 4), [(1, 5)], "k", label="grouped queries: 0.4 into the keys of 1.5"),
        Case(grouped_query_model(), grouped, (0, 2), [(1, 1), (1, 3)], "vq", label="0.2 into heads of two groups"),
        Case(own_norms_model(), repeated_distinct(2, 5), (0, 1), [(1, 0)], "kq",
             label="a model whose norms all differ"),
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
SCORES_BIASES = {'@ induction["Q"]': '@ induction["Q"] + induction["b_Q"]',
                 '@ induction["K"]': '@ induction["K"] + induction["b_K"]'}
NORMED_QUERIES, NORMED_KEYS = (
    {f"{side} = model.W_E": f"{side} = model.blocks[{layer}].ln1(model.W_E.detach()[None])[0]"}
    for side, layer in (("queries", "ind_layer_index"), ("keys", "prev_token_layer_index")))
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
    "the two heads are exchanged: the order of the arguments is layer, layer, head, head": {
        "prev_token_layer_index, prev_token_head_index": "prev_token_layer_index, ind_head_index",
        "ind_layer_index, ind_head_index": "ind_layer_index, prev_token_head_index"},
    "divided by sqrt(d_head): the circuit is the bare product here":
        "FactoredMatrix(queries / model.cfg.d_head ** 0.5, keys.T)",
    "a bias is in it: the circuit is a product of weights alone": (
        {'model.W_E @ induction["Q"]': 'model.W_E @ induction["Q"] + induction["b_Q"]'},
        {'model.W_E @ previous["V"]': '(model.W_E @ previous["V"] + previous["b_V"])'},
        {'@ induction["K"]': '@ induction["K"] + induction["b_K"]'}, SCORES_BIASES,
        {**SCORES_BIASES, 'model.W_E @ previous["V"]': '(model.W_E @ previous["V"] + previous["b_V"])'}),
    "a norm is in it: the circuit is a product of weights alone (section 4 puts the norm back)": (
        NORMED_QUERIES, NORMED_KEYS, {**NORMED_QUERIES, **NORMED_KEYS}),
})


NORMED, BIAS = "model.blocks[layer].ln1(residual)", ' + weights[f"b_{name.upper()}"]'       # parts of the solution
READING_MISTAKES = variants(head_reading, {
    "this is another norm's reading: before the attention of a layer stands that layer's own ln1": (
        {NORMED: "model.blocks[layer].ln2(residual)"}, {NORMED: "model.ln_final(residual)"},
        {NORMED: "model.blocks[0].ln1(residual)"},
        {NORMED: "model.blocks[min(layer + 1, model.cfg.n_layers - 1)].ln1(residual)"},
        {NORMED: "model.blocks[layer - 1].ln1(residual)"}),
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


STREAM = 'cache[f"blocks.{layer}.hook_resid_pre"] + change'
REMOVED = '(ablate(z, "mean") - z)'
LINE = "hooks.append(put_reading(model, layer, head, name, reading))"
PATCH_MISTAKES = variants(patch_path, {
    "these are the clean logits: are the new readings given to the model as hooks?": "model(tokens)",
    "the sign is wrong: what the sender wrote is doubled, not removed": {REMOVED: '(z - ablate(z, "mean"))'},
    "the sender's output is set to zero: `ablate(z, \"mean\")` is what stays": {REMOVED: "(-z)"},
    "position 0 is changed too: BOS keeps its own activation (`ablate` takes care of that)":
        {REMOVED: "(z[:, 1:].mean(dim=(0, 1)) - z)"},
    "the receivers read what the sender's mean writes and nothing else: add the change to the clean stream":
        {STREAM: "change"},
    "the sender is ablated for the whole model: only what the receivers read may change":
        {LINE: 'hooks.append((hook_z(sender[0]), lambda x, hook: x.index_copy(2, torch.tensor([sender[1]]), '
               'ablate(z, "mean")[:, :, None])))'},
    "only the keys change: `into` says which readings do": {"for name in into": 'for name in "k"'},
    "only the first of the receivers gets new readings": {"in receivers": "in receivers[:1]"},
    "only the last of the receivers gets new readings: a list of hooks that is begun anew in the loop?":
        {"in receivers": "in receivers[-1:]"},
    "only the first of the readings named in `into` changes": {"for name in into": "for name in into[:1]"},
    "the receivers read the stream after their layer's attention or MLP: they read `hook_resid_pre`":
        ({"hook_resid_pre": "hook_resid_post"}, {"hook_resid_pre": "hook_resid_mid"}),
    "W_O is the receiver's: the sender's z is written by the sender's own W_O": {
        "reading =": 'change = (ablate(z, "mean") - z) @ head_weights(model, layer, head)["O"]\nreading ='},
})


BACK = '(z - ablate(z, "mean"))'
RESTORE_MISTAKES = variants(restore_path, {
    "these are the logits without the sender: is its output put back, and are the new readings given to the model?":
        ({STREAM: 'cache[f"blocks.{layer}.hook_resid_pre"]'}, {"[*ablated, *hooks]": "ablated"}),
    "these are the clean logits": "model(tokens)",
    "the sender is not ablated in the end: both hooks belong to the last run": {"[*ablated, *hooks]": "hooks"},
    "this is the broken path again: here the sender is ablated everywhere else": patch_path,
    "the sign is wrong: what ablation took away is put back": {BACK: '(ablate(z, "mean") - z)'},
    "all of z is put back on top of its mean: put back the difference": {BACK: "z"},
    "the readings come from the clean pass: what other parts (an MLP, say) made of the sender's absence is lost. Start "
    "from the stream of the ablated pass": {"with model.hooks(fwd_hooks=ablated)": "with model.hooks(fwd_hooks=[])",
                                            STREAM: 'cache[f"blocks.{layer}.hook_resid_pre"]'},
    "the output is put back into the clean stream, where it is already: start from the stream of the ablated pass":
        {"with model.hooks(fwd_hooks=ablated)": "with model.hooks(fwd_hooks=[])"},
    "only the keys are restored: `into` says which readings are": {"for name in into": 'for name in "k"'},
    "only the first of the receivers is restored": {"in receivers": "in receivers[:1]"},
})


PAIRS_SAY = {
    "earlier": "the second head must be in a later layer than the first: it reads what the first wrote",
    "reversed": "each pair comes the wrong way round: (earlier head, later head)",
    "same": "a pair comes twice: draw without replacement",
    "excluded": "an excluded head is in a pair: it would be its own control",
    "missing": "some pairs can never come: every pair of an earlier and a later head is possible, those that skip "
               "layers too",
    "uneven": "some pairs come more often than others: draw from the list of all pairs, not one head after the other",
    "together": "the pairs of one draw belong together (they are neighbours in a list, say): draw every pair anew",
    "seed": "the same seed gave two different draws: use a generator of your own, made from `seed`",
    "fixed": "different seeds give the same pairs: the draw does not depend on `seed`",
    "number": "the number of pairs is not the one asked for",
    "range": "there is no such head: layers are 0 … n_layers − 1, heads 0 … n_heads − 1",
}


@property_check(mistakes=tuple(PAIRS_SAY.values()))
def random_pairs_check(attempt):
    """18 pairs of 4 layers × 3 heads, two heads excluded; seeds; 600 draws of one pair and of two"""
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
    require_all_combinations(draw)


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


def require_all_combinations(draw):
    """600 draws of two of 18 pairs: nearly all of the 153 combinations come."""
    found = {frozenset(draw(4, 2, 2, exclude=[(3, 1)], seed=seed)) for seed in range(600)}
    require(len(found) > 130, PAIRS_SAY["together"], expected="nearly all 153 combinations of 2 of 18 pairs",
            got=f"{len(found)} different ones in 600 draws")


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
            "Two paths meet in one score. The query's: embedding, W_Q of the induction head. The key's is longer: the "
            "token is copied by the previous-token head first.",
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
        id="05.patch_path",
        title="Your experiment: break one path",
        reference=patch_path,
        check=compare_cases(path_cases, PATCH_MISTAKES, keeps_inputs=True),
        hints=(
            "Three steps: what does mean ablation change in what the sender writes? What do the receivers read from "
            "the clean stream plus that change? Run the model with these readings put in.",
            'change = (ablate(z, "mean") - z) @ head_weights(model, *sender)["O"], with z = the cached '
            "`hook_z(layer)`[:, :, head]; a reading is `head_reading(model, layer, head, name, stream + change)`.",
            "For every receiver and every name in `into` append `put_reading(model, layer, head, name, reading)` to a "
            "list; the stream is the cached `blocks.{layer}.hook_resid_pre`. Then `model.run_with_hooks(tokens, "
            "fwd_hooks=list)`.",
        ),
        minutes=20,
        difficulty=3,
        on_any_model=path_patching.path_logits,
    ),
    Exercise(
        id="05.restore_path",
        title="Your experiment: restore it alone",
        reference=restore_path,
        check=compare_cases(path_cases, RESTORE_MISTAKES, keeps_inputs=True),
        hints=(
            "The roles are reversed: now the receivers' streams come from the ablated pass, and the sender's own "
            "output is what is added.",
            "A hook at `hook_z` that ablates the sender; inside `with model.hooks(fwd_hooks=[…])` a run with a cache "
            "gives the streams without it. Add (z − ablate(z)) @ W_O, with z from a clean run.",
            "The last run has both: the hook that ablates the sender, and a `put_reading(…)` for every receiver and "
            "name.",
        ),
        minutes=18,
        difficulty=3,
        on_any_model=_restored,
    ),
]

IN_THE_PACKAGE = {
    "05.K_comp_full_circuit": circuits.K_comp_full_circuit,
    "05.random_head_pairs": circuits.random_head_pairs,
    "05.patch_path": path_patching.path_logits,
    "05.restore_path": _restored,
}
