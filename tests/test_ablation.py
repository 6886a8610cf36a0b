"""The patching sweep, ablations, attribution: against full passes with hooks, one entry at a time."""

import math
import types

import pytest
import small_models
import torch
from small_models import forbidden_forward, hook_count, repeated

from course_utils import ablation
from course_utils.ablation import (
    KINDS,
    ablate,
    gradients,
    head_ablation_scores,
    head_attribution_scores,
    mlp_ablation_scores,
    mlp_attribution_sweep,
    mlp_patch_sweep,
    second_copy_loss,
    some_layers,
)
from course_utils.passes import hook_z, mlp_out
from course_utils.repeated_tokens import correct_token_log_probs

pytestmark = pytest.mark.older

N = 6


@pytest.fixture(params=["multi_head", "grouped_query"])
def model(request):
    return small_models.ALL[request.param]()


# --- the sweep -----------------------------------------------------------------------------------------------------


def naive_sweep(model, tokens, n, layers, columns, first):
    """One full pass per entry: layer l at position first + i gets the MLP output of position first + i − n."""
    logits, cache = model.run_with_cache(tokens, names_filter=[mlp_out(layer) for layer in layers])
    def loss(logits):
        return -correct_token_log_probs(logits, tokens)[:, n:].mean()
    rows = []
    for layer in layers:
        for i in columns:
            def patch(value, hook):
                value = value.clone()
                value[:, first + i] = cache[hook.name][:, first + i - n]
                return value
            rows.append(loss(model.run_with_hooks(tokens, fwd_hooks=[(mlp_out(layer), patch)])) - loss(logits))
    return torch.stack(rows).reshape(len(layers), len(columns))


