"""Padding: what looks like it, what a mask may say of it, and texts of several lengths alone and padded."""

import types
from dataclasses import replace

import pytest
import small_models
import torch
from small_models import forbidden_forward

from course_utils.ablation import head_ablation_scores, mlp_ablation_scores
from course_utils.baselines import KINDS, RANDOM, noise_floor, true_noise_floor
from course_utils.circuits import score_by_distance
from course_utils.faithfulness import COURSE, SAELENS, evaluate_sae, patched_logits
from course_utils.heads import induction_scores_in_text, previous_token_scores
from course_utils.language import StoryLanguage
from course_utils.latents import latent_activations
from course_utils.logit_attribution import direct_logit_attribution
from course_utils.passes import (
    Site,
    all_but_first,
    checked_mask,
    collect_activations,
    looks_like_padding,
    without_padding,
)
from course_utils.repeated_tokens import generate_repeated_tokens
from course_utils.report_card import report_card
from course_utils.sae import SparseAutoencoder
from course_utils.sae_training import TrainingConfig, train_sae
from course_utils.text import own_text
from course_utils.viz import latent_dashboard

LENGTHS, LONGEST = (9, 6, 10, 5), 10                                # one of them ends one before another
PLACES = [("blocks.1.hook_resid_pre", None), ("blocks.0.hook_mlp_out", None), ("blocks.1.attn.hook_z", 2)]
SMALL = TrainingConfig(d_sae=30, kind="topk", k=3, batch=8, steps=5, warm_up=1)


@pytest.fixture(params=list(small_models.RANDOM))
def model(request):
    return small_models.RANDOM[request.param]()


def stories(model):
    """Texts of several lengths, each one row, and all of them padded on the right."""
    whole = own_text(model, len(LENGTHS), LONGEST, seed=2)
    padded = torch.full_like(whole, model.tokenizer.pad_token_id)
    for row, length in enumerate(LENGTHS):
        whole[row, length - 1] = 7                                  # no text that ends with the padding token
        padded[row, :length] = whole[row, :length]
    return [row[None, :length] for row, length in zip(padded, LENGTHS)], padded


def some_sae(model, hook_name=PLACES[0][0], head=None):
    sae = SparseAutoencoder(Site(model, hook_name, head).width, 30, hook_name=hook_name, head=head, seed=1)
    sae.b_dec.data = 0.3 * torch.randn(sae.d_in, generator=torch.Generator().manual_seed(0))
    return sae.requires_grad_(False)


# --- what looks like padding -----------------------------------------------------------------------------------------


def with_tokens(pad=None, bos=None, eos=None, config_eos=None):
    config = types.SimpleNamespace(eos_token_id=config_eos, bos_token_id=None)
    return types.SimpleNamespace(original_model=types.SimpleNamespace(config=config), tokenizer=types.SimpleNamespace(
        pad_token_id=pad, bos_token_id=bos, eos_token_id=eos))


GPT2, GEMMA, INSTRUCT = with_tokens(0, 0, 0), with_tokens(0, 1, 2), with_tokens(2, 1, 2)
OURS = with_tokens(1, 1, 1, [2, 3])                                 # SmolLM2 as the course loads it: pads with BOS


@pytest.mark.parametrize("model, rows, expected", [
    (GPT2, ["0 5 6 7 8", "0 5 6 0 0", "0 5 6 7 0"], [".....", "...pp", "....p"]),
    (GPT2, ["0 5 6 7 0"], ["....p"]),                               # one alone, too
    (GPT2, ["0 5 0 0 6", "0 5 0 6 7"], [".....", "....."]),         # documents in one row
    (GPT2, ["0 0 5 6 7", "0 0 0 6 7"], [".p...", ".pp.."]),         # on the left; the first is BOS
    (GPT2, ["0 0 0 0 0", "0 5 6 7 8"], ["ppppp", "....."]),         # an empty text
    (GEMMA, ["1 5 6 7 2", "1 5 6 2 0"], [".....", "....p"]),        # an end of text is text
    (GEMMA, ["0 1 5 6 7", "1 0 0 5 6"], ["p....", ".pp.."]),        # this token is never text
    (GEMMA, ["1 5 6 2 2", "1 5 6 7 2"], ["...pp", "....p"]),        # somebody pads with the end of text
    (INSTRUCT, ["1 5 2 6 7", "1 5 6 7 2"], [".....", "....p"]),
    (INSTRUCT, ["2 1 5 6 7"], ["p...."]),
    (OURS, ["1 5 6 7 1", "1 5 6 7 2"], ["....p", "....."]),
    (OURS, ["1 5 6 2 2", "1 5 6 7 3"], ["...pp", "....."]),         # its own tokenizer pads with 2
    (GPT2, ["0 5 0 5 0", "0 0 6 0 6"], [".....", "....."]),         # two copies: lessons 01 to 05
    (GPT2, ["0 5 0 5 0", "0 0 6 0 0"], ["....p", ".p.pp"]),
    (GPT2, ["0 0 0 0 0"], ["ppppp"]), (with_tokens(), ["0 0 5 0 0"], ["....."]),
    (types.SimpleNamespace(), ["0 0"], [".."]),
])
def test_what_looks_like_padding(model, rows, expected):
    tokens = torch.tensor([[int(each) for each in row.split()] for row in rows])
    found = looks_like_padding(model, tokens)
    assert ["".join(".p"[each] for each in row) for row in found.tolist()] == expected


