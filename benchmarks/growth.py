"""How cost grows: the same call on larger and larger inputs, and the exponent that fits best."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from benchmarks.circuits import random_circuit
from benchmarks.measuring import alone, timed
from benchmarks.registry import Row, benchmark
from course_utils.ablation import head_ablation_scores, mlp_patch_sweep
from course_utils.circuits import composition_scores, effective_embedding, top_k_accuracy
from course_utils.faithfulness import evaluate_sae
from course_utils.heads import induction_scores
from course_utils.house import bars_are_off
from course_utils.models import as_bridge, best_device, word_tokenizer
from course_utils.repeated_tokens import generate_repeated_tokens, repeated_token_report
from course_utils.sae import SparseAutoencoder
from course_utils.sae_training import Training, TrainingConfig

Call = Callable[[], Any]
D_MODEL = 128


def random_model(layers: int = 4, vocab: int = 1000, context: int = 1100):
    """GPT-2's architecture with random weights, 128 numbers wide, 4 heads in each layer."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    words = ["<bos>", *(f"w{i}" for i in range(1, vocab))]
    config = GPT2Config(vocab_size=vocab, n_positions=context, n_embd=D_MODEL, n_layer=layers, n_head=4,
                        bos_token_id=0, eos_token_id=0)
    return as_bridge(GPT2LMHeadModel(config), word_tokenizer(words, "<bos>"), name="random", device=best_device())


def random_sae(d_sae: int) -> SparseAutoencoder:
    return SparseAutoencoder(D_MODEL, d_sae, "topk", k=32, hook_name="blocks.2.hook_resid_pre").to(best_device())


# --- what grows ------------------------------------------------------------------------------------------------------

Prepare = Callable[[int], Call]
GROWING: dict[str, tuple[str, Sequence[int], Prepare]] = {}         # call: (what grows, its sizes, size -> call)


def grows(what: str, sizes: Sequence[int]) -> Callable[[Prepare], Prepare]:
    """Register a function that prepares a call of some size; its docstring names the call."""
    def register(prepare: Prepare) -> Prepare:
        GROWING[prepare.__doc__] = what, sizes, prepare
        return prepare
    return register


LENGTH, LENGTHS = "tokens in one copy", (32, 64, 128, 256, 512)
VOCABULARY, VOCABULARIES = "vocabulary", (2000, 4000, 8000, 16000, 32000)
LAYER, LAYERS = "layers", (2, 4, 8, 16)
SEQUENCE, SEQUENCES = "sequences of 63 tokens", (16, 32, 64, 128, 256)
WIDTH, WIDTHS = "width of the autoencoder", (512, 1024, 2048, 4096, 8192)


@grows(LENGTH, LENGTHS)
def report_of_length(seq_len: int) -> Call:
    "repeated_token_report, 4 sequences"
    model = random_model()
    return lambda: repeated_token_report(model, seq_len, batch=4, seed=0)


@grows(LENGTH, LENGTHS)
def scores_of_length(seq_len: int) -> Call:
    "induction_scores, 4 sequences"
    model = random_model()
    tokens = generate_repeated_tokens(model, seq_len, batch=4, seed=0)
    return lambda: induction_scores(model, tokens, seq_len)


@grows(LENGTH, (16, 32, 64, 128))
def sweep_of_length(seq_len: int) -> Call:
    "mlp_patch_sweep, 1 sequence, 1 layer"
    model = random_model()
    tokens = generate_repeated_tokens(model, seq_len, seed=0)
    return lambda: mlp_patch_sweep(model, tokens, seq_len, layers=[1])


@grows(VOCABULARY, VOCABULARIES)
def accuracy_of_vocabulary(vocab: int) -> Call:
    "top_k_accuracy"
    circuit = random_circuit(vocab)
    return lambda: top_k_accuracy(circuit)


@grows(VOCABULARY, VOCABULARIES)
def embedding_of_vocabulary(vocab: int) -> Call:
    "effective_embedding"
    model = random_model(vocab=vocab)
    return lambda: effective_embedding(model)


@grows(LAYER, LAYERS)
def ablations_of_layers(layers: int) -> Call:
    "head_ablation_scores, all heads, 4 x 33 tokens"
    model = random_model(layers)
    tokens = generate_repeated_tokens(model, 16, batch=4, seed=0)
    return lambda: head_ablation_scores(model, tokens, "mean", seq_len=16)


