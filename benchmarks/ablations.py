"""The MLP patching sweep against the loop that it replaces."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from benchmarks.measuring import in_turn
from benchmarks.registry import Row, benchmark, row
from course_utils.ablation import mlp_patch_sweep, second_copy_loss
from course_utils.models import is_cached, load_model
from course_utils.passes import mlp_out
from course_utils.repeated_tokens import generate_repeated_tokens

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@torch.no_grad()
def naive_sweep(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], seq_len: int, layers: list[int]
) -> Float[Tensor, "layer seq_len"]:
    """The sweep as a double loop, the way it is usually written: one full pass for each layer and position."""
    logits, cache = model.run_with_cache(tokens, names_filter=[mlp_out(layer) for layer in layers])
    clean, sweep = second_copy_loss(logits, tokens, seq_len), torch.zeros(len(layers), seq_len)
    for row_, layer in enumerate(layers):
        for i in range(seq_len):
            def patch(output, hook, position=seq_len + 1 + i):
                output[:, position] = cache[hook.name][:, position - seq_len]
                return output
            patched = model.run_with_hooks(tokens, fwd_hooks=[(mlp_out(layer), patch)])
            sweep[row_, i] = second_copy_loss(patched, tokens, seq_len) - clean
    return sweep


def compare_sweeps(name: str, layers: list[int], seq_len: int, rounds: int, wanted: float) -> list[Row]:
    model = load_model(name)
    tokens = generate_repeated_tokens(model, seq_len, seed=0)
    mlp_patch_sweep(model, tokens, seq_len, layers=layers[:1])                      # what is done once is done now
    times = in_turn(lambda: naive_sweep(model, tokens, seq_len, layers),
                    lambda: mlp_patch_sweep(model, tokens, seq_len, layers=layers), rounds, name)
    difference = (times.results[0] - times.results[1]).abs().max().item()
    setting = f"{name}, layers {', '.join(map(str, layers))}, seq_len {seq_len}, batch 1"
    return [row(f"naive loop / mlp_patch_sweep: {setting}", str(times), f">= {wanted:g}", times.ratio >= wanted),
            row("largest difference (nats)", f"{difference:.1e}", "<= 1e-5", difference <= 1e-5)]


@benchmark("sweep-tiny")
def sweep_tiny(quick: bool = False) -> list[Row]:
    """How many times as long the naive double loop takes as `mlp_patch_sweep`, on the shipped model."""
    return compare_sweeps("tiny", [0, 1, 2, 3], 6 if quick else 50, 1 if quick else 9, wanted=12)


@benchmark("sweep-smollm2")
def sweep_smollm2(quick: bool = False) -> list[Row]:
    """The same on a real language model, four of its 30 layers."""
    if not is_cached("smollm2-135m"):
        return [row("skipped: smollm2-135m is not fetched (faithful-circuits fetch smollm2-135m)", "")]
    return compare_sweeps("smollm2-135m", [0, 10, 20, 29], 3 if quick else 50, 1 if quick else 2, wanted=6)
