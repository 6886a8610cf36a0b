"""Places in a model: reading, and going on from a new activation, against full passes with hooks."""

import pytest
import small_models
import torch
from small_models import forbidden_forward, hook_count, repeated

from course_utils.passes import CleanRun, Site, collect_activations
from course_utils.passes.sites import POINTS

pytestmark = pytest.mark.older

PLACES = [*((point, None) for point in POINTS), ("attn.hook_z", 0), ("attn.hook_z", 3)]


@pytest.fixture(params=["multi_head", "grouped_query_biased"])
def model(request):
    return small_models.ALL[request.param]()


def sites(model, point, head):
    """This place in every layer."""
    return [Site(model, f"blocks.{layer}.{point}", head) for layer in range(model.cfg.n_layers)]


def cached(model, site, tokens):
    """What a full pass has there, by the library's own cache."""
    value = model.run_with_cache(tokens, names_filter=[site.hook_name])[1][site.hook_name]
    if site.point != "attn.hook_z":
        return value
    heads = range(value.shape[2]) if site.head is None else [site.head]
    return torch.cat([value[:, :, head] for head in heads], dim=-1)


def full_pass(model, site, tokens, new):
    """The logits with `new` put in by a hook."""
    def put(value, hook):
        if site.head is None:
            return new.reshape(value.shape)
        return torch.cat([value[:, :, : site.head], new[:, :, None], value[:, :, site.head + 1 :]], dim=2)
    return model.run_with_hooks(tokens, fwd_hooks=[(site.hook_name, put)])


def close(ours, expected):
    torch.testing.assert_close(ours, expected, atol=2e-4, rtol=1e-4)


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point, head", PLACES)
def test_what_is_read_is_what_the_cache_holds(model, point, head):
    tokens = repeated(model)
    for site in sites(model, point, head):
        x = site.read(CleanRun(model, tokens, site.recorded))
        close(x, cached(model, site, tokens))
        assert x.shape == (*tokens.shape, site.width)


@pytest.mark.parametrize("point, head", PLACES)
def test_collected_activations_leave_out_the_first_position_and_keep_the_order(model, point, head):
    tokens = repeated(model, batch=3)
    for site in sites(model, point, head):
        ours = collect_activations(model, site.hook_name, tokens, head=site.head, batch_size=2)
        expected = cached(model, site, tokens)
        rows = torch.stack([expected[i, j] for i in range(3) for j in range(1, tokens.shape[1])])
        torch.testing.assert_close(ours, rows, atol=1e-4, rtol=1e-4)
        assert ours.device.type == "cpu" and not ours.requires_grad


def test_exact_activations_do_not_depend_on_how_sums_are_rounded_and_the_model_is_as_before():
    model, hook_name = small_models.tiny(), "blocks.2.hook_resid_pre"
    tokens = repeated(model, batch=3)
    before = model(tokens)
    whole, one_by_one = (collect_activations(model, hook_name, tokens, batch_size=n, exact=True) for n in (3, 1))
    torch.testing.assert_close(whole, one_by_one, atol=1e-12, rtol=1e-12)
    assert whole.dtype == torch.float64 and torch.equal(model(tokens), before)
    torch.testing.assert_close(whole.float(), collect_activations(model, hook_name, tokens), atol=1e-4, rtol=1e-4)
    other = small_models.multi_head.__wrapped__().double()              # would come back as another model
    with pytest.raises(ValueError, match="only a float32 model"):
        collect_activations(other, "blocks.1.hook_resid_pre", repeated(other), exact=True)


def test_layers_above_the_place_are_not_run():
    model, ran = small_models.tiny(), []
    note = [(f"blocks.{layer}.attn.hook_z", lambda value, hook: ran.append(hook.layer())) for layer in range(4)]
    with model.hooks(fwd_hooks=note):
        collect_activations(model, "blocks.1.hook_attn_out", repeated(model))
    assert ran == [0, 1]


# --- going on with another activation --------------------------------------------------------------------------------


@pytest.mark.parametrize("point, head", PLACES)
def test_going_on_equals_a_full_pass_with_a_hook(model, point, head):
    tokens = repeated(model)
    logits = model(tokens)
    for site in sites(model, point, head):
        clean = CleanRun(model, tokens, site.recorded)
        x = site.read(clean)
        new = 0.3 * x + torch.randn(x.shape, generator=torch.Generator().manual_seed(site.layer))
        expected = full_pass(model, site, tokens, new)
        assert (expected - logits).abs().max() > 1e-2                # there is something to be wrong about
        close(clean.logits(site.continue_with(clean, new)), expected)


