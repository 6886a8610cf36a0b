"""Reading circuits from the weights: what a head matches (QK), what it copies (OV), and how two heads compose.

A circuit is a matrix over the vocabulary, too large to store (50,257² numbers) and never needed whole: it is kept as
two thin factors (`FactoredMatrix`) and read in strips. All functions expect a model from `load_model`: the norms'
weights are folded into the maps that follow, so what is left of a norm is a division by a scale, which the plain
circuits leave out.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens import FactoredMatrix

from course_utils.house import NotForThisModel
from course_utils.passes import (
    Head,
    Traits,
    after_block_0,
    centred,
    check_head,
    check_unpadded,
    gain_of,
    head_weights,
    key_value_head,
    normalize,
    normed_reading,
    read_activation,
    require,
)

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

BLOCK = 2048             # rows and columns of a circuit held at once: 16 MB (a tenth faster than 4 MB; measured)
FEW_ROWS = 64            # as many are held whole: with 50,257 tokens, 13 MB
TOKENS_AT_A_TIME = 2048  # tokens that go through block 0 at once, each a sequence of its own


# --- the weights of one head ---------------------------------------------------------------------------------------


def full_OV_circuit(
    model: TransformerBridge, layer: int, head: int, *, embedding: Float[Tensor, "vocab d_model"] | None = None
) -> FactoredMatrix:
    """W_E W_V W_O W_U: row = the token attended to, column = the token whose logit it raises. [vocab, vocab]

    Args:
        embedding: the vector of each token, instead of W_E; for example `effective_embedding(model)`.
    Raises:
        ValueError: if layer or head is out of range.
        NotForThisModel: if the model's heads or its embedding are of another kind (see `passes.NEEDS`).
    Source: Elhage et al., "A Mathematical Framework for Transformer Circuits" (2021).
    """
    require(model, "a full OV circuit", "reads", "patterns", "writes", "unembedding")
    weights = head_weights(model, layer, head)
    embedding = token_vectors(model) if embedding is None else embedding
    return FactoredMatrix(embedding @ weights["V"], weights["O"] @ model.W_U)


def full_QK_circuit(
    model: TransformerBridge, layer: int, head: int, *, embedding: Float[Tensor, "vocab d_model"] | None = None,
    distance: int = 0,
) -> FactoredMatrix:
    """W_E W_Q (W_E W_K)^T: row = the query's token, column = the key's; not divided by sqrt(d_head). [vocab, vocab]

    Where the model rotates queries and keys by their positions (rotary), their product depends on how far apart they
    are. Without that rotation (`distance=0`) it is the score of a query and a key *at the same position*; `distance=d`
    is the score of a key d positions before the query. Where the model norms queries and keys (Qwen 3), so does the
    circuit; where it caps scores softly (Gemma 2), these are the scores before the cap.

    Raises:
        ValueError: if layer or head is out of range, or a distance is given for a model without rotary positions.
        NotForThisModel: if the model's scores or its embedding are of another kind (see `passes.NEEDS`).
    Source: Elhage et al. (2021); rotary positions: Su et al., "RoFormer" (2021).
    """
    require(model, "a full QK circuit", "reads", "scores")
    weights = head_weights(model, layer, head)
    embedding = token_vectors(model) if embedding is None else embedding
    queries = normed_reading(model, layer, "q", embedding @ weights["Q"])           # [vocab, d_head]
    keys = normed_reading(model, layer, "k", embedding @ weights["K"])
    return FactoredMatrix(rotate(model, queries, distance, layer), keys.T)


def K_comp_full_circuit(
    model: TransformerBridge, prev_token_layer_index: int, ind_layer_index: int, prev_token_head_index: int,
    ind_head_index: int, *, query_embedding: Float[Tensor, "vocab d_model"] | None = None,
    key_embedding: Float[Tensor, "vocab d_model"] | None = None, layer_norm: bool = False, query_bias: bool = False,
    distance: int = 0,
) -> FactoredMatrix:
    """(E W_Q)(E W_V W_O W_K)^T: how well a query for one token matches a key that says "after that one". [vocab, vocab]

    Rows are the query's token, columns the token that the previous-token head moved one position on (V and O of that
    head), where the induction head reads it (K). It is a circuit of QK matching only; what is copied is the OV's.

    Args:
        query_embedding, key_embedding: the vector of each token on either side, instead of W_E; such as
            `effective_embedding(model)` or W_E plus the embedding of one position.
        layer_norm: divide each embedding by its norm's scale, as the norm before either head would if nothing else
            were in the residual stream. The scale of the keys' norm in the induction layer depends on the rest of
            that position, which a circuit of tokens does not know; it is left out.
        query_bias: add b_Q. It changes which key is best for a query, never which query is best for a key.
            (b_K does the opposite, and is left out as in the source.)
        distance: for rotary models, how far the key lies before the query; see `full_QK_circuit`.
    Raises:
        ValueError: if a layer or head is out of range, or the induction layer is not after the other.
    Source: Xiang (2024), who uses W_E on both sides and none of the options.
    """
    if not prev_token_layer_index < ind_layer_index:
        raise ValueError(f"the induction head's layer ({ind_layer_index}) must come after the previous-token head's "
                         f"({prev_token_layer_index}): it reads what that head wrote")
    require(model, "a K-composition circuit", "reads", "writes", "scores")
    previous = head_weights(model, prev_token_layer_index, prev_token_head_index)
    induction = head_weights(model, ind_layer_index, ind_head_index)
    query_side = token_vectors(model) if query_embedding is None else query_embedding
    key_side = token_vectors(model) if key_embedding is None else key_embedding
    if layer_norm:
        query_side, key_side = normalize(model, query_side), normalize(model, key_side)
    queries = query_side @ induction["Q"] + (induction["b_Q"] if query_bias else 0)             # [vocab, d_head]
    keys = key_side @ previous["V"] @ previous["O"] @ induction["K"]                            # [vocab, d_head]
    queries = normed_reading(model, ind_layer_index, "q", queries)
    keys = normed_reading(model, ind_layer_index, "k", keys)
    return FactoredMatrix(rotate(model, queries, distance, ind_layer_index), keys.T)


# --- the vector of a token -----------------------------------------------------------------------------------------


def token_vectors(model: TransformerBridge) -> Float[Tensor, "vocab d_model"]:
    """What each token puts into the residual stream: W_E, times the model's own constant (Gemma: sqrt(d_model)).

    Raises:
        NotForThisModel: if the stream does not begin so.
    """
    scale = require(model, "what a token puts into the stream", "embedding").embedding_scale
    W_E = model.W_E.detach()  # a parameter itself would be registered by a module that keeps its input
    return W_E if scale == 1 else scale * W_E


@torch.no_grad()
def effective_embedding(
    model: TransformerBridge, *, heads: Sequence[int] = (), mlp: bool = True
) -> Float[Tensor, "vocab d_model"]:
    """What a token alone has made of the residual stream after block 0: W_E, and what block 0 adds to it.

    By default W_E + MLP_0(norm(W_E)), as is common for GPT-2, whose embedding is tied to the unembedding so that the
    first MLP does part of an embedding's work. Attention is left out, although the MLP reads its output: `heads`
    names those heads of layer 0 that are to take part as if each token attended to itself alone (then b_O is added
    too). With all heads it is what a sequence of that single token, without a position, has after block 0.

    The model's own block 0 computes it, so its kind does not matter (parallel, with norms after it, of experts).

    Raises:
        ValueError: if one of `heads` is not a head of layer 0.
        NotForThisModel: if the residual stream does not begin with the embedding.
    """
    for head in heads:
        check_head(model, 0, head)
    if heads:
        require(model, "an embedding through single heads", "zero")
    embedding = token_vectors(model)
    tokens = torch.arange(model.cfg.d_vocab, device=model.cfg.device)
    strips = [after_block_0(model, some, embedding[some], heads, mlp) for some in tokens.split(TOKENS_AT_A_TIME)]
    return torch.cat(strips)


def fold_layer_norm(
    W: Float[Tensor, "d_in d_out"], b: Float[Tensor, "d_out"], gain: Float[Tensor, "d_in"], shift: Float[Tensor, "d_in"]
) -> tuple[Float[Tensor, "d_in d_out"], Float[Tensor, "d_out"]]:
    """Weights that do a LayerNorm's elementwise part too: x̂ W' + b' = (x̂ * gain + shift) W + b for every x̂.

    x̂ is the centred input divided by its standard deviation. Because it is centred, adding the same number to a
    whole column of W' changes nothing; the columns of W' are centred, so that W' ignores the mean by itself.
    """
    folded = gain[:, None] * W
    return folded - folded.mean(dim=0), shift @ W + b


# --- positions -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def positional_pattern(model: TransformerBridge, layer: int, head: int, n_positions: int) -> Float[Tensor, "query key"]:
    """The attention pattern that position embeddings alone ask for.

    Each position p is represented by W_pos[p] + mean W_E, divided by the root mean square over tokens t of
    W_E[t] + W_pos[p] (the scale of the norm in layer 0). In later layers this is what is left if nothing between has
    touched the positions: an approximation to hold against real patterns.

    Raises:
        ValueError: if layer or head is out of range, the model has no position embeddings (rotary models:
            `score_by_distance`), or fewer than n_positions.
        NotForThisModel: if the model's scores or its embedding are of another kind (see `passes.NEEDS`).
    """
    traits = require(model, "a positional pattern", "embedding", "reads", "scores")
    weights = head_weights(model, layer, head)
    if not traits.has_positions:
        raise NotForThisModel("this model has no position embeddings; with rotary positions use score_by_distance")
    if not 1 <= n_positions <= model.cfg.n_ctx:
        raise ValueError(f"n_positions is {n_positions}; this model has {model.cfg.n_ctx} position embeddings")
    W_E = centred(model, token_vectors(model))
    x = centred(model, position_vectors(model, n_positions)) + W_E.mean(dim=0)          # [pos, d_model]
    mean_square = (x.pow(2).sum(dim=-1) + W_E.var(dim=0, unbiased=False).sum()) / x.shape[-1]
    x = x / mean_square.sqrt()[:, None]
    queries = normed_reading(model, layer, "q", x @ weights["Q"] + weights["b_Q"])      # [pos, d_head]
    keys = normed_reading(model, layer, "k", x @ weights["K"] + weights["b_K"])
    scores = traits.scores(layer, queries @ keys.T)
    return scores.masked_fill(~visible(model, layer, n_positions), -torch.inf).softmax(dim=-1)


def visible(model: TransformerBridge, layer: int, n_positions: int) -> Bool[Tensor, "query key"]:
    """Which keys a layer lets each query see: earlier ones and its own, in some models only within a window.

    Read from a pass on four random texts: what no head attends to in any of them is hidden.
    """
    tokens = torch.randint(0, model.cfg.d_vocab, (4, n_positions), generator=torch.Generator().manual_seed(0))
    pattern = read_activation(model, tokens.to(model.cfg.device), f"blocks.{layer}.attn.hook_pattern")
    return (pattern > 0).any(dim=1).any(dim=0) | torch.eye(n_positions, dtype=torch.bool, device=pattern.device)


def position_vectors(model: TransformerBridge, n_positions: int) -> Float[Tensor, "pos d_model"]:
    """What the model adds to the embedding at positions 0 … n_positions − 1, read from a pass on token 0 alone."""
    tokens = torch.zeros(1, n_positions, dtype=torch.long, device=model.cfg.device)
    return read_activation(model, tokens, "blocks.0.hook_resid_pre")[0] - token_vectors(model)[0]


@torch.no_grad()
def score_by_distance(
    model: TransformerBridge, layer: int, head: int, tokens: Int[Tensor, "batch pos"], max_distance: int
) -> Float[Tensor, "max_distance+1"]:
    """Attention score of the mean query and mean key of some text at distances 0 … max_distance; rotary models only.

    (mean q rotated by the distance) · mean k, times the layer's scale, usually 1 / sqrt(d_head): what is left of a
    head's scores (before a soft cap, if there is one) when all that its queries and keys know of their tokens is
    averaged out. A previous-token head peaks at 1.

    Raises:
        ValueError: if layer or head is out of range, max_distance is negative, the model has no rotary positions, or a
            row of tokens looks padded.
        NotForThisModel: if the model's scores are of another kind (see `passes.NEEDS`).
    """
    check_head(model, layer, head)
    traits = check_rotary(model, layer)
    check_unpadded(model, tokens)
    if max_distance < 0:
        raise ValueError(f"max_distance is {max_distance}; it must be 0 or more")
    hook_q, hook_k = f"blocks.{layer}.attn.hook_q", f"blocks.{layer}.attn.hook_k"
    _, cache = model.run_with_cache(tokens, names_filter=[hook_q, hook_k])
    q = normed_reading(model, layer, "q", cache[hook_q])                            # [batch, pos, head, d_head]
    k = normed_reading(model, layer, "k", cache[hook_k])                            # fewer heads, if they are shared
    own = key_value_head(head, model.cfg.n_heads, k.shape[2])
    mean_q = q[:, 1:, head].mean(dim=(0, 1))                                        # [d_head]; BOS left out
    mean_k = k[:, 1:, own].mean(dim=(0, 1))
    products = torch.stack([rotate(model, mean_q, d, layer) @ mean_k for d in range(max_distance + 1)])
    return traits.score_scale[layer] * products


def rotate(
    model: TransformerBridge, vectors: Float[Tensor, "... d_head"], distance: int, layer: int = 0
) -> Float[Tensor, "... d_head"]:
    """Queries (or keys) rotated as a layer rotates them `distance` positions on; distance 0 changes nothing.

    Raises:
        ValueError: if distance is not 0 and the layer has no rotary positions.
    """
    if distance == 0:
        return vectors
    turn = check_rotary(model, layer).turns[layer]
    return vectors if turn is None else turn(vectors, distance)


def check_rotary(model: TransformerBridge, layer: int = 0) -> Traits:
    """The model's record. Raise NotForThisModel if a layer does not rotate its queries and keys by position."""
    traits = require(model, "a score by distance", "scores")
    if traits.turns[layer] is None:
        raise NotForThisModel(f"layer {layer} of this model has no rotary positions: its QK circuit does not depend on "
                              "the distance")
    return traits


