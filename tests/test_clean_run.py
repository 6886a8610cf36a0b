"""Clean runs: whatever continues from one equals a full pass, and the run itself is never changed."""

import families
import pytest
import small_models
import torch
from small_models import hook_count, repeated

from course_utils.passes import CleanRun, hook_z, mlp_out

pytestmark = pytest.mark.older

N = 6
LAST = 2 * N                                                        # the last position


@pytest.fixture(params=["multi_head", "grouped_query"])
def model(request):
    return small_models.ALL[request.param]()


def resid_pre(layer: int) -> str:
    return f"blocks.{layer}.hook_resid_pre"


def close(ours, expected):
    torch.testing.assert_close(ours, expected, atol=2e-4, rtol=1e-4)


def noise(like, seed=0):
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))


# --- the same numbers as a full pass --------------------------------------------------------------------------------


def test_every_layer_and_start_leads_to_the_logits_of_the_model(model, batch=3):
    tokens = repeated(model, N, batch)
    clean, logits = CleanRun(model, tokens), model(tokens)
    for layer in range(model.cfg.n_layers + 1):                     # from n_layers on, nothing is left to run
        for start in (0, 1, N, LAST):
            final = clean.continue_from(layer, clean.residuals[layer][:, start:], start=start)
            close(clean.logits(final), logits[:, start:])


@pytest.mark.parametrize("start, times", [(0, 3), (7, 1)])
def test_continuing_equals_a_full_pass_with_the_same_edit(model, start, times):
    tokens = repeated(model, N, batch=2)
    clean = CleanRun(model, tokens)
    for layer in range(model.cfg.n_layers):
        edits = torch.randn(times, 2, tokens.shape[1] - start, model.cfg.d_model,
                            generator=torch.Generator().manual_seed(layer))
        residual = clean.residuals[layer][:, start:] + edits
        ours = clean.logits(clean.continue_from(layer, residual.flatten(0, 1), start=start))
        for edit, got in zip(edits, ours.unflatten(0, (times, 2))):
            def put(value, hook):
                return torch.cat([value[:, :start], value[:, start:] + edit], dim=1)
            full = model.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{layer}.hook_resid_pre", put)])
            torch.testing.assert_close(got, full[:, start:], atol=2e-4, rtol=1e-4)


def test_one_text_is_continued_with_several_rows():
    """XGLM wants an attention mask for each row."""
    model = families.family("xglm").bridge
    tokens = repeated(model, N, batch=1)
    clean = CleanRun(model, tokens)
    rows = clean.residuals[1] + noise(clean.residuals[1].repeat(3, 1, 1))
    for row, got in zip(rows, clean.logits(clean.continue_from(1, rows))):
        close(got, model.run_with_hooks(tokens, fwd_hooks=[(resid_pre(1), lambda x, hook: row[None])])[0].detach())


