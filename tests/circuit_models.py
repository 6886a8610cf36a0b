"""A model for the tests of circuits that small_models lacks, and rotary positions written out."""

from functools import lru_cache

import torch
from small_models import WORDS

from course_utils.local_models import as_bridge, word_tokenizer

ROTARY_BASE = 10_000.0


@lru_cache
def grouped_query_biased():
    """As grouped_query in small_models, but three layers, biases on Q, K, V and O, and uneven norms; random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(vocab_size=30, hidden_size=24, intermediate_size=16, num_hidden_layers=3,
                         num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=64,
                         initializer_range=0.5, bos_token_id=0, eos_token_id=0, attention_bias=True)
    model = LlamaForCausalLM(config)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            weight.data.normal_(std=0.5)
        elif "norm" in name:
            weight.data.uniform_(0.5, 1.5)
    return as_bridge(model, word_tokenizer(WORDS, "<bos>"), name="grouped-biased", device="cpu")


def turned(vectors: torch.Tensor, position: int) -> torch.Tensor:
    """Rotary positions as defined: pair (i, i + d/2), a complex number, is turned by position * base^(-2i/d)."""
    half = vectors.shape[-1] // 2
    angles = position * ROTARY_BASE ** (-torch.arange(half, dtype=torch.float64) / half)
    pairs = torch.complex(vectors[..., :half].double(), vectors[..., half:].double())
    pairs = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([pairs.real, pairs.imag], dim=-1).float()
