"""Path patching: shares that are known beforehand, slow passes with hooks alone, and what must not matter."""

import math

import pytest
import small_models
import torch
from small_models import forbidden_forward, grouped_query_biased, hook_count, repeated

from course_utils.ablation import KINDS
from course_utils.passes import CleanRun, hook_z
from course_utils.path_patching import (
    PathEffect,
    head_reading,
    path_logits,
    path_patching,
    share_of_effect,
)

N = 6


@pytest.fixture(params=["multi_head", "grouped_query", "grouped_query_biased"])
def model(request):
    return small_models.ALL[request.param]()


def loss(model, tokens, n, hooks=()):
    """Mean cross-entropy (nats) of the second copy in one full pass."""
    log_probs = model.run_with_hooks(tokens, fwd_hooks=list(hooks)).log_softmax(dim=-1)
    second = range(n + 1, 2 * n + 1)
    picked = [log_probs[row, at - 1, tokens[row, at]] for row in range(len(tokens)) for at in second]
    return -torch.stack(picked).mean().item()


def replaced(z, head, kind):
    """z with one head's part ablated at positions 1 … last, an entry at a time."""
    new, (batch, length) = z.clone(), z.shape[:2]
    mean = torch.stack([z[row, at, head] for row in range(batch) for at in range(1, length)]).mean(dim=0)
    for row in range(batch):
        for at in range(1, length):
            following = z[(row + 1) % batch, at, head]
            new[row, at, head] = {"zero": torch.zeros_like(mean), "mean": mean, "resample": following}[kind]
    return new


def slow_effect(model, tokens, n, sender, receivers, into, kind):
    """(clean, path, total) from full passes; readings are noted in passes whose stream is changed only there."""
    layer, head = sender
    ablated = (hook_z(layer), lambda z, hook: replaced(z, head, kind))
    clean_in = {}
    names = {hook_z(layer), *(f"blocks.{r}.hook_resid_pre" for r, _ in receivers)}
    def note(name, where):
        return name, lambda value, hook: where.__setitem__(name, value.clone())
    model.run_with_hooks(tokens, fwd_hooks=[note(name, clean_in) for name in names])
    z = clean_in[hook_z(layer)]
    change = (replaced(z, head, kind) - z).flatten(2) @ model.blocks[layer].attn.W_O.flatten(0, 1)
    hooks = []
    for r_layer, r_head in receivers:
        entry = f"blocks.{r_layer}.hook_resid_pre"
        readings = {letter: f"blocks.{r_layer}.attn.hook_{letter}" for letter in into}
        stored = {}
        model.run_with_hooks(tokens, fwd_hooks=[
            (entry, lambda value, hook: clean_in[entry] + change), *(note(name, stored) for name in readings.values())])
        for name, value in stored.items():
            def put(activation, hook, value=value, r_head=r_head):
                own = r_head * activation.shape[2] // model.cfg.n_heads
                return torch.cat([activation[:, :, :own], value[:, :, own:own + 1], activation[:, :, own + 1:]], dim=2)
            hooks.append((name, put))
    return loss(model, tokens, n), loss(model, tokens, n, hooks), loss(model, tokens, n, [ablated])


# --- what is known beforehand ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("into, share, kind", [
    ("k", 1, "zero"), ("q", 0, "mean"), ("v", 0, "resample"), ("qk", 1, "mean"), ("qkv", 1, "resample")])
def test_the_planted_sender_acts_through_the_keys_and_nothing_else(kind, into, share):
    model = small_models.planted()
    effect = path_patching(model, repeated(model, 12, 4), 12, (0, 0), [(1, 0)], into=into, kind=kind)
    assert effect.share == pytest.approx(share, abs=1e-4)
    assert effect.total > effect.clean + 5                              # nats


# --- one path broken, or alone restored -------------------------------------------------------------------------------


def second_copy(logits, tokens, n):
    return torch.nn.functional.cross_entropy(logits[:, n:-1].flatten(0, 1), tokens[:, n + 1:].flatten()).item()


