"""Small models for tests, made once: random ones of both attention kinds, the planted circuit, and `tiny`."""

from functools import lru_cache
from pathlib import Path

import pytest
import torch

from course_utils import models
from course_utils.local_models import as_bridge, word_tokenizer
from course_utils.planted import planted_induction_model

WORDS = ["<bos>", *(f"t{i}" for i in range(1, 30))]


@lru_cache
def multi_head():
    """Learned positions, biases everywhere: 3 layers of 4 heads, random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    config = GPT2Config(vocab_size=30, n_positions=64, n_embd=24, n_layer=3, n_head=4, n_inner=16,
                        initializer_range=0.5, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            weight.data.normal_(std=0.5)
        elif "ln_" in name:
            weight.data.uniform_(0.5, 1.5)
    return as_bridge(model, word_tokenizer(WORDS, "<bos>"), name="multi-head", device="cpu")


@lru_cache
def grouped_query(device: str = "cpu"):
    """Rotary positions, six query heads on two key heads, RMSNorm, gated MLP: 2 layers, random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(2)
    config = LlamaConfig(vocab_size=30, hidden_size=24, intermediate_size=16, num_hidden_layers=2,
                         num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=64,
                         initializer_range=0.5, bos_token_id=0, eos_token_id=0)
    return as_bridge(LlamaForCausalLM(config), word_tokenizer(WORDS, "<bos>"), name="grouped", device=device)


@lru_cache
def grouped_query_biased():
    """As grouped_query, but three layers, biases on Q, K, V and O, and uneven norms; random weights."""
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


@lru_cache
def planted():
    return planted_induction_model(n_tokens=30, n_ctx=64)


@lru_cache
def tiny():
    return models.load_model("tiny")


@lru_cache
def smollm2():
    if not models.is_cached("smollm2-135m"):
        pytest.skip("smollm2-135m is not in the cache")
    return models.load_model("smollm2-135m")


def hub_cache(folder: Path) -> dict[str, str]:
    """A Hugging Face cache of two small models, random weights, under names that the course knows: {kind: name}."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    words = ["<bos>", *(f"t{i}" for i in range(1, 1200))]           # so many that no text draws <bos> twice in a row
    common = {"vocab_size": len(words), "bos_token_id": 0, "eos_token_id": 0}
    torch.manual_seed(3)
    found = {
        "gpt2": GPT2LMHeadModel(GPT2Config(n_positions=256, n_embd=64, n_layer=4, n_head=4, **common)),
        "HuggingFaceTB/SmolLM2-135M": LlamaForCausalLM(LlamaConfig(
            hidden_size=96, intermediate_size=128, num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=2,
            max_position_embeddings=256, tie_word_embeddings=True, **common)),
    }
    for repo, model in found.items():
        place = folder / f"models--{repo.replace('/', '--')}"
        for part in (model, word_tokenizer(words, "<bos>")):
            part.save_pretrained(place / "snapshots" / "abc")
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text("abc")
    return {"gpt2": "gpt2-small", "llama": "HuggingFaceTB/SmolLM2-135M"}


RANDOM = {"multi_head": multi_head, "grouped_query": grouped_query}
ALL = {**RANDOM, "grouped_query_biased": grouped_query_biased, "planted": planted, "tiny": tiny}


def repeated(model, seq_len: int = 6, batch: int = 3, seed: int = 0) -> torch.Tensor:
    """BOS and two copies of different tokens. -> Int[batch, 1 + 2 * seq_len]."""
    rng = torch.Generator().manual_seed(seed)
    half = torch.stack([1 + torch.randperm(model.cfg.d_vocab - 1, generator=rng)[:seq_len] for _ in range(batch)])
    return torch.cat([torch.zeros(batch, 1, dtype=torch.long), half, half], dim=1)


def hook_count(model) -> int:
    """How many hooks of any kind are on the model's modules."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) + len(getattr(module, "fwd_hooks", []))
               for module in model.modules())


class forbidden_forward:
    """Inside, any forward pass of the model is an error: bad input must be refused before work."""

    def __init__(self, model):
        self.model = model

    def __enter__(self):
        self.handle = self.model.blocks[0].register_forward_pre_hook(self._refuse)

    def __exit__(self, *_):
        self.handle.remove()

    @staticmethod
    def _refuse(*_):
        raise AssertionError("the model was run before the input was checked")
