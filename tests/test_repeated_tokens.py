"""Repeated tokens: log-probs against slow and library versions, the report against a hand-made case."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace

import pytest
import small_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils import models, repeated_tokens
from course_utils.heads import best_head, induction_scores, previous_token_scores
from course_utils.language import StoryLanguage
from course_utils.models import as_bridge, word_tokenizer
from course_utils.repeated_tokens import (
    RepeatedTokenReport,
    correct_token_log_probs,
    generate_repeated_tokens,
    repeated_token_report,
)

needs_tiny = pytest.mark.skipif(not models.is_cached("tiny"), reason="the weights of tiny are not here")


@pytest.fixture
def planted():
    return small_models.planted()


@pytest.fixture(scope="module")
def small():
    """Random weights, 2 layers, 37 tokens, a context of 40; BOS is the last token."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=37, n_positions=40, n_embd=16, n_layer=2, n_head=2, n_inner=32,
                        initializer_range=0.3, bos_token_id=36, eos_token_id=36)
    tokenizer = word_tokenizer([*(f"w{i}" for i in range(36)), "<end>"], "<end>")
    return as_bridge(GPT2LMHeadModel(config), tokenizer, name="small", device="cpu")


@pytest.fixture(params=["planted", "small"])
def model(request):
    return request.getfixturevalue(request.param)


# --- the tokens -----------------------------------------------------------------------------------

@settings(deadline=None, max_examples=25)
@given(seq_len=st.integers(2, 19), batch=st.integers(1, 12), seed=st.integers(0, 2**31))
def test_tokens_are_bos_and_two_equal_copies(small, seq_len, batch, seed):
    tokens = generate_repeated_tokens(small, seq_len, batch, seed=seed)
    assert tokens.shape == (batch, 1 + 2 * seq_len) and tokens.dtype == torch.long
    assert (tokens[:, 0] == 36).all()
    assert torch.equal(tokens[:, 1:1 + seq_len], tokens[:, 1 + seq_len:])
    assert tokens.min() >= 0 and tokens.max() < 37
    assert torch.equal(tokens, generate_repeated_tokens(small, seq_len, batch, seed=seed))


def test_tokens_are_uniform_over_the_whole_vocabulary(small):
    half = generate_repeated_tokens(small, 19, 400, seed=5)[:, 1:20]
    counts = torch.bincount(half.flatten(), minlength=37).double()
    expected = half.numel() / 37
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert 10 < chi_square < 80  # 36 degrees of freedom: mean 36, sd 8.5


def test_seeds_differ_rows_differ_and_none_draws_from_the_global_stream(model):
    first, second = (generate_repeated_tokens(model, 10, 3, seed=seed) for seed in (0, 1))
    assert not torch.equal(first, second) and len({tuple(row) for row in first.tolist()}) == 3
    torch.manual_seed(8)
    drawn = [generate_repeated_tokens(model, 10, 2) for _ in range(2)]
    assert not torch.equal(*drawn)
    torch.manual_seed(8)
    generate_repeated_tokens(model, 10, 2, seed=3)  # an explicit seed leaves the global stream alone
    assert torch.equal(generate_repeated_tokens(model, 10, 2), drawn[0])


def test_the_longest_sequence_that_fits_runs_and_the_next_is_refused(small, planted):
    assert repeated_token_report(small, 19, 1).seq_len == 19          # 39 of 40
    assert repeated_token_report(planted, 31, 1).seq_len == 31        # 63 of 64
    for model, seq_len, length, context, best in ((small, 20, 41, 40, 19), (planted, 32, 65, 64, 31)):
        for function in (generate_repeated_tokens, repeated_token_report):
            with pytest.raises(ValueError) as caught:
                function(model, seq_len)
            message = str(caught.value)
            assert f"= {length} tokens" in message and f"at most {context}" in message
            assert f"seq_len <= {best}" in message


@pytest.mark.parametrize("function", [generate_repeated_tokens, repeated_token_report])
@pytest.mark.parametrize("seq_len", [1, True, 5.0, "10", None])
def test_senseless_lengths_are_refused(small, function, seq_len):
    with pytest.raises(ValueError, match=re.escape(f"whole number of at least 2, got {seq_len!r}")):
        function(small, seq_len)