@pytest.mark.parametrize("model, row, mask, right", [
    (GPT2, "0 5 6 0 0", "01100", True), (GPT2, "0 5 6 0 0", "01000", True),
    (GPT2, "0 5 6 0 0", "01110", True),                             # a document's end, then padding
    (GPT2, "0 5 6 0 0", "01111", False), (GPT2, "0 5 6 0 0", "01101", False),
    (GPT2, "0 5 6 7 0", "01111", True), (GPT2, "0 5 0 6 7", "01111", True),
    (GPT2, "0 0 5 6 7", "00111", False), (GPT2, "0 0 0 5 6", "00011", False), (GPT2, "0 0 0 5 6", "01111", False),
    (GPT2, "0 0 5 6 7", "01111", True),                             # BOS, then a document's end
    (GEMMA, "1 5 6 7 0", "01111", False), (GEMMA, "1 5 0 6 7", "01011", False), (GEMMA, "1 5 6 2 0", "01110", True),
    (GEMMA, "0 1 5 6 7", "00111", False), (GEMMA, "0 1 5 6 7", "10111", False),
    (INSTRUCT, "1 5 6 2 2", "01110", True), (INSTRUCT, "2 1 5 6 7", "00111", False),
    (OURS, "1 5 6 2 2", "01111", False),
])
def test_what_a_mask_may_count(model, row, mask, right):
    tokens = torch.tensor([[int(each) for each in row.split()]] * 2)
    given = torch.tensor([[each == "1" for each in mask]] * 2)
    if right:
        assert torch.equal(checked_mask(model, tokens, given), given)
    else:
        with pytest.raises(ValueError, match="row 0, which is padding or comes after it.*Pad on the right"):
            checked_mask(model, tokens, given)


def test_text_of_its_own_never_looks_padded():
    """This random model draws BOS, its padding token, at every third place."""
    model = small_models.grouped_query()
    tokens = own_text(model, 200, 5, seed=3)
    assert not looks_like_padding(model, tokens).any() and (tokens[:, 2:-1] == 0).sum() > 100


# --- padded text is refused ------------------------------------------------------------------------------------------


def with_mask(model):
    """{name: a function of tokens and mask}, of all that take a mask."""
    sae = some_sae(model)
    place, latents = sae.hook_name, torch.zeros(len(LENGTHS), LONGEST, 30)
    return {
        "evaluate_sae": lambda tokens, mask: evaluate_sae(model, sae, tokens, mask=mask),
        "patched_logits": lambda tokens, mask: patched_logits(model, sae, tokens, mask=mask),
        "noise_floor": lambda tokens, mask: noise_floor(model, sae, tokens, mask=mask),
        "collect_activations": lambda tokens, mask: collect_activations(model, place, tokens, mask=mask),
        "train_sae": lambda tokens, mask: train_sae(model, place, tokens, SMALL, mask=mask),
        "latent_activations": lambda tokens, mask: latent_activations(model, sae, tokens, mask=mask),
        "latent_dashboard": lambda tokens, mask: latent_dashboard(model, sae, latents, tokens, 0, mask=mask),
        "report_card": lambda tokens, mask: report_card(model, sae, text=tokens, mask=mask, seq_len=4, batch=3),
    }


