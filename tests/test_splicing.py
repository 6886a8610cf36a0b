"""Splicing: every pass against one with hooks written by hand, the share of the gain by hand."""

from types import SimpleNamespace

import pytest
import small_models
import torch
from small_models import forbidden_forward, hook_count, repeated
from small_saes import some_sae as begun

from course_utils.heads import induction_scores, is_pattern
from course_utils.repeated_tokens import correct_token_log_probs, repeated_token_report
from course_utils.splicing import circuit_score, log_probs_reading, remove_latents, spliced, without_latents

PLACE, SEQ_LEN = "blocks.1.hook_resid_pre", 6
CLOSE, NEAR = {"atol": 1e-5, "rtol": 1e-5}, {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(params=list(small_models.RANDOM))
def model(request):
    with torch.no_grad():
        yield small_models.RANDOM[request.param]()


def some_sae(hook_name=PLACE, width=24, **more):
    return begun(width, d_sae=30, hook_name=hook_name, **more)


def perfect_sae(width=24):
    """Two latents for each component, for what is above b_dec and what is below: x̂ is x."""
    sae, both = some_sae(width=width), torch.cat([torch.eye(width), -torch.eye(width)])
    sae.W_dec.data, sae.W_enc.data, sae.b_enc.data = both, both.T.clone(), torch.zeros(2 * width)
    return sae


def by_hand(model, tokens, change, hook_name=PLACE, more=()):
    """Logits with change(x) in the place of each vector x but the first of each row."""

    def put(x, hook):
        return torch.stack([torch.stack([row[0], *(change(vector) for vector in row[1:])]) for row in x])

    return model.run_with_hooks(tokens, fwd_hooks=[(hook_name, put), *more])


@pytest.mark.parametrize("name, place, more", [
    ("multi_head", PLACE, {}), ("grouped_query", "blocks.0.hook_resid_pre", {"kind": "topk"}),
    ("tiny", "blocks.0.hook_resid_post", {"normalize": "constant_norm_rescale"})])
@torch.no_grad()
def test_logits_are_those_of_a_hook_written_by_hand(name, place, more):
    model = small_models.ALL[name]()
    tokens, sae = repeated(model), some_sae(place, model.cfg.d_model, **more)
    expected = by_hand(model, tokens, sae, place)
    with spliced(model, sae):
        torch.testing.assert_close(model(tokens), expected, atol=5e-5, rtol=1e-5)
    assert (model(tokens) - expected)[:, 1:].abs().amax(-1).min() > 0.01        # a change that shows


def test_any_object_with_encode_and_decode_will_do(model):
    tokens, sae = repeated(model), some_sae()
    expected = by_hand(model, tokens, sae)
    for name in ({"hook_name": PLACE}, {"cfg": SimpleNamespace(metadata=SimpleNamespace(hook_name=PLACE))}):   # SAELens
        with spliced(model, SimpleNamespace(encode=sae.encode, decode=lambda latents: sae.decode(latents), **name)):
            torch.testing.assert_close(model(tokens), expected, **CLOSE)


@pytest.mark.parametrize("block", [spliced, lambda model, sae: without_latents(model, sae, [0, 1, 2])])
def test_no_hook_is_left_behind(model, block):
    tokens = repeated(model)
    clean, before = model(tokens), hook_count(model)
    with block(model, some_sae()):
        assert not torch.equal(model(tokens), clean) and hook_count(model) > before
    assert hook_count(model) == before and torch.equal(model(tokens), clean)
    with pytest.raises(KeyError, match="in the block"), block(model, some_sae()):
        raise KeyError("in the block")
    assert hook_count(model) == before and torch.equal(model(tokens), clean)


@pytest.mark.parametrize("sae, message", [
    *((some_sae(f"blocks.1.{point}"), "not the resid") for point in ("hook_mlp_out", "hook_attn_out", "attn.hook_z")),
    (some_sae(width=23), "has width 24 here; this autoencoder was made for 23"),
    (some_sae("blocks.3.hook_resid_pre"), "no place"), (some_sae("hook_embed"), "no place"),
    (some_sae(None), "does not say where it belongs"),
], ids=str)
def test_what_does_not_fit_is_refused_before_any_work(model, sae, message):
    tokens = repeated(model)
    with forbidden_forward(model):
        for call in (lambda: spliced(model, sae).__enter__(), lambda: without_latents(model, sae, [0]).__enter__(),
                     lambda: log_probs_reading(model, sae, tokens, SEQ_LEN, [(1, 0)], "k")):
            with pytest.raises(ValueError, match=message):
                call()


def test_reports_inside_the_block_are_of_the_spliced_model(model):
    def reports():
        return repeated_token_report(model, SEQ_LEN, 3), induction_scores(model, repeated(model), SEQ_LEN)
    sae, patterns, (clean, clean_scores) = some_sae(), [], reports()
    with spliced(model, sae):
        report, scores = reports()
    expected = correct_token_log_probs(by_hand(model, report.tokens, sae), report.tokens)
    torch.testing.assert_close(report.log_probs, expected, **NEAR)
    assert (report.log_probs - clean.log_probs)[:, 1:].abs().min() > 1e-4
    by_hand(model, repeated(model), sae, more=[(is_pattern, lambda pattern, hook: patterns.append(pattern))])
    for layer, pattern in enumerate(patterns):
        stripe = [pattern[:, :, q, q - SEQ_LEN + 1] for q in range(1 + SEQ_LEN, 1 + 2 * SEQ_LEN)]
        torch.testing.assert_close(scores[layer], torch.stack(stripe).mean((0, 1)), **CLOSE)
    assert torch.equal(scores[0], clean_scores[0])                      # below the splice: exactly the same
    assert (scores[1:] - clean_scores[1:]).abs().max() > 0.01


def test_without_its_latents_a_perfect_dictionary_is_its_bias(model):
    tokens, sae = repeated(model), perfect_sae()
    clean = model(tokens)
    for which, change in {(): lambda x: x, tuple(range(48)): lambda x: sae.b_dec,
                          (5, 29): lambda x: torch.where(torch.arange(24) == 5, sae.b_dec, x)}.items():
        with without_latents(model, sae, list(which)):                  # 5 and 29: component 5, above and below
            found = model(tokens)
        torch.testing.assert_close(found, by_hand(model, tokens, change), **NEAR)
        assert bool(which) == bool((found - clean).abs().max() > 1e-3)


def test_the_error_and_the_other_latents_stay(model):
    tokens, sae, which = repeated(model), some_sae(), [3, 17, 20]
    with without_latents(model, sae, which):
        found = model(tokens)
    expected = by_hand(model, tokens, lambda x: x - sum(sae.encode(x)[i] * sae.W_dec[i] for i in which))
    torch.testing.assert_close(found, expected, **CLOSE)
    assert (found - model(tokens)).abs().max() > 0.01
    x = torch.ones(2, 3, 24)
    assert remove_latents(x, x[..., :3], sae.W_dec[:3], [1]).allclose(1 - sae.W_dec[1]) and (x == 1).all()
    with forbidden_forward(model), pytest.raises(ValueError, match="normalizes its input"):
        without_latents(model, some_sae(normalize="layer_norm"), [0]).__enter__()


def reading_by_hand(model, sae, tokens, heads, into):
    """The heads' inputs are recorded in a spliced pass, and put into a clean one."""
    names = {f"blocks.{layer}.attn.hook_{name}" for layer, _ in heads for name in into}
    with spliced(model, sae):
        _, cache = model.run_with_cache(tokens, names_filter=list(names))

    def put(old, hook):
        own = [head * old.shape[2] // model.cfg.n_heads for layer, head in heads if layer == hook.layer()]   # shared?
        old[:, :, own] = cache[hook.name][:, :, own]
        return old

    return correct_token_log_probs(model.run_with_hooks(tokens, fwd_hooks=[(name, put) for name in names]), tokens)


@pytest.mark.parametrize("into, which", [
    ("kqv", "two layers"), ("k", "all of the layer above"), ("q", "one"), ("v", "two layers")])
def test_heads_read_what_a_spliced_pass_would_give_them(model, into, which):
    tokens, last = repeated(model, batch=10), model.cfg.n_layers - 1
    heads = {"all of the layer above": [(1, head) for head in range(model.cfg.n_heads)], "one": [(last, 3)],
             "two layers": [(0, 1), (last, 0), (last, 2)]}[which]
    sae = some_sae(f"blocks.{0 if which == 'two layers' else 1}.hook_resid_pre")
    found = log_probs_reading(model, sae, tokens, SEQ_LEN, heads, into)
    torch.testing.assert_close(found, reading_by_hand(model, sae, tokens, heads, into), **NEAR)
    assert (found - correct_token_log_probs(model(tokens), tokens)).abs().max() > 1e-3
    row_by_row = [log_probs_reading(model, sae, row[None], SEQ_LEN, heads, into) for row in tokens]
    torch.testing.assert_close(found, torch.cat(row_by_row), **NEAR)


@pytest.mark.parametrize("change, message", [
    ({"into": "x"}, "into is 'x'"), ({"into": ""}, "into is ''"), ({"into": "qz"}, "into is 'qz'"),
    ({"heads": [(1, 0), (0, 2)]}, "heads 0.2 lie below the autoencoder"), ({"seq_len": 5}, "must be"),
    ({"tokens": torch.arange(13)[None]}, "not two equal copies"),
], ids=str)
def test_bad_readings_are_refused(model, change, message):
    given = {"tokens": repeated(model), "seq_len": SEQ_LEN, "heads": [(1, 0)], "into": "k"} | change
    with forbidden_forward(model), pytest.raises(ValueError, match=message):
        log_probs_reading(model, some_sae(), **given)


def test_the_share_of_the_gain():
    clean = -torch.rand(4, 10, generator=torch.Generator().manual_seed(0)) - torch.tensor([5.0] * 5 + [0.0] * 5)
    other, flat = clean.clone(), torch.full((4, 10), -3.0)
    other[:, 5] = -40                                                   # the boundary: nobody can foresee it
    assert circuit_score(clean, clean) == 1 == circuit_score(clean, other) == circuit_score(other, clean)
    assert circuit_score(clean, flat) == 0 and circuit_score(clean, -clean) == -1
    assert circuit_score(clean, 0.25 * clean - 7) == pytest.approx(0.25, rel=1e-5)  # worse everywhere alike