@pytest.mark.parametrize("into", ["q", "k", "v", "qkv"])
def test_a_broken_path_has_the_loss_of_path_patching(model, into):
    tokens, receivers = repeated(model, N), [(1, 0), (model.cfg.n_layers - 1, 3)]
    effect = path_patching(model, tokens, N, (0, 1), receivers, into=into)
    logits = path_logits(model, tokens, (0, 1), receivers, into)
    assert second_copy(logits, tokens, N) == pytest.approx(effect.path, abs=1e-5)


@pytest.mark.parametrize("into, brought_back", [("k", 1), ("q", 0), ("v", 0), ("kqv", 1)])
def test_the_planted_sender_s_path_is_enough_alone(into, brought_back):
    model = small_models.planted()
    tokens = repeated(model, 12, 4)
    effect = path_patching(model, tokens, 12, (0, 0), [(1, 0)], into=into)
    restored = second_copy(path_logits(model, tokens, (0, 0), [(1, 0)], into, restore=True), tokens, 12)
    assert (effect.total - restored) / (effect.total - effect.clean) == pytest.approx(brought_back, abs=1e-4)


# --- against slow passes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, sender, receivers, into, kind", [
    ("multi_head", (0, 1), [(2, 3)], "k", "zero"),
    ("multi_head", (1, 0), [(2, 3), (2, 1)], "qv", "mean"),
    ("multi_head", (0, 3), [(2, 0), (1, 1), (1, 3)], "qkv", "resample"),
    ("grouped_query", (0, 2), [(1, 1), (1, 3)], "vk", "zero"),
    ("grouped_query_biased", (0, 0), [(1, 4), (2, 2)], "k", "mean"),
    ("grouped_query_biased", (1, 5), [(2, 0), (2, 5)], "q", "resample"),
])
def test_the_three_losses_are_those_of_full_passes(name, sender, receivers, into, kind):
    model = small_models.ALL[name]()
    tokens = repeated(model, N, seed=3)
    ours = path_patching(model, tokens, N, sender, receivers, into=into, kind=kind)
    clean, path, total = slow_effect(model, tokens, N, sender, receivers, into, kind)
    assert (ours.clean, ours.path, ours.total) == pytest.approx((clean, path, total), abs=2e-5)
    assert abs(path - clean) > 2e-4 and abs(total - clean) > 5e-3          # there is something to get wrong
    assert ours.share == pytest.approx((path - clean) / (total - clean), abs=0.01)


def test_mean_ablation_into_the_keys_is_what_it_does_unless_told():
    model = small_models.multi_head()
    tokens = repeated(model, N)
    usual = path_patching(model, tokens, N, (0, 1), [(1, 2)])
    assert usual == path_patching(model, tokens, N, (0, 1), [(1, 2)], into="k", kind="mean")
    assert all(type(value) is float for value in (usual.clean, usual.path, usual.total))
    assert len({path_patching(model, tokens, N, (0, 1), [(1, 2)], kind=kind).path for kind in KINDS}) == 3


# --- what must not matter, and what must -----------------------------------------------------------------------------


def test_the_order_and_a_repeat_of_receivers_do_not_matter(model):
    tokens, receivers = repeated(model, N), [(1, 0), (model.cfg.n_layers - 1, 3), (1, 2)]
    there, back = (path_patching(model, tokens, N, (0, 1), some, into="qkv")
                   for some in (receivers, [*reversed(receivers), (1, 0)]))
    assert there.path == pytest.approx(back.path, abs=1e-5)
    paths = [path_patching(model, tokens, N, (0, 1), receivers, into=into).path for into in ("qkv", "vkq", "vkqqk")]
    assert max(paths) - min(paths) < 1e-5


@pytest.mark.parametrize("into, shared", [("k", True), ("v", True), ("kv", True), ("q", False)])
def test_heads_of_a_group_receive_the_same_keys_and_values_but_their_own_queries(into, shared):
    """Heads 3, 4 and 5 read key head 1: patching one of them patches all; heads 0 to 2 read another."""
    model = small_models.grouped_query()
    tokens = repeated(model, N)
    paths = [path_patching(model, tokens, N, (0, 1), [(1, head)], into=into).path for head in range(6)]
    for group in (paths[:3], paths[3:]):
        assert (max(group) - min(group) < 1e-5) == shared
    assert abs(paths[0] - paths[5]) > 1e-4


