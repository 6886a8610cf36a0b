"""Text for a model to read: stories for `tiny`, and for a real language model what it writes itself."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor
from tqdm.auto import tqdm

from course_utils.house import WEIGHTS, bars_are_off
from course_utils.language import stream, vocabulary
from course_utils.models import bos_token_id
from course_utils.passes import looks_like_padding, special_tokens

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

SMOLLM2_TEXT = WEIGHTS / "saes" / "smollm2-135m" / "text.safetensors"  # training/smollm2_text.py made it
KEYS_AT_ONCE = 2**25    # numbers in the keys that a model keeps while it writes; 128 MB, and as much for the values


def reads_stories(model: TransformerBridge) -> bool:
    """Whether the model's vocabulary is that of the course's language: only then is there a ground truth."""
    get_vocab = getattr(getattr(model, "tokenizer", None), "get_vocab", None)
    return get_vocab is not None and set(vocabulary()) <= set(get_vocab())


def sample_text(model: TransformerBridge, n: int = 32, length: int = 128, seed: int = 0) -> Int[Tensor, "n length"]:
    """`n` rows of text for this model, BOS first: stories for a model that reads them, else `own_text`.

    Raises:
        ValueError: if n or length is not positive, or the rows would not fit into the model's context.
    """
    _check_size(model, n, length)
    if reads_stories(model):
        return torch.tensor(list(itertools.islice(stream(seed, length), n)), device=model.cfg.device)
    return own_text(model, n, length, seed)


@torch.no_grad()
def own_text(model: TransformerBridge, n: int = 32, length: int = 128, seed: int = 0) -> Int[Tensor, "n length"]:
    """Text that the model writes itself: after BOS each token is drawn from its own distribution.

    Except that no row looks padded: none begins or ends with a padding or end-of-text token (see `padding`).
    128 rows of 128 tokens ship with the course for SmolLM2 (the seed picks the first); any other model writes its
    text now.
    Raises:
        ValueError: as `sample_text` does.
    """
    _check_size(model, n, length)
    if model.cfg.model_name == "smollm2-135m" and SMOLLM2_TEXT.exists():
        rows = load_file(SMOLLM2_TEXT)["tokens"].long()
        rows = rows[~looks_like_padding(model, rows[:, :length]).any(dim=1)]
        if n <= len(rows) and length <= rows.shape[1]:
            return rows.roll(-seed, dims=0)[:n, :length].to(model.cfg.device)
    chance = torch.rand(n, length - 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    at_once = max(32, KEYS_AT_ONCE // (model.cfg.n_layers * length * model.cfg.d_model))
    batches = tqdm(chance.split(at_once), desc="writing", delay=1, disable=bars_are_off())
    return torch.cat([_written(model, rows) for rows in batches])


def _written(model: TransformerBridge, chance: Float[Tensor, "rows length-1"]) -> Int[Tensor, "rows length"]:
    """After BOS, at each place the token at which the summed probabilities reach the next number of `chance`.

    (`torch.multinomial` would draw other tokens in another version of PyTorch.)
    """
    tokens = [torch.full((len(chance), 1), bos_token_id(model), device=model.cfg.device)]
    cache = None
    pad, bos, ends_text = special_tokens(model)
    at_ends = ({pad} | ends_text) - {None}                  # tokens that a row may neither begin nor end with
    inside = {pad} - ends_text - {bos, None}                # a token that is padding wherever it stands
    for place, reach in enumerate(chance.T, 1):
        out = model.original_model(tokens[-1], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        p = out.logits[:, -1].cpu().double().softmax(dim=-1)
        p[:, list(at_ends if place in (1, chance.shape[1]) else inside)] = 0
        summed = p.cumsum(dim=-1)
        token = torch.searchsorted(summed, reach[:, None] * summed[:, -1:])
        tokens.append(token.to(model.cfg.device))
    return torch.cat(tokens, dim=1)


def stories_in_english(model: TransformerBridge, n: int, length: int, seed: int = 0) -> Int[Tensor, "n length"]:
    """The course's stories as English prose, in the tokens of any model: text that the model did not write.

    Raises:
        ValueError: as `sample_text` does.
    """
    _check_size(model, n, length)
    words = vocabulary()
    rows = []
    for story in itertools.islice(stream(seed, length), n):
        prose = re.sub(r" ([,.!?;:])", r"\1", " ".join(words[token] for token in story[1:]))
        tokens = model.tokenizer(prose, add_special_tokens=False)["input_ids"]      # a token is at most a word
        rows.append([bos_token_id(model), *tokens[: length - 1]])
    return torch.tensor(rows, device=model.cfg.device)


def _check_size(model: TransformerBridge, n: int, length: int) -> None:
    if n < 1 or not 2 <= length <= model.cfg.n_ctx:
        raise ValueError(f"n is {n} and length {length}; n must be positive and length from 2 to {model.cfg.n_ctx}")