# --- reading a circuit ---------------------------------------------------------------------------------------------


@torch.no_grad()
def top_k_accuracy(
    matrix: FactoredMatrix | Float[Tensor, "vocab vocab"], k: int = 1, *, best: str = "key",
    tokens: Int[Tensor, "some"] | None = None,
) -> float:
    """Share of tokens whose own entry (the diagonal) is among the k largest of its row, or of its column.

    best="key": of each row; "is a token's best key its own?". best="query": of each column. The two differ.
    Chance is k / vocab. A tie does not count as a hit. Read in blocks: memory does not grow with vocab².

    Args:
        tokens: which tokens to ask for, against all of the vocabulary; None for all.
    Raises:
        ValueError: if the matrix is not square, k is not between 1 and vocab − 1, best is neither, or `tokens` is
            empty or has ids outside the vocabulary.
    """
    _check_top_k(matrix, k, best)
    if best == "query":
        matrix = matrix.T                                                           # its columns are rows now
    device = (matrix.A if isinstance(matrix, FactoredMatrix) else matrix).device
    tokens = _checked_ids(tokens, matrix.shape[1]).to(device)
    return sum(_hits(matrix, ids, k) for ids in tokens.split(BLOCK)) / len(tokens)


def _hits(matrix: FactoredMatrix | Float[Tensor, "vocab vocab"], ids: Int[Tensor, "row"], k: int) -> int:
    """How many of some rows have their own entry among their k largest.

    Each block is compared before it leaves the processor's cache, and rows that k others have beaten are left out of
    the next. Few rows are read whole: their product may be rounded otherwise than one of many, and a tie must be one.
    """
    if len(ids) <= FEW_ROWS:
        rows = _entries(matrix, ids, slice(None))                                   # [row, vocab]
        own = rows.gather(1, ids[:, None])[:, 0]
        _leave_out(rows, ids)
        return int((own > rows.topk(k, dim=1).values[:, -1]).sum())
    own = torch.cat([_entries(matrix, some, some).diagonal() for some in ids.chunk(4)])         # [row]
    best = own.new_full((len(ids), k), -torch.inf)                                  # the others' largest so far
    width = BLOCK if ids.device.type == "cpu" else 8 * BLOCK                        # a GPU takes more at once
    space = own.new_empty(len(ids) * width)                                         # the same memory for every block
    first, last = int(ids.min()), int(ids.max())
    for start in range(0, matrix.shape[1], width):
        entries = _entries(matrix, ids, slice(start, start + width), space)
        if first < start + width and start <= last:                                 # it holds some rows' own entries
            _leave_out(entries, ids - start)
        best = _largest(best, entries, k)
        ahead = own > best[:, -1]
        if not ahead.all():
            ids, own, best = ids[ahead], own[ahead], best[ahead]
        if len(ids) <= FEW_ROWS:
            return _hits(matrix, ids, k)
    return len(ids)