def test_the_global_stream_and_the_tokens_are_left_alone(model):
    tokens = repeated(model, N)
    before, state = tokens.clone(), torch.random.get_rng_state()
    first, second = (path_patching(model, tokens, N, (0, 1), [(1, 2)], kind="resample") for _ in range(2))
    assert first == second and torch.equal(tokens, before) and torch.equal(state, torch.random.get_rng_state())


# --- shares ----------------------------------------------------------------------------------------------------------


def test_the_share_of_an_effect():
    assert share_of_effect(1.0, 2.0, 5.0) == PathEffect(1.0, 2.0, 5.0).share == 0.25
    assert share_of_effect(2.0, 2.0, 1.0) == 0 and share_of_effect(2.0, 1.0, 1.0) == 1
    assert share_of_effect(2.0, 3.0, 1.0) == -1


def test_a_sender_without_an_effect_has_no_share():
    assert math.isnan(PathEffect(1.0, 2.0, 1.0).share)
    with pytest.raises(ZeroDivisionError):
        share_of_effect(1.0, 2.0, 1.0)


# --- bad input, and what is left behind ------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong, says", [
    ({"receivers": []}, "none was given"),
    ({"receivers": [(0, 1)]}, "0.1 cannot read it"),
    ({"sender": (1, 0), "receivers": [(2, 1), (0, 1), (1, 3)]}, "0.1, 1.3 cannot read it"),
    ({"sender": (0, 6)}, "no head 0.6"), ({"sender": (-1, 0)}, "no head -1.0"), ({"sender": (0, -1)}, "no head 0.-1"),
    ({"receivers": [(1, 0), (1, 6)]}, "no head 1.6"), ({"receivers": [(3, 0)]}, "no head 3.0"),
    ({"receivers": [(1, -1)]}, "no head 1.-1"), ({"receivers": [(-1, 0)]}, "no head -1.0"),
    ({"into": "x"}, "into is 'x'"), ({"into": ""}, "into is ''"), ({"into": "kz"}, "into is 'kz'"),
    ({"into": "K"}, "into is 'K'"),
    ({"kind": "average"}, "kind is 'average'"), ({"kind": ""}, "zero, mean, resample"),
    ({"seq_len": N - 1}, r"must be \[batch, 1 \+ 2"),
    ({"tokens": torch.arange(1 + 2 * N)[None]}, "not two equal copies"),
    ({"tokens": torch.arange(1 + 2 * N)}, "must be"),
    ({"tokens": torch.tensor([[0, *range(1, N + 1), *range(1, N + 1)]]), "kind": "resample"}, "at least 2"),
])
def test_what_cannot_be_is_refused_before_any_pass(wrong, says):
    model = grouped_query_biased()
    usual = {"tokens": repeated(model, N), "seq_len": N, "sender": (0, 0), "receivers": [(1, 0)]}
    before = hook_count(model)
    with forbidden_forward(model), pytest.raises(ValueError, match=says):
        path_patching(model, **{**usual, **wrong})
    assert hook_count(model) == before


@pytest.mark.parametrize("name", ["Q", "K", "V"])
def test_readings_of_a_head_that_is_not_there_are_refused(name):
    model = small_models.multi_head()
    with pytest.raises(ValueError, match="no head 1.4"):
        head_reading(model, 1, 4, name.lower(), torch.zeros(1, 3, model.cfg.d_model))


def test_no_hook_is_left_behind_not_even_by_an_error(model, monkeypatch):
    tokens = repeated(model, N)
    logits = model(tokens)
    model.run_with_cache(tokens)                               # the libraries put hooks of their own on the model once
    before = hook_count(model)
    path_patching(model, tokens, N, (0, 1), [(1, 2)], into="qkv")
    assert hook_count(model) == before and torch.equal(model(tokens), logits)

    def fail(*args, **kwargs):
        raise ZeroDivisionError

    monkeypatch.setattr(CleanRun, "continue_from", fail)
    with pytest.raises(ZeroDivisionError):
        path_patching(model, tokens, N, (0, 1), [(1, 2)], into="qkv")
    assert hook_count(model) == before and torch.equal(model(tokens), logits)

