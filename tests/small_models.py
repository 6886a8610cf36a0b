"""Small models for tests, made once: random ones of both attention kinds, the planted circuit, and `tiny`."""

import copy
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from course_utils import models
from course_utils.models import as_bridge, word_tokenizer
from course_utils.planted import planted_induction_model
from course_utils.text import own_text

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


class EnglishWords:
    """A tokenizer for which every word is a token, numbered as it comes."""

    bos_token_id = 0

    def __init__(self):
        self.words = ["<bos>"]

    def __call__(self, text, add_special_tokens):
        self.words += [word for word in text.split() if word not in self.words]
        return {"input_ids": [self.words.index(word) for word in text.split()]}

    def decode(self, tokens):
        return " ".join(self.words[token] for token in tokens)


def english(device: str = "cpu"):
    """What pairs in English need of a model."""
    return SimpleNamespace(tokenizer=EnglishWords(), cfg=SimpleNamespace(
        device=device, d_vocab=1000, model_name="english"))


@lru_cache
def smollm2():
    if not models.is_cached("smollm2-135m"):
        pytest.skip("smollm2-135m is not in the cache")
    return models.load_model("smollm2-135m")


WIDE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
        "max_position_embeddings": 256}
GROUPED = {**WIDE, "num_key_value_heads": 2}
WINDOWS = {"head_dim": 16, "sliding_window": 32,
           "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]}
HUB_MODELS = {  # kind: (a name of the hub, the class, its configuration): small models with random weights
    "gpt2": ("gpt2", "GPT2LMHeadModel", {"n_positions": 256, "n_embd": 64, "n_layer": 4, "n_head": 4}),
    "llama": ("HuggingFaceTB/SmolLM2-135M", "LlamaForCausalLM", {
        **GROUPED, "hidden_size": 96, "num_attention_heads": 6, "tie_word_embeddings": True}),
    "mistral": ("mistralai/Mistral-7B-v0.1", "MistralForCausalLM", {**GROUPED, "sliding_window": 32}),
    "qwen2": ("Qwen/Qwen2-0.5B", "Qwen2ForCausalLM", GROUPED),
    "qwen3": ("Qwen/Qwen3-0.6B", "Qwen3ForCausalLM", {**GROUPED, "head_dim": 16}),
    "phi3": ("microsoft/Phi-3-mini-4k-instruct", "Phi3ForCausalLM", GROUPED),
    "pythia": ("EleutherAI/pythia-70m", "GPTNeoXForCausalLM", {**WIDE, "rotary_pct": 0.25}),
    "gemma2": ("google/gemma-2-2b", "Gemma2ForCausalLM", {**GROUPED, **WINDOWS, "query_pre_attn_scalar": 16}),
    "gemma3": ("google/gemma-3-1b-pt", "Gemma3ForCausalLM", {**GROUPED, **WINDOWS, "query_pre_attn_scalar": 16}),
    "neo": ("roneneldan/TinyStories-1M", "GPTNeoForCausalLM", {
        "hidden_size": 64, "num_layers": 4, "num_heads": 4, "attention_types": [[["global", "local"], 2]],
        "window_size": 32, "max_position_embeddings": 256}),
    "opt": ("facebook/opt-125m", "OPTForCausalLM", {
        "hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "word_embed_proj_dim": 64,
        "max_position_embeddings": 256}),
}


def hub_cache(folder: Path, kinds=("gpt2", "llama")) -> dict[str, str]:
    """A Hugging Face cache of small models, random weights, under names that the course knows: {kind: name}."""
    import transformers

    words = ["<bos>", *(f"t{i}" for i in range(1, 1200))]           # so many that no text draws <bos> twice in a row
    for kind in kinds:
        repo, name, settings = HUB_MODELS[kind]
        architecture = getattr(transformers, name)
        torch.manual_seed(3)
        model = architecture(architecture.config_class(
            **settings, vocab_size=len(words), bos_token_id=0, eos_token_id=0, pad_token_id=None))
        place = folder / f"models--{repo.replace('/', '--')}"
        for part in (model, word_tokenizer(words, "<bos>")):
            part.save_pretrained(place / "snapshots" / "abc")
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text("abc")
    return {kind: "gpt2-small" if kind == "gpt2" else HUB_MODELS[kind][0] for kind in kinds}


RANDOM = {"multi_head": multi_head, "grouped_query": grouped_query}
ALL = {**RANDOM, "grouped_query_biased": grouped_query_biased, "planted": planted, "tiny": tiny}


def repeated(model, seq_len: int = 6, batch: int = 3, seed: int = 0) -> torch.Tensor:
    """BOS and two copies of different tokens. -> Int[batch, 1 + 2 * seq_len]."""
    rng = torch.Generator().manual_seed(seed)
    half = torch.stack([1 + torch.randperm(model.cfg.d_vocab - 1, generator=rng)[:seq_len] for _ in range(batch)])
    return torch.cat([torch.zeros(batch, 1, dtype=torch.long), half, half], dim=1)


@lru_cache
def _written(model, n: int, length: int, seed: int) -> torch.Tensor:
    return own_text(model, n, length, seed)


def own_tokens(model, n: int = 5, length: int = 9, seed: int = 0) -> torch.Tensor:
    """What the model writes itself: then an ablation costs something, and its scores are defined."""
    return _written(model, n, length, seed).clone()


def random_tokens(n: int = 5, length: int = 9, seed: int = 0) -> torch.Tensor:
    """BOS and random tokens of the random models' vocabulary. -> Int[n, length]."""
    tokens = torch.randint(1, len(WORDS), (n, length), generator=torch.Generator().manual_seed(seed))
    return torch.where(torch.arange(length) > 0, tokens, 0)


def full_pass(model, row, hook_name, head=None, new=None, where=None):
    """Logits and activation of one sequence, [pos, vocab] and [pos, width], with `new` at the positions `where`."""
    seen = {}

    def put(value, hook):
        value = value.clone()
        part = value[0] if head is None else value[0, :, head]
        seen["x"] = part.flatten(1).clone()
        if new is not None:
            part[where] = new.reshape(part.shape)[where]
        return value

    with torch.no_grad():
        logits = model.run_with_hooks(row[None], fwd_hooks=[(hook_name, put)])
    return logits[0].double(), seen["x"]


def untried(model):
    """A copy, which a test may change; what it can do has not been tried."""
    model = copy.deepcopy(model)
    vars(model).pop("course_traits")
    return model


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
