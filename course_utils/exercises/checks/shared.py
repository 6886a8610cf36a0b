"""Small models and inputs that the checks of several lessons use. Everything here is made once, when asked for."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from course_utils.models import as_bridge, word_tokenizer
from course_utils.planted import planted_induction_model

FAR_APART = ("this breaks where logits are far apart: softmax rounds a small probability to 0 and its "
             "logarithm is lost; log_softmax keeps it")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Numbers from a normal distribution: the same whenever the seed is."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shown(answer: object) -> object:
    """The answer, or what was raised in its place as "Type: message"."""
    return f"{type(answer).__name__}: {answer}" if isinstance(answer, Exception) else answer


@lru_cache
def random_model():
    """A random GPT-2 with 3 layers of 2 heads and 40 tokens: nothing in it is what a learner's numbers are."""
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = GPT2Config(
            vocab_size=40,
            n_positions=32,
            n_embd=16,
            n_layer=3,
            n_head=2,
            bos_token_id=0,
            eos_token_id=0,
            initializer_range=0.6,
        )
        model = GPT2LMHeadModel(config)
        for block in model.transformer.h:  # biases too: GPT-2 starts with none
            block.attn.c_proj.bias.data.normal_(std=0.5)
        for block in model.transformer.h:
            block.attn.c_attn.bias.data.normal_(std=0.5)
    words = ["<bos>", *(f"w{i}" for i in range(1, 40))]
    return _used_once(as_bridge(model, word_tokenizer(words, "<bos>"), name="random", device="cpu"))


@lru_cache
def grouped_query_model():
    """A random Llama with 2 layers, 6 query heads on 2 key and value heads, rotary positions and 40 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        config = LlamaConfig(
            vocab_size=40,
            hidden_size=24,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=2,
            max_position_embeddings=32,
            initializer_range=0.6,
            bos_token_id=0,
            eos_token_id=0,
        )
        model = LlamaForCausalLM(config)
    words = ["<bos>", *(f"w{i}" for i in range(1, 40))]
    return _used_once(as_bridge(model, word_tokenizer(words, "<bos>"), name="grouped-query", device="cpu"))


@lru_cache
def planted_model():
    """The planted circuit of `course_utils.planted`: head 0.0 and head 1.0 are known exactly."""
    return _used_once(planted_induction_model(n_tokens=20, n_ctx=32))


@lru_cache
def own_norms_model():
    """A random GPT-2 with 2 layers of 2 heads, value biases and norms that were not folded, no two alike."""
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = GPT2Config(vocab_size=20, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0,
                            eos_token_id=0, initializer_range=0.6)
        model = GPT2LMHeadModel(config)
    words = ["<bos>", *(f"w{i}" for i in range(1, 20))]
    model = _used_once(as_bridge(model, word_tokenizer(words, "<bos>"), name="own norms", device="cpu"))
    norms = [norm for block in model.blocks for norm in (block.ln1, block.ln2)] + [model.ln_final]
    for i, norm in enumerate(norms):
        norm.original_component.weight.data = drawn(16, seed=10 + i)
    for block in model.blocks:
        block.attn.v.original_component.bias.data = drawn(16, seed=20)
    return model


def _used_once(model):
    """The model after one run: the libraries put hooks of their own on it then, which are not the learner's."""
    model.run_with_cache(torch.zeros(1, 2, dtype=torch.long))
    return model


def random_tokens(batch: int, length: int, vocab: int = 40, seed: int = 0) -> torch.Tensor:
    """BOS (0) and random ids. -> Int[batch, length]."""
    rng = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, vocab, (batch, length), generator=rng)
    tokens[:, 0] = 0
    return tokens


def repeated_distinct(batch: int, seq_len: int, vocab: int = 20, seed: int = 0) -> torch.Tensor:
    """BOS (0) and two copies of seq_len different ids. -> Int[batch, 1 + 2 * seq_len]."""
    rng = torch.Generator().manual_seed(seed)
    half = torch.stack([1 + torch.randperm(vocab - 1, generator=rng)[:seq_len] for _ in range(batch)])
    return torch.cat([torch.zeros(batch, 1, dtype=torch.long), half, half], dim=1)


def random_logits(batch: int, length: int, vocab: int, seed: int = 0) -> torch.Tensor:
    """Float[batch, length, vocab], spread over a few nats."""
    return 3 * drawn(batch, length, vocab, seed=seed)
