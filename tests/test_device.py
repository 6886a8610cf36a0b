"""Every public function, and every worked lesson, with its model on a second device (`second_device`), as on a GPU.

The values come from the CPU's own kernels, so each answer must be the CPU's.
"""

import dataclasses
import importlib
import inspect
import os
import pkgutil
from contextlib import contextmanager
from functools import lru_cache
from types import SimpleNamespace
from unittest import mock

import pytest
import small_models
import test_lessons_without_jupyter as lessons
import torch
from second_device import DEVICE, second_device

import course_utils
from course_utils import (
    ablation,
    attribution_graphs,
    baselines,
    circuits,
    claims,
    edges,
    faithfulness,
    heads,
    language,
    latents,
    logit_attribution,
    metrics,
    models,
    pairs,
    path_patching,
    probes,
    repeated_tokens,
    report_card,
    sae,
    sae_files,
    sae_training,
    splicing,
    text,
    transcoders,
    viz,
    wide,
)
from course_utils.exercises import Exercise, assess, grading
from course_utils.exercises.checking import Case, compare_cases, property_check, require
from course_utils.passes import (
    bare,
    clean_run,
    keeping,
    padding,
    parts,
    pooling,
    products,
    resumed,
    sites,
    traits,
    trial,
)
from course_utils.sae_formats import objects, others, saelens
from course_utils.viz import charts, dashboards

pytestmark = pytest.mark.slow

N = 6  # tokens in each copy


@contextmanager
def gpu_there():
    """`load_model` finds the second device, as it finds a GPU."""
    with mock.patch.object(models, "best_device", lambda: str(DEVICE)), second_device():
        yield


@pytest.fixture
def gpu():
    with gpu_there():
        yield


# --- the device itself -----------------------------------------------------------------------------------------------

FORBIDDEN = {
    "add": lambda x, y: x + y,
    "add to the CPU's": lambda x, y: y.add_(x),
    "the CPU's number gets a vector": lambda x, y: y[0, 0].mul_(x),
    "compare": lambda x, y: x == y,
    "equal": lambda x, y: torch.equal(x, y),
    "where": lambda x, y: torch.where(y > 0, x, 0.0),
    "multiply matrices": lambda x, y: x @ y.T,
    "join": lambda x, y: torch.cat([x, y]),
    "join numbers": lambda x, y: torch.stack([x.sum(), y.sum()]),
    "look up": lambda x, y: x.gather(1, torch.zeros(2, 3, dtype=torch.long)),
    "index the CPU's": lambda x, y: y[torch.zeros(1, dtype=torch.long, device=DEVICE)],
    "mask the CPU's": lambda x, y: y[x > 0],
    "put at an index": lambda x, y: x.__setitem__(torch.tensor([0, 1]), y),
    "masked_fill": lambda x, y: x.masked_fill(y > 0, 0.0),
    "out": lambda x, y: torch.mm(x, x.T, out=torch.zeros(2, 2)),
    "generator": lambda x, y: torch.multinomial(x.exp(), 1, generator=torch.Generator()),
    "generator of a new tensor": lambda x, y: torch.rand(3, generator=torch.Generator(), device=DEVICE),
    "quantile": lambda x, y: x.quantile(torch.tensor([0.5])),
    "a layer": lambda x, y: torch.nn.Linear(3, 2)(x),
}
ALLOWED = {
    "a number of the CPU's": lambda x, y: x * y.sum() + torch.tensor(1.0),
    "the CPU's index": lambda x, y: x[torch.tensor([1])] + x[:, torch.tensor([True, False, True])].sum(),
    "put a number at the CPU's index": lambda x, y: x.clone().index_put_((torch.tensor([0]),), torch.tensor(2.0)),
    "assign across": lambda x, y: [
        assigned(to, value) for to, value in ((y, x[0]), (x, y[0]), (y, x.sum()), (x, y.sum()))],
    "fill": lambda x, y: [torch.zeros_like(to).fill_(value) for to, value in ((y, x.sum()), (x, y.sum()))],
    "in place, and a new shape": lambda x, y: (z := x.clone(), z.add_(1).unsqueeze_(0), z.mul_(2), z + x),
    "copy": lambda x, y: x.cpu() + y + x.to("cpu") + y.to(x).cpu(),
    "read": lambda x, y: (x[0, 0].item(), x.tolist(), [float(each) for each in x[0]], f"{x.sum():.3f}", bool(x.any())),
    "fill with a mask": lambda x, y: x.masked_fill(x > 0, torch.tensor(0.0)),
    "out": lambda x, y: torch.mm(x, x.T, out=x.new_zeros(2, 2)),
}


def assigned(to, value):
    to = to.clone()
    to[0] = value
    return to


@pytest.mark.parametrize("name", FORBIDDEN)
def test_two_devices_may_not_meet(name, gpu):
    y = torch.arange(6.0).reshape(2, 3) - 2
    with pytest.raises(RuntimeError, match=rf"{DEVICE.type}.*cpu|cpu.*{DEVICE.type}|same device"):
        FORBIDDEN[name](y.to(DEVICE), y)


@pytest.mark.parametrize("name", ALLOWED)
def test_what_cuda_allows(name, gpu):
    y = torch.arange(6.0).reshape(2, 3) - 2
    assert plain(ALLOWED[name](y.to(DEVICE), y)) == plain(ALLOWED[name](y, y))


# --- every public function -------------------------------------------------------------------------------------------


def patterns_seen(i):
    """What a pass shows that ends with its last pattern."""
    seen = []
    clean_run.see_patterns(i.model, i.text, lambda layer, pattern: seen.append(pattern))
    return seen


def counted_firing(i):
    firing = wide.Firing(i.mask)
    firing.add(wide.active_latents(i.latents.flatten(0, 1)), i.mask.numel())
    return firing.l0, firing.l1, firing.active, firing.sequences


