"""Small random models of many decoder families, each the same few lines: a transformers configuration and odd weights.

Norms and biases are uneven, windows are shorter than the texts, so that nothing hides behind ones, zeros and limits.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import transformers
from torch import nn

from course_utils.models import as_bridge, word_tokenizer

VOCAB, WIDTH, LAYERS, HEADS, CONTEXT, WINDOW = 40, 32, 3, 4, 64, 5
WORDS = ["<bos>", *(f"t{i}" for i in range(1, VOCAB))]
GPT2 = {"n_positions": CONTEXT, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_inner": 20}
LLAMA = {"hidden_size": WIDTH, "intermediate_size": 20, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
         "num_key_value_heads": 2, "max_position_embeddings": CONTEXT}
FULL = {**LLAMA, "num_key_value_heads": HEADS}                              # every head has its own keys
NEOX = {name: value for name, value in FULL.items() if name != "num_key_value_heads"}
FALCON = {**NEOX, "ffn_hidden_size": 20, "bias": True}
OPT = {"hidden_size": WIDTH, "ffn_dim": 20, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
       "max_position_embeddings": CONTEXT, "word_embed_proj_dim": WIDTH}
GEMMA = {**LLAMA, "head_dim": 8}
MOE = {**LLAMA, "moe_intermediate_size": 20, "num_experts": 4, "num_experts_per_tok": 2, "num_local_experts": 4}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 100.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 100.0}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "original_max_position_embeddings": 16, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "rope_theta": 100.0}
LOCAL = ["sliding_attention", "full_attention", "sliding_attention"]

# family: (class of the configuration, its arguments). The class of the model follows from it.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    # named in the course
    "gpt2": ("GPT2Config", GPT2),
    "gpt2-untied": ("GPT2Config", {**GPT2, "tie_word_embeddings": False}),
    "gpt2-square-mlp": ("GPT2Config", {**GPT2, "n_inner": WIDTH}),
    "gpt2-scaled-by-layer": ("GPT2Config", {**GPT2, "scale_attn_by_inverse_layer_idx": True}),
    "gpt2-unscaled": ("GPT2Config", {**GPT2, "scale_attn_weights": False}),
    "llama": ("LlamaConfig", LLAMA),
    "llama-biased": ("LlamaConfig", {**LLAMA, "attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": ("LlamaConfig", {**LLAMA, "head_dim": 12}),
    "llama-square-mlp": ("LlamaConfig", {**LLAMA, "intermediate_size": WIDTH}),
    "llama-rope-linear": ("LlamaConfig", {**LLAMA, "rope_parameters": LINEAR}),
    "llama-rope-yarn": ("LlamaConfig", {**LLAMA, "rope_parameters": YARN}),
    "llama-rope-llama3": ("LlamaConfig", {**LLAMA, "rope_parameters": LLAMA3}),
    "mistral": ("MistralConfig", {**LLAMA, "sliding_window": WINDOW}),
    "qwen2": ("Qwen2Config", LLAMA),
    "qwen2-window": ("Qwen2Config", {**LLAMA, "use_sliding_window": True, "sliding_window": WINDOW,
                                     "max_window_layers": 1}),
    "qwen3": ("Qwen3Config", {**LLAMA, "head_dim": 8}),
    "phi3": ("Phi3Config", {**LLAMA, "pad_token_id": 0}),
    "phi3-partial": ("Phi3Config", {**LLAMA, "pad_token_id": 0, "partial_rotary_factor": 0.5}),
    "pythia": ("GPTNeoXConfig", {**NEOX, "rotary_pct": 0.25}),
    "pythia-half": ("GPTNeoXConfig", {**NEOX, "rotary_pct": 0.5}),
    "pythia-sequential": ("GPTNeoXConfig", {**NEOX, "use_parallel_residual": False}),
    "pythia-square-mlp": ("GPTNeoXConfig", {**NEOX, "intermediate_size": WIDTH}),
    "gemma2": ("Gemma2Config", {**GEMMA, "sliding_window": WINDOW, "final_logit_softcapping": 3.0,
                                "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 24}),
    "gemma2-uncapped": ("Gemma2Config", {**GEMMA, "sliding_window": WINDOW, "final_logit_softcapping": None,
                                         "attn_logit_softcapping": None, "query_pre_attn_scalar": 24}),
    "gemma3": ("Gemma3TextConfig", {**GEMMA, "sliding_window": WINDOW, "layer_types": LOCAL,
                                    "query_pre_attn_scalar": 24}),
    "gpt-neo": ("GPTNeoConfig", {"hidden_size": WIDTH, "num_layers": LAYERS, "num_heads": HEADS,
                                 "intermediate_size": 20, "max_position_embeddings": CONTEXT, "window_size": WINDOW,
                                 "attention_types": [[["global", "local", "global"], 1]]}),
    "opt": ("OPTConfig", OPT),
    "opt-post-norm": ("OPTConfig", {**OPT, "do_layer_norm_before": False}),
    "opt-350m": ("OPTConfig", {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    # others that TransformerLens wraps
    "gemma": ("GemmaConfig", GEMMA),
    "gemma-square-mlp": ("GemmaConfig", {**GEMMA, "intermediate_size": WIDTH}),
    "phi": ("PhiConfig", {**FULL, "partial_rotary_factor": 0.5}),
    "phi-square-mlp": ("PhiConfig", {**FULL, "partial_rotary_factor": 0.5, "intermediate_size": WIDTH}),
    "gptj": ("GPTJConfig", {**GPT2, "rotary_dim": 4}),
    "codegen": ("CodeGenConfig", {**GPT2, "rotary_dim": 4}),
    "bloom": ("BloomConfig", {"hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS}),
    "mpt": ("MptConfig", {"d_model": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "max_seq_len": CONTEXT,
                          "expansion_ratio": 2}),
    "falcon": ("FalconConfig", {**FALCON, "new_decoder_architecture": False, "multi_query": True,
                                "parallel_attn": True}),
    "falcon-new": ("FalconConfig", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-alibi": ("FalconConfig", {**FALCON, "alibi": True, "new_decoder_architecture": False, "multi_query": False,
                                      "parallel_attn": False}),
    "stablelm": ("StableLmConfig", {**LLAMA, "partial_rotary_factor": 0.5}),
    "stablelm-parallel": ("StableLmConfig", {**LLAMA, "use_parallel_residual": True, "use_qkv_bias": True}),
    "olmo": ("OlmoConfig", LLAMA),
    "olmo-clipped": ("OlmoConfig", {**LLAMA, "clip_qkv": 1.0}),
    "olmo2": ("Olmo2Config", LLAMA),
    "granite": ("GraniteConfig", {**LLAMA, "embedding_multiplier": 3.0, "residual_multiplier": 0.4,
                                  "logits_scaling": 2.0, "attention_multiplier": 0.2}),
    "granite-plain": ("GraniteConfig", {**LLAMA, "embedding_multiplier": 1.0, "residual_multiplier": 1.0,
                                        "logits_scaling": 2.0, "attention_multiplier": 8 ** -0.5}),
    "cohere": ("CohereConfig", {**LLAMA, "logit_scale": 0.3}),
    "starcoder2": ("Starcoder2Config", {**LLAMA, "use_bias": True, "sliding_window": WINDOW}),
    "mixtral": ("MixtralConfig", MOE),
    "qwen3-moe": ("Qwen3MoeConfig", {**MOE, "head_dim": 8}),
    "qwen2-moe": ("Qwen2MoeConfig", {**MOE, "shared_expert_intermediate_size": 20}),
    "glm4-moe": ("Glm4MoeConfig", {**MOE, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1,
                                   "pad_token_id": 0, "head_dim": 8}),
    "ernie4.5-moe": ("Ernie4_5_MoeConfig", {**MOE, "moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 1}),
    "gpt-bigcode": ("GPTBigCodeConfig", GPT2),
    "gpt-bigcode-full": ("GPTBigCodeConfig", {**GPT2, "multi_query": False}),
    "xglm": ("XGLMConfig", {"d_model": WIDTH, "ffn_dim": 20, "num_layers": LAYERS, "attention_heads": HEADS,
                            "max_position_embeddings": CONTEXT}),
    "smollm3": ("SmolLM3Config", {**LLAMA, "no_rope_layers": [1, 0, 1], "pad_token_id": 0}),
    "nemotron": ("NemotronConfig", LLAMA),
    "bitnet": ("BitNetConfig", LLAMA),
    "gpt-oss": ("GptOssConfig", {**MOE, "head_dim": 8, "sliding_window": WINDOW, "layer_types": LOCAL}),
    "glm": ("GlmConfig", {**LLAMA, "head_dim": 8, "pad_token_id": 0}),
    "glm4": ("Glm4Config", {**LLAMA, "head_dim": 8, "pad_token_id": 0}),
    "exaone4": ("Exaone4Config", {**LLAMA, "sliding_window": WINDOW, "layer_types": LOCAL}),
    "arcee": ("ArceeConfig", LLAMA),
    "apertus": ("ApertusConfig", LLAMA),
    "seed-oss": ("SeedOssConfig", {**LLAMA, "head_dim": 8}),
    "ernie4.5": ("Ernie4_5Config", LLAMA),
    "hunyuan": ("HunYuanDenseV1Config", {**LLAMA, "head_dim": 8}),
    "olmo3": ("Olmo3Config", {**LLAMA, "sliding_window": WINDOW, "layer_types": LOCAL}),
    "olmoe": ("OlmoeConfig", MOE),
    "granite-moe": ("GraniteMoeConfig", {**MOE, "residual_multiplier": 0.4, "logits_scaling": 2.0}),
    "phimoe": ("PhimoeConfig", MOE),
    "cohere2": ("Cohere2Config", {**LLAMA, "sliding_window": WINDOW, "logit_scale": 0.3, "layer_types": LOCAL}),
    "ministral3": ("Ministral3Config", {**LLAMA, "head_dim": 8}),
    "openai-gpt": ("OpenAIGPTConfig", {**GPT2}),
    "jais2": ("Jais2Config", LLAMA),
}
NAMED = ("gpt2", "llama", "mistral", "qwen2", "qwen3", "phi3", "pythia", "gemma2", "gemma3", "gpt-neo", "opt")


@lru_cache
def hugging_face(family: str) -> Any:
    """The transformers model of a family, in eval mode with eager attention; the same weights every time."""
    name, arguments = FAMILIES[family]
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    config = getattr(transformers, name)(vocab_size=VOCAB, **{**ids, **arguments})
    config._attn_implementation = "eager"
    torch.manual_seed(len(family))
    model = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    model.config.architectures = [type(model).__name__]         # as in a configuration that was saved
    for path, weight in model.named_parameters():
        _odd(weight, path)
    return model


def _odd(weight: nn.Parameter, path: str) -> None:
    """Weights that no identity holds for: none is 0 or 1, none is like its neighbour."""
    if weight.ndim > 1:
        weight.normal_(std=0.35)
    elif path.endswith("bias") or "sinks" in path:
        weight.normal_(std=0.5)
    elif "norm" in path or "ln_" in path or ".ln" in path:
        weight.uniform_(0.5, 1.5)


@dataclass
class Family:
    """One model, twice: as transformers made it, and wrapped by the course."""

    name: str
    plain: Any
    bridge: Any


@lru_cache
def family(name: str) -> Family:
    """The model of a family and its bridge. Wrapping changes weights in place, so the bridge gets a copy."""
    model = hugging_face(name)
    return Family(name, model, as_bridge(
        deepcopy(model), word_tokenizer(WORDS, "<bos>"), name=f"random-{name}", device="cpu"))
