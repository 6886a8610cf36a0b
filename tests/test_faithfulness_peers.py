"""Our report against SAELens's own evaluator: same model, same tokens, same autoencoder."""

import math

import pytest
import small_models
import torch

pytest.importorskip("sae_lens")

from datasets import Dataset  # noqa: E402
from sae_lens import SAE, TopKTrainingSAE, TopKTrainingSAEConfig  # noqa: E402
from sae_lens.evals import get_eval_everything_config, run_evals  # noqa: E402
from sae_lens.training.activation_scaler import ActivationScaler  # noqa: E402
from sae_lens.training.activations_store import ActivationsStore  # noqa: E402
from sae_lens.util import get_special_token_ids  # noqa: E402

from course_utils.faithfulness import COURSE, SAELENS, Convention, evaluate_sae
from course_utils.language import StoryLanguage
from course_utils.sae import KINDS, SparseAutoencoder

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
N, LENGTH, BATCH = 8, 24, 4
OURS = {  # SAELens's name of each metric: ours
    "kl_div_with_sae": "kl", "kl_div_with_ablation": "kl_zero", "kl_div_score": "kl_score",
    "ce_loss_without_sae": "ce_clean", "ce_loss_with_sae": "ce_sae", "ce_loss_with_ablation": "ce_zero",
    "ce_loss_score": "reconstruction_score", "l2_norm_in": "l2_in", "l2_norm_out": "l2_out", "l2_ratio": "l2_ratio",
    "l0": "l0", "l1": "l1", "explained_variance": "explained_variance", "mse": "mse", "cossim": "cosine",
}
RATIOS = {"explained_variance_legacy", "relative_reconstruction_bias"}      # means of the ratios of batches
LOSS = 2 * torch.finfo(torch.float32).eps       # relative rounding error of a mean loss: at most 1.3e-7 was measured
ABLATED = {"kl_div_with_ablation", "kl_div_score", "ce_loss_with_ablation", "ce_loss_score"}


def stories(n=N, length=LENGTH):
    return StoryLanguage(5).sample(n, length, truth=False).tokens


def some_sae(d_in, kind="relu", **more):
    """Random weights, some latents dead; half the size of the directions, so that it reconstructs something."""
    sae = SparseAutoencoder(d_in, 96, kind, k=8 if kind == "topk" else None, **more).requires_grad_(False)
    rng = torch.Generator().manual_seed(1)
    sae.W_dec.data *= 0.5
    sae.b_dec.data = torch.randn(d_in, generator=rng) / d_in**0.5
    getattr(sae, "b_gate" if kind == "gated" else "b_enc").data[:5] = -1e4
    return sae


def in_saelens(sae, folder):
    """The same autoencoder as an object of SAELens."""
    sae.save(folder)
    return SAE.load_from_disk(folder)


def their_numbers(model, theirs, tokens, batch=BATCH):
    """Every metric of `run_evals`, and those that have a value for each latent."""
    store = ActivationsStore.from_sae(
        model, theirs, dataset=Dataset.from_dict({"tokens": tokens.tolist()}), context_size=tokens.shape[1],
        streaming=False, store_batch_size_prompts=batch, n_batches_in_buffer=4, train_batch_size_tokens=64)
    assert torch.equal(store.get_batch_tokens(len(tokens)).cpu(), tokens)           # it reads what we read
    store.reset_input_dataset()
    batches = len(tokens) // batch
    metrics, by_latent = run_evals(theirs, store, model, ActivationScaler(), get_eval_everything_config(
        batch_size_prompts=batch, n_eval_reconstruction_batches=batches, n_eval_sparsity_variance_batches=batches))
    flat = {name: value for group, each in metrics.items() if group != "token_stats" for name, value in each.items()}
    assert set(flat) == {*OURS, *RATIOS}                            # no metric of theirs goes unnoticed
    return flat, by_latent


def their_mask(model, tokens):
    mask = torch.ones_like(tokens, dtype=torch.bool)
    for special in get_special_token_ids(model.tokenizer):
        mask &= tokens != special
    return mask


def weight_metrics(sae):
    """What run_evals of SAELens says of the weights alone: each latent's encoder norm and bias, and the cosine between
    its encoder column and its decoder row."""
    found = {"encoder_norm": sae.W_enc.norm(dim=0),
             "encoder_decoder_cosine_sim": torch.nn.functional.cosine_similarity(sae.W_enc.T, sae.W_dec, dim=1)}
    return found | ({"encoder_bias": sae.b_enc} if getattr(sae, "b_enc", None) is not None else {})


