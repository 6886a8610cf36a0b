"""The report card against the functions its rows come from, labels against loops, and what the capstone claims."""

import math

import numpy as np
import pytest
import small_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from small_models import forbidden_forward, hook_count, random_tokens
from small_saes import some_sae as begun

from course_utils.baselines import noise_floor
from course_utils.faithfulness import evaluate_sae
from course_utils.heads import induction_scores, induction_targets, is_pattern
from course_utils.latents import latent_activations
from course_utils.repeated_tokens import generate_repeated_tokens, repeated_token_report
from course_utils.report_card import SHARES, ReportCard, circuit_interval, circuit_scores, report_card
from course_utils.sae_files import load_shipped_sae
from course_utils.splicing import (
    after_token,
    circuit_score,
    log_probs_reading,
    same_token_auc,
    spliced,
    without_latents,
)
from course_utils.text import sample_text

SIZES = {"seq_len": 6, "batch": 5, "draws": 2, "seed": 1}


@pytest.fixture(params=list(small_models.RANDOM))
def model(request):
    return small_models.RANDOM[request.param]()


def some_sae(hook_name="blocks.1.hook_resid_pre", width=24):
    return begun(width, d_sae=30, hook_name=hook_name)


def gain(log_probs):
    first, second = np.split(log_probs.double().numpy(), 2, axis=1)
    return second[:, 1:].mean() - first.mean()


def test_rows_of_each_kind_are_wired_to_their_own_text(model):
    sae, text, seed = some_sae(), random_tokens(), SIZES["seed"]
    repeats = generate_repeated_tokens(model, 6, 5, seed=seed)
    on_text, on_repeats = (evaluate_sae(model, sae, tokens, seed=seed) for tokens in (text, repeats))
    floor = noise_floor(model, sae, text, ("epsilon_random",), 2, seed=seed)
    passes = {"clean": (repeated_token_report(model, 6, 5, seed=seed), induction_scores(model, repeats, 6))}
    with spliced(model, sae):
        passes["then"] = repeated_token_report(model, 6, 5, seed=seed), induction_scores(model, repeats, 6)
    (clean, scores), (then, scores_then) = passes.values()
    best = max(range(scores.numel()), key=lambda i: scores.flatten()[i])
    own = [induction_scores(model, row[None], 6).flatten()[best].item() for row in repeats]
    with spliced(model, sae):
        own_then = [induction_scores(model, row[None], 6).flatten()[best].item() for row in repeats]
    drawn = torch.randint(0, 5, (400, 5), generator=torch.Generator().manual_seed(seed)).tolist()
    attention = np.quantile(
        [sum(own_then[i] for i in rows) / sum(own[i] for i in rows) for rows in drawn], [0.025, 0.975])

    low, high = np.quantile([gain(clean.log_probs[rows]) for rows in drawn], [0.025, 0.975])
    assert low < 0 < high                                           # random models gain nothing from a repeat
    expected = {
        "KL": (on_text.kl, *on_text.intervals["kl"]), "KL, repeats": (on_repeats.kl, *on_repeats.intervals["kl"]),
        "KL / ε-random": (floor.ratio["epsilon_random"], *floor.ratio_intervals["epsilon_random"]),
        "second copy, spliced": (then.log_probs[:, 7:].mean().item(), math.nan, math.nan),
        "circuit: gain kept": (math.nan, math.nan, math.nan),
        "circuit: attention kept": ((scores_then.flatten()[best] / scores.flatten()[best]).item(), *attention),
    }
    before = hook_count(model)
    card = report_card(model, sae, text=text, batch_size=2, **SIZES)
    assert hook_count(model) == before and len(card.rows) == 14
    for name, numbers in expected.items():
        assert card.rows[name][:3] == pytest.approx(numbers, rel=1e-3, abs=1e-5, nan_ok=True), name
    assert card.rows["circuit: attention kept"][3].endswith("head {}.{}".format(*divmod(best, model.cfg.n_heads)))
    assert card.rows["circuit: gain kept"][3] == "not defined: the clean gain may be 0"
    table = card.to_frame()
    assert list(table.columns) == ["value", "low", "high", "unit"] and table.loc["KL", "value"] == card.rows["KL"][0]
    assert card.title == f"{model.cfg.model_name}: blocks.1.hook_resid_pre"