def sparse(i):
    """Which latents of a wide autoencoder are active, and what they decode to."""
    large = sae.SparseAutoencoder(256, sae_training.MANY // 256, "topk", k=3).to(i.x.device)
    few = sae_training.few_active(large, sae_training.pre_activations(large, i.flat))
    return few, sae_training.sparse_step(large, i.flat, few, 0.3)


@lru_cache
def inputs(device: str) -> SimpleNamespace:
    """What a learner has whose model is on this device."""
    i = SimpleNamespace(model=models.load_model("tiny", device=device), sample=language.StoryLanguage(1).sample(3, 12))
    i.tokens = repeated_tokens.generate_repeated_tokens(i.model, N, 3, seed=0)
    i.text = text.sample_text(i.model, 3, 12, seed=1)
    i.rotary = small_models.grouped_query(device)         # rotary positions
    i.rotary_text = text.own_text(i.rotary, 3, 12)
    i.english = small_models.english(device)
    i.sae = sae_files.topk_sae_for(i.model)
    i.cpu_sae = sae_files.load_shipped_sae("tiny", "topk-2")             # an autoencoder that is loaded is the CPU's
    i.gated, i.jump = (sae.SparseAutoencoder(256, 32, kind, hook_name=i.sae.hook_name).to(device)
                       for kind in ("gated", "jumprelu"))
    i.transcoders = {layer: transcoders.Transcoder(256, 24, "topk", k=5, skip=True, seed=layer).to(device)
                     for layer in range(4)}
    i.prompt = i.text[0, :6].cpu()                                      # it may be on either device
    i.graph = attribution_graphs.attribution_graph(i.model, i.transcoders, i.prompt, [5, (7, 9)])
    i.site = sites.Site(i.model, i.sae.hook_name)
    i.clean, i.x, i.x_hat = faithfulness.run_and_reconstruct(i.model, i.sae, i.text, i.site)
    i.latents = faithfulness.latents_of(i.sae, i.x, i.site)
    i.clean_z = clean_run.CleanRun(i.model, i.tokens, [ablation.hook_z(1)])
    i.logits, i.patched = faithfulness.patched_logits(i.model, i.sae, i.text)
    i.log_p, i.log_q = i.logits.log_softmax(-1), i.patched.log_softmax(-1)
    i.ce = -repeated_tokens.correct_token_log_probs(i.logits, i.text)                           # [3, 11]
    i.mask = faithfulness.all_but_first(i.text)
    i.flat, i.flat_latents = i.x[i.mask], i.latents[i.mask]
    i.ids = i.text[i.mask]
    i.labels = i.ids % 3 == 0
    i.draws = metrics.resample(3, 20, seed=0)
    i.noise = torch.randn(i.x.shape, generator=torch.Generator().manual_seed(0)).to(i.x)
    i.config = sae_training.TrainingConfig(d_sae=16, kind="relu", steps=3, batch=32, dead_after=1)
    i.OV, i.QK = circuits.full_OV_circuit(i.model, 1, 0), circuits.full_QK_circuit(i.model, 1, 0)
    i.scores = heads.induction_scores(i.model, i.tokens, N)
    i.words = [f"t{each}" for each in range(1 + 2 * N)]
    i.pattern = i.model.run_with_cache(i.tokens)[1]["blocks.1.attn.hook_pattern"][0]           # [head, query, key]
    return i


def trained(i, tmp_path):
    """A run that was stopped, and goes on from its checkpoint."""
    short = dataclasses.replace(i.config, steps=3, save_every=1)
    for kind in ("relu", "jumprelu", "gated", "topk"):
        config = dataclasses.replace(short, kind=kind, k=4 if kind == "topk" else None)
        first = sae.SparseAutoencoder(256, 16, kind, k=config.k).to(i.x.device)
        training = sae_training.Training(first, i.flat.cpu(), config, tmp_path / f"{i.x.device.type}-{kind}")
        training.one_step(training.batch())
        again = sae.SparseAutoencoder(256, 16, kind, k=config.k).to(i.x.device)
        yield sae_training.fit(again, i.flat.cpu(), config, tmp_path / f"{i.x.device.type}-{kind}")


def saved(i, tmp_path):
    folder = tmp_path / i.x.device.type
    i.sae.save(folder)
    return sae.SparseAutoencoder.load(folder)


def inside(context, model, tokens):
    with context:
        return model(tokens)


def training_of(i):
    return sae_training.Training(sae.SparseAutoencoder(256, 16).to(i.x.device), i.flat, i.config)


# "module.function": what is called on whatever device the inputs are on.
CASES = {
    "ablation.second_copy_loss": lambda i: ablation.second_copy_loss(i.model(i.tokens), i.tokens, N),
    "ablation.mlp_patch_sweep": lambda i: ablation.mlp_patch_sweep(i.model, i.tokens, N),
    "ablation.ablate": lambda i: [ablation.ablate(i.x, kind) for kind in ablation.KINDS],
    "ablation.head_ablation_scores": lambda i: ablation.head_ablation_scores(i.model, i.tokens, seq_len=N),
    "ablation.mlp_ablation_scores": lambda i: ablation.mlp_ablation_scores(i.model, i.tokens, "resample", seq_len=N),
    "ablation.replace_head": lambda i: ablation.replace_head(0, i.x[..., :64])(i.x.unflatten(-1, (4, 64)), None),
    "ablation.mean_loss": lambda i: ablation.mean_loss(i.clean, i.clean.residuals[-1]),
    "ablation.gradients": lambda i: ablation.gradients(i.model, i.text, [ablation.mlp_out(1)], torch.sum),
    "ablation.mlp_attribution_sweep": lambda i: ablation.mlp_attribution_sweep(i.model, i.tokens, N),
    "ablation.head_attribution_scores": lambda i: ablation.head_attribution_scores(i.model, i.tokens, seq_len=N),
    "ablation.some_layers": lambda i: ablation.some_layers(i.model),
    "metrics.expected_delta_ce": lambda i: metrics.expected_delta_ce(i.log_p, i.logits, i.patched),
    "metrics.tokens_needed": lambda i: metrics.tokens_needed(i.logits[0], i.patched[0]),
    "metrics.score_interval": lambda i: metrics.score_interval(*(i.ce.mean(1) + by for by in (0, 0.1, 2)), i.draws),
    "claims.estimate": lambda i: claims.estimate(i.ce.mean(1)),
    "claims.difference": lambda i: claims.difference(i.ce.mean(1), i.ce.mean(1) + 1),
    "claims.claim": lambda i: claims.claim("one exceeds the other", i.ce.mean(1) + 1, ">", i.ce.mean(1)),
    "metrics.confidently_wrong": lambda i: metrics.confidently_wrong(i.logits, i.text),
    "metrics.kl_terms": lambda i: metrics.kl_terms(i.logits, i.patched),
    "baselines.epsilon_random": lambda i: baselines.epsilon_random(i.x, i.x_hat, i.noise),
    "baselines.theta_random": lambda i: baselines.theta_random(i.x, i.x_hat, i.noise),
    "baselines.covariance_root": lambda i: baselines.covariance_root(i.flat.T @ i.flat / len(i.flat)),
    "baselines.activation_statistics": lambda i: baselines.activation_statistics(i.model, i.site, i.text, i.mask),
    "baselines.noise_floor": lambda i: (
        baselines.noise_floor(i.model, i.sae, i.text, draws=2, resamples=9, batch_size=2),
        baselines.noise_floor(i.model, i.cpu_sae, i.text, ("mean",), mask=i.mask.cpu(), at=5)),
    "baselines.Moments": lambda i: vars(moments(i)),
    "baselines.harm": lambda i: baselines.harm(i.clean, {"none": i.clean.residuals[2]}, i.mask),
    "baselines.true_noise_floor": lambda i: baselines.true_noise_floor(
        i.model, i.sae, i.sample, mask=i.mask).to_frame().drop("kl_bfloat16").to_dict(),    # each device rounds others
    "baselines.coarser_log_probs": lambda i: baselines.coarser_log_probs(i.model, i.text).isfinite(),
    "charts.plot_scatter": lambda i: charts.plot_scatter(i.ce, i.ce, "x", "y"),
    "charts.plot_curves": lambda i: charts.plot_curves([("y", {"a": i.ce[0], "b": i.ce[1]})], xlabel="x", x=i.ce[2]),
    "charts.plot_circuit": lambda i: charts.plot_circuit({("embed", "1.0.v"): i.ce[0, 0].item()}),
    "charts.plot_histogram": lambda i: charts.plot_histogram(i.ce, "x", "values"),
    "parts.head_weights": lambda i: (parts.head_weights(i.model, 1, 2), parts.head_weights(i.rotary, 1, 2)),
    "circuits.full_OV_circuit": lambda i: i.OV,
    "circuits.full_QK_circuit": lambda i: (i.QK, circuits.full_QK_circuit(i.rotary, 1, 4, distance=2)),
    "circuits.K_comp_full_circuit": lambda i: (
        circuits.K_comp_full_circuit(i.model, 0, 1, 2, 3, layer_norm=True, query_bias=True),
        circuits.K_comp_full_circuit(i.rotary, 0, 1, 2, 3, distance=1)),
    "circuits.effective_embedding": lambda i: circuits.effective_embedding(i.model, heads=[0, 3]),
    "parts.centred": lambda i: parts.centred(i.model, i.x),
    "parts.gain_of": lambda i: parts.gain_of(None, i.x[0, 0], 1e-5),
    "parts.normalize": lambda i: parts.normalize(i.model, i.x),
    "circuits.fold_layer_norm": lambda i: circuits.fold_layer_norm(i.sae.W_enc, i.sae.b_enc, i.x[0, 1], i.x[0, 2]),
    "circuits.positional_pattern": lambda i: circuits.positional_pattern(i.model, 0, 1, 20),
    "circuits.score_by_distance": lambda i: circuits.score_by_distance(i.rotary, 0, 1, i.rotary_text, 5),
    "circuits.rotate": lambda i: circuits.rotate(i.rotary, i.rotary_text.float()[:, :4], 3),
    "parts.after_block_0": lambda i: parts.after_block_0(i.model, i.text[0], i.model.W_E.detach()[i.text[0]], [1]),
    "circuits.token_vectors": lambda i: circuits.token_vectors(i.model),
    "circuits.position_vectors": lambda i: circuits.position_vectors(i.model, 5),
    "circuits.visible": lambda i: circuits.visible(i.model, 1, 5),
    "parts.output_scale": lambda i: parts.output_scale(i.model.run_with_cache(i.text)[1], 1),
    "parts.normed_reading": lambda i: parts.normed_reading(i.model, 1, "q", i.x[..., :64]),
    "circuits.top_k_accuracy": lambda i: (circuits.top_k_accuracy(i.OV, 5), circuits.top_k_accuracy(
        i.QK, best="query", tokens=torch.arange(9)), circuits.top_k_accuracy(i.OV.AB, tokens=i.text[0])),
    "circuits.copying_score": lambda i: circuits.copying_score(i.OV),
    "circuits.composition_score": lambda i: circuits.composition_score(i.OV, i.QK),
    "circuits.composition_scores": lambda i: [circuits.composition_scores(i.rotary, kind) for kind in "QKV"],
    "clean_run.CleanRun": lambda i: (
        i.clean.residuals, i.clean_z.activations, i.clean_z.continue_from(2, i.clean_z.residuals[2][:, 3:], start=3),
        (run := clean_run.CleanRun(i.rotary, i.rotary_text)).continue_from(1, run.residuals[1][:, 2:], start=2),
        run.logits(run.residuals[2])),
    "resumed.output_factor": lambda i: resumed.output_factor(i.model),
    "resumed.after_unembedding": lambda i: resumed.after_unembedding(i.model, i.logits),
    "clean_run.read_activation": lambda i: clean_run.read_activation(i.model, i.text, "blocks.1.hook_mlp_out"),
    "dashboards.quantile_places": lambda i: dashboards.quantile_places(i.x[0], (0.5, 0.2)),
    "dashboards.Dashboard": lambda i: dashboards.Dashboard(
        0, i.latents[..., 3], [], [("a", 1.0)], [("b", -1.0)], "")._repr_html_(),
    "dashboards.latent_dashboard": lambda i: [repr(page) + page._repr_html_() for page in (
        dashboards.latent_dashboard(i.model, i.sae, i.latents, i.text, 3),
        dashboards.latent_dashboard(i.model, i.cpu_sae, i.latents.cpu(), i.text, 3))],
    "metrics.kl_divergence": lambda i: metrics.kl_divergence(i.logits, i.patched),
    "metrics.log_softmax": lambda i: metrics.log_softmax(i.logits.bfloat16()),
    "metrics.kl_of_log_probs": lambda i: metrics.kl_of_log_probs(i.log_p, i.log_q),
    "metrics.js_of_log_probs": lambda i: metrics.js_of_log_probs(i.log_p, i.log_q),
    "metrics.delta_cross_entropy": lambda i: metrics.delta_cross_entropy(i.logits, i.patched, i.text),
    "metrics.reconstruction_score": lambda i: metrics.reconstruction_score(i.ce, i.ce + 0.1, 9.0),
    "metrics.cross_entropy_by_position": lambda i: metrics.cross_entropy_by_position(i.logits, i.text),
    "metrics.explained_variance": lambda i: metrics.explained_variance(i.x[0], i.x_hat[0]),
    "metrics.pooled_mean": lambda i: metrics.pooled_mean([i.ce], [i.mask[:, 1:]]),
    "metrics.bootstrap_interval": lambda i: metrics.bootstrap_interval(i.ce, i.mask[:, 1:], i.draws),
    "faithfulness.evaluate_sae": lambda i: [
        faithfulness.evaluate_sae(i.model, each, i.text, batch_size=2, resamples=9, **how) for each, how in (
            (i.cpu_sae, {"mask": i.mask.cpu(), "convention": faithfulness.SAELENS}), (i.gated, {"mask": i.mask}))],
    "faithfulness.patched_logits": lambda i: faithfulness.patched_logits(i.model, i.cpu_sae, i.text),
    "faithfulness.run_and_reconstruct": lambda i: faithfulness.run_and_reconstruct(
        i.model, i.cpu_sae, i.text, i.site)[1:],
    "faithfulness.reconstruct": lambda i: faithfulness.reconstruct(i.sae, i.x, i.site),
    "faithfulness.Evaluation": lambda i: (
        sums := (one := faithfulness.Evaluation(i.model, i.cpu_sae, i.text, resamples=9)).sums(),
        (sums + one.mean_ablation(sums.mean_activation)).report()),
    "faithfulness_report.Sums": lambda i: faithfulness.Evaluation(i.model, i.sae, i.text).sums().tensors(),
    "faithfulness.as_the_object_wants": lambda i: faithfulness.as_the_object_wants(i.cpu_sae, i.x, i.site),
    "faithfulness.at_a_time": lambda i: faithfulness.at_a_time(i.model, 5000),
    "faithfulness.latents_of": lambda i: faithfulness.latents_of(i.sae, i.x, i.site),
    "faithfulness.evaluate_saes": lambda i: faithfulness.evaluate_saes(
        i.model, {"one": i.cpu_sae, "two": i.gated}, i.text, resamples=9),
    "faithfulness.read": lambda i: faithfulness.read(i.clean, i.site),
    "wide.active_latents": lambda i: wide.active_latents(i.flat_latents),
    "wide.top_active": lambda i: wide.top_active(i.flat, 3),
    "wide.decode_active": lambda i: wide.decode_active(wide.active_latents(i.flat_latents), i.sae.W_dec, len(i.flat)),
    "wide.in_parts": lambda i: list(wide.in_parts(i.sae, i.x)),
    "wide.Firing": lambda i: counted_firing(i),
    "products.largest": lambda i: products.largest(i.flat, 3)[0].sort().values,
    "products.wide_product": lambda i: products.wide_product(i.flat, i.sae.W_enc, i.sae.b_enc),
    "resumed.unembedded": lambda i: resumed.unembedded(i.model, i.x),
    "clean_run.see_patterns": patterns_seen,
    "resumed.end_early": patterns_seen,
    "bare.additive_mask": lambda i: bare.additive_mask(None, i.clean.residuals[0][None], i.clean.residuals[1][None]),
    "objects.acts_by_sequence": lambda i: objects.acts_by_sequence(i.sae, i.x),
    "sae_training.encoder_bias": lambda i: sae_training.encoder_bias(i.sae),
    "sae_training.few_active": lambda i: sparse(i)[0],
    "sae_training.sparse_step": lambda i: sparse(i)[1],
    "faithfulness.site_of": lambda i: faithfulness.site_of(i.model, i.sae).hook_name,
    "heads.induction_scores": lambda i: (i.scores, heads.induction_scores(i.model, i.tokens, N, whole_diagonal=True)),
    "heads.previous_token_scores": lambda i: heads.previous_token_scores(i.model, i.text),
    "heads.duplicate_token_scores": lambda i: heads.duplicate_token_scores(i.model, i.tokens, N),
    "heads.stripe_scores": lambda i: heads.stripe_scores(i.model, i.text, lambda pattern: pattern[..., 0]),
    "heads.best_head": lambda i: heads.best_head(i.pattern.amax(2)),
    "heads.top_heads": lambda i: heads.top_heads(i.pattern.amax(2)),
    "heads.induction_targets": lambda i: heads.induction_targets(i.text),
    "heads.induction_scores_in_text": lambda i: heads.induction_scores_in_text(i.model, i.text),
    "language.StoryLanguage": lambda i: language.StoryLanguage().decode(i.text[0]),
    "latents.latent_activations": lambda i: [
        latents.latent_activations(i.model, each, i.text) for each in (i.sae, i.cpu_sae)],
    "latents.dead_latents": lambda i: latents.dead_latents(i.latents, i.mask),
    "latents.top_activations": lambda i: latents.top_activations(i.x[..., 3], 2),
    "latents.auc": lambda i: latents.auc(i.flat, i.labels),
    "latents.best_latents": lambda i: latents.best_latents(
        i.flat, {"third": i.labels}, known={"third": i.ids > 5}).to_dict(),
    "latents.linear_direction": lambda i: latents.linear_direction(i.flat, i.labels),
    "latents.story_labels": lambda i: latents.story_labels(i.sample),
    "latents.token_labels": lambda i: [                             # they are to pick among `latent_activations`
        torch.arange(float(tokens.numel())).reshape(tokens.shape)[label] for model, tokens in (
            (i.model, i.text), (i.rotary, i.rotary_text)) for label in latents.token_labels(model, tokens).values()],
    "logit_attribution.logit_contributions": lambda i: logit_attribution.logit_contributions(
        i.x, i.x.norm(dim=-1, keepdim=True), i.model.W_U, i.text),
    "logit_attribution.direct_logit_attribution": lambda i: logit_attribution.direct_logit_attribution(i.model, i.text),
    "logit_attribution.capped": lambda i: logit_attribution.capped(i.model, i.logits),
    "padding.all_but_first": lambda i: padding.all_but_first(i.text),
    "padding.without_padding": lambda i: padding.without_padding(i.model, padded(i)),
    "padding.looks_like_padding": lambda i: padding.looks_like_padding(i.model, padded(i)),
    "padding.are_copies": lambda i: (padding.are_copies(i.tokens), padding.are_copies(i.text)),
    "padding.checked_mask": lambda i: padding.checked_mask(i.model, i.text, i.mask.cpu()) & i.mask,
    "padding.followed": lambda i: padding.followed(i.model, padded(i), padding.without_padding(i.model, padded(i))),
    "padding.counted_positions": lambda i: padding.counted_positions(i.mask, i.mask),
    "padding.special_tokens": lambda i: padding.special_tokens(i.model)[:2],
    "edges.graph_of": lambda i: edges.graph_of(i.model).edges,
    "edges.run_edges": lambda i: edges.run_edges(i.model, i.text[:2])[1],
    "edges.exact_scores": lambda i: edges.exact_scores(i.rotary, i.rotary_text[:1], i.rotary_text[1:2], logit_of_3),
    "edges.attribution_scores": lambda i: edges.attribution_scores(
        i.model, i.text[:1], i.text[1:2], logit_of_3, steps=2),
    "edges.run_circuit": lambda i: edges.run_circuit(
        i.model, i.text[:1], i.text[1:2], edges.graph_of(i.model).edges & (torch.arange(21) % 2 == 0)),
    "edges.without_subsets": lambda i: edges.without_subsets(
        i.rotary, i.rotary_text[:1], i.rotary_text[1:2], some_edges(i), some_edges(i)[None], logit_of_3),
    "edges.worst_subset": lambda i: edges.worst_subset(
        i.rotary, i.rotary_text[:1], i.rotary_text[1:2], some_edges(i), 2, logit_of_3, tries=1),
    "transcoders.Transcoder": lambda i: i.transcoders[1](i.x),
    "transcoders.mlp_inputs_and_outputs": lambda i: transcoders.mlp_inputs_and_outputs(
        i.model, 1, i.text, i.mask.cpu(), batch_size=2),
    "transcoders.train_transcoder": lambda i: transcoders.train_transcoder(i.model, 1, i.text, i.config, skip=True),
    "transcoders.replaced_logits": lambda i: transcoders.replaced_logits(i.model, i.transcoders, i.text),
    "transcoders.logits_with_mlps": lambda i: transcoders.logits_with_mlps(
        i.model, i.text, [0], lambda layer, x, y: x + y),
    "attribution_graphs.FrozenModel": lambda i: attribution_graphs.FrozenModel(
        i.model, i.transcoders, i.text[0]).replaced_logits(errors=False),
    "attribution_graphs.attribution_graph": lambda i: (i.graph, i.graph.scores(), i.graph.top(3)),
    "attribution_graphs.run_features": lambda i: attribution_graphs.run_features(
        i.model, i.transcoders, i.text, lambda layer, f: 0.5 * f),
    "charts.attribution_places": lambda i: (charts.attribution_places(i.graph), charts.attribution_edges(i.graph)),
    "attribution_graphs.answer_values": lambda i: attribution_graphs.answer_values(i.logits, [3, (4, 5)]),
    "attribution_graphs.normalized": lambda i: attribution_graphs.normalized(i.graph.edges),
    "attribution_graphs.influence": lambda i: attribution_graphs.influence(i.graph.edges, i.graph.weights),
    "attribution_graphs.graph_scores": lambda i: attribution_graphs.graph_scores(
        i.graph.edges, i.graph.weights, i.graph.of_kind("embedding"), i.graph.of_kind("error")),
    "attribution_graphs.pruned": lambda i: attribution_graphs.pruned(i.graph, 0.7),
    "attribution_graphs.total_effects": lambda i: attribution_graphs.total_effects(i.graph),
    "attribution_graphs.interventions": lambda i: attribution_graphs.interventions(i.model, i.graph, [0, 5], 0.5),
    "probes.difference_of_means": lambda i: probes.difference_of_means(i.flat, i.labels),
    "probes.sparse_probe": lambda i: probes.sparse_probe(i.flat, i.labels, 5),
    "probes.logistic_probe": lambda i: probes.logistic_probe(i.flat[:, :6], i.labels, ridge=0.1),
    "probes.principal_axes": lambda i: probes.principal_axes(i.flat[:, :6]),
    "probes.auc_by_text": lambda i: probes.auc_by_text(i.ce, i.ce > i.ce.mean(), torch.ones_like(i.ce) > 0),
    "probes.steering": lambda i: probes.steering(i.flat[0].cpu(), i.ce[:, 0], 2)(i.x, None),
    "probes.setting": lambda i: probes.setting(i.flat[0].cpu(), 1.5, 2)(i.x, None),
    "probes.hooked_logits": lambda i: probes.hooked_logits(
        i.model, i.text, i.sae.hook_name, probes.steering(i.sae.W_dec[3], 4.0)),
    "probes.kl_from_truth": lambda i: probes.kl_from_truth(i.log_p, i.logits),
    "probes.check_two_sided": lambda i: probes.check_two_sided(i.labels),
    "pairs.sex_pairs": lambda i: dataclasses.astuple(pairs.sex_pairs(i.model, 3, then="NAME felt sad and proud .")),
    "pairs.number_pairs": lambda i: dataclasses.astuple(pairs.number_pairs(i.model, 3)),
    "pairs.own_pairs": lambda i: dataclasses.astuple(pairs.own_pairs(i.rotary, 3, 8)),
    "pairs.giver_pairs": lambda i: dataclasses.astuple(pairs.giver_pairs(i.english, 3)),
    "edges.best_edges": lambda i: edges.best_edges(
        i.logits[0, :3, :4], 5, torch.ones(3, 4, dtype=torch.bool)),
    "edges.check_pairs": lambda i: edges.check_pairs(i.text, i.text),
    "path_patching.attention_output": lambda i: path_patching.attention_output(i.clean, 1),
    "path_patching.path_patching": lambda i: path_patching.path_patching(
        i.model, i.tokens, N, (0, 1), [(1, 2)], into="qkv"),
    "path_patching.new_readings": lambda i: [
        patch(torch.zeros_like(i.x).unflatten(-1, (4, 64)), None)
        for _, patch in path_patching.new_readings(i.clean, i.x - i.x_hat, (2, 1), "kv")],
    "path_patching.path_logits": lambda i: [
        path_patching.path_logits(i.model, i.text, (0, 1), [(1, 2)], "qk", restore=each) for each in (False, True)],
    "path_patching.put_reading": lambda i: path_patching.put_reading(i.model, 2, 1, "k", i.x[..., :64])[1](
        torch.zeros_like(i.x).unflatten(-1, (4, 64)), None),
    "path_patching.head_reading": lambda i: path_patching.head_reading(i.model, 2, 1, "q", i.x),
    "pooling.Pooled": lambda i: vars(pooled(i)),
    "keeping.over_batches": lambda i, folder: [
        baselines.noise_floor(i.model, i.sae, i.text, ("mean",), folder=folder / i.x.device.type) for _ in range(2)],
    "keeping.in_short": lambda i: keeping.in_short(i.model, tokens=i.text),
    "keeping.what_is_run": lambda i: keeping.what_is_run(i.model, i.sae, i.site, i.text, i.mask),
    "pooling.put_back": lambda i: pooling.put_back(i.text[i.mask].float().split(7), i.mask),
    "metrics.defined_ratio": lambda i: metrics.defined_ratio(i.ce[0], i.ce[1]),
    "metrics.interval": lambda i: metrics.interval(i.ce[0]),
    "metrics.mean_and_error": lambda i: metrics.mean_and_error(i.ce),
    "repeated_tokens.generate_repeated_tokens": lambda i: i.tokens,
    "repeated_tokens.correct_token_log_probs": lambda i: i.ce,
    "repeated_tokens.repeated_token_report": lambda i: (
        report := repeated_tokens.repeated_token_report(i.model, N, 9), report.standard_error, report.inner_accuracy),
    "report_card.report_card": lambda i: report_card.report_card(
        i.model, i.cpu_sae, text=i.text, seq_len=N, batch=3, draws=1).to_frame().to_dict(),
    "report_card.circuit_scores": lambda i: report_card.circuit_scores(i.ce[:, :10], 2 * i.ce[:, 1:].flip(1), 9),
    "report_card.circuit_interval": lambda i: report_card.circuit_interval(i.ce[:, :10], 2 * i.ce[:, 1:].flip(1), 9),
    "sae.SparseAutoencoder": lambda i: [each(i.x) for each in (
        i.sae, i.gated, i.jump, sae.SparseAutoencoder(256, 9, normalize="layer_norm").to(i.x.device))],
    "sae.top_k": lambda i: sae.top_k(i.x, 3),
    "sae.JumpReLU": lambda i: slopes(sae.JumpReLU, i),
    "sae.Step": lambda i: slopes(sae.Step, i),
    "saelens.write_sae": saved,
    "saelens.config_of": lambda i: saelens.config_of(i.sae),
    "saelens.fold_decoder_norm": lambda i: saelens.fold_decoder_norm(i.sae.state_dict()),
    "others.renamed": lambda i: others.renamed(i.sae.state_dict()),
    "others.size_of": lambda i: others.size_of(i.sae.state_dict(), "a file"),
    "others.with_one_threshold": lambda i: others.with_one_threshold(
        {**i.sae.state_dict(), "one": i.ce[0, 0].abs()}, "one", "a file"),
    "objects.encode_decode": lambda i: objects.encode_decode(i.sae, i.x),
    "sae_training.train_sae": lambda i: sae_training.train_sae(i.model, i.sae.hook_name, i.text, i.config),
    "sae_training.fit": trained,
    "sae_training.Training": lambda i: (training := training_of(i), training.one_step(training.batch()))[0].finish(),
    "sae_training.pre_activations": lambda i: sae_training.pre_activations(i.sae, i.flat),
    "sae_training.sparsity_loss": lambda i: [
        sae_training.sparsity_loss(each, i.flat, (pre := each.pre_activations(i.flat)), each.activate(pre), 0.1)
        for each in (i.sae, i.gated, i.jump)],
    "sae_training.revival_loss": lambda i: sae_training.revival_loss(
        i.sae, i.sae.pre_activations(i.flat), i.flat, (dead := i.flat_latents.sum(0) == 0), int(dead.sum())),
    "sae_training.constrain": lambda i: (
        made := sae.SparseAutoencoder(256, 9).to(i.x.device), sae_training.constrain(made)),
    "sae_files.middle_layer": lambda i: sae_files.middle_layer(i.model),
    "sae_files.topk_sae_for": lambda i: sae_files.topk_sae_for(i.model),
    "resumed.ResumedPass": lambda i: (
        run := resumed.ResumedPass(i.model, i.text, resumes="blocks")).continue_from(1, run.residuals[1]),
    "bare.how_built": lambda i: bare.how_built(i.model.blocks[0]) == traits.traits_of(i.model).built[0],
    "bare.is_untouched": lambda i: bare.is_untouched(i.model.blocks[0]),
    "bare.is_bare": lambda i: bare.is_bare(i.model.blocks[1], traits.traits_of(i.model).built[1], i.x),
    "bare.rotated": lambda i: clean_run.CleanRun(i.rotary, i.rotary_text).residuals,
    "bare.run_bare": lambda i: bare.run_bare(i.model.blocks[1], i.x, {}, lambda keys, values: (keys, values)),
    "sites.Site": lambda i: (i.site.read(i.clean), i.site.continue_with(i.clean, i.x_hat), z_site(i)),
    "sites.activations_in_batches": lambda i: list(sites.activations_in_batches(i.model, i.site, i.text, 3)),
    "sites.collect_activations": lambda i: sites.collect_activations(i.model, "blocks.1.attn.hook_z", i.text, head=2),
    "sites.in_float64": lambda i: inside(sites.in_float64(i.model), i.model, i.text),
    "splicing.spliced": lambda i: [
        inside(splicing.spliced(i.model, each), i.model, i.text) for each in (i.sae, i.cpu_sae)],
    "splicing.without_latents": lambda i: [inside(splicing.without_latents(i.model, each, [3, 4]), i.model, i.text)
                                           for each in (i.sae, i.cpu_sae)],
    "splicing.remove_latents": lambda i: splicing.remove_latents(i.x, i.latents, i.sae.W_dec, [3, 4]),
    "splicing.circuit_score": lambda i: splicing.circuit_score(i.ce[:, :10], i.ce[:, 1:]),
    "splicing.log_probs_reading": lambda i: splicing.log_probs_reading(i.model, i.cpu_sae, i.tokens, N, [(3, 1)], "k"),
    "splicing.after_token": lambda i: splicing.after_token(i.text, 5),
    "splicing.same_token_auc": lambda i: splicing.same_token_auc(i.flat, i.labels.roll(1) | i.labels, i.ids % 7),
    "splicing.residual_site": lambda i: splicing.residual_site(i.model, i.sae).hook_name,
    "text.reads_stories": lambda i: text.reads_stories(i.model),
    "text.sample_text": lambda i: i.text,
    "text.own_text": lambda i: i.rotary_text,
    "text.stories_in_english": lambda i: text.stories_in_english(i.model, 2, 12),
    "traits.require": lambda i: traits.require(i.model, "this", "parts").as_text(),
    "traits.require_plain_blocks": lambda i: traits.require_plain_blocks(i.model, "this", "parts"),
    "traits.traits_of": lambda i: [traits.traits_of(model).score_scale for model in (i.model, i.rotary)],
    "trial.try_out": lambda i: [
        vars(found := trial.try_out(model)) | {"turns": 0, "built": len(found.built)} for model in (i.model, i.rotary)],
    "trial.relative_error": lambda i: trial.relative_error(i.x_hat, i.x),
    "widget.attention_patterns": lambda i: viz.attention_patterns(i.words, i.pattern).html,
    "charts.plot_attention": lambda i: viz.plot_attention(i.pattern[0], i.words),
    "charts.plot_head_scores": lambda i: viz.plot_head_scores(i.pattern.amax(2), vmax=None),
    "charts.plot_by_position": lambda i: viz.plot_by_position({"a": i.ce[0]}, "y", x=i.ce[1]),
    "charts.plot_next_tokens": lambda i: viz.plot_next_tokens({"a": i.log_p[0, 3].exp()}, range(i.model.cfg.d_vocab)),
}


def logit_of_3(logits):
    return logits[:, -1, 3]


def some_edges(i):
    edges_there = edges.graph_of(i.rotary).edges
    return edges_there & (torch.arange(edges_there.shape[1]) % 5 == 0)


def padded(i):
    """The text, with BOS, which pads too, at its end."""
    return torch.cat([i.text, i.text[:, :1], i.text[:, :1]], dim=1)


def moments(i):
    """Some, that is, of the CPU from a file, and more of the device."""
    some, more = baselines.Moments(), baselines.Moments()
    some.add(i.x[0])
    more.take({name: value.cpu() for name, value in some.tensors().items()})
    more.add(i.x[1])
    return more


def pooled(i):
    sums = pooling.Pooled(3, 9, seed=0)
    sums.add(torch.arange(3), i.mask[:, 1:], {"ce": i.ce})
    return sums


def slopes(function, i):
    x, threshold = i.flat.detach().requires_grad_(), i.flat[0].abs().requires_grad_()
    out = function.apply(x, threshold)
    return out, torch.autograd.grad(out.sum(), [threshold])


def z_site(i):
    site = sites.Site(i.model, ablation.hook_z(1), head=2)
    return site.continue_with(i.clean_z, site.read(i.clean_z).flip(0))


def plain(value):
    """Tensors as nested lists, and what holds them as dicts, so that two answers can be compared with ==."""
    if isinstance(value, torch.Tensor):
        return torch.nan_to_num(value.detach().cpu().to_dense(), nan=123.0).tolist()
    if isinstance(value, float):
        return 123.0 if value != value else value
    if isinstance(value, sae.SparseAutoencoder):
        return plain(dict(value.state_dict()))
    if hasattr(value, "AB"):
        return plain([value.A, value.B])
    if dataclasses.is_dataclass(value):
        return plain(vars(value))
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)) or inspect.isgenerator(value):
        return [plain(each) for each in value]
    return value if isinstance(value, (int, str, type(None))) else type(value).__name__


