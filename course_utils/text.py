"""Text for a model to read: stories for `tiny`, and for a real language model what it writes itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from safetensors.torch import load_file
from torch import Tensor

from course_utils.language import StoryLanguage, vocabulary
from course_utils.models import TINY_FOLDER, bos_token_id

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

SAES_FOLDER = TINY_FOLDER.parent / "saes"
SMOLLM2_TEXT = SAES_FOLDER / "smollm2-135m" / "text.safetensors"  # training/smollm2_text.py made it


def reads_stories(model: TransformerBridge) -> bool:
    """Whether the model's vocabulary is that of the course's language: only then is there a ground truth."""
    words = getattr(getattr(model, "tokenizer", None), "get_vocab", dict)()
    return set(vocabulary()) <= set(words)


def sample_text(model: TransformerBridge, n: int = 32, length: int = 128, seed: int = 0) -> Int[Tensor, "n length"]:
    """`n` rows of text for this model, BOS first.

    Stories for a model that reads them. SmolLM2 has 128 rows of 128 tokens that it wrote itself (the seed says where
    to begin); any other model writes now, each token drawn from its own distribution.
    Raises:
        ValueError: if n or length is not positive, or the rows would not fit into the model's context.
    """
    if n < 1 or not 2 <= length <= model.cfg.n_ctx:
        raise ValueError(f"n is {n} and length {length}; n must be positive and length from 2 to {model.cfg.n_ctx}")
    if reads_stories(model):
        return StoryLanguage(seed).sample(n, length, truth=False).tokens.to(model.cfg.device)
    if model.cfg.model_name == "smollm2-135m" and SMOLLM2_TEXT.exists():
        rows = load_file(SMOLLM2_TEXT)["tokens"].long()
        if n <= len(rows) and length <= rows.shape[1]:
            return rows.roll(-seed, dims=0)[:n, :length].to(model.cfg.device)
    start = torch.full((n, 1), bos_token_id(model), device=model.cfg.device)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return model.generate(start, max_new_tokens=length - 1, do_sample=True, temperature=1.0, stop_at_eos=False,
                              prepend_bos=False, return_type="tokens", verbose=False)
