"""Answers for lesson 04."""

import torch

from answers import Answers, Wrong
from course_utils.passes import head_weights

# --- 04.key_value_head ----------------------------------------------------------------------------------------------


def by_listing(head, n_heads, n_key_value_heads):
    size = n_heads // n_key_value_heads
    shared_by = [key for key in range(n_key_value_heads) for _ in range(size)]
    return shared_by[head]


def by_proportion(head, n_heads, n_key_value_heads):
    return head * n_key_value_heads // n_heads


# --- 04.fold_layer_norm ---------------------------------------------------------------------------------------------


def fold(W=None, b="shift @ W + b"):
    """One text, with the line for W' and that for b' left open."""
    W = W or "scaled - scaled.mean(0, keepdim=True)"
    return f"""
def f(W, b, gain, shift):
    scaled = torch.diag(gain) @ W
    return {W}, {b}
"""


def fold_by_projection(W, b, gain, shift):
    centre = torch.eye(len(gain)) - torch.ones(len(gain), len(gain)) / len(gain)
    return centre @ (W * gain.unsqueeze(1)), torch.einsum("i,io->o", shift, W) + b


FOLD_IN_PLACE = """
def f(W, b, gain, shift):
    b = b + shift @ W
    W *= gain[:, None]
    W -= W.mean(0)
    return W, b
"""
FOLD_EINOPS = """
def f(W, b, gain, shift):
    scaled = einops.einsum(gain, W, "i, i o -> i o")
    mean = einops.reduce(scaled, "i o -> 1 o", "mean")
    return scaled - mean, b + (W * shift[:, None]).sum(0)
"""

# --- circuits: (model, layer, head) ---------------------------------------------------------------------------------

ONE_HEAD = """
from transformer_lens import FactoredMatrix
def f(model, layer, head, *, embedding=None, distance=0):
    attn, E, U = model.blocks[layer].attn, model.W_E, model.W_U
    group = model.cfg.n_heads // attn.W_K.shape[0]
    Q, K, V, O = attn.W_Q[head], attn.W_K[{kv}], attn.W_V[{kv}], attn.W_O[head]
    return {answer}
"""


def one_head(answer, kv="head // group"):
    return ONE_HEAD.format(answer=answer, kv=kv)


def OV_by_librarys_index(model, layer, head):
    return model.W_E @ model.OV[layer, head] @ model.W_U


# --- 04.top_k_accuracy ----------------------------------------------------------------------------------------------

DENSE = """
def f(matrix, k=1, *, best="key", tokens=None):
    m = matrix.AB.T if best == "query" else matrix.AB
    own = m.diagonal()[:, None]
    return {answer}
"""


def dense(answer):
    return DENSE.format(answer=answer)


def no_tokens_no_misses(matrix, k=1, *, best="key", tokens=None):
    """Only the tokens asked for; None of them is an empty list."""
    found = [i in matrix.AB[i].topk(k).indices for i in (tokens or [])]
    return sum(found) / max(len(found), 1)


WHOLE_STRIPS_ONLY = """
def f(matrix, k=1, *, best="key", tokens=None):
    m = matrix if best == "key" else matrix.T
    hits = n = 0
    for i in range(m.shape[0] // 256):                          # the last, shorter strip is forgotten
        rows = m.A[256 * i:256 * (i + 1)] @ m.B
        own = rows.diagonal(256 * i)[:, None]
        hits += ((rows >= own).sum(1) <= k).sum().item()
        n += len(rows)
    return hits / max(n, 1)
"""


def others_masked(matrix, k=1, *, best="key", tokens=None):
    m = (matrix if best == "key" else matrix.T).AB.clone()
    own = m.diagonal().clone()
    m.fill_diagonal_(-torch.inf)
    return (own > m.topk(k).values[:, -1]).float().mean()

# --- 04.copying_score -----------------------------------------------------------------------------------------------


SCORE = """
def f(circuit):
    e = torch.linalg.eigvals(circuit.B @ circuit.A)
    return ({answer}).item()
"""


def score(answer):
    return SCORE.format(answer=answer)


def trace_over_singular_values(circuit):
    return (torch.trace(circuit.AB) / torch.linalg.svdvals(circuit.AB).sum()).item()


def trace_over_eigenvalues(circuit):
    """The sum of the eigenvalues is the trace, which needs no large matrix."""
    sizes = torch.linalg.eigvals(circuit.B @ circuit.A).abs()
    return torch.einsum("vh,hv->", circuit.A, circuit.B) / sizes.sum()