@pytest.mark.parametrize("point, head", PLACES)
def test_the_same_activation_leaves_the_logits_as_they_are(model, point, head):
    """To the last bit: an autoencoder that changes nothing has a KL of 0, not nearly 0."""
    tokens = repeated(model)
    for site in sites(model, point, head):
        clean = CleanRun(model, tokens, site.recorded)
        after = site.continue_with(clean, site.read(clean))
        assert torch.equal(after, clean.residuals[-1])
        assert torch.equal(clean.logits(after), clean.logits(clean.residuals[-1]))


@pytest.mark.parametrize("point, head", PLACES)
def test_going_on_leaves_no_hook_and_changes_neither_the_clean_run_nor_what_is_given(model, point, head):
    tokens, site = repeated(model), Site(model, f"blocks.1.{point}", head)
    clean = CleanRun(model, tokens, site.recorded)
    x = site.read(clean)
    kept, hooks = [each.clone() for each in (*clean.residuals, *clean.activations.values())], hook_count(model)
    new = torch.zeros_like(x)
    first = site.continue_with(clean, new)
    assert hook_count(model) == hooks and not new.any()
    assert all(map(torch.equal, kept, (*clean.residuals, *clean.activations.values())))
    assert torch.equal(site.continue_with(clean, new), first)


@pytest.mark.parametrize("point", POINTS)
def test_only_what_comes_after_the_place_is_run(point):
    model, ran = small_models.tiny(), []
    site = Site(model, f"blocks.1.{point}")
    clean = CleanRun(model, repeated(model), site.recorded)
    note = [(f"blocks.{layer}.hook_resid_pre", lambda value, hook: ran.append(hook.layer())) for layer in range(4)]
    with model.hooks(fwd_hooks=note):
        site.continue_with(clean, site.read(clean))
    assert ran == ([2, 3] if point in ("hook_resid_post", "hook_mlp_out") else [1, 2, 3])


def test_an_error_on_the_way_leaves_no_hook():
    model = small_models.multi_head()
    site = Site(model, "blocks.1.attn.hook_z", 2)
    clean = CleanRun(model, repeated(model), site.recorded)
    before = hook_count(model)
    with pytest.raises(RuntimeError):
        site.continue_with(clean, torch.zeros(1, 2, 3))
    assert hook_count(model) == before


# --- bad input -------------------------------------------------------------------------------------------------------

BAD = ["blocks.3.hook_resid_pre", "blocks.-1.hook_resid_pre", "blocks.1.hook_resid_mid", "blocks.1.attn.hook_q",
       "blocks.1.hook_z", "hook_embed", "ln_final.hook_normalized", "", "blocks.1.", "xblocks.1.hook_mlp_out",
       "blocks.1.hook_mlp_out.more", "blocks_1_hook_mlp_out", "blocks.1.hook_mlp_out\n"]


@pytest.mark.parametrize("name", [*BAD, "blocks.01.hook_mlp_out", "blocks.٢.hook_mlp_out"])
def test_places_that_are_not_there_are_refused_before_any_work(name):
    model = small_models.multi_head()
    for call in (lambda: Site(model, name), lambda: collect_activations(model, name, repeated(model))):
        with forbidden_forward(model), pytest.raises(ValueError) as error:
            call()
        assert repr(name) in str(error.value) and "blocks.0 to blocks.2" in str(error.value)
        assert all(point in str(error.value) for point in POINTS)


@pytest.mark.parametrize(
    "point, head", [("attn.hook_z", 4), ("attn.hook_z", -1), ("hook_mlp_out", 0), ("hook_resid_pre", 1)])
def test_heads_that_are_not_there_are_refused_before_any_work(point, head):
    model = small_models.multi_head()
    name = f"blocks.1.{point}"
    for call in (lambda: Site(model, name, head), lambda: collect_activations(model, name, repeated(model), head=head)):
        with forbidden_forward(model), pytest.raises(ValueError, match=f"head is {head}; only attn.hook_z .* 0 to 3"):
            call()
