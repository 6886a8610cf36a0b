"""Which attention heads do it: scores that read one diagonal of each head's attention pattern.

In `[BOS, r1 … rn, r1 … rn]`, a head of each kind puts its attention on one stripe:

    previous token    position d looks at d − 1
    duplicate token   position d of the second copy looks at d − n, its own place in the first copy
    induction         position d of the second copy looks at d − n + 1, the place *after* that one
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from course_utils.passes import check_unpadded, require, see_patterns
from course_utils.repeated_tokens import ROWS_AT_A_TIME, check_repeated

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Pattern = Float[Tensor, "batch head query key"]


@torch.no_grad()
def induction_scores(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], seq_len: int, *, whole_diagonal: bool = False
) -> Float[Tensor, "layer head"]:
    """Mean attention from each position of the second copy to the one after its own place in the first copy.

    The stripe is the diagonal at offset 1 − seq_len. Its first two entries (queries seq_len − 1 and seq_len)
    lie in the first copy, where there is nothing to look back at: they are left out, unlike in Xiang
    (2024). `whole_diagonal=True` counts them as that article does, which costs a perfect head up to 2 / (seq_len + 2).
    TransformerLens `detect_head` sums the same entries and divides by all queries: ours = theirs * pos / seq_len
    when no token occurs twice in a copy.

    Raises:
        ValueError: if tokens are not BOS and two equal copies of seq_len tokens.
    """
    check_repeated(tokens, seq_len)
    first = 0 if whole_diagonal else 2
    return stripe_scores(model, tokens, lambda pattern: pattern.diagonal(1 - seq_len, -2, -1)[..., first:])


@torch.no_grad()
def previous_token_scores(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "layer head"]:
    """Mean attention to the token just before, over every position but the first.

    TransformerLens `detect_head` divides by all positions: ours = theirs * pos / (pos − 1).
    Raises:
        ValueError: if tokens is not [batch, pos] with at least 2 positions.
    """
    if tokens.ndim != 2 or tokens.shape[1] < 2:
        raise ValueError(f"tokens must be [batch, pos] with pos >= 2, got shape {tuple(tokens.shape)}")
    return stripe_scores(model, tokens, lambda pattern: pattern.diagonal(-1, -2, -1))


@torch.no_grad()
def duplicate_token_scores(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], seq_len: int
) -> Float[Tensor, "layer head"]:
    """Mean attention from each position of the second copy to its own place in the first copy.

    The stripe is the diagonal at offset −seq_len without its first entry, query seq_len, which looks at BOS.
    TransformerLens `detect_head`: ours = theirs * pos / seq_len when no token occurs twice in a copy.
    Raises:
        ValueError: if tokens are not BOS and two equal copies of seq_len tokens.
    """
    check_repeated(tokens, seq_len)
    return stripe_scores(model, tokens, lambda pattern: pattern.diagonal(-seq_len, -2, -1)[..., 1:])


def stripe_scores(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"],
    stripe: Callable[[Pattern], Float[Tensor, "batch head entry"]],
) -> Float[Tensor, "layer head"]:
    """Mean over batch and entries of a stripe of every head's attention pattern.

    Each pattern is read as it is computed, so that none is stored; the pass ends with the last of them.
    Raises:
        ValueError: if a row looks padded.
    """
    require(model, "a score of attention patterns", "patterns")
    check_unpadded(model, tokens)
    scores = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)
    for rows in tokens.split(ROWS_AT_A_TIME):
        def add_scores(layer: int, pattern: Pattern) -> None:
            scores[layer] += stripe(pattern).mean(dim=-1).sum(dim=0).cpu()              # sum over the rows
        see_patterns(model, rows, add_scores)
    return scores / len(tokens)


def is_pattern(hook_name: str) -> bool:
    """Whether a hook's name is that of an attention pattern, [batch, head, query, key]."""
    return hook_name.endswith("attn.hook_pattern")


def best_head(scores: Float[Tensor, "layer head"]) -> tuple[int, int]:
    """(layer, head) of the highest score; the first one of equals."""
    return divmod(int(scores.argmax()), scores.shape[1])


def top_heads(scores: Float[Tensor, "layer head"], k: int = 5) -> list[tuple[tuple[int, int], float]]:
    """The k best heads: [((layer, head), score), …], best first."""
    best = scores.flatten().topk(min(k, scores.numel()))
    return [(divmod(int(index), scores.shape[1]), float(value)) for value, index in zip(*best)]


def induction_targets(tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch query key"]:
    """Where an induction head would look, in any text: True at (query, key) if the token before `key` is the query's.

    target[b, q, k] = (tokens[b, k − 1] == tokens[b, q]) and k <= q. The first key has no token before it.
    Source: TransformerLens `get_induction_head_detection_pattern` marks the same entries.
    """
    before = tokens.roll(1, dims=1)                                     # the token before each key
    matches = tokens[:, :, None] == before[:, None, :]                  # [batch, query, key]
    matches[:, :, 0] = False                                            # roll put the last token there
    return matches.tril()                                               # keys are never later than queries


@torch.no_grad()
def induction_scores_in_text(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "layer head"]:
    """Mean attention on `induction_targets`, over the queries that have at least one.

    Works on any text, repeated or not. On two copies of different tokens it equals `induction_scores`.
    Raises:
        ValueError: if no token of the text occurs twice, or a row looks padded.
    """
    require(model, "a score of attention patterns", "patterns")
    check_unpadded(model, tokens)
    targets = induction_targets(tokens)
    queries = targets.any(dim=-1)                                       # [batch, query]
    if not queries.any():
        raise ValueError("no token occurs twice in these sequences, so there is nothing to look back at")
    scores = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)

    for rows, mask in zip(tokens.split(ROWS_AT_A_TIME), targets.split(ROWS_AT_A_TIME)):
        def add_scores(layer: int, pattern: Pattern, mask: Bool[Tensor, "batch query key"] = mask) -> None:
            scores[layer] += (pattern * mask[:, None]).sum(dim=(0, 2, 3)).cpu()
        see_patterns(model, rows, add_scores)
    return scores / queries.sum().item()