def without_mask(model):
    """The same of those that take none."""
    functions = [previous_token_scores, induction_scores_in_text, head_ablation_scores, mlp_ablation_scores,
                 direct_logit_attribution]
    functions = {each.__name__: lambda tokens, _, each=each: each(model, tokens) for each in functions}
    if hasattr(model, "rotary_emb"):
        functions["score_by_distance"] = lambda tokens, _: score_by_distance(model, 0, 0, tokens, 3)
    return functions


def test_padded_text_is_refused_before_any_pass(model):
    _, padded = stories(model)
    once = own_text(model, len(LENGTHS), LONGEST, seed=4)
    once[2, -1] = 0                                                 # a single padding token
    left = torch.stack([row.roll(LONGEST - length) for row, length in zip(padded, LENGTHS)])
    for name, function in {**with_mask(model), **without_mask(model)}.items():
        for tokens, says in ((padded, "ends with the padding token, 0"), (once, "row 2 looks padded: it ends with"),
                             (left, "before its text stands the padding token, 0. Pad on the right")):
            with forbidden_forward(model), pytest.raises(ValueError, match=says):
                function(tokens, None)
                pytest.fail(name)
    for name, function in with_mask(model).items():
        with forbidden_forward(model), pytest.raises(ValueError, match="padding or comes after it.*Pad on the right"):
            function(left, without_padding(model, left))
            pytest.fail(name)
        with forbidden_forward(model), pytest.raises(ValueError, match="padding or comes after it"):
            function(padded, all_but_first(padded))
            pytest.fail(name)


def test_a_mask_says_that_the_last_token_is_text(model):
    tokens = own_text(model, len(LENGTHS), LONGEST, seed=4)
    tokens[2, -1] = 0
    longer = torch.cat([tokens, torch.full((len(LENGTHS), 1), 7)], dim=1)           # then it is not the last
    mask = all_but_first(longer)
    mask[:, -2:] = False
    one = evaluate_sae(model, some_sae(model), tokens, mask=all_but_first(tokens))
    other = evaluate_sae(model, some_sae(model), longer, mask=mask)
    assert one.n_positions == other.n_positions and one.ce_clean == pytest.approx(other.ce_clean, rel=1e-5)


def test_repeats_may_hold_the_padding_token_anywhere(model, where=(1, 6, 7, 12)):
    tokens = generate_repeated_tokens(model, 6, len(LENGTHS), seed=0)
    tokens[1, list(where)] = 0
    tokens[:, 7:] = tokens[:, 1:7]
    functions = {**with_mask(model), **without_mask(model)}
    for name in functions.keys() - {"report_card", "latent_dashboard", "train_sae"}:
        functions[name](tokens, None)


# --- alone and padded ------------------------------------------------------------------------------------------------


def close(ours, expected):
    torch.testing.assert_close(ours, expected, atol=5e-5, rtol=1e-4, equal_nan=True)


def pooled(values, counts):
    """The mean over all texts of means that count so many positions each."""
    return sum(value * count for value, count in zip(values, counts)) / sum(counts)


@pytest.mark.parametrize("hook_name, head", PLACES)
def test_activations_latents_and_logits_are_those_of_the_texts_alone(hook_name, head):
    model = small_models.grouped_query()
    alone, padded = stories(model)
    mask, sae = without_padding(model, padded), some_sae(model, hook_name, head)
    close(collect_activations(model, hook_name, padded, head=head, mask=mask, batch_size=3),
          torch.cat([collect_activations(model, hook_name, each, head=head) for each in alone]))
    latents = latent_activations(model, sae, padded, mask=mask, batch_size=3)
    logits = patched_logits(model, sae, padded, mask=mask)
    for row, each in enumerate(alone):
        length = each.shape[1]
        close(latents[row, :length], latent_activations(model, sae, each)[0])
        assert (latents[row, length:] == 0).all()
        for together, single in zip(logits, patched_logits(model, sae, each)):
            close(together[row, :length], single[0])
    if head is None and Site(model, hook_name).is_residual:
        page = latent_dashboard(model, sae, latents, padded, 3, mask=mask)
        assert page.density == pytest.approx((latents[..., 3] != 0).sum().item() / (sum(LENGTHS) - len(LENGTHS)))


@pytest.mark.parametrize("name, place, convention", [
    ("multi_head", PLACES[0], COURSE), ("grouped_query", PLACES[1], SAELENS), ("grouped_query", PLACES[2], COURSE)])
