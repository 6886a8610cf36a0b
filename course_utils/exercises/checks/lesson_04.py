"""Exercises of lesson 04: reading circuits from the weights."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import FactoredMatrix
from transformer_lens.model_bridge import TransformerBridge

from course_utils import circuits
from course_utils.circuits import (
    TOKENS_AT_A_TIME,
    copying_score,
    fold_layer_norm,
    full_OV_circuit,
    full_QK_circuit,
    top_k_accuracy,
)
from course_utils.exercises.checking import Case, Exercise, Mistake, compare_cases
from course_utils.exercises.checks.shared import drawn, grouped_query_model, planted_model, random_model
from course_utils.passes import head_weights, key_value_head

# --- the formulas, for models of GPT-2's shape; course_utils.circuits has them for every model ------------------------


@torch.no_grad()
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
    scores = (x @ weights["Q"] + weights["b_Q"]) @ (x @ weights["K"] + weights["b_K"]).T / model.cfg.d_head**0.5
    future = torch.ones_like(scores, dtype=torch.bool).triu(1)
    return scores.masked_fill(future, -torch.inf).softmax(dim=-1)


@torch.no_grad()
def effective_embedding(model: TransformerBridge) -> Float[Tensor, "vocab d_model"]:
    """W_E + MLP_0(norm(W_E)) for the whole vocabulary, some thousand tokens at a time."""
    block, W_E = model.blocks[0], model.W_E.detach()[None]                          # [1, vocab, d_model]
    return torch.cat([some + block.mlp(block.ln2(some)) for some in W_E.split(TOKENS_AT_A_TIME, dim=1)], dim=1)[0]


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
    ]


def circuit_cases() -> list[Case]:
    same = drawn(20, 4)
    return [
        Case(FactoredMatrix(drawn(20, 4), drawn(4, 20, seed=1)), label="random factors"),
        Case(FactoredMatrix(same, same.T), label="a circuit that copies: 1"),
        Case(FactoredMatrix(same, -same.T), label="one that does the opposite: −1"),
    ]


def position_cases() -> list[Case]:
    return [
        Case(planted_model(), 0, 0, 8, label="the planted previous-token head"),
        Case(random_model(), 1, 0, 6, label="head 1.0 of a random model"),
    ]


def embedding_cases() -> list[Case]:
    return [
        Case(random_model(), label="a random model with LayerNorm"),
        Case(grouped_query_model(), label="one with RMSNorm and a gated MLP"),
    ]


# --- known mistakes ------------------------------------------------------------------------------------------------

GROUP_MISTAKES = [
    Mistake("`head % n_key_value_heads` deals heads out in turn: neighbours share a key head, group by group",
            lambda head, n_heads, n_kv: head % n_kv),
    Mistake("this divides by the number of key heads: divide by the size of a group, n_heads // n_key_value_heads",
            lambda head, n_heads, n_kv: head // n_kv),
    Mistake("the number of the query head: where keys are shared there is no such key head",
            lambda head, n_heads, n_kv: head),
    Mistake("`min` sends all the later heads to the last key head: heads share group by group",
            lambda head, n_heads, n_kv: min(head, n_kv - 1)),
    Mistake("this is the head's place within its group: the question is which group it is in",
            lambda head, n_heads, n_kv: head % (n_heads // n_kv)),
]


def _shift_meets_folded(W, b, gain, shift):
    folded, _ = fold_layer_norm(W, b, gain, shift)
    return folded, shift @ folded + b


FOLD_MISTAKES = [
    Mistake("the columns of W' are not centred: x̂ has mean 0, so take the mean off each column",
            lambda W, b, gain, shift: (gain[:, None] * W, shift @ W + b)),
    Mistake("the columns are centred before the gain, which spoils it: scale first, then centre",
            lambda W, b, gain, shift: (gain[:, None] * (W - W.mean(0)), shift @ W + b)),
    Mistake("rows are centred instead of columns: the input's axis is the first one",
            lambda W, b, gain, shift: ((gain[:, None] * W) - (gain[:, None] * W).mean(1, keepdim=True), shift @ W + b)),
    Mistake("the old bias is lost: b' = shift W + b",
            lambda W, b, gain, shift: (fold_layer_norm(W, b, gain, shift)[0], shift @ W)),
    Mistake("the shift is lost: b' = shift W + b",
            lambda W, b, gain, shift: (fold_layer_norm(W, b, gain, shift)[0], b)),
    Mistake("the shift meets the scaled weights: it is added after the gain, so it meets W itself", _shift_meets_folded,
            lambda W, b, gain, shift: (fold_layer_norm(W, b, gain, shift)[0], shift @ (gain[:, None] * W) + b)),
    Mistake("the gain is left out", lambda W, b, gain, shift: (W - W.mean(0), shift @ W + b)),
]


def _OV(build):
    """A wrong OV circuit from (W_E, weights, W_U)."""
    return lambda model, layer, head, *, embedding=None: build(model.W_E, head_weights(model, layer, head), model.W_U)


def _wrong_groups(build):
    """The mistake of a circuit whose own weights are right but whose key and value head is chosen wrongly."""

    def with_group(choose):
        def wrong(model, layer, head, **options):
            attn, weights = model.blocks[layer].attn, head_weights(model, layer, head)
            own = choose(head, len(attn.W_K))
            return build(model, weights | {"K": attn.W_K[own], "V": attn.W_V[own]})

        return wrong

    return Mistake("the key or value head is the wrong one under grouped-query attention: see `key_value_head`",
                   with_group(lambda head, n_kv: head % n_kv), with_group(lambda head, n_kv: min(head, n_kv - 1)))


OV_MISTAKES = [
    Mistake("transposed: rows are the token attended to, columns the token whose logit is raised",
            lambda model, layer, head, **_: full_OV_circuit(model, layer, head).T),
    _wrong_groups(lambda model, w: FactoredMatrix(model.W_E @ w["V"], w["O"] @ model.W_U)),
    Mistake("W_V W_O is transposed in the middle: vectors are rows here, so W_V comes first, then W_O",
            _OV(lambda W_E, w, W_U: FactoredMatrix(W_E @ w["O"].T, w["V"].T @ W_U))),
    Mistake("W_E stands at the end too: what is written is read by the unembedding W_U",
            _OV(lambda W_E, w, W_U: FactoredMatrix(W_E @ w["V"], w["O"] @ W_E.T))),
    Mistake("this uses W_Q or W_K: what a head copies goes through W_V and W_O",
            _OV(lambda W_E, w, W_U: FactoredMatrix(W_E @ w["K"], w["O"] @ W_U)),
            _OV(lambda W_E, w, W_U: FactoredMatrix(W_E @ w["Q"], w["O"] @ W_U))),
]


def _QK(build):
    return lambda model, layer, head, *, embedding=None, distance=0: build(model.W_E, head_weights(model, layer, head))


QK_MISTAKES = [
    Mistake("queries and keys are swapped: rows are the query's token",
            lambda model, layer, head, **_: full_QK_circuit(model, layer, head).T),
    _wrong_groups(lambda model, w: FactoredMatrix(model.W_E @ w["Q"], (model.W_E @ w["K"]).T)),
    Mistake("divided by sqrt(d_head): the circuit is the bare product here, as in TransformerLens",
            _QK(lambda W_E, w: FactoredMatrix(W_E @ w["Q"] / w["Q"].shape[1] ** 0.5, (W_E @ w["K"]).T))),
    Mistake("both sides use W_Q", _QK(lambda W_E, w: FactoredMatrix(W_E @ w["Q"], (W_E @ w["Q"]).T))),
    Mistake("both sides use W_K", _QK(lambda W_E, w: FactoredMatrix(W_E @ w["K"], (W_E @ w["K"]).T))),
    Mistake("the biases are in it: a full QK circuit is the product of the weights alone",
            _QK(lambda W_E, w: FactoredMatrix(W_E @ w["Q"] + w["b_Q"], (W_E @ w["K"] + w["b_K"]).T))),
]


def _ranked(matrix, k=1, *, best="key", hit=None, swap=False):
    dense = getattr(matrix, "AB", matrix)
    dense = dense.T if (best == "query") != swap else dense
    own = dense.diagonal()[:, None]
    return hit(dense, own, k).float().mean().item()


def _top_k(hit, swap=False):
    return lambda matrix, k=1, *, best="key", tokens=None: _ranked(matrix, k, best=best, hit=hit, swap=swap)


ACCURACY_MISTAKES = [
    Mistake('key and query are swapped: best="key" asks each row for its largest entry',
            _top_k(lambda m, own, k: (m >= own).sum(1) <= k, swap=True)),
    Mistake("`best` is ignored: for the best query look down the columns",
            lambda matrix, k=1, *, best="key", tokens=None: top_k_accuracy(matrix, k)),
    Mistake("`k` is ignored: the token's own entry may be any of the k largest",
            lambda matrix, k=1, *, best="key", tokens=None: top_k_accuracy(matrix, 1, best=best)),
    Mistake("a tie counts as a hit here: with all entries equal nothing is matched. The own entry must be larger than "
            "the k-th best of the others",
            predicate=lambda got, expected: expected == 0 and got > 0),     # only where all entries are equal
    Mistake("one off: the own entry is among the k largest, so k − 1 others may be larger",
            _top_k(lambda m, own, k: (m >= own).sum(1) <= k + 1)),
    Mistake("this is the number of hits: divide by the number of tokens",
            lambda matrix, k=1, *, best="key", tokens=None: (
                top_k_accuracy(matrix, k, best=best) * matrix.shape[0])),
    Mistake("this is an accuracy in per cent: give the share, between 0 and 1",
            lambda matrix, k=1, *, best="key", tokens=None: 100 * top_k_accuracy(matrix, k, best=best)),
]


def _eigenvalues(score):
    return lambda circuit: score(torch.linalg.eigvals((circuit.B @ circuit.A).double())).real.item()


def _share(values):
    return (values.sum() / values.abs().sum()).item()


COPYING_MISTAKES = [
    Mistake("divide by the sum of the eigenvalues' sizes, not of their real parts' sizes",
            _eigenvalues(lambda e: e.real.sum() / e.real.abs().sum())),
    Mistake("divide by the sum of the sizes, not by the size of the sum",
            _eigenvalues(lambda e: e.real.sum() / e.sum().abs())),
    Mistake("this is the sum of the eigenvalues: divide by the sum of their sizes",
            _eigenvalues(lambda e: e.real.sum())),
    Mistake("this is the share of eigenvalues with a positive real part: weigh them by size",
            _eigenvalues(lambda e: (e.real > 0).double().mean())),
    Mistake("`eigvalsh` is for symmetric matrices, which this is not: `torch.linalg.eigvals`",
            lambda circuit: _share(torch.linalg.eigvalsh(circuit.B @ circuit.A)),
            lambda circuit: _share(torch.linalg.eigvalsh(circuit.AB))),
    Mistake("this is 1 whatever the circuit. Singular values and sizes are never negative: eigenvalues can be",
            predicate=lambda got, expected: abs(got - 1) < 1e-6),
]


def _positions(scale=True, mask=True, root=True, bias=True, swap=False, tokens=True, spread=1.0, unbiased=False):
    """positional_pattern with one step left out."""

    def pattern(model, layer, head, n):
        w, W_pos, W_E = head_weights(model, layer, head), model.pos_embed.weight, model.W_E
        x = W_pos[:n] + (W_E.mean(0) if tokens else 0)
        if scale:
            spread_of_tokens = spread * W_E.var(0, unbiased=unbiased).sum()
            x = x / ((x.pow(2).sum(-1) + spread_of_tokens) / x.shape[-1]).sqrt()[:, None]
        q, k = x @ w["Q"] + bias * w["b_Q"], x @ w["K"] + bias * w["b_K"]
        scores = (k @ q.T if swap else q @ k.T) / (w["Q"].shape[1] ** 0.5 if root else 1)
        if mask:
            scores = scores.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -torch.inf)
        return scores.softmax(-1)

    return pattern


POSITION_MISTAKES = [
    Mistake("queries see later keys: mask what lies above the diagonal before the softmax", _positions(mask=False)),
    Mistake("the scores are not divided by sqrt(d_head)", _positions(root=False)),
    Mistake("the norm's scale is left out: divide by the root mean square given in the text above",
            _positions(scale=False)),
    Mistake("divided by the root mean square of x itself: the tokens' spread belongs to it, the summed variance of "
            "W_E's columns", _positions(spread=0.0)),
    Mistake("`var` divides by n − 1: the mean over all tokens needs `var(dim=0, unbiased=False)`",
            _positions(unbiased=True)),
    Mistake("the mean of W_E is left out: some token is at each position", _positions(tokens=False)),
    Mistake("there are NaNs: does the mask take the diagonal too? Then the first row has nothing to look at",
            predicate=lambda got, expected: bool(got.isnan().any())),
    Mistake("the bias b_Q is left out. (b_K adds the same to all scores of a query: the softmax takes it away)",
            _positions(bias=False)),
    Mistake("queries and keys are swapped: rows are queries", _positions(swap=True)),
    Mistake("rows do not sum to 1: the pattern is the softmax over keys",
            predicate=lambda got, expected: not torch.allclose(got.sum(-1), torch.ones(len(got)), atol=1e-4)),
]

EMBEDDING_MISTAKES = [
    Mistake("this is what the MLP adds: W_E itself is part of the residual stream",
            lambda model, **_: effective_embedding(model) - model.W_E),
    Mistake("the norm before the MLP is left out: the MLP reads ln2 of the residual stream",
            lambda model, **_: model.W_E + model.blocks[0].mlp(model.W_E[None])[0]),
    Mistake("this is the MLP of another layer: the embedding is made effective by layer 0",
            lambda model, **_: model.W_E + model.blocks[1].mlp(model.blocks[1].ln2(model.W_E[None]))[0]),
    Mistake("this is the unembedding: start from W_E",
            lambda model, **_: model.W_U.T + model.blocks[0].mlp(model.blocks[0].ln2(model.W_U.T[None]))[0]),
    Mistake("this is W_E: add what the first MLP makes of it", lambda model, **_: model.W_E),
    Mistake("the batch axis is still there: [vocab, d_model]",
            predicate=lambda got, expected: getattr(got, "ndim", 0) == 3),
]


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
            "Follow a token that is attended to: embedding, W_V, W_O, unembedding.",
            "W_E W_V is [vocab, d_head] and W_O W_U is [d_head, vocab]: these are the two factors.",
            'With `weights = head_weights(model, layer, head)`: '
            '`FactoredMatrix(model.W_E @ weights["V"], weights["O"] @ model.W_U)`.',
        ),
        minutes=6,
        difficulty=1,
        on_any_model=full_OV_circuit,
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
            ".float().mean()`. Better: a strip of rows at a time, `matrix.A[i:i + 256] @ matrix.B`.",
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
        id="04.full_QK_circuit",
        title="What does a head look for?",
        reference=full_QK_circuit,
        check=compare_cases(head_cases, QK_MISTAKES, keeps_inputs=True),
        hints=(
            "A score is query · key: both are the embedding times a matrix of the head.",
            "Queries are W_E W_Q, keys W_E W_K, both [vocab, d_head]. Rows of the circuit are queries.",
            '`FactoredMatrix(model.W_E @ weights["Q"], (model.W_E @ weights["K"]).T)`',
        ),
        minutes=6,
        difficulty=1,
        on_any_model=full_QK_circuit,
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
            "The modules want [batch, pos, d_model]: `model.W_E[None]`, and `[0]` afterwards.",
            "`model.W_E + block.mlp(block.ln2(model.W_E[None]))[0]`",
        ),
        minutes=5,
        difficulty=1,
        on_any_model=circuits.effective_embedding,
    ),
]
