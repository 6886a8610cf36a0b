"""`evaluate_sae` against SAELens's `run_evals`, and a training step against a step of SAELens's trainer."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.measuring import alone, in_turn
from benchmarks.registry import Row, benchmark, row
from course_utils.faithfulness import SAELENS, evaluate_sae
from course_utils.models import best_device, is_cached, load_model
from course_utils.sae import SparseAutoencoder
from course_utils.sae_files import middle_layer
from course_utils.sae_training import Training, TrainingConfig
from course_utils.text import sample_text

BATCH, LENGTH = 8, 128
MISSING = [
    row("SAELens is not installed: use the environment of `make peers`, .venv-peers/bin/python -m benchmarks", "")]


def has_saelens() -> bool:
    return importlib.util.find_spec("sae_lens") is not None


# --- evaluation ------------------------------------------------------------------------------------------------------


def inputs(model_name: str, sequences: int) -> tuple[Any, Any, torch.Tensor]:
    """A model, a TopK autoencoder of its middle layer (SAELens's object, random weights) and text."""
    from sae_lens import SAE

    model = load_model(model_name)
    sae = SparseAutoencoder(model.cfg.d_model, 4 * model.cfg.d_model, "topk", k=48, model_name=model_name,
                            hook_name=f"blocks.{middle_layer(model)}.hook_resid_pre")
    with tempfile.TemporaryDirectory() as folder:
        sae.save(folder)
        theirs = SAE.load_from_disk(folder)
    return model, theirs, sample_text(model, sequences, LENGTH, seed=0)


def prepare_theirs(model_name: str, sequences: str) -> Callable[[], dict[str, float]]:
    """Every metric of `run_evals` that needs the model or activations."""
    from datasets import Dataset
    from sae_lens.evals import EvalConfig, run_evals
    from sae_lens.training.activation_scaler import ActivationScaler
    from sae_lens.training.activations_store import ActivationsStore

    model, sae, tokens = inputs(model_name, int(sequences))
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


def prepare_ours(model_name: str, sequences: str) -> Callable[[], dict[str, float]]:
    """The same metrics by the same rules, under their names."""
    model, sae, tokens = inputs(model_name, int(sequences))
    mask = tokens != model.tokenizer.bos_token_id                           # all its special tokens are this one

    def call() -> dict[str, float]:
        found = evaluate_sae(model, sae, tokens, mask=mask, batch_size=BATCH, convention=SAELENS, everything=False,
                             resamples=0)
        return {"kl_div_with_sae": found.kl, "kl_div_with_ablation": found.kl_zero, "ce_loss_with_sae": found.ce_sae,
                "ce_loss_with_ablation": found.ce_zero, "explained_variance": found.explained_variance,
                "mse": found.mse}

    return call


@benchmark("evaluate-sae")
def evaluate(quick: bool = False) -> list[Row]:
    """SAELens's `run_evals` against `evaluate_sae` with the same metrics, rules, tokens and autoencoder."""
    if not has_saelens():
        return MISSING
    name = "tiny" if quick or not is_cached("smollm2-135m") else "smollm2-135m"
    sequences = str(2 * BATCH if quick else 4 * BATCH)
    times = in_turn(prepare_theirs(name, sequences), prepare_ours(name, sequences), 1 if quick else 3, name)
    theirs, ours = times.results
    difference = max(abs(theirs[each] - ours[each]) / abs(theirs[each]) for each in ours)
    costs = [alone(f"benchmarks.saes:{prepare}", name, sequences) for prepare in ("prepare_theirs", "prepare_ours")]
    return [
        row(f"run_evals / evaluate_sae: {name}, middle layer, {sequences} × {LENGTH} tokens", str(times), ">= 2.5",
            times.ratio >= 2.5),
        row("largest relative difference of a metric", f"{difference:.1e}", "<= 1e-4", difference <= 1e-4),
        row("extra memory: run_evals, evaluate_sae", f"{costs[0].extra:.2f} GB, {costs[1].extra:.2f} GB", "not more",
            costs[1].extra <= costs[0].extra),
    ]


# --- training --------------------------------------------------------------------------------------------------------


def their_trainer(kind: str, d_in: int, d_sae: int, k: int, batch: int, steps: int) -> Any:
    """SAELens's trainer for the same kind, size, batch and learning rate."""
    from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    if kind == "topk":
        sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d_in, d_sae=d_sae, k=k, device=str(best_device())))
    else:
        sae = StandardTrainingSAE(StandardTrainingSAEConfig(
            d_in=d_in, d_sae=d_sae, l1_coefficient=1.0, device=str(best_device())))
    config = SAETrainerConfig(total_training_samples=batch * steps, train_batch_size_samples=batch, lr=1e-3,
                              lr_end=1e-4, device=str(best_device()))
    return SAETrainer(cfg=config, sae=sae, data_provider=iter(()))


@benchmark("sae-training")
def training(quick: bool = False) -> list[Row]:
    """Steps of SAELens's trainer against steps of ours, on the same activations, without their collection."""
    if not has_saelens():
        return MISSING
    d_in, d_sae, k, batch, steps = (64, 256, 8, 128, 5) if quick else (576, 2304, 48, 1024, 12)
    rng = torch.Generator().manual_seed(0)
    activations = torch.randn(batch * steps, d_in, generator=rng)
    rows = []
    for kind in ("relu", "topk"):
        config = TrainingConfig(d_sae, kind, k=k if kind == "topk" else None, batch=batch, steps=10 * steps)
        ours = Training(SparseAutoencoder(d_in, d_sae, kind, k=config.k).to(best_device()), activations, config)
        theirs = their_trainer(kind, d_in, d_sae, k, batch, 10 * steps)

        def their_steps(trainer=theirs) -> None:
            for x in activations.split(batch):
                trainer.step(x.to(best_device()))
                trainer.n_training_steps += 1

        def our_steps(run=ours) -> None:
            for _ in range(steps):
                run.one_step(run.batch())

        times = in_turn(their_steps, our_steps, 1 if quick else 4, kind)
        rows.append(row(f"SAELens's trainer / ours: {kind}, {d_in} -> {d_sae}, batch {batch}, {steps} steps",
                        str(times), ">= 1.2", times.ratio >= 1.2))
        rows.append(row(f"our tokens per second, {kind}",
                        f"{batch * steps / sorted(times.second)[len(times.second) // 2]:,.0f}"))
    return rows