@pytest.mark.parametrize("function", [generate_repeated_tokens, repeated_token_report])
@pytest.mark.parametrize("batch", [0, -1])
def test_an_empty_batch_is_refused(small, function, batch):
    with pytest.raises(ValueError, match=f"batch must be a whole number of at least 1, got {batch}"):
        function(small, 5, batch)


def test_a_model_without_bos_is_refused_before_it_runs():
    cfg = SimpleNamespace(d_vocab=10, n_ctx=64, device="cpu", bos_token_id=None)
    model = SimpleNamespace(cfg=cfg, tokenizer=SimpleNamespace(bos_token_id=None), original_model=None)
    with pytest.raises(ValueError, match="no BOS token") as caught:
        repeated_token_report(model, 5, 2)
    assert "model.tokenizer.bos_token" in str(caught.value)


def test_bos_comes_from_the_config_where_there_is_no_tokenizer():
    cfg = SimpleNamespace(d_vocab=10, n_ctx=64, device="cpu", bos_token_id=7)
    model = SimpleNamespace(cfg=cfg, tokenizer=None, original_model=None)
    assert generate_repeated_tokens(model, 3, 2, seed=0)[:, 0].tolist() == [7, 7]


# --- log-probabilities ----------------------------------------------------------------------------

sizes = st.tuples(st.integers(1, 4), st.integers(2, 7), st.integers(1, 9), st.integers(0, 2**31))


def random_case(size, spread: float = 5.0) -> tuple[torch.Tensor, torch.Tensor]:
    batch, pos, vocab, seed = size
    rng = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(batch, pos, vocab, generator=rng),
            torch.randint(0, vocab, (batch, pos), generator=rng))


@settings(deadline=None, max_examples=60)
@given(sizes)
def test_log_probs_are_minus_torchs_cross_entropy(size):
    logits, tokens = random_case(size)
    scores = logits[:, :-1].transpose(1, 2)
    theirs = torch.nn.functional.cross_entropy(scores, tokens[:, 1:], reduction="none")
    ours = correct_token_log_probs(logits, tokens)
    assert ours.shape == (size[0], size[1] - 1)
    assert torch.allclose(ours, -theirs, atol=1e-5)
    assert (ours <= 0).all()


def test_hopeless_logits_stay_finite():
    logits = torch.tensor([[[0.0, 1e4], [0.0, 0.0]]])
    assert correct_token_log_probs(logits, torch.tensor([[0, 0]])).item() == pytest.approx(-1e4)


@pytest.mark.parametrize("logits_shape, tokens_shape", [
    ((2, 5, 9), (2, 4)), ((2, 5, 9), (3, 5)), ((5, 9), (5,)), ((2, 5), (2, 5)), ((2, 1, 9), (2, 1)),
    ((2, 5, 9), (5,))])
def test_shapes_that_do_not_fit_are_refused(logits_shape, tokens_shape):
    with pytest.raises(ValueError) as caught:
        correct_token_log_probs(torch.zeros(logits_shape), torch.zeros(tokens_shape, dtype=torch.long))
    message = str(caught.value)
    assert str(logits_shape) in message and str(tokens_shape) in message and "pos >= 2" in message


# --- the report -----------------------------------------------------------------------------------

def test_the_report_of_a_case_worked_out_by_hand():
    log_probs = torch.tensor([[-9.0, -7.0, -5.0, -4.0, -1.0, -1.0], [-8.0, -6.0, -7.0, -2.0, -1.0, 0.0]])
    correct = torch.tensor([[0.0, 0.0, 1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]])
    report = RepeatedTokenReport(torch.zeros(2, 7, dtype=torch.long), log_probs, correct)
    assert report.seq_len == 3
    assert report.first_half_log_prob == pytest.approx(-42 / 6)
    assert report.second_half_log_prob == pytest.approx(-9 / 6)
    assert report.boundary_log_prob == pytest.approx(-3)
    assert report.inner_log_prob == pytest.approx(-3 / 4)
    assert report.first_half_accuracy == pytest.approx(1 / 6)
    assert report.second_half_accuracy == pytest.approx(3 / 6)
    assert report.inner_accuracy == pytest.approx(3 / 4)
    assert report.standard_error == pytest.approx(0.5)  # means −2 and −1: sd 1/√2, over √2
    assert math.isnan(RepeatedTokenReport(report.tokens[:1], log_probs[:1], correct[:1]).standard_error)


