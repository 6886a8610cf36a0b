"""Head scores equal TransformerLens's detector up to the documented factors; planted heads score 1."""

from __future__ import annotations

import itertools

import pytest
import small_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import repeated

from course_utils import heads
from course_utils.heads import (
    best_head,
    duplicate_token_scores,
    induction_scores,
    induction_scores_in_text,
    previous_token_scores,
    top_heads,
)
from course_utils.planted import INDUCTION_HEAD, PREVIOUS_TOKEN_HEAD

pytestmark = pytest.mark.older

SEQ_LEN = 12


@pytest.fixture(params=["multi_head", "grouped_query"])
def model(request):
    return small_models.ALL[request.param]()


@pytest.fixture
def planted():
    return small_models.planted()


@pytest.fixture
def multi_head():
    return small_models.multi_head()


def patterns(model, tokens) -> torch.Tensor:
    """[layer, batch, head, query, key], from the model's own cache."""
    _, cache = model.run_with_cache(tokens)
    return torch.stack([cache[f"blocks.{layer}.attn.hook_pattern"] for layer in range(model.cfg.n_layers)])


# --- against TransformerLens ----------------------------------------------------------------------

@pytest.mark.parametrize("seq_len", [2, SEQ_LEN])
def test_scores_equal_detect_head_up_to_the_documented_factors(model, seq_len):
    from transformer_lens.head_detector import detect_head

    tokens = repeated(model, seq_len, batch=2)
    pos = tokens.shape[1]
    texts = [" ".join(model.tokenizer.convert_ids_to_tokens(row[1:].tolist())) for row in tokens]
    assert all(torch.equal(model.to_tokens(text)[0], row) for text, row in zip(texts, tokens))
    for name, ours, factor in (
        ("previous_token_head", previous_token_scores(model, tokens), pos / (pos - 1)),
        ("duplicate_token_head", duplicate_token_scores(model, tokens, seq_len), pos / seq_len),
        ("induction_head", induction_scores(model, tokens, seq_len), pos / seq_len),
        ("induction_head", induction_scores_in_text(model, tokens), pos / seq_len),
    ):
        theirs = torch.stack([detect_head(model, text, name) for text in texts]).mean(0)
        assert ours.shape == theirs.shape == (model.cfg.n_layers, model.cfg.n_heads)
        assert torch.allclose(ours, theirs * factor, atol=1e-4), name
        assert ours.max() > 0.01


# --- against a slow reading of the whole pattern --------------------------------------------------

def test_scores_equal_a_slow_reading_of_the_patterns(model):
    tokens, n = repeated(model, SEQ_LEN), SEQ_LEN
    pattern = patterns(model, tokens).double()
    second = range(n + 1, 2 * n + 1)

    def mean(pairs):
        return sum(pattern[..., query, key].mean(1) for query, key in pairs) / len(pairs)

    slow = {
        "previous": (previous_token_scores(model, tokens), mean([(q, q - 1) for q in range(1, 2 * n + 1)])),
        "duplicate": (duplicate_token_scores(model, tokens, n), mean([(q, q - n) for q in second])),
        "induction": (induction_scores(model, tokens, n), mean([(q, q - n + 1) for q in second])),
        "whole": (induction_scores(model, tokens, n, whole_diagonal=True),
                  mean([(q, q - n + 1) for q in range(n - 1, 2 * n + 1)])),
    }
    for name, (ours, expected) in slow.items():
        assert torch.allclose(ours.double(), expected, atol=1e-5), name
        assert (ours >= 0).all() and (ours <= 1 + 1e-5).all(), name


def test_scores_in_text_equal_a_slow_reading_of_the_patterns(multi_head):
    tokens = torch.randint(0, 8, (3, 20), generator=torch.Generator().manual_seed(4))
    pattern = patterns(multi_head, tokens)
    total, queries = torch.zeros(3, 4), 0
    for row, q in ((row, q) for row in range(3) for q in range(20)):
        keys = [k for k in range(1, q + 1) if tokens[row, k - 1] == tokens[row, q]]
        total += pattern[:, row, :, q, keys].sum(-1)
        queries += bool(keys)
    assert torch.allclose(induction_scores_in_text(multi_head, tokens), total / queries, atol=1e-5)


# --- planted heads --------------------------------------------------------------------------------

