"""Small models and inputs that the checks of several lessons use. Everything here is made once, when asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from course_utils.exercises.leftovers import made_once
from course_utils.models import as_bridge, word_tokenizer
from course_utils.planted import planted_induction_model

FAR_APART = ("this breaks where logits are far apart: softmax rounds a small probability to 0, and a clamp or an added "
             "number hides what is left of its logarithm; log_softmax alone keeps it")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Numbers from a normal distribution: the same whenever the seed is."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shown(answer: object) -> object:
    """The answer, or what was raised in its place as "Type: message"."""
    return f"{type(answer).__name__}: {answer}" if isinstance(answer, Exception) else answer


@made_once
def random_model():
    """A random GPT-2 with 3 layers of 2 heads and 40 tokens: nothing in it is what a learner's numbers are."""
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = GPT2Config(vocab_size=40, n_positions=32, n_embd=16, n_layer=3, n_head=2, bos_token_id=0,
                            eos_token_id=0, initializer_range=0.6)
        model = GPT2LMHeadModel(config)
        for block in model.transformer.h:  # biases too: GPT-2 starts with none
            block.attn.c_proj.bias.data.normal_(std=0.5)
        for block in model.transformer.h:
            block.attn.c_attn.bias.data.normal_(std=0.5)
    return _of_made_up_words(model, "random")


@made_once
def spaced_model():
    """A random GPT-2 with 1 layer, 40 tokens and a byte-level tokenizer, like a real one: the token Ġba reads " ba"."""
    from tokenizers import decoders, pre_tokenizers

    model = _random_gpt2(4, vocab_size=40, n_positions=32, n_embd=16, n_layer=1, n_head=2, initializer_range=0.6)
    tokenizer = word_tokenizer(["<bos>", *(f"Ġ{a}{b}" for a in "bdfgklmnprstz" for b in "aeo")], "<bos>")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    return as_bridge(model, tokenizer, name="spaced", device="cpu")


LATE_BOS = 7


@made_once
def late_bos_model():
    """A random GPT-2 with 1 layer and 40 tokens, of which the one with the id LATE_BOS is BOS."""
    model = _random_gpt2(3, bos=LATE_BOS, vocab_size=40, n_positions=32, n_embd=8, n_layer=1, n_head=2)
    words = [f"w{i}" for i in range(40)]
    words[LATE_BOS] = "<bos>"
    return as_bridge(model, word_tokenizer(words, "<bos>"), name="late-bos", device="cpu")


@made_once
def grouped_query_model():
    """A random Llama with 2 layers, 6 query heads on 2 key and value heads, rotary positions and 40 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        config = LlamaConfig(vocab_size=40, hidden_size=24, intermediate_size=16, num_hidden_layers=2,
                             num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=32,
                             initializer_range=0.6, bos_token_id=0, eos_token_id=0)
        model = LlamaForCausalLM(config)
    return _of_made_up_words(model, "grouped-query")


@made_once
def planted_model():
    """The planted circuit of `course_utils.planted`: head 0.0 and head 1.0 are known exactly."""
    return planted_induction_model(n_tokens=20, n_ctx=32)


@made_once
def own_norms_model():
    """A random GPT-2 with 2 layers of 2 heads, value biases and norms that were not folded, no two alike."""
    model = _of_made_up_words(_random_gpt2(3, vocab_size=20, n_positions=16, n_embd=16, n_layer=2, n_head=2,
                                           initializer_range=0.6), "own norms")
    norms = [norm for block in model.blocks for norm in (block.ln1, block.ln2)] + [model.ln_final]
    for i, norm in enumerate(norms):
        norm.original_component.weight.data = drawn(16, seed=10 + i)
    for block in model.blocks:
        block.attn.v.original_component.bias.data = drawn(16, seed=20)
    return model


def _random_gpt2(seed: int, *, bos: int = 0, **settings):
    """A Hugging Face GPT-2 with random weights, the same whenever the seed is."""
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(GPT2Config(bos_token_id=bos, eos_token_id=bos, **settings))


def _of_made_up_words(model, name: str):
    """A Hugging Face model, wrapped, with a made-up word for each of its tokens."""
    words = ["<bos>", *(f"w{i}" for i in range(1, model.config.vocab_size))]
    return as_bridge(model, word_tokenizer(words, "<bos>"), name=name, device="cpu")


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
