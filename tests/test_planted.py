"""The planted circuit does what it says, through the two planted heads and nothing else."""

from __future__ import annotations

import pytest
import torch
from small_models import planted, repeated

from course_utils.planted import INDUCTION_HEAD, PREVIOUS_TOKEN_HEAD, planted_induction_model
from course_utils.repeated_tokens import correct_token_log_probs

pytestmark = pytest.mark.older


@torch.no_grad()
def inner_log_probs(model, tokens: torch.Tensor, without: tuple[int, int] | None = None) -> torch.Tensor:
    """Log-probs of the second copy without its first token; `without` silences one head."""
    def silence(z, hook):
        z[:, :, without[1]] = 0.0
        return z
    hooks = [(f"blocks.{without[0]}.attn.hook_z", silence)] if without else []
    logits = model.run_with_hooks(tokens, fwd_hooks=hooks)
    return correct_token_log_probs(logits, tokens)[:, tokens.shape[1] // 2 + 1:]


@pytest.mark.parametrize("n_tokens, n_ctx, seq_len", [
    (30, 64, 29), (4, 5, 2), (8, 100, 7), (100, 200, 99)])
def test_the_second_copy_is_predicted_at_every_size(n_tokens, n_ctx, seq_len):
    model = planted_induction_model(n_tokens, n_ctx)
    cfg = model.cfg
    assert (cfg.d_vocab, cfg.n_ctx, cfg.n_layers, cfg.n_heads) == (n_tokens, n_ctx, 2, 2)
    tokens = repeated(model, seq_len)
    assert tokens.shape[1] <= n_ctx
    assert (inner_log_probs(model, tokens) > -0.01).all()


def test_the_first_copy_is_not():
    model = planted()
    tokens = repeated(model, 20)
    first = correct_token_log_probs(model(tokens), tokens)[:, :20]
    assert (first < -3).all()


@pytest.mark.parametrize("head, destroys", [
    (PREVIOUS_TOKEN_HEAD, True), (INDUCTION_HEAD, True), ((0, 1), False), ((1, 1), False)])
def test_silencing_either_planted_head_destroys_it_and_no_other_head_matters(head, destroys):
    model = planted()
    tokens = repeated(model, 20)
    silenced = inner_log_probs(model, tokens, without=head)
    assert (silenced < -3).all() if destroys else (silenced > -0.01).all()
    assert (inner_log_probs(model, tokens) > -0.01).all()  # and the hook is gone


def test_a_backup_takes_over():
    """With head 1.1 as a backup either induction head is enough, and both are needed together."""
    model = planted_induction_model(n_tokens=30, n_ctx=64, backup=True)
    tokens = repeated(model, 20)
    for head in ((1, 0), (1, 1)):
        assert (inner_log_probs(model, tokens, without=head) > -0.01).all()
    assert (inner_log_probs(model, tokens, without=PREVIOUS_TOKEN_HEAD) < -3).all()
    _, cache = model.run_with_cache(tokens)
    z = cache["blocks.1.attn.hook_pattern"]
    assert torch.equal(z[:, 0], z[:, 1])


def test_the_planted_attention_is_exact():
    model = planted()
    tokens = repeated(model, 20)
    _, cache = model.run_with_cache(tokens)
    previous = cache["blocks.0.attn.hook_pattern"][:, 0]
    induction = cache["blocks.1.attn.hook_pattern"][:, 0]
    assert (previous[:, range(1, 41), range(40)] > 0.999).all()
    assert (induction[:, range(21, 41), range(2, 22)] > 0.999).all()
    for layer in (0, 1):  # the idle heads attend everywhere alike
        idle = cache[f"blocks.{layer}.attn.hook_pattern"][:, 1]
        assert torch.allclose(idle[:, 40], torch.full((3, 41), 1 / 41))


def test_layer_norm_does_nothing_but_centre():
    """Its scale is the same for every token, whatever the residual stream holds."""
    model = planted()
    tokens = repeated(model, 20)
    _, cache = model.run_with_cache(tokens)
    for name in ("blocks.0.ln1.hook_scale", "blocks.1.ln1.hook_scale", "ln_final.hook_scale"):
        assert cache[name].max() / cache[name].min() < 1 + 1e-5, name


def test_it_needs_no_random_numbers():
    torch.manual_seed(0)
    one = planted_induction_model(6, 10)(torch.tensor([[0, 1, 2, 1]]))
    torch.manual_seed(1)
    other = planted_induction_model(6, 10)(torch.tensor([[0, 1, 2, 1]]))
    assert torch.equal(one, other)


@pytest.mark.parametrize("n_tokens, n_ctx", [(3, 64), (0, 64), (-1, 64), (30, 4), (30, 0)])
def test_sizes_without_room_for_a_repeat_are_refused(n_tokens, n_ctx):
    with pytest.raises(ValueError, match=f"n_tokens >= 4 and n_ctx >= 5, got {n_tokens} and {n_ctx}"):
        planted_induction_model(n_tokens, n_ctx)


def test_the_duplicate_token_head_looks_at_its_own_token_and_predicts_nothing():
    model = planted_induction_model(12, 20, duplicate=True)
    tokens = torch.tensor([[0, 3, 7, 5, 9, 3, 7, 5, 9]])
    logits, cache = model.run_with_cache(tokens)
    pattern = cache["blocks.1.attn.hook_pattern"][0, 0]
    for query in range(5, 9):
        assert torch.allclose(pattern[query, [query - 4, query]], torch.tensor([0.5, 0.5]), atol=1e-4)
    assert not (logits[0, 5:-1].argmax(-1) == tokens[0, 6:]).any()
    before = cache["blocks.0.attn.hook_pattern"][0, 0]
    assert torch.allclose(before.diagonal(-1), torch.ones(8), atol=1e-4)