def _entries(
    matrix: FactoredMatrix | Float[Tensor, "vocab vocab"], ids: Int[Tensor, "row"],
    columns: slice | Int[Tensor, "some"], space: Float[Tensor, "n"] | None = None,
) -> Float[Tensor, "row some"]:
    """Some rows and columns of a circuit, not in its memory; those of a product are written to `space`, if given."""
    if isinstance(matrix, FactoredMatrix):
        left, right = matrix.A.index_select(0, ids), matrix.B[:, columns]
        shape = len(left), right.shape[1]
        return torch.mm(left, right, out=None if space is None else space[:shape[0] * shape[1]].view(shape))
    entries = matrix[:, columns][ids]
    return entries if entries.is_floating_point() else entries.float()


def _leave_out(entries: Float[Tensor, "row some"], own: Int[Tensor, "row"]) -> None:
    """Let each row's own entry, which may lie in other columns, be the largest of none."""
    inside = (own >= 0) & (own < entries.shape[1])
    entries[inside, own[inside]] = -torch.inf


def _largest(best: Float[Tensor, "row k"], entries: Float[Tensor, "row some"], k: int) -> Float[Tensor, "row k"]:
    """The k largest of each row, in order: of those so far, and of these entries."""
    if k == 1:
        return torch.maximum(best, entries.amax(dim=1, keepdim=True))
    some = entries.topk(min(k, entries.shape[1]), dim=1).values
    return torch.cat([best, some], dim=1).topk(k, dim=1).values


