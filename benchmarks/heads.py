"""Induction scores against TransformerLens's head detector, and against the few lines that one writes instead."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from benchmarks.limits import Limit, Product, block_products, reading_products, times
from benchmarks.measuring import LIMIT, OURS, take_turns
from benchmarks.registry import Row, benchmark, row, speeds
from course_utils.heads import induction_scores, is_pattern
from course_utils.models import is_cached, load_model
from course_utils.repeated_tokens import generate_repeated_tokens

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

BATCH = 4


@torch.no_grad()
def from_cache(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], seq_len: int
) -> Float[Tensor, "layer head"]:
    """The same scores from `run_with_cache`, which keeps every pattern, and a diagonal of each."""
    _, cache = model.run_with_cache(tokens, names_filter=is_pattern)
    patterns = [cache[f"blocks.{layer}.attn.hook_pattern"] for layer in range(model.cfg.n_layers)]
    return torch.stack([each.diagonal(1 - seq_len, -2, -1)[..., 2:].mean(dim=(0, 2)) for each in patterns])


def products(model: TransformerBridge, batch: int, length: int) -> list[Product]:
    """All blocks but the last, whose queries, keys and their products are enough."""
    vectors, layers = batch * length, model.cfg.n_layers
    return [*times(layers - 1, block_products(model, vectors, batch, length, length)),
            *reading_products(model, vectors, "QK"),
            Product(length, model.cfg.d_head, length, batch / 2, model.cfg.n_heads)]


@benchmark("detect-head")
def detect_head(quick: bool = False) -> list[Row]:
    """`induction_scores` against TransformerLens's `detect_head` and `run_with_cache` with a diagonal, for every head.

    `detect_head` takes one text at a time, so it is called for each sequence; the others take them together. What
    lies between ours and its limit is the model's own: norms, rotations, softmax and its activation.
    """
    from transformer_lens import head_detector

    rows, others = [], []
    larger = ["gpt2-small-random", *(["smollm2-135m"] if is_cached("smollm2-135m") else [])]
    for name in ["tiny", *([] if quick else larger)]:
        model, seq_len = load_model(name), 10 if quick else 50
        tokens = generate_repeated_tokens(model, seq_len, BATCH, seed=0)
        texts = [model.tokenizer.decode(row[1:].tolist()) for row in tokens]
        calls = {OURS: lambda: induction_scores(model, tokens, seq_len),
                 "run_with_cache": lambda: from_cache(model, tokens, seq_len)}
        if all(torch.equal(model.to_tokens(text)[0], row) for text, row in zip(texts, tokens)):
            calls["detect_head"] = lambda: torch.stack(
                [head_detector.detect_head(model, text, "induction_head") for text in texts]).mean(0)
        turns = take_turns(calls, 1 if quick else 9, name, Limit(products(model, *tokens.shape)))
        what = f"induction_scores: {name}, {BATCH} sequences of 1 + 2 × {seq_len} tokens"
        rows += speeds(what, turns, {LIMIT: 1.3, "run_with_cache": 1})
        difference = (turns.results["run_with_cache"] - turns.results[OURS]).abs().max().item()
        others.append(row(f"largest difference to run_with_cache, {name}", f"{difference:.1e}", "<= 1e-5",
                          difference <= 1e-5))
        all_differ = all(len(set(text[1:seq_len + 1])) == seq_len for text in tokens.tolist())
        if "detect_head" in calls and all_differ:                                   # else they count all equal tokens
            stretch = tokens.shape[1] / seq_len                                     # they divide by all positions,
            rounding = 0.0005 * stretch                                             # and round to 3 decimals
            difference = (turns.results["detect_head"] * stretch - turns.results[OURS]).abs().max().item()
            others.append(row(f"largest difference to detect_head, which is rounded to three decimals, {name}",
                              f"{difference:.1e}", f"<= {rounding:.1e}", difference <= 1.01 * rounding))
    return rows + others