def tolerance(name, expected):
    """How far rounding may put the values of a metric apart.

    The score is (L_zero − L_sae) / (L_zero − L_clean): an error of e in each loss is one of 2 e (1 + |score|) over the
    denominator, which is small where the ablation of one head costs next to nothing.
    """
    usual = 1e-4 * abs(expected[name])
    if name != "ce_loss_score":
        return usual
    clean, sae, zero = (expected[f"ce_loss_{which}"] for which in ("without_sae", "with_sae", "with_ablation"))
    return max(usual, 2 * LOSS * max(clean, sae, zero) * (1 + abs(expected[name])) / abs(zero - clean))


def compare(model, sae, theirs, tokens):
    """Ours, in SAELens's convention, on our object and on theirs."""
    expected, by_latent = their_numbers(model, theirs, tokens)
    mask = their_mask(model, tokens)
    assert mask.any() and not mask.all()
    for each in (sae, theirs):
        ours = evaluate_sae(model, each, tokens, mask=mask, convention=SAELENS, batch_size=BATCH, resamples=0)
        for name, value in expected.items():
            got = ours.peers[name] if name in RATIOS else getattr(ours, OURS[name])
            if OURS.get(name) in ours.undefined:                    # they divide by noise
                continue
            assert math.isfinite(value) and got == pytest.approx(value, rel=0, abs=tolerance(name, expected)), name
        assert ours.density.tolist() == pytest.approx(by_latent["feature_density"], rel=1e-4)
        together = ours.density * ours.n_positions / ours.active_sequences          # 0 / 0 where it is dead, as theirs
        assert together.tolist() == pytest.approx(by_latent["consistent_activation_heuristic"], rel=1e-4, nan_ok=True)
        for name, value in weight_metrics(each).items():
            assert value.tolist() == pytest.approx(by_latent[name], rel=1e-4, abs=1e-6), name
        assert 0 < ours.dead_fraction == sum(each == 0 for each in by_latent["feature_density"]) / len(ours.density)
    return expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hook_name", ["blocks.2.hook_resid_pre", "blocks.1.hook_mlp_out", "blocks.2.attn.hook_z",
                                       "blocks.1.hook_attn_out", "blocks.3.hook_resid_post"])
def test_every_metric_on_tiny(kind, hook_name, tmp_path):
    model = small_models.tiny()
    sae = some_sae(256, kind, hook_name=hook_name, model_name="tiny")
    compare(model, sae, in_saelens(sae, tmp_path), stories())


@pytest.mark.parametrize("kind", ["relu", "topk"])
@pytest.mark.parametrize("normalize", ["constant_norm_rescale", "layer_norm"])
def test_every_metric_of_autoencoders_that_normalize(kind, normalize, tmp_path):
    model = small_models.tiny()
    sae = some_sae(256, kind, normalize=normalize, hook_name="blocks.2.hook_resid_pre", model_name="tiny")
    compare(model, sae, in_saelens(sae, tmp_path), stories())


def test_every_metric_of_one_head(tmp_path):
    model = small_models.tiny()
    sae = some_sae(64, hook_name="blocks.2.attn.hook_z", head=1, model_name="tiny")
    theirs = in_saelens(sae, tmp_path)
    assert theirs.cfg.metadata.hook_head_index == 1
    compare(model, sae, theirs, stories())


def test_the_heads_of_z_apart_or_side_by_side(tmp_path):
    """SAELens's objects for z may want the heads apart; they say so, and we ask."""
    model = small_models.tiny()
    theirs = in_saelens(some_sae(256, hook_name="blocks.2.attn.hook_z", model_name="tiny"), tmp_path)
    reports = []
    for turn in (theirs.turn_on_forward_pass_hook_z_reshaping, theirs.turn_off_forward_pass_hook_z_reshaping):
        turn()
        reports.append(evaluate_sae(model, theirs, stories(), resamples=0))
    assert reports[0].mse > 0 and reports[0].to_frame().equals(reports[1].to_frame())


def test_sparse_latents_of_theirs(tmp_path):
    """SAELens's TopK in training may give sparse latents; the numbers are those of the dense ones."""
    sae = some_sae(256, "topk", hook_name="blocks.2.hook_resid_pre", model_name="tiny")
    theirs, reports = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=256, d_sae=96, k=8, use_sparse_activations=True)), []
    theirs.load_state_dict(in_saelens(sae, tmp_path).state_dict())
    assert theirs.encode(torch.randn(1, 2, 256)).is_sparse
    for each in (theirs, sae):
        reports.append(evaluate_sae(small_models.tiny(), each, stories(), hook_name="blocks.2.hook_resid_pre"))
    assert reports[0].l0 == reports[1].l0 > 0 and reports[0].kl == pytest.approx(reports[1].kl, rel=1e-4)


@pytest.mark.slow
def test_every_metric_on_smollm2(tmp_path):
    model = small_models.smollm2()
    text = "A lighthouse keeper wrote down every ship that passed, and what the weather had been like that day. "
    words = model.to_tokens(text * 6)[0, 1:]
    bos = torch.tensor([model.tokenizer.bos_token_id])
    starts = [torch.cat([bos, words[7 * i:7 * i + LENGTH - 1]]) for i in range(N)]
    sae = some_sae(576, "topk", hook_name="blocks.15.hook_resid_pre", model_name="smollm2-135m")
    compare(model, sae, in_saelens(sae, tmp_path), torch.stack(starts))