def _check_top_k(matrix: FactoredMatrix | Tensor, k: int, best: str) -> None:
    if best not in ("key", "query"):
        raise ValueError(f'best is {best!r}; it must be "key" or "query"')
    if len(matrix.shape) != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"the matrix must be square, one row and one column per token; got {tuple(matrix.shape)}")
    if not 1 <= k < matrix.shape[0]:
        raise ValueError(f"k is {k}; with {matrix.shape[0]} tokens it must be between 1 and {matrix.shape[0] - 1}")


def _checked_ids(tokens: Int[Tensor, "some"] | None, vocab: int) -> Int[Tensor, "some"]:
    """The tokens asked for; None: all of the vocabulary."""
    if tokens is None:
        return torch.arange(vocab)
    if not len(tokens) or tokens.min() < 0 or tokens.max() >= vocab:
        raise ValueError(f"tokens must be one or more ids from 0 to {vocab - 1}, got {tokens.tolist()[:8]}")
    return tokens


def copying_score(circuit: FactoredMatrix) -> float:
    """Sum of the eigenvalues over the sum of their absolute values: 1 if every direction is copied, −1 if all flip.

    NaN if the circuit is all zero. Only the d_head eigenvalues that are not zero count; they are those of the small
    matrix B A. Source: Elhage et al. (2021).
    """
    eigenvalues = torch.linalg.eigvals((circuit.B @ circuit.A).double())
    return (eigenvalues.real.sum() / eigenvalues.abs().sum()).item()