def test_without_a_text_the_model_brings_its_own(model, monkeypatch):
    asked = []
    monkeypatch.setattr("course_utils.report_card.sample_text",
                        lambda model, *size, seed: asked.append(seed) or random_tokens(*size))
    card = report_card(model, some_sae(), **SIZES)
    expected = evaluate_sae(model, some_sae(), random_tokens(24, model.cfg.n_ctx), resamples=0)
    assert len(asked) == 1 and asked != [SIZES["seed"]] and card.rows["KL"][0] == pytest.approx(expected.kl, rel=1e-4)


def test_the_picture_shows_every_share_with_its_interval():
    values = [(0.9, 0.8, 0.95), (0.7, 0.6, 0.75), (-0.4, -0.6, 0.2), (1.1, 0.9, 1.4), (math.nan, math.nan, math.nan)]
    card = ReportCard("a model: a place", {name: (*row, "share") for name, row in zip(SHARES, values)})
    ax = card.plot().axes[0]
    assert ax.get_title() == card.title and "1 is perfect" in ax.get_xlabel()
    assert [label.get_text() for label in ax.get_yticklabels()] == list(SHARES) and ax.yaxis_inverted()
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([max(0, row[0]) for row in values])
    ends = [(max(0, low), min(max(0, high), 1.15)) for _, low, high in values[:4]]     # 1.15: where the axis ends
    assert [tuple(line.get_xdata()) for line in ax.lines] == ends
    assert [text.get_text() for text in ax.texts] == [*(f"{row[0]:.3f}" for row in values[:4]), "not defined"]
    colours = [to_hex(bar.get_facecolor()) for bar in ax.patches]
    assert colours[0] == colours[1] != colours[2] == colours[3] == colours[4]       # text above, circuit below
    assert ax.figure.number not in plt.get_fignums()                    # closed: a notebook would show it twice
    figure, own = plt.subplots()
    assert card.plot(own) is figure and len(own.patches) == 5 and plt.fignum_exists(figure.number)
    plt.close(figure)


@pytest.mark.parametrize("sae", [some_sae("blocks.1.hook_mlp_out"), some_sae("blocks.0.attn.hook_z"), some_sae(width=9),
                                 some_sae("blocks.7.hook_resid_pre"), some_sae(None), object()],
                         ids=["mlp", "z", "width", "layer 7", "no place", "no autoencoder"])
def test_a_bad_autoencoder_is_refused_before_any_work(model, sae):
    with forbidden_forward(model), pytest.raises(ValueError):
        report_card(model, sae, **SIZES)


def test_copies_that_are_too_long_are_refused_before_any_work(model):
    with forbidden_forward(model), pytest.raises(ValueError, match="seq_len"):
        report_card(model, some_sae(), **{**SIZES, "seq_len": model.cfg.n_ctx})


def test_repeats_that_look_like_padding_are_no_padding(model):
    pad = model.tokenizer.pad_token_id
    seed = next(seed for seed in range(300)
                if (generate_repeated_tokens(model, 6, 5, seed=seed)[:, :2] == pad).all(1).any())
    card = report_card(model, some_sae(), text=random_tokens(), **{**SIZES, "seed": seed})
    assert math.isfinite(card.rows["KL, repeats"][0])


