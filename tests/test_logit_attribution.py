"""Direct logit attribution: by hand, against TransformerLens, and where the answer is known."""

import pytest
import small_models
import torch
from small_models import hook_count, repeated

from course_utils.logit_attribution import direct_logit_attribution, logit_contributions

N = 6


@pytest.fixture(params=list(small_models.ALL))
def model(request):
    return small_models.ALL[request.param]()


def test_contributions_by_hand():
    component = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]])
    scale, W_U = torch.tensor([[[1.0], [2.0], [9.0]]]), torch.tensor([[1.0, 0.0, 10.0], [0.0, 1.0, 100.0]])
    assert logit_contributions(component, scale, W_U, torch.tensor([[0, 2, 1]])).tolist() == [[210.0, 2.0]]


@pytest.mark.parametrize("batch", [1, 3])
def test_every_part_equals_that_of_transformer_lens(model, batch):
    tokens = repeated(model, N, batch)
    parts = direct_logit_attribution(model, tokens)
    _, cache = model.run_with_cache(tokens)

    def theirs(outputs):                                            # [part, batch, pos, d_model]
        return cache.logit_attrs(outputs[:, :, :-1], tokens=tokens[:, 1:], pos_slice=slice(0, -1), has_batch_dim=True)

    heads, labels = cache.stack_head_results(layer=-1, pos_slice=None, return_labels=True)
    wanted = [f"L{layer}H{head}" for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]
    assert labels[:len(wanted)] == wanted
    expected = dict(zip(wanted, theirs(heads)))
    for label in wanted:
        ours = parts[label[1:].replace("H", ".")]
        torch.testing.assert_close(ours, expected[label], atol=1e-4, rtol=1e-4)
    mlps = torch.stack([cache[f"blocks.{layer}.hook_mlp_out"] for layer in range(model.cfg.n_layers)])
    for layer, term in enumerate(theirs(mlps)):
        torch.testing.assert_close(parts[f"mlp {layer}"], term, atol=1e-4, rtol=1e-4)
    embeddings = ["embed", "pos_embed"] if "pos_embed" in parts else ["embed"]
    for name in embeddings:
        written = cache[f"hook_{name}"].expand(len(tokens), -1, -1)
        torch.testing.assert_close(parts[name], theirs(written[None])[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("batch", [1, 3])
def test_the_parts_sum_to_the_logits(model, batch):
    tokens = repeated(model, N, batch)
    parts = direct_logit_attribution(model, tokens)
    came = model(tokens)[:, :-1].gather(2, tokens[:, 1:, None])[..., 0]
    torch.testing.assert_close(sum(parts.values()), came, atol=2e-4, rtol=1e-4)
    assert all(part.shape == (batch, 2 * N) for part in parts.values())
    assert sum("." in part for part in parts) == model.cfg.n_layers * model.cfg.n_heads


def test_the_parts_of_each_kind_of_model():
    def names(name):
        model = small_models.ALL[name]()
        return list(direct_logit_attribution(model, repeated(model, N, 1)))

    expected = [name for layer in range(2) for name in (
        *(f"{layer}.{head}" for head in range(6)), f"attn {layer} bias", f"mlp {layer}")]
    assert [part for part in names("grouped_query") if "bias" not in part] == [
        "embed", *(part for part in expected if "bias" not in part)]            # rotary: no positions are added
    assert names("planted") == ["embed", "pos_embed", "0.0", "0.1", "attn 0 bias", "mlp 0",
                                "1.0", "1.1", "attn 1 bias", "mlp 1", "unembed bias"]


def test_the_planted_induction_head_gives_the_logit_and_the_others_nothing():
    """It writes 2 * the token, unembedded times 10, less the mean over 30 tokens: 20 * 29 / 30 wherever it copies."""
    model = small_models.planted()
    parts = direct_logit_attribution(model, repeated(model, N))
    inner = slice(N + 1, 2 * N)                                     # predictions of the second copy, boundary left out
    torch.testing.assert_close(parts["1.0"][:, inner], torch.full((3, N - 1), 20 * 29 / 30), atol=1e-2, rtol=0)
    for idle in ("0.0", "0.1", "1.1", "pos_embed", "mlp 0", "mlp 1", "attn 0 bias", "attn 1 bias"):
        assert parts[idle].abs().max() < 1e-3, idle


def test_no_hook_and_no_gradient_is_left_behind(model):
    tokens = repeated(model, N)
    model.run_with_cache(tokens)
    before = hook_count(model)
    with torch.enable_grad():
        parts = direct_logit_attribution(model, tokens)
    assert hook_count(model) == before
    assert not any(part.requires_grad for part in parts.values())