@pytest.mark.parametrize("seq_len", [12, 20, 29])
def test_planted_heads_score_one_and_the_others_little(planted, seq_len):
    tokens = repeated(planted, seq_len)
    for scores, head in ((previous_token_scores(planted, tokens), PREVIOUS_TOKEN_HEAD),
                         (induction_scores(planted, tokens, seq_len), INDUCTION_HEAD),
                         (induction_scores_in_text(planted, tokens), INDUCTION_HEAD)):
        assert best_head(scores) == head and scores[head] >= 0.999
        others = scores.clone()
        others[head] = 0
        assert others.max() < 0.2
    assert duplicate_token_scores(planted, tokens, seq_len).max() < 0.2


# --- what must not matter -------------------------------------------------------------------------

@pytest.mark.parametrize("rows", [2, 64])
def test_scores_do_not_depend_on_how_many_rows_run_at_once(model, monkeypatch, rows):
    tokens = repeated(model, SEQ_LEN, batch=9)
    functions = (previous_token_scores, induction_scores_in_text, lambda *a: induction_scores(*a, SEQ_LEN),
                 lambda *a: duplicate_token_scores(*a, SEQ_LEN))
    usual = [score(model, tokens) for score in functions]
    monkeypatch.setattr(heads, "ROWS_AT_A_TIME", rows)
    for score, other in zip(functions, usual):
        assert torch.allclose(score(model, tokens), other, atol=1e-5)


def test_no_hook_and_no_gradient_is_left_behind(model):
    tokens = repeated(model, SEQ_LEN)
    before = model(tokens)
    for scores in (previous_token_scores(model, tokens), induction_scores(model, tokens, SEQ_LEN),
                   duplicate_token_scores(model, tokens, SEQ_LEN), induction_scores_in_text(model, tokens)):
        assert not scores.requires_grad and not scores.isnan().any()
    assert not [name for name, point in model.hook_dict.items() if point.fwd_hooks or point.bwd_hooks]
    assert torch.equal(model(tokens), before)


def test_no_hook_is_left_behind_by_an_error(multi_head):
    with pytest.raises(ZeroDivisionError):
        heads.stripe_scores(multi_head, repeated(multi_head), lambda pattern: 1 / 0)
    assert not [name for name, point in multi_head.hook_dict.items() if point.fwd_hooks]


# --- the best heads -------------------------------------------------------------------------------

@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**31), st.integers(1, 40))
def test_best_and_top_heads_are_those_of_a_sorted_list(layers, n_heads, seed, k):
    scores = torch.rand(layers, n_heads, generator=torch.Generator().manual_seed(seed))
    every_head = itertools.product(range(layers), range(n_heads))
    everyone = sorted(((scores[head].item(), head) for head in every_head), reverse=True)
    top = top_heads(scores, k)
    assert [(value, head) for head, value in top] == everyone[:k]
    assert best_head(scores) == top[0][0] == everyone[0][1]


def test_the_first_of_equals_and_plain_numbers():
    scores = torch.zeros(2, 3)
    assert best_head(scores) == (0, 0)
    scores[1, 2] = scores[1, 1] = 0.5
    assert best_head(scores) == (1, 1)
    (layer, head), value = top_heads(scores, 1)[0]
    assert (type(layer), type(head), type(value)) == (int, int, float)
    assert len(top_heads(scores)) == 5 and len(top_heads(scores, 99)) == 6


# --- bad input ------------------------------------------------------------------------------------

@pytest.mark.parametrize("score", [induction_scores, duplicate_token_scores])
def test_tokens_that_are_not_two_copies_are_refused(multi_head, score):
    tokens = repeated(multi_head, 12)
    for wrong, seq_len, message in (
        (tokens, 11, r"\[batch, 23\]"), (tokens, 24, r"\[batch, 49\]"), (tokens[:, 1:], 12, r"\[batch, 25\]"),
        (tokens[0], 12, r"shape \(25,\)"), (tokens[:, :3], 1, "at least 2"),
        (torch.cat([tokens[:, 1:], tokens[:, :1]], 1), 12, "not two equal copies of 12 tokens after BOS"),
        (torch.arange(25)[None], 12, "not two equal copies"),
    ):
        with pytest.raises(ValueError, match=message):
            score(multi_head, wrong, seq_len)


@pytest.mark.parametrize("shape", [(5,), (2, 1), (1, 2, 3)])
def test_previous_token_scores_need_two_positions(multi_head, shape):
    with pytest.raises(ValueError, match=r"\[batch, pos\] with pos >= 2"):
        previous_token_scores(multi_head, torch.zeros(shape, dtype=torch.long))


def test_text_without_any_repeat_is_refused(multi_head):
    with pytest.raises(ValueError, match="no token occurs twice"):
        induction_scores_in_text(multi_head, torch.arange(10)[None])