@pytest.mark.parametrize("hook_name", ["blocks.2.hook_resid_pre", "blocks.1.hook_mlp_out"])
def test_where_the_course_differs(hook_name, tmp_path):
    """If the last token is a special one, SAELens leaves its position out too; then only its ablation is another."""
    model, tokens = small_models.tiny(), stories()
    tokens[:, -1] = model.tokenizer.bos_token_id
    sae = some_sae(256, hook_name=hook_name, model_name="tiny")
    expected, _ = their_numbers(model, in_saelens(sae, tmp_path), tokens)
    mask = their_mask(model, tokens)
    mask[:, -1] = True                                              # this token is no padding; nothing follows it
    ours, ablated = (evaluate_sae(model, sae, tokens, mask=mask, convention=each, resamples=0)
                     for each in (COURSE, Convention(ablate_everywhere=True)))
    for theirs, name in OURS.items():
        assert getattr(ablated, name) == pytest.approx(expected[theirs], rel=1e-4), name
        if theirs in ABLATED:
            assert getattr(ours, name) != pytest.approx(expected[theirs], rel=1e-4), name
        else:
            assert getattr(ours, name) == pytest.approx(expected[theirs], rel=1e-4), name


def test_where_the_course_differs_when_the_last_position_is_an_ordinary_one(tmp_path):
    """SAELens's divergences and means of activations have one position more than its cross-entropies."""
    model, tokens = small_models.tiny(), stories()
    sae = some_sae(256, hook_name="blocks.2.hook_resid_pre", model_name="tiny")
    expected, _ = their_numbers(model, in_saelens(sae, tmp_path), tokens)
    ours = evaluate_sae(model, sae, tokens, mask=their_mask(model, tokens), resamples=0)
    alike = {"ce_clean", "ce_sae"}
    for theirs, name in OURS.items():
        assert (getattr(ours, name) == pytest.approx(expected[theirs], rel=1e-6)) == (name in alike), name


def test_means_of_ratios_depend_on_the_batches(tmp_path):
    """SAELens's legacy explained variance and its bias of the norm; ours follow, and our own numbers do not change."""
    model, tokens = small_models.tiny(), stories()
    sae = some_sae(256, hook_name="blocks.2.hook_resid_pre", model_name="tiny")
    theirs, mask, reports = in_saelens(sae, tmp_path), their_mask(model, tokens), {}
    for batch in (2, 8):
        expected, _ = their_numbers(model, theirs, tokens, batch)
        reports[batch] = evaluate_sae(model, sae, tokens, mask=mask, convention=SAELENS, batch_size=batch, resamples=0)
        for name in RATIOS:
            assert reports[batch].peers[name] == pytest.approx(expected[name], rel=1e-4), name
    for name in RATIOS:
        assert reports[2].peers[name] != pytest.approx(reports[8].peers[name], rel=1e-6), name
    assert reports[2].relative_reconstruction_bias == pytest.approx(reports[8].relative_reconstruction_bias, rel=1e-6)


def objects_of_saelens():
    """One object of each class with random weights, of those that can be built without more."""
    from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

    more = {"temporal": {"n_heads": 2, "bottleneck_factor": 4, "kval_topk": 8},
            "matryoshka_batchtopk": {"k": 8, "matryoshka_widths": [32, 96]}}
    for name, (kind, config) in [*SAE_CLASS_REGISTRY.items(), *SAE_TRAINING_CLASS_REGISTRY.items()]:
        options = more.get(name, {"k": 8} if "topk" in name else {})
        if "transcoder" in name:
            options = {"d_out": 256, "apply_b_dec_to_input": False}
        sae = kind(config(d_in=256, d_sae=96, **options))
        sae.cfg.metadata.hook_name = "blocks.2.hook_resid_pre"
        for i, weight in enumerate(sae.parameters()):
            weight.data = 0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(i))
        yield kind.__name__, sae


def test_what_is_more_than_encode_and_decode_is_refused_and_nothing_else():
    model, tokens, refused = small_models.tiny(), stories(2), {}
    for name, sae in objects_of_saelens():
        try:
            assert evaluate_sae(model, sae, tokens, resamples=0).mse > 0, name
        except ValueError as error:
            refused[name] = str(error)
    transcoders = {"Transcoder", "SkipTranscoder", "JumpReLUTranscoder", "JumpReLUSkipTranscoder"}
    assert set(refused) == {"TemporalSAE", *transcoders}
    assert all("is a transcoder" in refused[name] for name in transcoders)
    assert "does not give decode(encode(x))" in refused["TemporalSAE"]
