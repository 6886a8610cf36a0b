"""Answers for lesson 04."""

import torch
from answers import Answers, Wrong
from transformer_lens import FactoredMatrix

from course_utils.circuits import head_weights

# --- 04.key_value_head -------------------------------------------------------------------------------------------------


def by_listing(head, n_heads, n_key_value_heads):
    size = n_heads // n_key_value_heads
    shared_by = [key for key in range(n_key_value_heads) for _ in range(size)]
    return shared_by[head]


def by_proportion(head, n_heads, n_key_value_heads):
    return head * n_key_value_heads // n_heads


def by_repeat_interleave(head, n_heads, n_key_value_heads):
    return torch.arange(n_key_value_heads).repeat_interleave(n_heads // n_key_value_heads)[head].item()


# --- 04.fold_layer_norm ------------------------------------------------------------------------------------------------


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


FOLD_EINOPS = """
def f(W, b, gain, shift):
    scaled = einops.einsum(gain, W, "i, i o -> i o")
    mean = einops.reduce(scaled, "i o -> 1 o", "mean")
    return scaled - mean, b + (W * shift[:, None]).sum(0)
"""

# --- circuits: (model, layer, head) ------------------------------------------------------------------------------------

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


def OV_by_library(model, layer, head):
    OV = model.OV
    return FactoredMatrix(model.W_E @ OV.A[layer, head], OV.B[layer, head] @ model.W_U)


def OV_algebra(model, layer, head):
    w = head_weights(model, layer, head)
    return model.W_E @ FactoredMatrix(w["V"], w["O"]) @ model.W_U


def QK_by_library(model, layer, head):
    QK = model.QK
    return FactoredMatrix(model.W_E @ QK.A[layer, head], QK.B[layer, head] @ model.W_E.T)


def QK_turned_twice(model, layer, head):
    w = head_weights(model, layer, head)
    return FactoredMatrix(model.W_E @ w["K"], (model.W_E @ w["Q"]).T).T


# --- 04.top_k_accuracy -------------------------------------------------------------------------------------------------

DENSE = """
def f(matrix, k=1, *, best="key", tokens=None):
    m = matrix.AB
    {turn}
    own = m.diagonal()[:, None]
    return {answer}
"""
TURN = 'm = m.T if best == "query" else m'


def dense(answer, turn=TURN):
    return DENSE.format(answer=answer, turn=turn)


def by_sorting(matrix, k=1, *, best="key"):
    rows = (matrix if best == "key" else matrix.T).AB.tolist()
    hits = 0
    for i, row in enumerate(rows):
        others = row[:i] + row[i + 1:]
        hits += row[i] > sorted(others)[-k]
    return hits / len(rows)


def nothing_looked_at(matrix, k=1, *, best="key"):
    hits = [i for i in range(0) if matrix.AB[i].argmax() == i]          # an empty loop
    return float(all(hits))


STRIPS = """
def f(matrix, k=1, *, best="key", tokens=None):
    m = matrix if best == "key" else matrix.T
    n, hits = m.shape[0], 0
    for i in range(0, n, 7):
        rows = m.A[i:i + 7] @ m.B
        own = rows[range(len(rows)), range(i, i + len(rows))]
        hits += ((rows >= own[:, None]).sum(1) <= k).sum().item()
    return hits / n
"""

# --- 04.copying_score --------------------------------------------------------------------------------------------------

SCORE = """
def f(circuit):
    e = torch.linalg.eigvals(circuit.B @ circuit.A)
    return ({answer}).item()
"""


def score(answer):
    return SCORE.format(answer=answer)


def singular(circuit):
    s = torch.linalg.svdvals(circuit.AB)
    return (s.sum() / s.abs().sum()).item()


def by_library(circuit):
    e = circuit.eigenvalues
    return (e.sum().real / e.abs().sum()).item()


def of_the_large_matrix(circuit):
    e = torch.linalg.eigvals(circuit.AB.double())
    return float(e.real.sum() / e.abs().sum())


# --- 04.positional_pattern ---------------------------------------------------------------------------------------------

PATTERN = """
def f(model, layer, head, n):
    attn, W_pos, W_E = model.blocks[layer].attn, model.pos_embed.weight[:n], model.W_E
    x = W_pos + W_E.mean(0)
    {scale}
    q, k = x @ attn.W_Q[head]{bq}, x @ attn.W_K[head]{bk}
    scores = {scores}
    {mask}
    return {end}
"""
USUAL = {
    "scale": "x = x / ((x**2).sum(-1, keepdim=True) + W_E.var(0, unbiased=False).sum()).div(x.shape[-1]).sqrt()",
    "bq": " + attn.b_Q[head]",
    "bk": " + attn.b_K[head]",
    "scores": "q @ k.T / q.shape[-1] ** 0.5",
    "mask": "scores = scores.masked_fill(torch.triu(torch.ones(n, n), 1).bool(), float('-inf'))",
    "end": "scores.softmax(-1)",
}


def pattern(**changes):
    return PATTERN.format(**{**USUAL, **changes})


def pattern_with_all_tokens(model, layer, head, n):
    """The root mean square over the whole vocabulary, computed; the mask added as −inf."""
    w, W_pos, W_E = head_weights(model, layer, head), model.pos_embed.weight[:n], model.W_E
    size = torch.stack([(W_E + row).pow(2).mean().sqrt() for row in W_pos])
    x = (W_pos + W_E.mean(dim=0)) / size[:, None]
    q, k = x @ w["Q"] + w["b_Q"], x @ w["K"] + w["b_K"]
    scores = torch.einsum("qd,kd->qk", q, k) / q.shape[1] ** 0.5
    return torch.softmax(scores + torch.full((n, n), -torch.inf).triu(1), dim=1)


# --- 04.effective_embedding --------------------------------------------------------------------------------------------

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


def effective_with_hooks(model):
    """A pass over one token a row, without attention and positions; what leaves block 0."""
    def nothing(value, hook):
        return torch.zeros_like(value)
    names = ["blocks.0.hook_attn_out", *(["hook_pos_embed"] if hasattr(model, "pos_embed") else [])]
    kept = {}
    last = ("blocks.1.hook_resid_pre", lambda value, hook: kept.update(x=value))
    model.run_with_hooks(torch.arange(model.cfg.d_vocab)[:, None], fwd_hooks=[*((name, nothing) for name in names), last])
    return kept["x"][:, 0]


ANSWERS = {
    "04.key_value_head": Answers(
        reject=[
            Wrong(lambda head, n_heads, n_kv: head % n_kv, says="deals heads out in turn"),
            Wrong(lambda head, n_heads, n_kv: head // n_kv, says="divide by the size of a group"),
            Wrong(lambda head, n_heads, n_kv: head, says="no such key head"),
            Wrong(lambda head, n_heads, n_kv: min(head, n_kv - 1), says="`min` sends"),
            Wrong(lambda head, n_heads, n_kv: head % (n_heads // n_kv)),
            Wrong(lambda head, n_heads, n_kv: head / (n_heads / n_kv)),
        ],
        accept=[by_listing, by_proportion, by_repeat_interleave],
    ),
    "04.fold_layer_norm": Answers(
        reject=[
            Wrong(fold(W="scaled"), says="not centred"),
            Wrong(fold(W="scaled - scaled.mean(1, keepdim=True)"), says="rows are centred"),
            Wrong(fold(b="shift @ W"), says="the old bias is lost"),
            Wrong(fold(b="b"), says="the shift is lost"),
            Wrong(fold(b="shift @ scaled + b"), says="the shift meets the scaled weights"),
            Wrong(fold(W="W - W.mean(0)"), says="the gain is left out"),
            Wrong(fold(W="scaled - scaled.mean()")),
            Wrong(fold(W="W * gain[0] - (W * gain[0]).mean(0)")),
            Wrong(fold(b="(shift @ W) * b")),
        ],
        accept=[fold(), fold_by_projection, FOLD_EINOPS],
    ),
    "04.full_OV_circuit": Answers(
        reject=[
            Wrong(one_head("FactoredMatrix((O @ U).T, (E @ V).T)"), says="transposed"),
            Wrong(one_head("FactoredMatrix(E @ V, O @ U)", kv="head % attn.W_K.shape[0]"), says="grouped-query"),
            Wrong(one_head("FactoredMatrix(E @ V, O @ E.T)"), says="W_E stands at the end too"),
            Wrong(one_head("FactoredMatrix(E @ K, O @ U)"), says="this uses W_Q or W_K"),
            Wrong(one_head("FactoredMatrix(E @ Q, O @ U)"), says="this uses W_Q or W_K"),
            Wrong(one_head("FactoredMatrix(E @ V, O @ U)", kv="head")),              # no such key head: an IndexError
            Wrong(one_head("E @ V @ O @ U"), says="FactoredMatrix(left, right) was expected"),
            Wrong(one_head("FactoredMatrix(V, O)")),
            Wrong(one_head("FactoredMatrix(U.T @ V, O @ U)")),
        ],
        accept=[one_head("FactoredMatrix(E @ V, O @ U)"), one_head("FactoredMatrix(E @ (V @ O), U)"), OV_by_library, OV_algebra],
    ),
    "04.top_k_accuracy": Answers(
        reject=[
            Wrong(dense("((m >= own).sum(1) <= k).float().mean().item()", 'm = m.T if best == "key" else m'),
                  says="key and query are swapped"),
            Wrong(dense("((m >= own).sum(1) <= k).float().mean().item()", "pass"), says="`best` is ignored"),
            Wrong(dense("((m >= own).sum(1) <= 1).float().mean().item()"), says="`k` is ignored"),
            Wrong(dense("((m > own).sum(1) < k).float().mean().item()"), says="a tie counts as a hit"),
            Wrong(dense("((m >= own).sum(1) <= k + 1).float().mean().item()"), says="one off"),
            Wrong(dense("((m >= own).sum(1) <= k).sum().item()"), says="this is the number of hits"),
            Wrong(dense("100 * ((m >= own).sum(1) <= k).float().mean().item()"), says="per cent"),
            Wrong(dense("(m.argmax(1) == m.argmax(0)).float().mean().item()")),
            Wrong(dense("(m.diagonal() > 0).float().mean().item()")),
            Wrong(nothing_looked_at),
        ],
        accept=[dense("((m >= own).sum(1) <= k).float().mean().item()"), by_sorting, STRIPS],
    ),
    "04.copying_score": Answers(
        reject=[
            Wrong(score("e.real.sum() / e.real.abs().sum()"), says="of their real parts' sizes"),
            Wrong(score("e.real.sum() / e.sum().abs()"), says="not by the size of the sum"),
            Wrong(score("e.real.sum()"), says="this is the sum of the eigenvalues"),
            Wrong(score("(e.real > 0).float().mean()"), says="share of eigenvalues"),
            Wrong(singular, says="singular values"),
            Wrong(score("e.abs().sum() / e.real.sum()")),
            Wrong(score("e.real.mean()")),
        ],
        accept=[score("e.real.sum() / e.abs().sum()"), by_library, of_the_large_matrix],
    ),
    "04.full_QK_circuit": Answers(
        reject=[
            Wrong(one_head("FactoredMatrix(E @ K, (E @ Q).T)"), says="queries and keys are swapped"),
            Wrong(one_head("FactoredMatrix(E @ Q, (E @ K).T)", kv="head % attn.W_K.shape[0]"), says="grouped-query"),
            Wrong(one_head("FactoredMatrix(E @ Q / Q.shape[1] ** 0.5, (E @ K).T)"), says="sqrt(d_head)"),
            Wrong(one_head("FactoredMatrix(E @ Q, (E @ Q).T)"), says="both sides use W_Q"),
            Wrong(one_head("FactoredMatrix(E @ K, (E @ K).T)"), says="both sides use W_K"),
            Wrong("""
from transformer_lens import FactoredMatrix
from course_utils.circuits import head_weights
def f(model, layer, head, *, embedding=None, distance=0):
    w = head_weights(model, layer, head)
    return FactoredMatrix(model.W_E @ w["Q"] + w["b_Q"], (model.W_E @ w["K"] + w["b_K"]).T)
""", says="the biases are in it"),
            Wrong(one_head("FactoredMatrix(E @ Q, (U.T @ K).T)")),
            Wrong(one_head("FactoredMatrix(E @ Q, (E @ V).T)")),
            Wrong(one_head("FactoredMatrix(Q, K.T)")),
        ],
        accept=[one_head("FactoredMatrix(E @ Q, (E @ K).T)"), one_head("FactoredMatrix(E, (E @ K @ Q.T).T)"), QK_by_library,
                QK_turned_twice],
    ),
    "04.positional_pattern": Answers(
        reject=[
            Wrong(pattern(mask="pass"), says="queries see later keys"),
            Wrong(pattern(scores="q @ k.T"), says="not divided by sqrt(d_head)"),
            Wrong(pattern(scale="pass"), says="the norm's scale is left out"),
            Wrong(pattern(bq="", bk=""), says="the biases b_Q and b_K"),
            Wrong(pattern(scores="k @ q.T / q.shape[-1] ** 0.5"), says="queries and keys are swapped"),
            Wrong(pattern(end="scores.exp()"), says="rows do not sum to 1"),
            Wrong(pattern(end="scores.softmax(0)")),
            Wrong(pattern(mask="scores = scores.tril()")),
            Wrong(pattern(scale="x = W_pos / W_pos.norm(dim=-1, keepdim=True)")),
        ],
        accept=[pattern(), pattern_with_all_tokens],
    ),
    "04.effective_embedding": Answers(
        reject=[
            Wrong(effective("block.mlp(block.ln2(E[None]))[0]"), says="this is what the MLP adds"),
            Wrong(effective("E + block.mlp(E[None])[0]"), says="the norm before the MLP is left out"),
            Wrong(effective("E + model.blocks[1].mlp(model.blocks[1].ln2(E[None]))[0]"), says="another layer"),
            Wrong(effective("model.W_U.T + block.mlp(block.ln2(model.W_U.T[None]))[0]"), says="this is the unembedding"),
            Wrong(effective("E"), says="this is W_E"),
            Wrong(effective("(E + block.mlp(block.ln2(E[None])))"), says="the batch axis is still there"),
            Wrong(effective("block.ln2(E[None])[0] + block.mlp(block.ln2(E[None]))[0]")),
            Wrong(effective("E + block.mlp(block.ln2(block.mlp(E[None])))[0]")),
        ],
        accept=[effective("E + block.mlp(block.ln2(E[None]))[0]"), effective_row_by_row, effective_with_hooks],
    ),
}