def test_metrics_are_those_of_the_texts_alone(name, place, convention):
    model, (hook_name, head) = small_models.RANDOM[name](), place
    alone, padded = stories(model)
    sae = some_sae(model, hook_name, head)
    found = evaluate_sae(model, sae, padded, mask=without_padding(model, padded), convention=convention, batch_size=3)
    each = [evaluate_sae(model, sae, tokens, convention=convention) for tokens in alone]
    counts = [length - 1 if convention is SAELENS else length - 2 for length in LENGTHS]
    assert [report.n_positions for report in each] == counts and found.n_positions == sum(counts)
    for metric in (
        "ce_clean", "ce_sae", "ce_zero", "kl", "kl_zero", "reverse_kl", "js", "l0", "l1", "mse", "cosine", "l2_in",
    ):
        of = [length - 2 for length in LENGTHS] if metric.startswith("ce") else counts
        expected = pooled([getattr(report, metric) for report in each], of)
        assert getattr(found, metric) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    close(found.density.float(), pooled([report.density for report in each], counts).float())


@pytest.mark.parametrize("hook_name, head", PLACES[::2])
def test_baselines_are_those_of_the_texts_alone(hook_name, head):
    model = small_models.grouped_query()
    alone, padded = stories(model)
    sae, kinds = some_sae(model, hook_name, head), ("norm_only", "norm_corrected", "zero")
    found = noise_floor(model, sae, padded, kinds, mask=without_padding(model, padded), batch_size=3)
    each = [noise_floor(model, sae, tokens, kinds) for tokens in alone]
    for kind in ("sae", *kinds):
        for name in ("kl", "delta_ce"):
            expected = pooled([getattr(floor, name)[kind] for floor in each], [length - 2 for length in LENGTHS])
            assert getattr(found, name)[kind] == pytest.approx(expected, rel=1e-4, abs=1e-6), (kind, name)


def test_the_truth_is_that_of_the_stories_alone():
    model, sample = small_models.tiny(), StoryLanguage(3).sample(len(LENGTHS), LONGEST)
    sae, tokens = some_sae(model), sample.tokens.clone()
    for row, length in enumerate(LENGTHS):
        tokens[row, length:] = 0
    with pytest.raises(ValueError, match="row 0 looks padded"):
        true_noise_floor(model, sae, replace(sample, tokens=tokens))
    found = true_noise_floor(model, sae, replace(sample, tokens=tokens), mask=without_padding(model, tokens))
    each = [true_noise_floor(model, sae, replace(sample, tokens=tokens[[row], :length],
                                                 true_log_probs=sample.true_log_probs[[row], :length]))
            for row, length in enumerate(LENGTHS)]
    for name, value in found.mean.items():
        expected = pooled([floor.mean[name] for floor in each], [length - 2 for length in LENGTHS])
        assert value == pytest.approx(expected, rel=1e-4 if name != "kl_bfloat16" else 0.05), name


@pytest.mark.slow
def test_more_padding_changes_nothing(model):
    """Also what is no mean of the texts' own: scores, intervals, noise, means, a training run, the report card."""
    _, padded = stories(model)
    more, sae = torch.cat([padded, torch.zeros(len(LENGTHS), 3, dtype=torch.long)], dim=1), some_sae(model)
    one, other = ({name: function(tokens, without_padding(model, tokens)) for name, function in with_mask(model).items()
                   if name in ("evaluate_sae", "noise_floor", "train_sae", "report_card")} for tokens in (padded, more))
    close(*(torch.tensor(each["evaluate_sae"].to_frame()[["value", "low", "high"]].to_numpy(float))
            for each in (one, other)))
    for name in ("kl", "delta_ce", "spread", "ratio"):
        ours, theirs = (getattr(each["noise_floor"], name) for each in (one, other))
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-6, nan_ok=True)
        assert set(ours) == {"sae", *KINDS} > {*RANDOM}
    close(one["train_sae"].W_dec, other["train_sae"].W_dec)
    for name, row in one["report_card"].rows.items():
        assert row[:3] == pytest.approx(other["report_card"].rows[name][:3], rel=1e-3, abs=1e-6, nan_ok=True), name
    expected = evaluate_sae(model, sae, padded, mask=without_padding(model, padded))
    assert one["report_card"].rows["KL"][0] == pytest.approx(expected.kl, rel=1e-4)