@pytest.mark.parametrize("name", CASES)
def test_function(name, tmp_path):
    """On the second device a function answers what it answers on the CPU, to the last bit."""
    more = [tmp_path] if len(inspect.signature(CASES[name]).parameters) == 2 else []
    on_cpu = plain(CASES[name](inputs("cpu"), *more))
    with gpu_there():
        on_device = plain(CASES[name](inputs(str(DEVICE)), *more))
    assert on_device == on_cpu


TAKES = ("Tensor", "Float", "Bridge", "CleanRun", "Autoencoder", "HasEncodeDecode", "FactoredMatrix", "Sample")


def takes_tensors(thing) -> bool:
    """Whether this function, or a method of this class, is given a tensor, a model or an autoencoder."""
    if dataclasses.is_dataclass(thing) or getattr(thing, "_is_protocol", False):        # these only hold them
        return False
    functions = filter(inspect.isfunction, vars(thing).values() if inspect.isclass(thing) else [thing])
    parameters = [each for function in functions for each in inspect.signature(function).parameters.values()]
    return any(word in str(each.annotation) for each in parameters for word in TAKES)


def test_every_public_function_has_a_case():
    """But `check_…`: what these do with a tensor, the functions do that call them."""
    found = set()
    modules = (each.name for each in pkgutil.walk_packages(course_utils.__path__, "course_utils."))
    for module in (name for name in modules if ".checks." not in name and not name.endswith("__main__")):
        for name, thing in vars(importlib.import_module(module)).items():
            if getattr(thing, "__module__", None) == module and not name.startswith(("_", "check_")):
                found |= {f"{module.rpartition('.')[2]}.{name}"} if callable(thing) and takes_tensors(thing) else set()
    assert len(found) > 100 and not found - set(CASES), f"no case for {sorted(found - set(CASES))}"


