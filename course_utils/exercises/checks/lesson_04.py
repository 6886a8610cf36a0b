"""Exercises of lesson 04: reading circuits from the weights."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import FactoredMatrix
from transformer_lens.model_bridge import TransformerBridge

from course_utils import circuits
from course_utils.circuits import copying_score, fold_layer_norm
from course_utils.exercises.checking import Case, Exercise, compare_cases, property_check, require
from course_utils.exercises.checks.shared import (
    drawn,
    grouped_query_model,
    own_norms_model,
    planted_model,
    random_model,
)
from course_utils.exercises.mistakes import seen, variants
from course_utils.passes import head_weights, key_value_head
from course_utils.planted import WHAT, WHERE, unnamed_heads_model

# --- the course's answers, for models of GPT-2's shape; course_utils.circuits has them for every model ----------------


def full_OV_circuit(model: TransformerBridge, layer: int, head: int) -> FactoredMatrix:
    """What attending to each token (row) directly adds to the logit of each token (column). [vocab, vocab]"""
    weights = head_weights(model, layer, head)
    return FactoredMatrix(model.W_E @ weights["V"], weights["O"] @ model.W_U)


def top_k_accuracy(matrix: FactoredMatrix, k: int = 1, *, best: str = "key") -> float:
    """Share of tokens whose own entry (the diagonal) is among the k largest of its row, or of its column.

    A tie does not count: a token's own entry must be larger than the k-th best of the others.
    """
    matrix = matrix.AB if best == "key" else matrix.AB.T
    others = matrix.clone().fill_diagonal_(-torch.inf)
    rival = others.topk(k, dim=1).values[:, -1]                                     # the k-th best of them
    return (matrix.diagonal() > rival).float().mean().item()


def positional_pattern(
    model: TransformerBridge, layer: int, head: int, n_positions: int
) -> Float[Tensor, "query key"]:
    """The attention pattern that position embeddings alone ask for: causal, rows sum to 1.

    Each position p is represented by W_pos[p] + mean W_E, divided by the root mean square over tokens t of
    W_E[t] + W_pos[p] (the scale of the norm in layer 0).
    """
    weights, W_E = head_weights(model, layer, head), model.W_E
    x = model.pos_embed.weight[:n_positions] + W_E.mean(dim=0)                      # [pos, d_model]
    mean_square = (x.pow(2).sum(dim=-1) + W_E.var(dim=0, unbiased=False).sum()) / x.shape[-1]
    x = x / mean_square.sqrt()[:, None]
    queries, keys = x @ weights["Q"] + weights["b_Q"], x @ weights["K"] + weights["b_K"]
    scores = queries @ keys.T / model.cfg.d_head**0.5
    future = torch.ones_like(scores, dtype=torch.bool).triu(1)
    return scores.masked_fill(future, -torch.inf).softmax(dim=-1)


def effective_embedding(model: TransformerBridge) -> Float[Tensor, "vocab d_model"]:
    """The embedding, plus what the first MLP (after its norm) makes of it, for the whole vocabulary."""
    block, residual = model.blocks[0], model.W_E.detach()[None]                     # [1, vocab, d_model]
    return (residual + block.mlp(block.ln2(residual)))[0]


def kind_of_head(model: TransformerBridge, layer: int, head: int) -> tuple[str, str]:
    """(where it looks, what it does to the logit of the token there), read from the weights."""
    one_back = circuits.positional_pattern(model, layer, head, 16).diagonal(-1).mean()
    matched = circuits.top_k_accuracy(circuits.full_QK_circuit(model, layer, head))
    score = circuits.copying_score(circuits.full_OV_circuit(model, layer, head))
    where = "previous position" if one_back > 0.5 else "same token" if matched > 0.5 else "something else"
    what = "copies" if score > 0.5 else "suppresses" if score < -0.5 else "neither"
    return where, what


# --- inputs --------------------------------------------------------------------------------------------------------


def group_cases() -> list[Case]:
    return [
        Case(4, 6, 2, label="head 4 of 6, 2 key heads"),
        Case(2, 9, 3, label="head 2 of 9, 3 key heads"),
        Case(8, 9, 3, label="head 8 of 9, 3 key heads"),
        Case(3, 4, 4, label="as many key heads as heads"),
        Case(5, 8, 1, label="one key head for all"),
    ]


def fold_cases() -> list[Case]:
    return [
        Case(drawn(5, 3), drawn(3, seed=1), drawn(5, seed=2), drawn(5, seed=3), label="d_model 5, 3 outputs"),
        Case(drawn(8, 2, seed=4), torch.zeros(2), drawn(8, seed=5), drawn(8, seed=6), label="no bias before"),
    ]


def head_cases() -> list[Case]:
    return [
        Case(random_model(), 1, 1, label="head 1.1 of a random model"),
        Case(planted_model(), 1, 0, label="the planted induction head"),
        Case(grouped_query_model(), 1, 4, label="head 1.4 of a grouped-query model: 6 heads, 2 key heads"),
        Case(grouped_query_model(), 0, 2, label="its head 0.2, where other wrong groups show"),
        Case(own_norms_model(), 1, 0, label="head 1.0 of a model with value biases"),
    ]


def matrix_cases() -> list[Case]:
    tokens = drawn(30, 6)
    factored = FactoredMatrix(tokens, tokens.T * drawn(30, seed=1).exp())       # some keys are louder than others
    return [
        Case(factored, label="30 tokens, k left out, best key"),
        Case(factored, 5, label="k = 5, best key"),
        Case(factored, 1, best="query", label="k = 1, best query"),
        Case(factored, 5, best="query", label="k = 5, best query"),
        Case(FactoredMatrix(drawn(300, 8), drawn(300, 8).T), 1, label="300 tokens, a circuit that copies"),
        Case(FactoredMatrix(torch.zeros(6, 2), torch.ones(2, 6)), 1, label="all entries equal: a tie is no hit"),
        Case(FactoredMatrix(torch.zeros(6, 2), torch.ones(2, 6)), 3, label="the same, k = 3"),
    ]


def circuit_cases() -> list[Case]:
    same = drawn(20, 4)
    return [
        Case(FactoredMatrix(drawn(20, 4), drawn(4, 20, seed=1)), label="random factors"),
        Case(FactoredMatrix(drawn(20, 7, seed=4), drawn(7, 20, seed=5)), label="others, of rank 7"),
        Case(FactoredMatrix(same, same.T), label="a circuit that copies: 1"),
        Case(FactoredMatrix(same, -same.T), label="one that does the opposite: −1"),
    ]


def position_cases() -> list[Case]:
    return [
        Case(unnamed_heads_model(1)[0], 0, 1, 8, label="a planted previous-token head"),
        Case(random_model(), 1, 0, 6, label="head 1.0 of a random model"),
    ]


def embedding_cases() -> list[Case]:
    return [
        Case(random_model(), label="a random model with LayerNorm"),
        Case(grouped_query_model(), label="one with RMSNorm and a gated MLP"),
        Case(own_norms_model(), label="one whose norms all differ"),
    ]


# --- known mistakes ------------------------------------------------------------------------------------------------

GROUP_MISTAKES = variants(key_value_head, {
    "`head % n_key_value_heads` deals the heads out in turn, but neighbours share a key head, group by group":
        "head % n_key_value_heads",
    "this divides by the number of key heads: divide by the size of a group, n_heads // n_key_value_heads":
        "head // n_key_value_heads",
    "this is the query head's own number: where keys are shared there is no key head of that number": "head",
    "`min` sends all later heads to the last key head: heads share key heads group by group":
        "min(head, n_key_value_heads - 1)",
    "this is the head's place within its group: the question is which group it is in":
        "head % (n_heads // n_key_value_heads)",
})


FOLD_MISTAKES = variants(fold_layer_norm, {
    "the columns of W' are not centred: x̂ has mean 0, so subtract its mean from each column": "folded, shift @ W + b",
    "the columns are centred before the gain, which spoils it: scale first, then centre":
        "gain[:, None] * (W - W.mean(dim=0)), shift @ W + b",
    "rows are centred instead of columns: the input's axis is the first one":
        {"mean(dim=0)": "mean(dim=1, keepdim=True)"},
    "the old bias is lost: b' = shift W + b": {"shift @ W + b": "shift @ W"},
    "the shift is lost: b' = shift W + b": {"shift @ W + b": "b"},
    "the shift meets the scaled weights: it is added after the gain, so it meets W itself":
        ({"shift @ W": "shift @ (folded - folded.mean(dim=0))"}, {"shift @ W": "shift @ folded"}),
    "the gain is left out": {"gain[:, None] * W": "W"},
})


WEIGHTS = "weights = head_weights(model, layer, head)"                  # a line of both circuits
WRONG_GROUPS = tuple(
    {WEIGHTS: f"{WEIGHTS}\nattn = model.blocks[layer].attn\nweights |= dict(K=attn.W_K[{own}], V=attn.W_V[{own}])"}
    for own in ("head % len(attn.W_K)", "min(head, len(attn.W_K) - 1)"))
OV_MISTAKES = variants(full_OV_circuit, {
    "the bias b_V is in it: a head adds it wherever it looks, so it says nothing about the token":
        {'model.W_E @ weights["V"]': 'model.W_E @ weights["V"] + weights["b_V"]'},
    "a norm is in it: the circuit is a product of weights alone":
        {"model.W_E @": "model.blocks[layer].ln1(model.W_E.detach()[None])[0] @"},
    "transposed: rows are the token attended to, columns the token whose logit is raised":
        {"model.W_U)": "model.W_U).T"},
    "the key or value head is the wrong one under grouped-query attention: see `key_value_head`": WRONG_GROUPS,
    "W_V W_O is transposed in the middle: vectors are rows here, so W_V comes first, then W_O":
        "FactoredMatrix(model.W_E @ weights['O'].T, weights['V'].T @ model.W_U)",
    "W_E stands at the end too: what is written is read by the unembedding W_U": {"model.W_U": "model.W_E.T"},
    "this uses W_Q or W_K: what a head copies goes through W_V and W_O":
        ({'weights["V"]': 'weights["K"]'}, {'weights["V"]': 'weights["Q"]'}),
})


ACCURACY_MISTAKES = variants(top_k_accuracy, {
    'key and query are swapped: best="key" asks each row for its largest entry': {'== "key"': '== "query"'},
    "`best` is ignored: for the best query look down the columns": {' if best == "key" else matrix.AB.T': ""},
    "`k` is ignored: the token's own entry may be any of the k largest": {"topk(k,": "topk(1,"},
    "a tie counts as a hit here: with all entries equal nothing is matched. Its own entry must be larger than "
    "the k-th best of the others": seen(lambda got, expected: expected == 0 and got > 0),     # only where all are equal
    "one off: its own entry is among the k largest, so k − 1 others may be larger": {"topk(k,": "topk(k + 1,"},
    "one off: its own entry counts itself, so up to k entries may be as large as it (≤ k, not < k)":
        "((matrix >= matrix.diagonal()[:, None]).sum(dim=1) < k).float().mean().item()",
    "this is the number of hits: divide by the number of tokens": {"mean()": "sum()"},
    "this is in per cent: give the share, between 0 and 1":
        "100 * (matrix.diagonal() > rival).float().mean().item()",
})


COPYING_MISTAKES = variants(copying_score, {
    "the absolute value of the sum hides its sign: the imaginary parts cancel, so take `.real`":
        "(eigenvalues.sum().abs() / eigenvalues.abs().sum()).item()",
    "the complex eigenvalues are left out: they count, with their real parts above and their sizes below the line":
        "(lambda real: (real.sum() / real.abs().sum()).item())(eigenvalues[eigenvalues.imag.abs() < 1e-9].real)",
    "divide by the sum of the eigenvalues' sizes, not of their real parts' sizes":
        {"eigenvalues.abs()": "eigenvalues.real.abs()"},
    "divide by the sum of the sizes, not by the size of the sum": {".abs().sum()": ".sum().abs()"},
    "this is the sum of the eigenvalues: divide by the sum of their sizes": "eigenvalues.real.sum().item()",
    "this is the share of eigenvalues with a positive real part: weigh them by size":
        "(eigenvalues.real > 0).double().mean().item()",
    "`eigvalsh` is for symmetric matrices, which this is not: `torch.linalg.eigvals`":
        ({"eigvals(": "eigvalsh("}, {"eigvals((circuit.B @ circuit.A)": "eigvalsh(circuit.AB"}),
    "this is 1 whatever the circuit. Singular values and sizes are never negative: eigenvalues can be":
        seen(lambda got, expected: abs(got - 1) < 1e-6),
})


POSITION_MISTAKES = variants(positional_pattern, {
    "queries see later keys: mask what lies above the diagonal before the softmax": "scores.softmax(dim=-1)",
    "the scores are not divided by sqrt(d_head)": {" / model.cfg.d_head**0.5": ""},
    "the norm's scale is left out: divide by the root mean square given in the text above":
        {"x / mean_square.sqrt()[:, None]": "x"},
    "divided by the root mean square of x itself: the tokens' spread belongs to it, the summed variance of "
    "W_E's columns": {" + W_E.var(dim=0, unbiased=False).sum()": ""},
    "`var` divides by n − 1: the mean over all tokens needs `var(dim=0, unbiased=False)`": {", unbiased=False": ""},
    "the mean of W_E is left out: there is some token at every position": {" + W_E.mean(dim=0)": ""},
    "there are NaNs: does the mask take the diagonal too? Then the first row has nothing to look at":
        seen(lambda got, expected: got.isnan().any()),
    "the bias b_Q is left out. (b_K adds the same to all scores of a query: the softmax cancels it)":
        {' + weights["b_Q"]': ""},
    "queries and keys are swapped: rows are queries": {"queries @ keys.T": "keys @ queries.T"},
    "rows do not sum to 1: the pattern is the softmax over keys":
        seen(lambda got, expected: not torch.allclose(got.sum(-1), torch.ones(len(got)), atol=1e-4)),
})


EMBEDDING_MISTAKES = variants(effective_embedding, {
    "this is another norm: `ln2` stands before the MLP (`ln1` before attention, `ln_final` at the end)":
        ({"ln2": "ln1"}, {"block.ln2": "model.ln_final"}),
    "the norm is written out, but not every model's norm is that one (here are a LayerNorm, an RMSNorm, and one with "
    "weights; the ε under the root differs, too): call `block.ln2`": tuple(
        {"block.ln2(residual)": f"F.{norm}(residual, residual.shape[-1:], eps={eps})"}
        for norm in ("layer_norm", "rms_norm") for eps in (1e-5, 1e-6, 1e-12)),
    "this is what the MLP adds: W_E itself is part of the residual stream": "block.mlp(block.ln2(residual))[0]",
    "the norm before the MLP is left out: the MLP reads ln2 of the residual stream":
        {"block.ln2(residual)": "residual"},
    "this is the MLP of another layer: the effective embedding takes that of layer 0": {"blocks[0]": "blocks[1]"},
    "this is the unembedding: start from W_E": {"model.W_E": "model.W_U.T"},
    "this is W_E: add what the first MLP makes of it": "model.W_E",
    "the batch axis is still there: [vocab, d_model]": seen(lambda got, expected: got.ndim == 3),
})


WORDS = f"the answer is two words: (one of {', '.join(WHERE)}; one of {', '.join(WHAT)})"
UNTRUE = {
    "previous position":
        "a head that looks one position back, whatever the tokens, is not recognised: leave the tokens out of the "
        "measure",
    "same token":
        "a head that looks for its own token is not recognised: it finds it at any distance, so leave the positions "
        "out of the measure",
    "something else":
        "a head that does neither is taken for one of the two: a little attention one back, or a few tokens matched, "
        "is not enough",
    "copies":
        "a head that copies is not recognised: a real circuit is noisy, and no measure reaches its largest value (mind "
        "the threshold)",
    "suppresses":
        "a head that lowers the logit of what it looks at is not recognised: a real circuit is noisy, and no measure "
        "reaches its smallest value (mind the threshold)",
    "neither":
        "a head that writes another token, or noise, is taken for one that copies or suppresses: a score near 0 "
        "has a sign, too",
}


@property_check(mistakes=[WORDS, *UNTRUE.values()])
def kinds_check(attempt):
    """all six heads of the planted models with seeds 1, 2 and 3: each kind is among them"""
    for seed in (1, 2, 3):
        model, truth = unnamed_heads_model(seed)
        for head, (where, what) in enumerate(truth):
            answer = attempt(model, 0, head)
            shown = {"input": f"head 0.{head} of unnamed_heads_model({seed})", "got": answer, "expected": (where, what)}
            good = isinstance(answer, (tuple, list)) and len(answer) == 2 and answer[0] in WHERE and answer[1] in WHAT
            require(good, WORDS, **shown)
            require(answer[0] == where, UNTRUE[where], **shown)
            require(answer[1] == what, UNTRUE[what], **shown)


EXERCISES = [
    Exercise(
        id="04.key_value_head",
        title="Who reads which keys?",
        reference=key_value_head,
        check=compare_cases(group_cases, GROUP_MISTAKES),
        hints=(
            "With 6 heads and 2 key heads, heads 0, 1, 2 share key head 0 and heads 3, 4, 5 share key head 1.",
            "A group has n_heads // n_key_value_heads heads. How many whole groups come before this head?",
            "`head // (n_heads // n_key_value_heads)`",
        ),
        minutes=3,
        difficulty=1,
    ),
    Exercise(
        id="04.fold_layer_norm",
        title="Fold a LayerNorm into the next weights",
        reference=fold_layer_norm,
        check=compare_cases(fold_cases, FOLD_MISTAKES, keeps_inputs=True),
        hints=(
            "Write (x̂ * gain + shift) W + b without brackets: one term has x̂ in it, the others do not.",
            "x̂ * gain times W is x̂ times a matrix whose row i is gain[i] * W[i]; `gain[:, None] * W`.",
            "W' = gain[:, None] * W, minus the mean of each column; b' = shift @ W + b.",
        ),
        minutes=10,
        difficulty=2,
    ),
    Exercise(
        id="04.full_OV_circuit",
        title="What does a head copy?",
        reference=full_OV_circuit,
        check=compare_cases(head_cases, OV_MISTAKES, keeps_inputs=True),
        hints=(
            "Follow a token that is attended to: its embedding, its value, what the head writes, the logits.",
            "W_E W_V is [vocab, d_head] and W_O W_U is [d_head, vocab]: these are the two factors.",
            'With `weights = head_weights(model, layer, head)`: '
            '`FactoredMatrix(model.W_E @ weights["V"], weights["O"] @ model.W_U)`.',
        ),
        minutes=6,
        difficulty=1,
        on_any_model=circuits.full_OV_circuit,
    ),
    Exercise(
        id="04.top_k_accuracy",
        title="Is a token's own entry among the largest?",
        reference=top_k_accuracy,
        check=compare_cases(matrix_cases, ACCURACY_MISTAKES, keeps_inputs=True, loose_scalars=True),
        hints=(
            "For the best key, take each row: how many entries are at least as large as the one on the diagonal?",
            "Itself, at most k − 1 others. For the best query do the same with the transposed matrix (`matrix.T`).",
            "Dense and short: `m = matrix.AB` (or `.T.AB`), then `((m >= m.diagonal()[:, None]).sum(1) <= k)"
            ".float().mean()`.",
        ),
        minutes=12,
        difficulty=2,
    ),
    Exercise(
        id="04.copying_score",
        title="Copying, seen by eigenvalues",
        reference=copying_score,
        check=compare_cases(circuit_cases, COPYING_MISTAKES, keeps_inputs=True, loose_scalars=True),
        hints=(
            "The eigenvalues of A B that are not zero are those of B A, which is only d_head × d_head.",
            "`torch.linalg.eigvals` gives complex numbers; they come in pairs whose imaginary parts cancel.",
            "`e = torch.linalg.eigvals(circuit.B @ circuit.A)`, then `e.real.sum() / e.abs().sum()`.",
        ),
        minutes=6,
        difficulty=2,
    ),
    Exercise(
        id="04.positional_pattern",
        title="Where would positions alone make it look?",
        reference=positional_pattern,
        check=compare_cases(position_cases, POSITION_MISTAKES, keeps_inputs=True),
        hints=(
            "Let a vector x[p] stand for each position, then do what attention does: queries, keys, scores, mask, "
            "softmax.",
            "x = (W_pos[:n] + mean W_E) / root mean square, which is sqrt((‖x‖² + the summed variance of W_E) "
            "/ d_model).",
            'Scores are `(x @ W_Q + b_Q) @ (x @ W_K + b_K).T / d_head ** 0.5`; fill `.triu(1)` with −inf; '
            "softmax over keys.",
        ),
        minutes=15,
        difficulty=3,
        on_any_model=circuits.positional_pattern,
    ),
    Exercise(
        id="04.effective_embedding",
        title="The embedding after the first MLP",
        reference=effective_embedding,
        check=compare_cases(embedding_cases, EMBEDDING_MISTAKES, keeps_inputs=True),
        hints=(
            "Let the whole vocabulary go through `block.ln2` and `block.mlp` of block 0, as if it were one long "
            "sequence.",
            "The modules want [batch, pos, d_model]: with E = model.W_E.detach(), `E[None]`, and `[0]` afterwards.",
            "`E + block.mlp(block.ln2(E[None]))[0]`",
        ),
        minutes=5,
        difficulty=1,
        on_any_model=circuits.effective_embedding,
    ),
    Exercise(
        id="04.kind_of_head",
        title="Your experiment: what is this head?",
        reference=kind_of_head,
        check=kinds_check,
        hints=(
            "You have three measures: a pattern from positions alone, whether a token's best key is itself, and the "
            "copying score. Print them for all heads of `example`, beside `truth`.",
            "One back in `positional_pattern` means a previous-position head; `top_k_accuracy` of the QK circuit finds "
            "the same token; the sign of a *large* copying score says the rest. Where do the groups separate?",
            "They lie far apart: 0.5 will do everywhere. one_back = `positional_pattern(model, layer, head, 16)"
            ".diagonal(-1).mean()`, matched = `top_k_accuracy(full_QK_circuit(…))`, score = `copying_score(…)`.",
        ),
        minutes=20,
        difficulty=3,
    ),
]

IN_THE_PACKAGE = {
    "04.full_OV_circuit": circuits.full_OV_circuit,
    "04.top_k_accuracy": circuits.top_k_accuracy,
    "04.positional_pattern": circuits.positional_pattern,
    "04.effective_embedding": circuits.effective_embedding,
}