def test_the_report_is_the_models_own_log_probs(model):
    report = repeated_token_report(model, 9, 11, seed=2)
    tokens = generate_repeated_tokens(model, 9, 11, seed=2)
    with torch.no_grad():
        logits = model(tokens)
    assert torch.equal(report.tokens, tokens)
    assert torch.allclose(report.log_probs, correct_token_log_probs(logits, tokens), atol=1e-5)
    assert torch.equal(report.correct.bool(), logits[:, :-1].argmax(-1) == tokens[:, 1:])
    assert report.log_probs.shape == report.correct.shape == (11, 18)
    assert not report.log_probs.requires_grad


@pytest.mark.parametrize("rows", [1, 3])
def test_the_report_does_not_depend_on_how_many_rows_run_at_once(model, monkeypatch, rows):
    usual = repeated_token_report(model, 8, 10)
    monkeypatch.setattr(repeated_tokens, "ROWS_AT_A_TIME", rows)
    other = repeated_token_report(model, 8, 10)
    assert torch.equal(usual.tokens, other.tokens) and torch.equal(usual.correct, other.correct)
    assert torch.allclose(usual.log_probs, other.log_probs, atol=1e-5)


# --- real models ----------------------------------------------------------------------------------

@pytest.mark.slow
@needs_tiny
def test_tiny_repeats_what_it_has_seen():
    model = small_models.tiny()
    report = repeated_token_report(model, 50, 30)
    assert report.second_half_accuracy >= 0.95
    assert report.second_half_log_prob >= -0.4
    assert report.first_half_log_prob <= -math.log(model.cfg.d_vocab)
    assert report.first_half_accuracy < 0.01
    assert induction_scores(model, report.tokens, 50).max() >= 0.8
    assert previous_token_scores(model, report.tokens).max() >= 0.8


@pytest.mark.slow
@needs_tiny
@torch.no_grad()
def test_tiny_is_close_to_the_truth_on_stories_it_has_not_seen():
    """KL(truth ‖ model), nats per token; cross-entropy less entropy estimates the same."""
    model, held_out = small_models.tiny(), StoryLanguage(seed=7).sample(12, 128)
    truth, log_probs = held_out.true_log_probs, model(held_out.tokens).log_softmax(-1)
    kl = torch.where(truth.isfinite(), truth.exp() * (truth - log_probs), 0.0).sum(-1)
    excess = -correct_token_log_probs(log_probs, held_out.tokens) - held_out.entropy[:, :-1]
    assert (kl > -1e-4).all()
    assert kl.mean() <= 0.10
    assert abs(excess.mean() - kl[:, :-1].mean()) < 4 * excess.std() / excess.numel() ** 0.5


@pytest.mark.slow
@pytest.mark.matrix  # in make test the stored outputs of lesson 02 show it
@needs_tiny
def test_tiny_s_checkpoints_show_induction_absent_forming_and_present():
    best = []
    for step in models.checkpoint_steps("tiny"):
        model = models.load_model("tiny", step=step)
        best.append(induction_scores(model, generate_repeated_tokens(model, 50, 8, seed=0), 50).max().item())
    assert len(best) >= 6
    assert best[0] < 0.1 and best[-1] >= 0.8
    assert any(0.2 < score < 0.7 for score in best[1:-1]), best


@pytest.mark.slow
@pytest.mark.matrix  # in make test the lessons' stored outputs rest on it
def test_smollm2_reproduces_the_known_figures():
    """4 x (50 + 50) tokens, seed 0. Head 18.6 scores 0.855 over the whole stripe, and 0.870 as the course
    counts, without the stripe's two entries in the first copy."""
    model = small_models.smollm2()
    report = repeated_token_report(model, 50, 4, seed=0)
    assert report.first_half_log_prob == pytest.approx(-14.315, abs=0.02)
    assert report.second_half_log_prob == pytest.approx(-3.435, abs=0.02)
    whole = induction_scores(model, report.tokens, 50, whole_diagonal=True)
    ours = induction_scores(model, report.tokens, 50)
    previous = previous_token_scores(model, report.tokens)
    assert whole[18, 6].item() == pytest.approx(0.855, abs=0.02)
    assert ours[18, 6].item() == pytest.approx(0.870, abs=0.02)
    assert previous[16, 0].item() == pytest.approx(0.886, abs=0.02)
    assert best_head(whole) == best_head(ours) == (18, 6) and best_head(previous) == (16, 0)
