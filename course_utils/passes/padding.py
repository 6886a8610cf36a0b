"""Padding: what looks like it, and what a mask may say of it. One rule for every function that reads text.

Texts of different lengths are made into rows of one length with a padding token. That token is not text: neither it
nor its prediction may be counted. On the right it does no other harm, for attention looks back. On the left it moves
every position, and real tokens attend to it (our passes have no attention mask): that is refused.

In GPT-2, in `tiny` and in many others the padding token is also the one that begins a sequence and separates
documents. So it counts as padding only at the ends of a row; between two tokens of text it is text. Where it ends a
row, only you know which it is, and a mask is how to say so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int
from torch import Tensor

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

WHY_RIGHT = "Pad on the right: on the left it moves the positions of the text, which also attends to it"


def all_but_first(tokens: Int[Tensor, "n pos"]) -> Bool[Tensor, "n pos"]:
    """The usual mask: every position but the first (BOS)."""
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[:, 0] = False
    return mask


def without_padding(model: TransformerBridge, tokens: Int[Tensor, "n pos"]) -> Bool[Tensor, "n pos"]:
    """A mask for rows that are padded on the right: every position but the first and what looks like padding."""
    return all_but_first(tokens) & ~looks_like_padding(model, tokens)


def looks_like_padding(model: TransformerBridge, tokens: Int[Tensor, "n pos"]) -> Bool[Tensor, "n pos"]:
    """True at each padding token that begins a row (after BOS, if that is the same token) or ends it.

    A padding token that is neither BOS nor end of text is padding wherever it stands. An end-of-text token other than
    the padding token pads if two of them end (or begin) some row. Two copies of the same tokens are never padded:
    random tokens may hold any token anywhere.
    """
    pad, bos, ends_text = special_tokens(model)
    found = torch.zeros_like(tokens, dtype=torch.bool)
    if are_copies(tokens):
        return found
    if pad not in ends_text | {bos, None}:
        found = tokens == pad
    for token in ({pad} | ends_text) - {None}:
        here = tokens == token
        begins, ends = here.cumprod(dim=1).bool(), here.flip(1).cumprod(dim=1).flip(1).bool()
        begins[:, 0] &= token != bos
        for run in (begins, ends):
            if run.sum(dim=1).max() >= (1 if token == pad else 2):
                found = found | run
    return found


def are_copies(tokens: Int[Tensor, "n pos"]) -> bool:
    """Whether every row is a first token and two equal copies of two or more others, as in lessons 01 to 05."""
    first, second = tokens[:, 1:].tensor_split(2, dim=1)
    return first.shape[1] > 1 and torch.equal(first, second) and not bool((first == first[:, :1]).all())


def checked_mask(
    model: TransformerBridge, tokens: Int[Tensor, "n pos"], mask: Bool[Tensor, "n pos"] | None
) -> Bool[Tensor, "n pos"]:
    """The mask, or the usual one: all but the first position.

    A mask that is True at one token that looks like padding says that this one is text. Of two in a row the second is
    padding in any case; so is a padding token that neither begins nor ends texts.
    Raises:
        ValueError: if the tokens are not rows of two or more, the mask does not fit or is empty, it is True at padding
            or after it, or there is none and a row looks padded.
    """
    if tokens.ndim != 2 or tokens.shape[1] < 2 or len(tokens) == 0:
        raise ValueError(f"tokens are {tuple(tokens.shape)}; they must be [n, pos] with at least one row of two tokens")
    if mask is None:
        check_unpadded(model, tokens, "Leave it out: mask=without_padding(model, tokens), of course_utils.passes. "
                       "Or, if that token is text, because a document ends there: mask=all_but_first(tokens)")
        return all_but_first(tokens)
    if mask.shape != tokens.shape or mask.dtype != torch.bool:
        raise ValueError(f"the mask is {mask.dtype} {tuple(mask.shape)}; it must be torch.bool {tuple(tokens.shape)}")
    mask = mask.to(tokens.device)
    if not mask.any():
        raise ValueError("the mask leaves no position to count: it is False everywhere")
    pad, bos, ends_text = special_tokens(model)
    looks, may_be_text = looks_like_padding(model, tokens), int(pad in ends_text | {bos})
    said_to_be_text = looks & mask
    too_many = said_to_be_text & (said_to_be_text.cumsum(dim=1) > may_be_text)
    after_padding = mask & ((looks & ~mask).cumsum(dim=1) > 0)
    wrong = too_many | after_padding
    if wrong.any():
        row, position = wrong.nonzero()[0].tolist()
        raise ValueError(f"the mask counts position {position} of row {row}, which is padding or comes after it. "
                         f"Leave padding out of the mask. {WHY_RIGHT}")
    return mask


def check_unpadded(model: TransformerBridge, tokens: Int[Tensor, "n pos"], advice: str | None = None) -> None:
    """Raise ValueError if a row looks padded; `advice` says what to do about padding on the right."""
    looks = looks_like_padding(model, tokens)
    if not looks.any():
        return
    row = int(looks.any(dim=1).nonzero()[0])
    token, right = int(tokens[row][looks[row]][0]), bool(looks[row, -1])
    advice = advice or "Give rows without it: this function counts every position"
    raise ValueError(f"row {row} looks padded: {'it ends with' if right else 'before its text stands'} the padding "
                     f"token, {token}. {advice if right else WHY_RIGHT}")


def followed(
    model: TransformerBridge, tokens: Int[Tensor, "n pos"], mask: Bool[Tensor, "n pos"]
) -> Bool[Tensor, "n pos"]:
    """True where the next token is known: not at the last position of a row, nor at the last one before its padding."""
    known = ~(looks_like_padding(model, tokens) & ~mask).roll(-1, dims=1)
    known[:, -1] = False
    return known


def counted_positions(
    mask: Bool[Tensor, "n pos"], known: Bool[Tensor, "n pos"], drop_last: bool = True
) -> Bool[Tensor, "n pos"]:
    """The mask without each row's last position, which nothing follows (`known` is of `followed`).

    Raises:
        ValueError: if none is left.
    """
    if not (mask & known).any():
        raise ValueError("the mask leaves no position to count (the last one never counts: nothing follows it)")
    return mask & known if drop_last else mask


def special_tokens(model: TransformerBridge) -> tuple[int | None, int | None, set[int]]:
    """The ids of the padding token, of BOS, and of the tokens that end a text, as tokenizer and configuration say."""
    places = getattr(model, "tokenizer", None), getattr(getattr(model, "original_model", None), "config", None)

    def named(name: str) -> list[int]:
        ids = []
        for value in (getattr(place, name, None) for place in places):
            ids += value if isinstance(value, list) else [] if value is None else [value]
        return ids

    ends_text = named("eos_token_id")
    pad = next(iter([*named("pad_token_id"), *ends_text]), None)
    bos = next(iter(named("bos_token_id")), None)
    return pad, bos, set(ends_text)