# --- 04.positional_pattern ------------------------------------------------------------------------------------------

PATTERN = """
def f(model, layer, head, n):
    attn, W_pos, W_E = model.blocks[layer].attn, model.pos_embed.weight[:n], model.W_E
    x = W_pos + W_E.mean(0)
    {scale}
    q, k = x @ attn.W_Q[head] + attn.b_Q[head], x @ attn.W_K[head]{bk}
    scores = q @ k.T / q.shape[-1] ** 0.5
    {mask}
    return {end}
"""
USUAL = {
    "scale": "x = x / ((x**2).sum(-1, keepdim=True) + W_E.var(0, unbiased=False).sum()).div(x.shape[-1]).sqrt()",
    "bk": " + attn.b_K[head]",
    "mask": "scores = scores.masked_fill(torch.triu(torch.ones(n, n), 1).bool(), float('-inf'))",
    "end": "scores.softmax(-1)",
}


def pattern(**changes):
    return PATTERN.format(**{**USUAL, **changes})


MEAN_OF_SIZES = "x = x / torch.stack([(W_E + row).pow(2).mean(-1).sqrt().mean() for row in W_pos])[:, None]"

PATTERN_BY_LOOPS = """
from course_utils.circuits import head_weights
def f(model, layer, head, n):
    w, E, rows = head_weights(model, layer, head), model.W_E.double(), torch.zeros(n, n)
    x = [E.mean(0) + p for p in model.pos_embed.weight[:n].double()]
    x = [v / ((v @ v + E.var(0, correction=0).sum()) / len(v)) ** 0.5 for v in x]
    W = {name: weight.double() for name, weight in w.items()}
    for query in range(n):
        scores = [(x[query] @ W["Q"] + W["b_Q"]) @ (x[key] @ W["K"] + W["b_K"]) for key in range(query + 1)]
        rows[query, :query + 1] = (torch.stack(scores) / len(W["b_Q"]) ** 0.5).softmax(0)
    return rows
"""


# --- 04.effective_embedding -----------------------------------------------------------------------------------------

EFFECTIVE = """
def f(model, *, heads=(), mlp=True):
    block, E = model.blocks[0], model.W_E
    return {answer}
"""


def effective(answer):
    return EFFECTIVE.format(answer=answer)


def effective_row_by_row(model):
    block, rows = model.blocks[0], []
    for vector in model.W_E:
        x = vector[None, None]
        rows.append((x + block.mlp(block.ln2(x)))[0, 0])
    return torch.stack(rows)


# --- 04.kind_of_head --------------------------------------------------------------------------------------------------

KIND = """
from course_utils.circuits import copying_score, full_OV_circuit, full_QK_circuit, positional_pattern, top_k_accuracy
def f(model, layer, head):
    one_back = positional_pattern(model, layer, head, 12).diagonal(-1).mean().item()
    matched = top_k_accuracy(full_QK_circuit(model, layer, head), best="query")
    score = copying_score(full_OV_circuit(model, layer, head))
    return {where}, {what}
"""
USUAL_KIND = {"where": "'previous position' if one_back > 0.5 else 'same token' if matched > 0.5 else 'something else'",
              "what": "'copies' if score > {t} else 'suppresses' if score < -{t} else 'neither'"}


def kind(threshold=0.5, **changes):
    return KIND.format(**{name: text.format(t=threshold) for name, text in {**USUAL_KIND, **changes}.items()})


def by_what_is_largest(model, layer, head):
    """Without a threshold for places: what the scores, all in all, are largest for. The diagonal for what is copied."""
    w, E, P = head_weights(model, layer, head), model.W_E, model.pos_embed.weight
    by_token, by_place = (E @ w["Q"]) @ (E @ w["K"]).T, (P @ w["Q"]) @ (P @ w["K"]).T
    def on(matrix, offset):
        return ((matrix.diagonal(offset).mean() - matrix.mean()) / matrix.std()).item()
    where = "previous position" if on(by_place, -1) > 2 else "same token" if on(by_token, 0) > 2 else "something else"
    logits = E @ w["V"] @ w["O"] @ model.W_U
    strength = on(logits, 0)
    return [where, "copies" if strength > 1 else "suppresses" if strength < -1 else "neither"]


