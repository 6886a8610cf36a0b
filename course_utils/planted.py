"""A planted circuit: a two-layer model set by hand, in which we *know* which heads do what.

A correct measure must find the planted heads, and give them a score of 1. The model has GPT-2's shape, a LayerNorm
that only centres, and three blocks of coordinates in its residual stream:

    here      the token at this position       (one coordinate per token: written by the embedding)
    before    the token one position earlier   (one coordinate per token: written by head 0.0)
    where     the position itself              (one coordinate per position)

Head 0.0 is a previous-token head: its query at position d asks `where` for d − 1, and it moves `here` to `before`.
Head 1.0 is an induction head: its query is its own `here`, its key is `before`, and it moves `here` to the output.
Heads 0.1 and 1.1 do nothing: they attend equally everywhere and write zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from course_utils.models import as_bridge, word_tokenizer

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

PREVIOUS_TOKEN_HEAD, INDUCTION_HEAD = (0, 0), (1, 0)
SHARPNESS = 200.0  # attention scores of the planted heads: e^-200 is as good as 0
FLAT = 1e6         # LayerNorm divides by sqrt(var + FLAT²) and multiplies by FLAT: all that is left is centring


def planted_induction_model(
    n_tokens: int = 30, n_ctx: int = 64, *, duplicate: bool = False, backup: bool = False,
) -> TransformerBridge:
    """The planted model with `n_tokens` tokens (0 is BOS) and contexts up to `n_ctx`.

    On repeated tokens without a repeat inside a copy, both planted heads score 1 and the second copy is predicted
    with log-probability above −0.01 nats. With `duplicate`, head 1.0 is a duplicate-token head instead: it looks at
    its own token, half at the earlier one and half at itself. With `backup`, head 1.1 does what head 1.0 does.
    Raises:
        ValueError: if n_tokens < 4 or n_ctx < 5.
    """
    if n_tokens < 4 or n_ctx < 5:
        raise ValueError(f"need n_tokens >= 4 and n_ctx >= 5, got {n_tokens} and {n_ctx}")
    from transformers import GPT2Config, GPT2LMHeadModel

    half = max(n_tokens + (n_ctx + 1) // 2, n_ctx)                      # width of a head: room for any block
    config = GPT2Config(vocab_size=n_tokens, n_positions=n_ctx, n_embd=2 * half, n_layer=2, n_head=2, n_inner=4,
                        bos_token_id=0, eos_token_id=0, layer_norm_epsilon=FLAT**2, tie_word_embeddings=False)
    model = GPT2LMHeadModel(config).requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    _plant(model, n_tokens, n_ctx, half, duplicate, backup)
    tokenizer = word_tokenizer(["<bos>", *(f"t{i}" for i in range(1, n_tokens))], bos="<bos>")
    return as_bridge(model, tokenizer, name="planted", device="cpu")


def _plant(model, n_tokens: int, n_ctx: int, d_head: int, duplicate: bool, backup: bool) -> None:
    """Write the embeddings, the two heads and the unembedding into a model whose weights are all zero."""
    here, before = slice(0, n_tokens), slice(n_tokens, 2 * n_tokens)
    where = slice(2 * n_tokens, 2 * n_tokens + n_ctx)
    body = model.transformer
    for norm in [body.ln_f, *(norm for block in body.h for norm in (block.ln_1, block.ln_2))]:
        norm.weight.fill_(FLAT)                                         # (x − mean) * FLAT / sqrt(var + FLAT²)
    body.wte.weight[:, here] = torch.eye(n_tokens)
    body.wpe.weight[:, where] = torch.eye(n_ctx)
    model.lm_head.weight[:, here] = 10 * torch.eye(n_tokens)
    one_back = torch.eye(n_ctx).roll(-1, dims=1)                        # row d has its 1 in column d − 1
    one_back[0] = 0                                                     # nothing comes before the first position
    _set_head(body.h[0].attn, d_head, where, where, one_back, here, before, 1.0)
    for head in range(1 + backup):
        _set_head(body.h[1].attn, d_head, here, here if duplicate else before, torch.eye(n_tokens), here, here, 2.0,
                  head)


def _set_head(attn, d_head: int, query_from: slice, key_from: slice, query_map: Tensor,
              value_from: slice, write_to: slice, strength: float, head: int = 0) -> None:
    """One head of a layer: attend where (query block @ query_map) equals the key block; copy value block."""
    wanted, width, first = query_map.shape[0], 2 * d_head, head * d_head
    n_values = value_from.stop - value_from.start
    Q, K, V = (attn.c_attn.weight[:, i * width + first:][:, :d_head] for i in range(3))        # [width, d_head]
    Q[query_from, :wanted] = SHARPNESS * d_head**0.5 * query_map
    K[key_from, :wanted] = torch.eye(wanted)
    V[value_from, :n_values] = torch.eye(n_values)
    attn.c_proj.weight[first:first + n_values, write_to] = strength * torch.eye(n_values)


# --- one layer of unnamed heads: what is each of them? -------------------------------------------------------------

WHERE = ("previous position", "same token", "something else")  # what a head looks at
WHAT = ("copies", "suppresses", "neither")                     # what it does to the logit of the token it looks at


def unnamed_heads_model(seed: int = 0, n_tokens: int = 24, n_ctx: int = 16) -> tuple[TransformerBridge, list]:
    """A layer of six planted heads in a random basis, and for each (one of WHERE, one of WHAT), drawn by the seed.

    "Something else" is the first position, or nothing in particular; "neither" writes another token, or noise.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    rng, n_heads, d_head = torch.Generator().manual_seed(seed), 6, 32
    width = n_heads * d_head
    config = GPT2Config(vocab_size=n_tokens, n_positions=n_ctx, n_embd=width, n_layer=1, n_head=n_heads, n_inner=4,
                        bos_token_id=0, eos_token_id=0, tie_word_embeddings=False)
    model = GPT2LMHeadModel(config).requires_grad_(False)
    body, attn = model.transformer, model.transformer.h[0].attn
    for weights in (body.wte.weight, body.wpe.weight, model.lm_head.weight, attn.c_attn.weight, attn.c_proj.weight):
        weights.copy_(torch.randn(weights.shape, generator=rng))
        weights.sub_(weights.mean(dim=-1, keepdim=True))
    attn.c_attn.weight.mul_(0.02)
    attn.c_proj.weight.mul_(0.02)
    read = torch.linalg.pinv(torch.cat([body.wte.weight, body.wpe.weight]))             # [width, tokens + positions]
    tokens, positions = read[:, :n_tokens], read[:, n_tokens:]
    write = torch.linalg.pinv(model.lm_head.weight.T)                                   # [tokens, width]
    kinds = []
    for head in range(n_heads):
        where, what = (int(torch.randint(0, 3, (1,), generator=rng)) for _ in range(2))
        Q, K, V = (attn.c_attn.weight[:, i * width + head * d_head:][:, :d_head] for i in range(3))
        O = attn.c_proj.weight[head * d_head:][:d_head]
        if where == 0:
            Q[:, :n_ctx] += 400 * positions.roll(-1, dims=1)                            # position p asks for p − 1
            K[:, :n_ctx] += positions
        elif where == 1:
            Q[:, :n_tokens] += 400 * tokens
            K[:, :n_tokens] += tokens
        elif head % 2:
            Q[:, :1] += 400 * tokens.sum(dim=1, keepdim=True)                           # whoever asks: the first
            K[:, :1] += positions[:, :1]
        if what < 2 or head % 2:
            V[:, :n_tokens] += tokens
            O[:n_tokens] += 2 * (write, -write, write.roll(1, dims=0))[what]
        kinds.append((WHERE[where], WHAT[what]))
    tokenizer = word_tokenizer(["<bos>", *(f"t{i}" for i in range(1, n_tokens))], bos="<bos>")
    return as_bridge(model, tokenizer, name="unnamed heads", device="cpu"), kinds
