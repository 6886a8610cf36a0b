"""Reading circuits over a vocabulary of GPT-2's size, and composition scores against TransformerLens."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from transformer_lens import FactoredMatrix

from benchmarks.limits import Limit, Product
from benchmarks.measuring import LIMIT, OURS, alone, take_turns
from benchmarks.registry import Row, benchmark, row, speeds
from course_utils.circuits import composition_scores, top_k_accuracy
from course_utils.models import best_device, load_model

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

VOCAB, QUICK_VOCAB, D_HEAD = 50_257, 1_000, 64


def random_circuit(vocab: int, *, matching: bool = False) -> FactoredMatrix:
    """Two random factors, laid out in memory as those of `K_comp_full_circuit` are.

    matching: every token's best key and best query is its own, so that no row can be left out early.
    """
    rng = torch.Generator().manual_seed(0)
    queries, keys = (torch.randn(vocab, D_HEAD, generator=rng).to(best_device()) for _ in range(2))
    if matching:
        keys = queries = queries / queries.norm(dim=1, keepdim=True)
    return FactoredMatrix(queries, keys.T)


@torch.no_grad()
def in_strips(circuit: FactoredMatrix, best: str) -> float:
    """The share of hits for k = 1, the way it is usually written: as many whole rows at once as memory allows."""
    left, right = (circuit.A, circuit.B) if best == "key" else (circuit.B.T, circuit.A.T)
    ids, hits = torch.arange(len(left), device=left.device), 0
    for some in ids.split(256):
        hits += int(((left[some] @ right).argmax(dim=1) == some).sum())
    return hits / len(ids)


def prepare_top_k(best: str, vocab: str) -> Callable[[], float]:
    circuit = random_circuit(int(vocab), matching=True)
    return lambda: top_k_accuracy(circuit, best=best)


@benchmark("top-k")
def top_k(quick: bool = False) -> list[Row]:
    """`top_k_accuracy` (k = 1) over a whole vocabulary, against strips of 256 whole rows, and against its products.

    The limit is that of all the products, in blocks of the size that is fastest. A circuit that matches needs them
    all; one that does not stays below the limit, since a row is left out as soon as another entry beats its own.
    """
    vocab, rounds = (QUICK_VOCAB, 1) if quick else (VOCAB, 7)
    rows, others = [], []
    limit = Limit([Product(vocab, D_HEAD, vocab)])
    for best, matching in (("key", True), ("query", True), ("key", False)):
        circuit = random_circuit(vocab, matching=matching)
        turns = take_turns({OURS: lambda: top_k_accuracy(circuit, best=best),
                            "strips": lambda: in_strips(circuit, best)}, rounds, best, limit)
        what = f'top_k_accuracy(best="{best}"), V = {vocab:,}, {"all match" if matching else "few match"}'
        rows += speeds(what, turns, {LIMIT: 1.3, "strips": 1})
        difference = abs(turns.results[OURS] - turns.results["strips"])
        others.append(row(f"difference of the shares: {what}", f"{difference:.1e}", "<= 1e-4", difference <= 1e-4))
    for best in ("key", "query"):
        extra = alone("benchmarks.circuits:prepare_top_k", best, str(vocab)).extra
        others.append(row(f'extra memory of top_k_accuracy(best="{best}")', f"{extra:.2f} GB", "<= 1 GB", extra <= 1))
    return rows + others


@benchmark("composition")
def composition(quick: bool = False) -> list[Row]:
    """TransformerLens's `all_composition_scores` against `composition_scores`: all pairs of heads, one kind each."""
    name = "tiny" if quick else "gpt2-small-random"
    rows, others = [], []
    model = load_model(name)
    for kind in "KQV":
        turns = take_turns({OURS: lambda: composition_scores(model, kind),
                            "TransformerLens": lambda: model.all_composition_scores(kind)},
                           1 if quick else 5, kind, Limit(composition_products(model)))
        theirs = turns.results["TransformerLens"]
        difference = (getattr(theirs, "scores", theirs) - turns.results[OURS]).abs().max().item()
        rows += speeds(f"composition_scores, {kind}, {name}", turns, {"TransformerLens": 1})
        others.append(row(f"largest difference, {kind}", f"{difference:.1e}", "<= 1e-4", difference <= 1e-4))
    return rows + others


def composition_products(model: TransformerBridge) -> list[Product]:
    """Of each pair of heads: O [d_head, d_model] times the later head's factor, and the two d_head² products after it.

    In float32, although ours takes float64: squares of squares.
    """
    cfg = model.cfg
    pairs = cfg.n_heads**2 * cfg.n_layers * (cfg.n_layers - 1) // 2
    d = cfg.d_head
    return [Product(d, cfg.d_model, d, pairs / cfg.n_heads, cfg.n_heads),
            Product(d, d, d, 2 * pairs / cfg.n_heads, cfg.n_heads)]