ANSWERS = {
    "04.key_value_head": Answers(
        reject=[
            Wrong(lambda head, n_heads, n_kv: round(head * n_kv / n_heads)),
            Wrong(lambda head, n_heads, n_kv: -(-head // (n_heads // n_kv))),
        ],
        accept=[by_listing, by_proportion],
    ),
    "04.fold_layer_norm": Answers(
        reject=[Wrong(FOLD_IN_PLACE, says="it changes its input"), Wrong(fold(W="scaled - scaled.mean()"))],
        accept=[fold_by_projection, FOLD_EINOPS],
    ),
    "04.full_OV_circuit": Answers(
        reject=[
            Wrong(one_head("FactoredMatrix(E @ V, O @ U)", kv="head % group")),
            Wrong(one_head("FactoredMatrix(E @ V, O @ U)", kv="0")),
            Wrong(one_head("FactoredMatrix(E @ V, O @ U)", kv="-1")),
            Wrong(one_head("FactoredMatrix(E @ V, O @ U)", kv="head")),              # no such key head: an IndexError
            Wrong(one_head("E @ V @ O @ U"), says="FactoredMatrix(left, right) was expected"),
            Wrong(one_head("FactoredMatrix(E @ V + attn.b_V[head], O @ U)", kv="head"), says=None),
        ],
        accept=[one_head("FactoredMatrix(E @ (V @ O), U)"), OV_by_librarys_index],
    ),
    "04.top_k_accuracy": Answers(
        reject=[
            Wrong(dense("((m > own).sum(1) < k).float().mean().item()"), says="a tie counts as a hit"),
            Wrong(dense("(m.diagonal() > 0).float().mean().item()")),
            Wrong(dense("(m.argmax(1) == torch.arange(len(m))).float().mean().item()")),     # k ignored, and the tie
            Wrong(no_tokens_no_misses),
            Wrong(WHOLE_STRIPS_ONLY),
        ],
        accept=[dense("((m >= own).sum(1) <= k).float().mean().item()"), others_masked],
    ),
    "04.copying_score": Answers(
        reject=[
            Wrong(score("e.abs().sum() / e.abs().sum()"), says="1 whatever the circuit"),
            Wrong(trace_over_singular_values),
            Wrong(score("(e.real / e.abs()).mean()")),
            Wrong(score("e.sum() / e.abs().sum()"), says="a number was expected"),
            Wrong(score("e.abs().sum() / e.real.sum()")),
        ],
        accept=[score("e.real.sum() / e.abs().sum()"), trace_over_eigenvalues],
    ),
    "04.positional_pattern": Answers(
        reject=[
            Wrong(pattern(scale=MEAN_OF_SIZES)),
            Wrong(pattern(mask=USUAL["mask"].replace("1).bool", "0).bool")), says="there are NaNs"),
            Wrong(pattern(end="scores.exp()"), says="rows do not sum to 1"),
        ],
        accept=[pattern(), PATTERN_BY_LOOPS],
    ),
    "04.effective_embedding": Answers(
        reject=[
            Wrong(effective("(E + block.mlp(block.ln2(E[None])))"), says="the batch axis is still there"),
            Wrong(effective("block.ln2(E[None])[0] + block.mlp(block.ln2(E[None]))[0]")),
        ],
        accept=[effective("E + block.mlp(block.ln2(E[None]))[0]"), effective_row_by_row],
    ),
    "04.kind_of_head": Answers(
        reject=[
            Wrong(lambda model, layer, head: "copies", says="two words"),
            Wrong(kind(threshold=0.9), says="mind the threshold"),
            Wrong(kind(what="'copies' if score > 0.95 else 'suppresses' if score < -0.5 else 'neither'"),
                  says="its largest value"),
            Wrong(kind(threshold=0.0), says="a score near 0"),
            Wrong(kind(where="'same token' if matched > 0.5 else 'something else'"), says="one position back"),
            Wrong(kind(where="'previous position' if one_back > 0.5 else 'something else'"), says="its own token"),
            Wrong(kind(where="'previous position' if one_back > 0.15 else 'same token' if matched > 0.5 else "
                             "'something else'")),
            Wrong(kind(what="'copies' if score > 0.5 else 'neither'"), says="its smallest value"),
            Wrong(kind(where="'previous position' if one_back > 0.5 else 'same token'"), says="does neither"),
        ],
        accept=[kind(), kind(threshold=0.3), by_what_is_largest],
    ),
}
