"""Reading circuits over a vocabulary of GPT-2's size, and composition scores against TransformerLens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import FactoredMatrix

from benchmarks.measuring import alone, in_turn
from benchmarks.registry import Row, benchmark, row
from course_utils.circuits import ROWS_AT_A_TIME, composition_scores, top_k_accuracy
from course_utils.models import best_device, load_model

VOCAB, QUICK_VOCAB, D_HEAD = 50_257, 1_000, 64


def random_circuit(vocab: int) -> FactoredMatrix:
    """Two random factors, laid out in memory as those of `K_comp_full_circuit` are."""
    rng = torch.Generator().manual_seed(0)
    queries, keys = (torch.randn(vocab, D_HEAD, generator=rng).to(best_device()) for _ in range(2))
    return FactoredMatrix(queries, keys.T)


@torch.no_grad()
def bare_products(left: Float[Tensor, "vocab d_head"], right: Float[Tensor, "d_head vocab"]) -> None:
    """Every strip of left @ right that `top_k_accuracy` needs, each written over the last; nothing is read."""
    space = left.new_empty(ROWS_AT_A_TIME, right.shape[1])
    for strip in left.split(ROWS_AT_A_TIME):
        torch.mm(strip, right, out=space[:len(strip)])


def prepare_top_k(best: str, vocab: str) -> Callable[[], float]:
    circuit = random_circuit(int(vocab))
    return lambda: top_k_accuracy(circuit, best=best)


@benchmark("top-k")
def top_k(quick: bool = False) -> list[Row]:
    """`top_k_accuracy` (k = 1) over a whole vocabulary, against the matrix products alone, strip by strip."""
    vocab, rows = QUICK_VOCAB if quick else VOCAB, []
    circuit = random_circuit(vocab)
    for best, matrix in (("key", circuit), ("query", circuit.T)):
        left, right = matrix.A.contiguous(), matrix.B.contiguous()
        times = in_turn(lambda: top_k_accuracy(circuit, best=best), lambda: bare_products(left, right),
                        1 if quick else 7, best)
        cost = alone("benchmarks.circuits:prepare_top_k", best, str(vocab))
        rows.append(row(f'top_k_accuracy(best="{best}") / bare products, V = {vocab:,}, d_head {D_HEAD}',
                        str(times), "<= 1.3", times.ratio <= 1.3))
        rows.append(row(f'its extra memory, best="{best}"', f"{cost.extra:.2f} GB", "<= 1 GB", cost.extra <= 1))
    return rows


@benchmark("composition")
def composition(quick: bool = False) -> list[Row]:
    """TransformerLens's `all_composition_scores` against `composition_scores`: all pairs of heads, one kind each."""
    name, rows = "tiny" if quick else "gpt2-small-random", []
    model = load_model(name)
    for kind in "KQV":
        times = in_turn(lambda: model.all_composition_scores(kind), lambda: composition_scores(model, kind),
                        1 if quick else 3, kind)
        theirs, ours = times.results
        difference = (getattr(theirs, "scores", theirs) - ours).abs().max().item()
        rows.append(row(f"TransformerLens / composition_scores, {kind}, {name}", str(times)))
        rows.append(row(f"largest difference, {kind}", f"{difference:.1e}", "<= 1e-4", difference <= 1e-4))
    return rows