def test_the_interval_draws_both_sides_together():
    rng = torch.Generator().manual_seed(0)
    clean = -9 * torch.rand(6, 10, generator=rng) * torch.linspace(0.2, 2, 6)[:, None]
    clean[:, 5:] /= 10
    changed = clean / 2 - torch.rand(6, 10, generator=rng)
    draws = torch.randint(0, 6, (99, 6), generator=torch.Generator().manual_seed(5)).tolist()
    found = [gain(changed[rows]) / gain(clean[rows]) for rows in draws]
    expected = pytest.approx(tuple(np.quantile(found, [0.025, 0.975])), rel=1e-4)
    assert circuit_interval(clean, changed, 99, seed=5) == expected
    assert circuit_scores(clean, changed, 99)[0].item() == pytest.approx(gain(changed) / gain(clean), rel=1e-4)
    assert circuit_interval(clean, clean / 4) == pytest.approx((0.25, 0.25))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1, max_size=3), st.integers(0, 3))
def test_after_token_is_a_loop(rows, token):
    expected = [[j > 0 and row[j - 1] == token for j in range(5)] for row in rows]
    assert after_token(torch.tensor(rows), token).tolist() == expected


@settings(max_examples=60, deadline=None)
@given(m=st.integers(1, 14), d=st.integers(1, 3), kinds=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_same_token_auc_is_the_share_of_pairs_won(m, d, kinds, seed):
    rng = torch.Generator().manual_seed(seed)
    latents, present = torch.randint(0, 3, (m, d), generator=rng).float(), torch.randint(0, kinds, (m,), generator=rng)
    labels = torch.rand(m, generator=rng) < 0.5
    pairs = [(i, j) for i in range(m) for j in range(m) if labels[i] and not labels[j] and present[i] == present[j]]
    if not pairs:
        with pytest.raises(ValueError, match="both at a labelled"):
            same_token_auc(latents, labels, present)
        return
    for c, found in enumerate(same_token_auc(latents, labels, present).tolist()):
        won = [float(latents[i, c] > latents[j, c]) + 0.5 * float(latents[i, c] == latents[j, c]) for i, j in pairs]
        assert found == pytest.approx(sum(won) / len(won), abs=1e-6)


@pytest.mark.slow
@pytest.mark.matrix  # in make test lesson 09 computes it again
@torch.no_grad()
def test_what_the_capstone_claims():
    model, sae = small_models.tiny(), load_shipped_sae("tiny", "topk-1").requires_grad_(False)
    clean, heads = repeated_token_report(model, 50, 12), [(1, head) for head in range(4)]
    with spliced(model, sae):
        broken = repeated_token_report(model, 50, 12)
    assert circuit_score(clean.log_probs, broken.log_probs) < 0.05
    on_text = evaluate_sae(model, sae, sample_text(model, 24, 128, seed=5), everything=False, resamples=0)
    assert on_text.reconstruction_score > 0.99
    kept = {into: circuit_score(clean.log_probs, log_probs_reading(model, sae, clean.tokens, 50, heads, into))
            for into in "kqv"}
    assert kept["k"] > kept["v"] + 0.05 > kept["q"] + 0.1, kept

    stories = sample_text(model, 120, 128, seed=9)
    latents, present = latent_activations(model, sae, stories)[:, 2:].flatten(0, 1), stories[:, 2:].flatten()
    words = [model.tokenizer.convert_tokens_to_ids(word) for word in "the The a called met are He She and said".split()]
    labels = [after_token(stories, word)[:, 2:].flatten() for word in words]
    best = [int(same_token_auc(latents, each, present).argmax()) for each in labels]
    some, seen = stories[:40], []

    def attention(out=()):
        """From each word to what came after it before, in all heads of layer 1, without these latents."""
        with without_latents(model, sae, list(out)):
            model.run_with_hooks(some, return_type=None, fwd_hooks=[
                (is_pattern, lambda pattern, hook: seen.append(pattern.sum(1)) if hook.layer() == 1 else None)])
        at_targets = (seen.pop() * induction_targets(some)).sum(-1)
        return torch.stack([at_targets[some == word].sum() for word in words])

    left = torch.stack([attention([latent]) for latent in best]) / attention()          # [latent taken out, word]
    assert left.diagonal().median() < 0.5 and left[~torch.eye(10, dtype=torch.bool)].median() > 0.9, left
