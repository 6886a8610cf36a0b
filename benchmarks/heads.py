"""Induction scores against TransformerLens's head detector."""

from __future__ import annotations

import torch

from benchmarks.measuring import in_turn
from benchmarks.registry import Row, benchmark, row
from course_utils.heads import induction_scores
from course_utils.models import load_model
from course_utils.repeated_tokens import generate_repeated_tokens

BATCH = 4


@benchmark("detect-head")
def detect_head(quick: bool = False) -> list[Row]:
    """TransformerLens's `detect_head` against `induction_scores`, for every head, on the same sequences.

    `detect_head` takes one text at a time, so it is called for each sequence; `induction_scores` takes them together.
    """
    from transformer_lens import head_detector

    name, seq_len = ("tiny", 10) if quick else ("gpt2-small-random", 50)
    model = load_model(name)
    tokens = generate_repeated_tokens(model, seq_len, BATCH, seed=0)
    texts = [model.tokenizer.decode(row[1:].tolist()) for row in tokens]
    assert all(torch.equal(model.to_tokens(text)[0], row) for text, row in zip(texts, tokens))
    times = in_turn(
        lambda: torch.stack([head_detector.detect_head(model, text, "induction_head") for text in texts]).mean(0),
        lambda: induction_scores(model, tokens, seq_len), 1 if quick else 5, name)
    theirs, ours = times.results
    stretch = tokens.shape[1] / seq_len                                             # they divide by all positions,
    difference, rounding = (theirs * stretch - ours).abs().max().item(), 0.0005 * stretch   # and round to 3 decimals
    setting = f"{name}, {BATCH} sequences of 1 + 2 × {seq_len} tokens"
    return [row(f"detect_head / induction_scores: {setting}", str(times)),
            row("largest difference of a score; they round theirs to three decimals", f"{difference:.1e}",
                f"<= {rounding:.1e}", difference <= 1.01 * rounding)]