def test_residuals_are_those_of_the_cache_and_the_last_gives_the_logits(model):
    tokens = repeated(model, N)
    clean = CleanRun(model, tokens, [hook_z(1)])
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.cfg.n_layers)]
    logits, cache = model.run_with_cache(tokens, names_filter=[*names, hook_z(1)])
    for name, residual in zip(names, clean.residuals):
        torch.testing.assert_close(residual, cache[name], atol=1e-4, rtol=1e-5)        # of numbers up to 50
    assert len(clean.residuals) == model.cfg.n_layers + 1
    torch.testing.assert_close(clean.logits(clean.residuals[-1]), logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("start", [0, LAST])
def test_an_edit_at_one_position_of_one_sequence(model, start):
    """Three copies of a batch of three, the second copy's first sequence edited: the others stay as they were."""
    tokens = repeated(model, N, 3)
    clean, logits = CleanRun(model, tokens), model(tokens)
    for layer in range(model.cfg.n_layers):
        rows = clean.residuals[layer][:, start:].repeat(3, 1, 1)
        rows[3, 0] += noise(rows[3, 0], layer)
        ours = clean.logits(clean.continue_from(layer, rows, start=start))

        def put(value, hook):
            value = value.clone()
            value[0, start] += noise(value[0, start], layer)
            return value

        full = model.run_with_hooks(tokens, fwd_hooks=[(resid_pre(layer), put)])
        close(ours[3], full[0, start:])
        close(torch.cat([ours[:3], ours[4:]]), logits[[0, 1, 2, 1, 2, 0, 1, 2], start:])
        assert (ours[3] - logits[0, start:]).abs().max() > 1e-2     # the edit was not lost


def test_stopping_and_going_on_is_going_all_the_way(model, start=4):
    clean = CleanRun(model, repeated(model, N))
    for layer in range(model.cfg.n_layers):
        unedited = clean.residuals[layer][:, start:]
        edited = unedited + noise(unedited)
        whole = clean.continue_from(layer, edited, start=start)
        assert torch.equal(clean.continue_from(layer, edited, start=start, stop=layer), edited)
        for stop in range(layer + 1, model.cfg.n_layers + 1):
            close(clean.continue_from(layer, unedited, start=start, stop=stop), clean.residuals[stop][:, start:])
            half_way = clean.continue_from(layer, edited, start=start, stop=stop)
            close(clean.continue_from(stop, half_way, start=start), whole)


@pytest.mark.parametrize("start, name", [
    (0, mlp_out(0)), (5, resid_pre(1)), (5, "blocks.0.attn.hook_v"), (5, hook_z(1))])
def test_hooks_on_the_model_act_from_the_start_on(model, start, name):
    tokens = repeated(model, N)
    clean = CleanRun(model, tokens)
    with model.hooks(fwd_hooks=[(name, lambda value, hook: 0.5 * value)]):
        ours = clean.continue_from(0, clean.residuals[0][:, start:], start=start)

    def later(value, hook):
        return torch.cat([value[:, :start], 0.5 * value[:, start:]], dim=1)

    full = model.run_with_hooks(tokens, fwd_hooks=[(name, later)])
    close(clean.logits(ours), full[:, start:])


def test_queries_that_are_left_see_every_key(model):
    clean, start, shapes, full = CleanRun(model, repeated(model, N, 2)), 9, [], {}
    name = "blocks.1.attn.hook_pattern"
    model.run_with_hooks(clean.tokens, fwd_hooks=[(name, lambda pattern, hook: full.update(pattern=pattern))])
    with model.hooks(fwd_hooks=[(name, lambda pattern, hook: shapes.append(pattern))]):
        clean.continue_from(0, clean.residuals[0][:, start:].repeat(2, 1, 1), start=start)
    close(shapes[0], full["pattern"][:, :, start:].repeat(2, 1, 1, 1))      # [rows, head, query, key]


# --- what is remembered ---------------------------------------------------------------------------------------------


def test_the_activations_asked_for_and_no_others(model):
    tokens, names = repeated(model, N), [mlp_out(1), hook_z(0), "hook_embed"]
    clean = CleanRun(model, tokens, names)
    _, cache = model.run_with_cache(tokens, names_filter=names)
    assert set(clean.activations) == set(names) and clean.tokens is tokens and clean.model is model
    for name in names:
        close(clean.activations[name], cache[name])
    assert CleanRun(model, tokens).activations == {}


def test_continuing_does_not_change_the_clean_run(model):
    tokens = repeated(model, N)
    clean = CleanRun(model, tokens, [mlp_out(0)])
    before = [each.clone() for each in (*clean.residuals, clean.activations[mlp_out(0)])]
    first = clean.continue_from(0, clean.residuals[0][:, 3:], start=3)
    edited = clean.residuals[0] + noise(clean.residuals[0])
    for rows, start in ((edited, 0), (edited[:, 5:].repeat(2, 1, 1), 5), (edited[:, LAST:], LAST)):
        given = rows.clone()
        clean.continue_from(0, rows, start=start)
        assert torch.equal(rows, given)
    assert torch.equal(clean.continue_from(0, clean.residuals[0][:, 3:], start=3), first)
    assert all(map(torch.equal, before, (*clean.residuals, clean.activations[mlp_out(0)])))


def test_two_runs_of_one_model_do_not_mix(model):
    one, other = (CleanRun(model, repeated(model, N, seed=seed)) for seed in (0, 1))
    assert not torch.equal(one.tokens, other.tokens)
    for clean in (one, other):
        final = clean.continue_from(0, clean.residuals[0][:, 4:], start=4)
        close(clean.logits(final), model(clean.tokens)[:, 4:])


def test_only_the_blocks_and_positions_that_change_are_run(model):
    clean, ran = CleanRun(model, repeated(model, N)), []

    def note(value, hook):
        ran.append((hook.layer(), value.shape[1]))

    with model.hooks(fwd_hooks=[(resid_pre(layer), note) for layer in range(model.cfg.n_layers)]):
        clean.continue_from(1, clean.residuals[1][:, 10:], start=10)
        assert ran == [(layer, LAST + 1 - 10) for layer in range(1, model.cfg.n_layers)]
        ran.clear()
        clean.continue_from(0, clean.residuals[0], stop=1)
        assert ran == [(0, LAST + 1)]


def test_logits_of_any_number_of_vectors(model):
    tokens = repeated(model, N)
    clean, expected = CleanRun(model, tokens), model(tokens)
    final = clean.residuals[-1]
    close(clean.logits(final), expected)
    close(clean.logits(final[1, 3]), expected[1, 3])
    close(clean.logits(final[:, 2]), expected[:, 2])
    close(clean.logits(final.expand(2, *final.shape)), expected.expand(2, *expected.shape))
    assert clean.logits(final[:0]).shape == (0, *expected.shape[1:])


# --- what must not be left behind -----------------------------------------------------------------------------------


def test_an_error_in_the_middle_of_a_pass_leaves_no_hook(model):
    tokens = repeated(model, N)
    model.run_with_cache(tokens)                                    # the library puts hooks of its own on, once
    logits, before = model(tokens), hook_count(model)

    def fail(value, hook):
        raise ZeroDivisionError

    with model.hooks(fwd_hooks=[(mlp_out(1), fail)]), pytest.raises(ZeroDivisionError):
        CleanRun(model, tokens, [hook_z(0)])
    assert hook_count(model) == before
    clean = CleanRun(model, tokens, [hook_z(0)])
    with model.hooks(fwd_hooks=[(mlp_out(1), fail)]), pytest.raises(ZeroDivisionError):
        clean.continue_from(0, clean.residuals[0])
    assert hook_count(model) == before
    assert torch.equal(model(tokens), logits)


def test_no_gradient_is_kept(model):
    with torch.enable_grad():
        clean = CleanRun(model, repeated(model, N), [hook_z(0)])
        final = clean.continue_from(0, clean.residuals[0].clone().requires_grad_())
        assert not any(each.requires_grad for each in (*clean.residuals, *clean.activations.values(), final))
        assert not clean.logits(final).requires_grad
