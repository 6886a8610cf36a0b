"""Exact scores of all edges against the loop over them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.limits import Limit, Product, block_products, times, unembedding_products
from benchmarks.measuring import LIMIT, OURS, take_turns
from benchmarks.registry import Row, benchmark, row, speeds
from course_utils.edges import Metric, _first_difference, _reading_hooks, exact_scores, graph_of, run_edges
from course_utils.models import load_model
from course_utils.pairs import Pairs, sex_pairs

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

N_PAIRS = 4


@torch.no_grad()
def naive_scores(model: TransformerBridge, pairs: Pairs, metric: Metric) -> Float[Tensor, "receiver sender batch"]:
    """One full pass for each edge, in which one receiver reads what one sender wrote on the other text."""
    graph, before = graph_of(model), metric(model(pairs.clean))
    change = run_edges(model, pairs.corrupted)[1] - run_edges(model, pairs.clean)[1]
    scores = before.new_zeros(*graph.edges.shape, len(pairs))
    for i, j in graph.edges.nonzero().tolist():
        hooks = _reading_hooks(model, graph.receivers[i], lambda: change[j])
        scores[i, j] = metric(model.run_with_hooks(pairs.clean, fwd_hooks=hooks)) - before
    return scores


def products(model: TransformerBridge, pairs: Pairs) -> list[Product]:
    """All blocks from each receiver's on, and the unembedding, of the positions from the first difference on."""
    batch, length = pairs.clean.shape
    later = length - _first_difference(pairs.clean, pairs.corrupted)
    found = []
    for layer in range(model.cfg.n_layers + 1):
        edges = sum(receiver.senders for receiver in graph_of(model).receivers if receiver.layer == layer)
        rows = edges * batch
        found += times(model.cfg.n_layers - layer, block_products(model, rows * later, rows, later, length))
        found += unembedding_products(model, rows * later)
    return found


@benchmark("edges")
def edges(quick: bool = False) -> list[Row]:
    """`exact_scores` of all edges against one pass with hooks for each edge, on the shipped model."""
    model = load_model("tiny")
    pairs = sex_pairs(model, 1 if quick else N_PAIRS)
    texts = torch.arange(len(pairs))

    def metric(logits: Float[Tensor, "batch pos vocab"]) -> Float[Tensor, "batch"]:
        return logits[texts, -1, pairs.right] - logits[texts, -1, pairs.wrong]

    turns = take_turns({OURS: lambda: exact_scores(model, pairs.clean, pairs.corrupted, metric),
                        "a pass for each edge": lambda: naive_scores(model, pairs, metric)},
                       1 if quick else 7, "edges", Limit(products(model, pairs)))
    difference = (turns.results[OURS] - turns.results["a pass for each edge"]).abs().max().item()
    what = f"exact_scores: tiny, {int(graph_of(model).edges.sum())} edges, {len(pairs)} pairs of {len(pairs.clean[0])}"
    return [*speeds(what, turns, {"a pass for each edge": 10, LIMIT: 1.3}),
            row("largest difference (logits)", f"{difference:.1e}", "<= 1e-4", difference <= 1e-4)]