def composition_score(first: FactoredMatrix, second: FactoredMatrix) -> float:
    """‖first second‖ / (‖first‖ ‖second‖), Frobenius norms: how much of what `first` writes, `second` reads.

    Two random matrices of rank r in d dimensions score about 1 / sqrt(d), whatever r.
    Source: Elhage et al. (2021).
    """
    return ((first @ second).norm() / (first.norm() * second.norm())).item()


@torch.no_grad()
def composition_scores(model: TransformerBridge, kind: str = "K") -> Float[Tensor, "layer head layer2 head2"]:
    """How much the input of head2's K, Q or V lies along what head writes: ‖A B‖ / (‖A‖ ‖B‖), Frobenius norms.

    A = W_V W_O of the earlier head; B = W_K W_Q^T (K), W_Q W_K^T (Q) or W_V W_O (V) of the later, with the weights of
    the norms of queries and keys, where the model has them (Qwen 3), in W_Q and W_K. 0 where layer2 is not after
    layer. The Frobenius norms come from products of d_head × d_head matrices, in float64 (squares of squares).
    Raises:
        ValueError: if kind is not one of these.
    Source: Elhage et al. (2021). Equals TransformerLens `all_composition_scores` where every head has its own keys.
    """
    if kind not in ("K", "Q", "V"):
        raise ValueError(f'kind is {kind!r}; it must be "K", "Q" or "V"')
    require(model, "a composition score", "reads", "writes", "patterns" if kind == "V" else "scores")
    layers, heads = model.cfg.n_layers, model.cfg.n_heads
    weights = [head_weights(model, layer, head) for layer in range(layers) for head in range(heads)]
    Q, K, V, O = (torch.stack([each[name] for each in weights]).double() for name in "QKVO")    # n = layers * heads
    O = centred(model, O)                                                           # as the norm that reads it will
    Q, K = Q * _gains(model, "q").to(Q), K * _gains(model, "k").to(K)
    left, right = {"K": (K, Q), "Q": (Q, K), "V": (V, O.mT)}[kind]                  # B = left @ right^T, by head
    squares = right.mT @ right                                                      # [n, d_head, d_head]
    size_A, size_B = _norm_of_product(V, O.mT), _norm_of_product(left, right)       # [n]
    scores = torch.zeros(layers * heads, layers * heads)
    for i in range((layers - 1) * heads):
        later = slice((i // heads + 1) * heads, None)                               # the heads of all later layers
        inner = O[i] @ left[later]
        # A B = V_i inner right^T, and ‖V_i inner right^T‖² = sum of (V_i^T V_i inner right^T right) * inner
        square = ((V[i].T @ V[i]) @ inner @ squares[later] * inner).sum(dim=(1, 2))
        score = square.clamp(min=0).sqrt() / (size_A[i] * size_B[later])
        scores[i, later] = score.nan_to_num(nan=0.0).float().cpu()                  # heads that are all 0: 0 / 0
    return scores.reshape(layers, heads, layers, heads)


def _gains(model: TransformerBridge, name: str) -> Float[Tensor, "n 1 d_head"]:
    """The weights of the norm of each head's queries or keys; ones where there is none."""
    ones = model.W_E.new_ones(model.cfg.d_head)
    rows = [gain_of(getattr(block.attn, f"{name}_norm", None), ones, model.cfg.eps) for block in model.blocks]
    return torch.stack(rows).repeat_interleave(model.cfg.n_heads, dim=0)[:, None]


def _norm_of_product(left: Float[Tensor, "n d k"], right: Float[Tensor, "n d k"]) -> Float[Tensor, "n"]:
    """Frobenius norm of each left @ right^T, from the two k × k products."""
    return ((left.mT @ left) * (right.mT @ right)).sum(dim=(1, 2)).sqrt()


def random_head_pairs(
    n_layers: int, n_heads: int, n_pairs: int, *, exclude: Sequence[Head] = (), seed: int = 0
) -> list[tuple[Head, Head]]:
    """Different pairs ((layer, head), (later layer, head)) for a control, drawn uniformly from all such pairs.

    Args:
        exclude: heads that must be in no pair, such as those the claim is about.
    Raises:
        ValueError: if there are fewer such pairs than asked for.
    """
    heads = [(layer, head) for layer in range(n_layers) for head in range(n_heads) if (layer, head) not in exclude]
    pairs = [(first, second) for first in heads for second in heads if first[0] < second[0]]
    if n_pairs > len(pairs):
        raise ValueError(f"{n_pairs} pairs were asked for, but there are only {len(pairs)} without the excluded heads")
    return random.Random(seed).sample(pairs, n_pairs)