@pytest.mark.parametrize("n, batch, as_published", [(N, 1, True), (N, 3, False), (2, 2, True), (2, 2, False)])
def test_the_sweep_equals_the_naive_double_loop(model, n, batch, as_published):
    """Also for the shortest copies that there are."""
    tokens = repeated(model, n, batch)
    expected = naive_sweep(model, tokens, n, range(model.cfg.n_layers), range(n), n if as_published else n + 1)
    assert expected.abs().max() > 1e-3                          # there is something to be wrong about
    torch.testing.assert_close(
        mlp_patch_sweep(model, tokens, n, as_published=as_published), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("columns, positions", [(1, 3), (4, 7)])
def test_the_sweep_does_not_depend_on_how_it_is_split(model, monkeypatch, columns, positions):
    tokens = repeated(model, N)
    expected = mlp_patch_sweep(model, tokens, N)
    monkeypatch.setattr(ablation, "COLUMNS_AT_A_TIME", columns)
    monkeypatch.setattr(ablation, "VECTORS_AT_A_TIME", positions)
    torch.testing.assert_close(mlp_patch_sweep(model, tokens, N), expected, atol=1e-6, rtol=1e-5)


def test_some_layers_alone_and_in_any_order(model):
    tokens, last = repeated(model, N), model.cfg.n_layers - 1
    whole = mlp_patch_sweep(model, tokens, N)
    for some in ([last], [1, 1, 0], range(1, last + 1)):
        ours = mlp_patch_sweep(model, tokens, N, layers=some)
        torch.testing.assert_close(ours, whole[list(some)], atol=1e-6, rtol=1e-5)


def test_nothing_is_left_on_the_model(model):
    tokens = repeated(model, N)
    model.run_with_cache(tokens)
    logits, before = model(tokens), hook_count(model)
    for around in (torch.no_grad, torch.enable_grad):
        with around():
            for name, function in calls(model, tokens).items():
                scores = function()
                assert not scores.requires_grad and not scores.isnan().any(), name
                assert hook_count(model) == before, name
    assert not any(weight.requires_grad or weight.grad is not None for weight in model.parameters())
    assert torch.equal(model(tokens), logits)


# --- ablation ------------------------------------------------------------------------------------------------------


def test_ablate_by_hand():
    x = torch.tensor([[[9.0], [1.0], [2.0]], [[8.0], [3.0], [6.0]], [[7.0], [4.0], [2.0]]])
    before = x.clone()
    assert ablate(x, "zero").flatten().tolist() == [9, 0, 0, 8, 0, 0, 7, 0, 0]
    assert ablate(x, "mean").flatten().tolist() == [9, 3, 3, 8, 3, 3, 7, 3, 3]
    assert ablate(x, "resample").flatten().tolist() == [9, 3, 6, 8, 4, 2, 7, 1, 2]     # the next sequence's
    assert torch.equal(x, before)
    with pytest.raises(ValueError, match="kind is 'noise'; it must be one of zero, mean, resample"):
        ablate(x, "noise")


def loss_with(model, tokens, n, name, change):
    logits = model.run_with_hooks(tokens, fwd_hooks=[(name, change)])
    log_probs = correct_token_log_probs(logits, tokens)
    return -(log_probs if n is None else log_probs[:, n:]).mean()


@pytest.mark.parametrize("kind, n", [("zero", N), ("mean", None), ("resample", N)])
def test_ablation_scores_equal_full_passes_with_hooks(model, kind, n):
    tokens = repeated(model, N)
    clean = loss_with(model, tokens, n, mlp_out(0), lambda value, hook: value)
    heads, mlps = [], []
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            def without(z, hook):
                z = z.clone()
                z[:, :, head] = ablate(z[:, :, head], kind)
                return z
            heads.append(loss_with(model, tokens, n, hook_z(layer), without) - clean)
        mlps.append(loss_with(model, tokens, n, mlp_out(layer), lambda value, hook: ablate(value, kind)) - clean)
    ours = head_ablation_scores(model, tokens, kind, seq_len=n)
    torch.testing.assert_close(ours, torch.stack(heads).reshape(ours.shape), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(
        mlp_ablation_scores(model, tokens, kind, seq_len=n), torch.stack(mlps), atol=2e-5, rtol=1e-4)


def test_scores_of_some_layers_in_any_order(model):
    tokens, last = repeated(model, N), model.cfg.n_layers - 1
    for scores in (head_ablation_scores, mlp_ablation_scores):
        whole = scores(model, tokens, "resample")
        assert whole.shape[0] == model.cfg.n_layers
        for some in ([last], [1, 1, 0]):
            ours = scores(model, tokens, "resample", layers=some)
            torch.testing.assert_close(ours, whole[list(some)], atol=2e-5, rtol=1e-4)


def test_text_that_is_not_repeated_has_scores_too(model):
    """Without seq_len any tokens will do, of any length; a batch of one is enough but for resampling."""
    tokens = torch.randint(1, 30, (1, 8), generator=torch.Generator().manual_seed(5))
    clean = loss_with(model, tokens, None, mlp_out(0), lambda value, hook: value)
    without = loss_with(model, tokens, None, mlp_out(1), lambda value, hook: ablate(value, "mean"))
    ours = mlp_ablation_scores(model, tokens, "mean")
    torch.testing.assert_close(ours[1], without - clean, atol=2e-5, rtol=1e-4)
    assert head_ablation_scores(model, tokens, "zero").isfinite().all()


def test_layers_of_large_models_are_spread():
    def of(n):
        return types.SimpleNamespace(cfg=types.SimpleNamespace(n_layers=n))
    assert some_layers(of(4)) == [0, 1, 2, 3] and some_layers(of(12)) == [0, 4, 7, 11]
    assert some_layers(of(30)) == [0, 10, 19, 29]


# --- gradients and attributions -------------------------------------------------------------------------------------


def slopes(model, tokens, n, names, changes):
    """d loss / d share of each change at share 0, by autograd: the loss with every change put in by its share.

    changes(name, value) lists the changes of that activation; the answer is [name, change].
    """
    _, cache = model.run_with_cache(tokens, names_filter=names)
    fixed = {name: changes(name, cache[name]) for name in names}            # [change, *shape of the activation]
    shares = {name: torch.zeros(len(fixed[name]), requires_grad=True) for name in names}

    def put(value, hook):
        return value + torch.tensordot(shares[hook.name], fixed[hook.name], dims=1)

    with torch.enable_grad():
        logits = model.run_with_hooks(tokens, fwd_hooks=[(name, put) for name in names])
        loss = -correct_token_log_probs(logits, tokens)[:, n:].mean()
        return torch.stack(torch.autograd.grad(loss, list(shares.values())))


@pytest.mark.parametrize("kind", KINDS)
def test_every_heads_attribution_is_the_slope_toward_its_ablation(model, kind):
    def changes(name, z):
        only = [torch.zeros_like(z) for _ in range(model.cfg.n_heads)]
        for head, change in enumerate(only):
            change[:, :, head] = ablate(z[:, :, head], kind) - z[:, :, head]
        return torch.stack(only)

    tokens = repeated(model, N)
    expected = slopes(model, tokens, N, [hook_z(layer) for layer in range(model.cfg.n_layers)], changes)
    ours = head_attribution_scores(model, tokens, kind, seq_len=N)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("batch", [1, 3])
def test_every_entry_of_the_attribution_sweep_is_the_slope_toward_its_patch(model, batch):
    def changes(name, value):
        only = [torch.zeros_like(value) for _ in range(N)]
        for i, change in enumerate(only):
            change[:, N + 1 + i] = value[:, 1 + i] - value[:, N + 1 + i]
        return torch.stack(only)

    tokens = repeated(model, N, batch)
    expected = slopes(model, tokens, N, [mlp_out(layer) for layer in range(model.cfg.n_layers)], changes)
    ours = mlp_attribution_sweep(model, tokens, N)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-3)
    assert (ours[:, -1] == 0).all()                             # the last logits predict no token


def test_gradients_of_many_names_are_those_of_each_alone(model):
    """In whatever order they are asked for, and although some lie on the way from others to the loss."""
    tokens = repeated(model, N, 2)
    names = [mlp_out(1), hook_z(0), mlp_out(0), hook_z(1)]
    def loss(logits):
        return second_copy_loss(logits, tokens, N)
    together = gradients(model, tokens, names, loss)
    assert set(together) == set(names)
    _, cache = model.run_with_cache(tokens, names_filter=names)
    for name, (activation, slope) in together.items():
        torch.testing.assert_close(activation, cache[name])
        torch.testing.assert_close(slope, gradients(model, tokens, [name], loss)[name][1], atol=1e-6, rtol=1e-4)
        assert not activation.requires_grad and not slope.requires_grad and slope.abs().max() > 0


def test_an_error_in_the_loss_leaves_no_hook(model):
    tokens = repeated(model, N)
    model.run_with_cache(tokens)
    before = hook_count(model)
    with pytest.raises(ZeroDivisionError):
        gradients(model, tokens, [mlp_out(0)], lambda logits: 1 / 0)
    assert hook_count(model) == before and not model(tokens).requires_grad


def test_second_copy_loss_by_hand():
    """Four tokens; logits that say nothing cost ln 4. What predicts the second copy counts, and nothing else."""
    tokens = torch.tensor([[0, 1, 2, 1, 2]])
    logits = torch.zeros(1, 5, 4)
    assert second_copy_loss(logits, tokens, 2).item() == pytest.approx(math.log(4))
    logits[:, [0, 1, 4]] = torch.tensor([3.0, 1.0, 4.0, 1.0])           # these predict the first copy, or nothing
    assert second_copy_loss(logits, tokens, 2).item() == pytest.approx(math.log(4))
    logits[0, 2, 1] = 100.0                                             # the boundary, predicted perfectly
    assert second_copy_loss(logits, tokens, 2).item() == pytest.approx(math.log(4) / 2)
    logits[0, 3, 2] = 100.0
    assert second_copy_loss(logits, tokens, 2).item() == pytest.approx(0, abs=1e-6)


# --- bad input ------------------------------------------------------------------------------------------------------


def calls(model, tokens):
    """Each function that takes a kind or layers, by name."""
    return {
        "sweep": lambda **k: mlp_patch_sweep(model, tokens, k.pop("seq_len", N), **k),
        "heads": lambda **k: head_ablation_scores(model, tokens, k.pop("kind", "mean"), **{"seq_len": N, **k}),
        "mlps": lambda **k: mlp_ablation_scores(model, tokens, k.pop("kind", "mean"), **{"seq_len": N, **k}),
        "attribution": lambda **k: mlp_attribution_sweep(model, tokens, k.pop("seq_len", N), **k),
        "head attribution": lambda **k: head_attribution_scores(
            model, tokens, k.pop("kind", "mean"), **{"seq_len": N, **k}),
    }


@pytest.mark.parametrize("which, wrong, says", [
    *(("sweep heads mlps", {"layers": layers}, "layers, 0 to 2") for layers in ([3], [-1], [])),
    ("heads mlps|head attribution", {"kind": "average"}, "zero, mean, resample"),
    *(("sweep heads mlps attribution|head attribution", {"seq_len": n},
       rf"\(3, 13\); with seq_len {n} they must be .* \[batch, {1 + 2 * n}\]") for n in (N - 1, N + 1)),
])
def test_bad_input_is_refused_before_any_work(which, wrong, says):
    model = small_models.multi_head()
    known = calls(model, None)
    for name in [name for group in which.split("|") for name in ([group] if group in known else group.split())]:
        with forbidden_forward(model), pytest.raises(ValueError, match=says):
            calls(model, repeated(model, N))[name](**wrong)


def test_tokens_that_are_not_two_copies_are_refused():
    model = small_models.multi_head()
    tokens = repeated(model, N)
    tokens[0, 3] += 1
    for function in calls(model, tokens).values():
        with forbidden_forward(model), pytest.raises(ValueError, match="two equal copies"):
            function()
    with pytest.raises(ValueError, match=f"not two equal copies of {N} tokens"):
        second_copy_loss(torch.zeros(3, 2 * N + 1, 5), tokens, N)


def test_resampling_needs_another_sequence():
    model = small_models.multi_head()
    for name in ("heads", "mlps", "head attribution"):
        with forbidden_forward(model), pytest.raises(ValueError, match="at least 2"):
            calls(model, repeated(model, N, 1))[name](kind="resample")


def test_a_model_without_mlps_is_refused():
    model = types.SimpleNamespace(cfg=types.SimpleNamespace(n_layers=1), blocks=[types.SimpleNamespace(attn=None)])
    tokens = repeated(small_models.multi_head(), N)
    for name in ("sweep", "mlps", "attribution"):
        with pytest.raises(ValueError, match="no MLPs"):
            calls(model, tokens)[name]()
