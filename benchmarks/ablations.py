"""The MLP patching sweep against the loop that it replaces."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from benchmarks.limits import Limit, Product, block_products, times, unembedding_products
from benchmarks.measuring import LIMIT, OURS, take_turns
from benchmarks.registry import Row, benchmark, row, speeds
from course_utils.ablation import mlp_patch_sweep, second_copy_loss
from course_utils.models import is_cached, load_model
from course_utils.passes import mlp_out
from course_utils.repeated_tokens import generate_repeated_tokens

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

LOOP, BATCHED = "loop", "batched loop"


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


@torch.no_grad()
def batched_sweep(
    model: TransformerBridge, tokens: Int[Tensor, "1 pos"], seq_len: int, layers: list[int]
) -> Float[Tensor, "layer seq_len"]:
    """The loop that one writes next: one full pass for each layer and 25 positions, each a row of the batch."""
    logits, cache = model.run_with_cache(tokens, names_filter=[mlp_out(layer) for layer in layers])
    clean, sweep = second_copy_loss(logits, tokens, seq_len), torch.zeros(len(layers), seq_len)
    for row_, layer in enumerate(layers):
        for some in torch.arange(seq_len).split(25):
            def patch(output, hook, columns=some):
                rows = torch.arange(len(columns))
                output[rows, seq_len + 1 + columns] = cache[hook.name][0, 1 + columns]
                return output
            patched = model.run_with_hooks(tokens.expand(len(some), -1), fwd_hooks=[(mlp_out(layer), patch)])
            for column, logits in zip(some, patched):
                sweep[row_, column] = second_copy_loss(logits[None], tokens, seq_len) - clean
    return sweep


def products(model: TransformerBridge, layers: list[int], seq_len: int) -> list[Product]:
    """From the block above a patch to the last, and from its position to the last but one; then the logits of these.

    What is patched at the last position predicts nothing, and a patch of the last layer changes one position alone.
    """
    later = seq_len * (seq_len - 1) // 2                                            # positions behind a patch, summed
    found: list[Product] = []
    for layer in layers:
        blocks = model.cfg.n_layers - 1 - layer
        block = block_products(model, later, seq_len - 1, (seq_len + 1) // 2, 2 * seq_len)
        found += times(blocks, block) + unembedding_products(model, later if blocks else seq_len - 1)
    return found


def compare_sweeps(
    name: str, layers: list[int], seq_len: int, rounds: int, wanted: dict[str, float]
) -> list[Row]:
    model = load_model(name)
    tokens = generate_repeated_tokens(model, seq_len, seed=0)
    calls = {OURS: lambda: mlp_patch_sweep(model, tokens, seq_len, layers=layers),
             LOOP: lambda: naive_sweep(model, tokens, seq_len, layers),
             BATCHED: lambda: batched_sweep(model, tokens, seq_len, layers)}
    turns = take_turns(calls, rounds, name, Limit(products(model, layers, seq_len)))
    what = f"mlp_patch_sweep: {name}, layers {', '.join(map(str, layers))}, seq_len {seq_len}, batch 1"
    differences = [(turns.results[each] - turns.results[OURS]).abs().max().item() for each in (LOOP, BATCHED)]
    return [*speeds(what, turns, wanted),
            row("largest difference (nats)", f"{max(differences):.1e}", "<= 1e-5", max(differences) <= 1e-5)]


@benchmark("sweep-tiny")
def sweep_tiny(quick: bool = False) -> list[Row]:
    """The naive double loop and the batched one against `mlp_patch_sweep`, on the shipped model.

    The limit counts the products behind each patch alone. Ours runs seven neighbouring positions together, from the
    first of them on (an eighth more), and what the model does between products: norms, masks, softmax, its activation.
    """
    wanted = {LOOP: 15, BATCHED: 5, LIMIT: 1.3}
    return compare_sweeps("tiny", [0, 1, 2, 3], 6 if quick else 50, 1 if quick else 9, wanted)


@benchmark("sweep-smollm2")
def sweep_smollm2(quick: bool = False) -> list[Row]:
    """The same on a real language model, four of its 30 layers."""
    if not is_cached("smollm2-135m"):
        return [row("skipped: smollm2-135m is not fetched (faithful-circuits fetch smollm2-135m)", "")]
    wanted = {LOOP: 10, BATCHED: 4, LIMIT: 1.3}
    return compare_sweeps("smollm2-135m", [0, 10, 20, 29], 3 if quick else 50, 1 if quick else 5, wanted)