# --- a learner's functions, and the lessons --------------------------------------------------------------------------


def test_a_learner_s_answer_is_judged(gpu):
    """A mask made on the CPU is an error in words; an answer on another device is one that is wrong."""
    def zeroed(x):
        return x.masked_fill(torch.ones_like(x).triu(1) > 0, 0.0)

    def forgets(x):
        return x.masked_fill(torch.ones(x.shape).triu(1) > 0, 0.0)

    def says(attempt, reference=zeroed):
        check = compare_cases(lambda: [Case(inputs(str(DEVICE)).x[0])], keeps_inputs=True)
        verdict = assess(Exercise("00.zeroed", "Zeroed", reference, check, ("a", "b", "c"), 1, 1), attempt)
        return verdict.status, dict(verdict.details).get("message", verdict.message)

    assert says(zeroed) == ("passed", "Passed.")
    status, message = says(forgets)
    assert status == "error" and "found at least two devices, lazy:0 and cpu" in message
    assert says(lambda x: zeroed(x.cpu())) == ("wrong", "the answer is on cpu; lazy:0 was expected")
    assert says(zeroed, lambda x: zeroed(x.cpu())) == ("wrong", "the answer is on lazy:0; cpu was expected")

    @property_check()
    def positive(attempt):
        require((attempt(torch.ones(3)) == torch.ones(3)).all(), "it is not 1")

    left_there = assess(Exercise("00.one", "One", abs, positive, ("a", "b", "c"), 1, 1), lambda x: x.to(DEVICE))
    assert left_there.status == "wrong" and "could not be used: RuntimeError" in left_there.message


def test_grading_does_not_see_a_gpu(tmp_path, monkeypatch):
    """The grader forks, and a forked process cannot use a GPU that its parent has used: it hides it before any work."""
    def load(name):
        raise grading.CannotGrade(f"GPU {os.environ['CUDA_VISIBLE_DEVICES']!r}")

    for name in grading.ENVIRONMENT:
        monkeypatch.setenv(name, "0")
    monkeypatch.setattr(grading.engine, "load_model", load)
    monkeypatch.setattr(grading.engine.torch, "set_num_threads", lambda threads: None)
    (tmp_path / "a.ipynb").write_text("{}")
    with pytest.raises(grading.CannotGrade, match="GPU ''"):
        grading.grade(tmp_path, tmp_path / "grades.csv")


@pytest.mark.matrix
@pytest.mark.parametrize("path", lessons.SOLUTIONS, ids=lambda path: path.stem)
def test_lesson(path, gpu, tmp_path, monkeypatch):
    """The worked lessons, with their checks of exercises, their measured numbers, and what they say of a real model."""
    lessons.test_the_worked_lesson_keeps_its_promises(path, tmp_path, monkeypatch, real="auto")
