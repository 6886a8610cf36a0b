"""`evaluate_sae` against SAELens's `run_evals`, and a training step against a step of SAELens's trainer."""

from __future__ import annotations

import importlib.util
import itertools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.limits import Limit, Product, block_products, times, unembedding_products
from benchmarks.measuring import LIMIT, OURS, alone, take_turns
from benchmarks.registry import Row, benchmark, row, speeds
from course_utils.faithfulness import SAELENS, FaithfulnessReport, evaluate_sae
from course_utils.models import best_device, is_cached, load_model
from course_utils.passes import CleanRun
from course_utils.sae import SparseAutoencoder
from course_utils.sae_files import middle_layer
from course_utils.sae_training import Training, TrainingConfig
from course_utils.text import sample_text

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

BATCH, LENGTH, K = 8, 128, 48
THREADS = (1, 2)
OURS_ON_THEIRS, BY_DEFAULT, RUN_EVALS = "ours, SAELens's object", "ours, all defaults", "run_evals"
MISSING = [row("SAELens is not installed: use the environment of `make peers`, .venv-peers/bin/python -m benchmarks",
               "")]


def has_saelens() -> bool:
    return importlib.util.find_spec("sae_lens") is not None


@contextmanager
def threads(number: int) -> Iterator[None]:
    """So many threads of torch, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def few_active(sae: Any, x: Float[Tensor, "n d_in"]) -> None:
    """Let about K latents be active: those of a new ReLU autoencoder are half of all, of a trained one few."""
    biases = [sae.b_gate, sae.b_mag] if hasattr(sae, "b_gate") else [sae.b_enc]
    with torch.no_grad():
        least = ((x - sae.b_dec) @ sae.W_enc + biases[0]).flatten().topk(K * len(x)).values[-1]
        for bias in biases:
            bias -= least


# --- evaluation ------------------------------------------------------------------------------------------------------


def texts(quick: bool) -> dict[str, int]:
    """The models, and how many sequences each is evaluated on."""
    real = is_cached("smollm2-135m") and not quick
    return {"tiny": 2 * BATCH} | ({"smollm2-135m": BATCH} if real else {})


def inputs(model_name: str, kind: str, d_sae: int, sequences: int) -> tuple[Any, SparseAutoencoder, Any, torch.Tensor]:
    """A model, an autoencoder of its middle layer (random, half of it dead), as ours and as SAELens's, and text."""
    from sae_lens import SAE

    model = load_model(model_name)
    layer, tokens = middle_layer(model), sample_text(model, sequences, LENGTH, seed=0)
    sae = SparseAutoencoder(model.cfg.d_model, d_sae, kind, k=K if kind == "topk" else None, model_name=model_name,
                            hook_name=f"blocks.{layer}.hook_resid_pre").requires_grad_(False)
    if kind == "relu":
        few_active(sae, CleanRun(model, tokens[:1]).residuals[layer][0, 1:].to(sae.b_dec))
    sae.b_enc[: d_sae // 2] = -1e6
    with tempfile.TemporaryDirectory() as folder:
        sae.save(folder)
        theirs = SAE.load_from_disk(folder)
    return model, sae, theirs, tokens


def their_evaluation(model: TransformerBridge, sae: Any, tokens: torch.Tensor) -> Callable[[], dict[str, float]]:
    """Every metric of `run_evals` that needs the model or activations."""
    from datasets import Dataset
    from sae_lens.evals import EvalConfig, run_evals
    from sae_lens.training.activation_scaler import ActivationScaler
    from sae_lens.training.activations_store import ActivationsStore

    batches = len(tokens) // BATCH
    config = EvalConfig(
        batch_size_prompts=BATCH, n_eval_reconstruction_batches=batches, n_eval_sparsity_variance_batches=batches,
        compute_kl=True, compute_ce_loss=True, compute_l2_norms=True, compute_sparsity_metrics=True,
        compute_variance_metrics=True, compute_featurewise_density_statistics=True)

    def call() -> dict[str, float]:
        store = ActivationsStore.from_sae(
            model, sae, dataset=Dataset.from_dict({"tokens": tokens.tolist()}), context_size=LENGTH, streaming=False,
            store_batch_size_prompts=BATCH, n_batches_in_buffer=4, train_batch_size_tokens=64)
        found, _ = run_evals(sae, store, model, ActivationScaler(), config)
        return {name: value for group in found.values() for name, value in group.items()}

    return call


def our_evaluation(
    model: TransformerBridge, sae: Any, tokens: torch.Tensor, **more: Any
) -> Callable[[], FaithfulnessReport]:
    """The same metrics by the same rules, or more of them."""
    mask = tokens != model.tokenizer.bos_token_id                           # all its special tokens are this one
    return lambda: evaluate_sae(model, sae, tokens, mask=mask, batch_size=BATCH, convention=SAELENS, **more)


def prepare_theirs(model_name: str, kind: str, d_sae: str, sequences: str) -> Callable[[], dict[str, float]]:
    model, _, theirs, tokens = inputs(model_name, kind, int(d_sae), int(sequences))
    return their_evaluation(model, theirs, tokens)


def prepare_ours(model_name: str, kind: str, d_sae: str, sequences: str) -> Callable[[], FaithfulnessReport]:
    model, sae, _, tokens = inputs(model_name, kind, int(d_sae), int(sequences))
    return our_evaluation(model, sae, tokens)


def evaluation_products(model: TransformerBridge, d_sae: int, sequences: int) -> list[Product]:
    """A clean pass, the blocks above the activation, both predictions and the encoder.

    The decoder needs the rows of the active latents alone, and zeros everywhere two tokens: next to nothing.
    """
    vectors, above = sequences * LENGTH, model.cfg.n_layers - middle_layer(model)
    return [*times(model.cfg.n_layers + above, block_products(model, vectors, sequences, LENGTH, LENGTH)),
            *unembedding_products(model, 2 * vectors), Product(vectors, model.cfg.d_model, d_sae)]


@benchmark("evaluate-sae")
def evaluate(quick: bool = False) -> list[Row]:
    """SAELens's `run_evals` against `evaluate_sae` with the same metrics, rules, tokens and autoencoder.

    Half of the latents are dead, and about 48 active. Ours takes the autoencoder as `SparseAutoencoder.load` gives it;
    beside it stand the same of SAELens's object, and all that `evaluate_sae` does by default: more divergences, the
    mean ablation, intervals. Those two rows say how much longer they take. SmolLM2 gets half the text, for the time.
    """
    if not has_saelens():
        return MISSING
    sizes = [("topk", 512)] if quick else [("topk", 2048), ("relu", 2048), ("topk", 16_384), ("topk", 65_536)]
    rows, others = [], []
    for (name, sequences), (kind, d_sae) in itertools.product(texts(quick).items(), sizes):
        what = f"{name}, {kind}, {d_sae:,} latents, {sequences} × {LENGTH} tokens"
        model, sae, theirs, tokens = inputs(name, kind, d_sae, sequences)
        slim = {"everything": False, "resamples": 0}
        calls: dict[str, Callable[[], Any]] = {
            OURS: our_evaluation(model, sae, tokens, **slim), RUN_EVALS: their_evaluation(model, theirs, tokens),
            OURS_ON_THEIRS: our_evaluation(model, theirs, tokens, **slim),
            BY_DEFAULT: our_evaluation(model, sae, tokens)}
        for number in THREADS[: 1 if quick else None]:
            with threads(number):
                turns = take_turns(calls, 1 if quick else 5, what, Limit(evaluation_products(model, d_sae, sequences)))
            rows += speeds(f"evaluate_sae: {what}, threads: {number}", turns, {RUN_EVALS: 2.5, LIMIT: 1.3})
            for each in (OURS_ON_THEIRS, BY_DEFAULT):
                others.append(row(f"run_evals / {each}: {what}, threads: {number}",
                                  str(turns.ratio(RUN_EVALS, each))))
        difference = largest_difference(turns.results[RUN_EVALS], turns.results[OURS])
        others.append(row(f"largest relative difference of a metric: {what}", f"{difference:.1e}", "<= 1e-5",
                          difference <= 1e-5))
        costs = [alone(f"benchmarks.saes:{prepare}", name, kind, str(d_sae), str(sequences))
                 for prepare in ("prepare_theirs", "prepare_ours")]
        others.append(row(f"extra memory of run_evals, evaluate_sae (defaults): {what}",
                          f"{costs[0].extra:.2f} GB, {costs[1].extra:.2f} GB", "not more",
                          costs[1].extra <= costs[0].extra))
    return rows + others


@benchmark("evaluate-sae-products")
def evaluation_work(quick: bool = False) -> list[Row]:
    """How many multiply-adds `run_evals` and `evaluate_sae` make, counted by torch: the same calls as in evaluate-sae.

    Both spend most of their time on them, in the same blocks of the same model. So the ratio says about how much
    faster ours can be; more than that, only the other work can give.
    """
    if not has_saelens():
        return MISSING
    rows = []
    sizes = [512] if quick else [2048, 16_384, 65_536]
    for (name, sequences), d_sae in itertools.product(texts(quick).items(), sizes):
        model, sae, theirs, tokens = inputs(name, "topk", d_sae, sequences)
        ours = multiply_adds(our_evaluation(model, sae, tokens, everything=False, resamples=0))
        of_run_evals = multiply_adds(their_evaluation(model, theirs, tokens))
        rows.append(row(f"run_evals / ours: {name}, {d_sae:,} latents, {sequences} × {LENGTH} tokens",
                        f"{of_run_evals:.2e} / {ours:.2e} = {of_run_evals / ours:.2f}"))
    return rows


def multiply_adds(call: Callable[[], object]) -> float:
    """Of all the products of a call; torch counts each as two operations."""
    with FlopCounterMode(display=False) as counted:
        call()
    return counted.get_total_flops() / 2


def largest_difference(theirs: dict[str, float], ours: FaithfulnessReport) -> float:
    """Of the metrics that both have, relative to theirs."""
    ours = {"kl_div_with_sae": ours.kl, "kl_div_with_ablation": ours.kl_zero, "ce_loss_with_sae": ours.ce_sae,
            "ce_loss_with_ablation": ours.ce_zero, "explained_variance": ours.explained_variance, "mse": ours.mse,
            "l0": ours.l0, "l1": ours.l1, "cossim": ours.cosine}
    return max(abs(theirs[name] - value) / abs(theirs[name]) for name, value in ours.items())


# --- training --------------------------------------------------------------------------------------------------------


def their_trainer(kind: str, d_in: int, d_sae: int, k: int, batch: int, steps: int) -> Any:
    """SAELens's trainer for the same kind, size, batch and learning rate."""
    import sae_lens
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    name, more = {"topk": ("TopK", {"k": k}), "relu": ("Standard", {"l1_coefficient": 1.0}),
                  "jumprelu": ("JumpReLU", {"l0_coefficient": 1.0}), "gated": ("Gated", {"l1_coefficient": 1.0})}[kind]
    settings = getattr(sae_lens, f"{name}TrainingSAEConfig")(d_in=d_in, d_sae=d_sae, device=str(best_device()), **more)
    sae = getattr(sae_lens, f"{name}TrainingSAE")(settings)
    config = SAETrainerConfig(total_training_samples=batch * steps, train_batch_size_samples=batch, lr=1e-3,
                              lr_end=1e-4,
                              device=str(best_device()))
    return SAETrainer(cfg=config, sae=sae, data_provider=iter(()))


def trainers(kind: str, few: bool, dead: bool, d_in: int, d_sae: int, batch: int, steps: int) -> tuple[Any, Any]:
    """Some steps of SAELens's trainer, and of ours, on white noise; perhaps with K active, perhaps with half dead."""
    activations = torch.randn(batch * steps, d_in, generator=torch.Generator().manual_seed(0))
    k = min(K, d_sae // 40)
    config = TrainingConfig(d_sae, kind, k=k if kind == "topk" else None, batch=batch, steps=10_000)
    ours = Training(SparseAutoencoder(d_in, d_sae, kind, k=config.k).to(best_device()), activations, config)
    theirs = their_trainer(kind, d_in, d_sae, k, batch, 10_000)
    with torch.no_grad():
        for sae in (ours.sae, theirs.sae):
            if few:
                few_active(sae, activations[:batch].to(best_device()) / (ours.scale if sae is ours.sae else 1))
            (sae.b_gate if kind == "gated" else sae.b_enc)[: d_sae // 2 if dead else 0] = -1e6
    if dead:
        ours.idle[: d_sae // 2] = theirs.n_forward_passes_since_fired[: d_sae // 2] = 1e6

    def their_steps() -> None:
        for x in activations.split(batch):
            theirs.step(x.to(best_device()))
            theirs.n_training_steps += 1

    def our_steps() -> None:
        for _ in range(steps):
            ours.one_step(ours.batch())

    return their_steps, our_steps


@benchmark("sae-training")
def training(quick: bool = False) -> list[Row]:
    """Steps of SAELens's trainer against steps of ours, on the same activations, without their collection.

    A new autoencoder has half of its latents active (TopK aside), a trained one few, here about 48. Where half are
    dead, ours revives them in all kinds, SAELens in TopK alone. The limit is the encoder's product of each step and
    Adam's memory, whichever takes longer: all else needs the active latents only; where half are active, it is five
    products.
    """
    if not has_saelens():
        return MISSING
    sizes = [(64, 2304, 128, 2)] if quick else [(576, 2304, 1024, 4), (576, 16_384, 1024, 1)]
    rows = []
    for d_in, d_sae, batch, steps in sizes:
        for kind, few, dead in (("topk", False, False), ("topk", False, True), ("relu", False, False),
                                ("relu", True, False), ("relu", True, True), ("jumprelu", True, False),
                                ("gated", True, False)):
            their_steps, our_steps = trainers(kind, few, dead, d_in, d_sae, batch, steps)
            active = "48 active" if few or kind == "topk" else "half active"
            what = f"{kind}, {d_in} -> {d_sae:,}, {active}{', half dead' if dead else ''}, {steps} × {batch}"
            for number in THREADS[: 1 if quick else None]:
                products = (1 if few or kind == "topk" else 5) * steps
                moved = steps * 2 * d_in * d_sae * 4 * 8        # weight, gradient and two moments, read and written
                with threads(number):
                    turns = take_turns({OURS: our_steps, "SAELens": their_steps}, 1 if quick else 5, what,
                                       Limit([Product(batch, d_in, d_sae, products)], moved))
                rows += speeds(f"training: {what}, threads: {number}", turns, {"SAELens": 1.5})
    return rows