@grows(LAYER, LAYERS)
def sweep_of_layers(layers: int) -> Call:
    "mlp_patch_sweep, all layers, 33 tokens"
    model = random_model(layers)
    tokens = generate_repeated_tokens(model, 16, seed=0)
    return lambda: mlp_patch_sweep(model, tokens, 16)


@grows(LAYER, LAYERS)
def compositions_of_layers(layers: int) -> Call:
    "composition_scores, all pairs"
    model = random_model(layers)
    return lambda: composition_scores(model, "K")


@grows(SEQUENCE, SEQUENCES)
def scores_of_sequences(n: int) -> Call:
    "induction_scores"
    model = random_model()
    tokens = generate_repeated_tokens(model, 31, n, seed=0)
    return lambda: induction_scores(model, tokens, 31)


@grows(SEQUENCE, SEQUENCES)
def evaluation_of_sequences(n: int) -> Call:
    "evaluate_sae"
    return evaluation(n, 512)


@grows(WIDTH, WIDTHS)
def evaluation_of_width(d_sae: int) -> Call:
    "evaluate_sae, 32 sequences"
    return evaluation(32, d_sae)


def evaluation(n: int, d_sae: int) -> Call:
    model, sae = random_model(), random_sae(d_sae)
    tokens = generate_repeated_tokens(model, 31, n, seed=0)
    return lambda: evaluate_sae(model, sae, tokens, everything=False, resamples=0)


@grows(WIDTH, WIDTHS)
def training_of_width(d_sae: int) -> Call:
    "four steps of training, batch 1,024"
    activations = torch.randn(4096, D_MODEL, generator=torch.Generator().manual_seed(0))
    run = Training(random_sae(d_sae), activations, TrainingConfig(d_sae, "topk", k=32, batch=1024, steps=1000))
    return lambda: [run.one_step(run.batch()) for _ in range(4)]


# --- how it grows ----------------------------------------------------------------------------------------------------


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """The slope of log seconds over log size by least squares: 1 if twice the size takes twice as long."""
    x, y = ([math.log(value) for value in values] for values in (sizes, seconds))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / sum((a - mean_x) ** 2 for a in x)


def prepare(name: str, size: str) -> Call:
    return GROWING[name][2](int(size))


def fastest(calls: list[Call], rounds: int) -> list[float]:
    """Seconds of each call, the best of some rounds; every round calls each once, so that all meet the same load."""
    best = [math.inf] * len(calls)
    for _ in range(rounds):
        best = [min(seconds, timed(call)[0]) for seconds, call in zip(best, calls)]
    return best


@benchmark("growth")
def growth(quick: bool = False) -> list[Row]:
    """How the cost of a call grows with its input, over at least eight times the smallest size.

    Seconds are the best of five; the exponent is fitted over all sizes, and again over the upper half of them, where
    fixed costs weigh less: 1 means "twice as much takes twice as long". Extra memory is that of a fresh process. The
    model is random, of GPT-2's architecture: 4 layers of 4 heads, 128 numbers wide, 1,000 tokens, unless that is what
    grows.
    """
    rows = []
    for name in tqdm(GROWING, desc="growth", leave=False, disable=bars_are_off()):
        what, sizes, make = GROWING[name]
        sizes = sizes[:2] if quick else sizes
        seconds = fastest([make(size) for size in sizes], 1 if quick else 5)
        costs = [alone("benchmarks.growth:prepare", name, str(size)) for size in (sizes[0], sizes[-1])]
        half = slice((len(sizes) - 1) // 2, None)
        rows.append({
            "What grows": what, "Sizes": f"{sizes[0]:,} to {sizes[-1]:,} (× {sizes[-1] // sizes[0]})", "Call": name,
            "Seconds": f"{seconds[0]:.3g} to {seconds[-1]:.3g}", "Exponent": f"{exponent(sizes, seconds):.2f}",
            "Upper half": f"{exponent(sizes[half], seconds[half]):.2f}",
            "Extra memory (GB)": f"{costs[0].extra:.2f} to {costs[1].extra:.2f}"})
    return rows
