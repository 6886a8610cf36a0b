"""Probes against plain loops, closed forms and an independent optimiser; steering against arithmetic."""

import pytest
import small_models
import torch

from course_utils.language import StoryLanguage
from course_utils.latents import auc
from course_utils.probes import (
    auc_by_text,
    difference_of_means,
    hooked_logits,
    kl_from_truth,
    logistic_probe,
    principal_axes,
    setting,
    sparse_probe,
    steering,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_difference_of_means_by_hand():
    x, labels = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 5.0]]), torch.tensor([True, True, False])
    assert difference_of_means(x, labels).tolist() == [2.0, -4.0]


@pytest.mark.parametrize("spread", [1.0, 100.0])
def test_the_logistic_probe_is_the_minimum_that_another_optimiser_finds(spread):
    x = normal(300, 4) * torch.tensor([1.0, spread, 0.1, 2.0]) + 3
    labels = (x[:, 0] + x[:, 1] / spread + normal(300, seed=1)) > 4.5
    z = ((x - x.mean(0)) / x.std(0, correction=0)).double()
    weights = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        p = z @ weights[:4] + weights[4]
        value = torch.nn.functional.binary_cross_entropy_with_logits(p, labels.double())
        value = value + 0.05 / 2 * weights[:4].pow(2).sum()
        value.backward()
        return value

    optimizer.step(loss)
    expected = weights.detach()[:4] / x.std(0, correction=0)
    torch.testing.assert_close(logistic_probe(x, labels, ridge=0.05), expected.float(), rtol=1e-4, atol=1e-6)


def test_two_classes_that_a_plane_separates():
    x = normal(50, 3)
    probe = logistic_probe(x, x[:, 1] > 0.2, ridge=1e-4)
    assert probe.isfinite().all() and auc((x @ probe)[:, None], x[:, 1] > 0.2) > 0.99


def test_principal_axes_of_a_cloud_that_was_stretched():
    turn = torch.linalg.qr(normal(4, 4)).Q
    x = normal(4000, 4, seed=1) * torch.tensor([1.0, 8.0, 3.0, 0.3]) @ turn + 7
    axes = principal_axes(x)
    torch.testing.assert_close((axes @ turn.T).abs()[0], torch.eye(4)[1], atol=0.03, rtol=0)
    torch.testing.assert_close((axes @ turn.T).abs()[3], torch.eye(4)[3], atol=0.03, rtol=0)
    torch.testing.assert_close(axes @ axes.T, torch.eye(4), atol=1e-5, rtol=0)
    assert (axes.gather(1, axes.abs().argmax(1, keepdim=True)) > 0).all()


def test_pseudo_values_by_leaving_each_text_out():
    values, labels, known = normal(6, 9).round(decimals=1), normal(6, 9, seed=1) > 0.3, normal(6, 9, seed=2) > -1

    def of(rows):
        keep = known[rows]
        return auc(values[rows][keep][:, None], labels[rows][keep]).item()

    everyone = list(range(6))
    expected = [6 * of(everyone) - 5 * of([i for i in everyone if i != left]) for left in everyone]
    torch.testing.assert_close(auc_by_text(values, labels, known), torch.tensor(expected), atol=1e-5, rtol=0)


def test_a_text_without_labels_has_a_pseudo_value_too():
    values, labels = normal(5, 8), normal(5, 8, seed=1) > 0
    labels[2] = False
    known = torch.ones_like(labels)
    known[3] = False                                                        # it counts nowhere
    found = auc_by_text(values, labels, known)
    whole = auc(values[known][:, None], labels[known])
    assert found.isfinite().all() and found[3] == pytest.approx(whole.item(), abs=1e-6)


def test_their_spread_is_the_error_of_the_auc():
    """Against texts drawn anew."""
    def draw(seed):
        labels = (normal(30, seed=seed) > 0)[:, None].expand(30, 12)
        return labels + normal(30, 12, seed=seed + 1) + normal(30, 1, seed=seed + 2), labels, torch.ones(30, 12) > 0

    many = [draw(3 * seed) for seed in range(300)]
    aucs = torch.tensor([auc(values.flatten()[:, None], labels.flatten()).item() for values, labels, _ in many])
    errors = torch.stack([auc_by_text(*each).std() / 30**0.5 for each in many[:60]])
    assert errors.mean() == pytest.approx(aucs.std().item(), rel=0.15)


def test_steering_by_hand():
    x, direction = torch.zeros(2, 3, 2), torch.tensor([3.0, 4.0])
    moved = steering(direction, 10.0, start=1)(x, None)
    assert moved[:, 0].tolist() == [[0, 0]] * 2 and x.abs().max() == 0
    torch.testing.assert_close(moved[:, 1:], torch.tensor([6.0, 8.0]).expand(2, 2, 2))
    each = steering(direction, torch.tensor([5.0, -5.0]))(x, None)
    assert each[:, 1].tolist() == [[3, 4], [-3, -4]]


def test_setting_leaves_what_is_orthogonal():
    x, direction = normal(2, 5, 6), normal(6, seed=1)
    unit, changed = direction / direction.norm(), setting(direction, 1.5, start=2)(x, None)
    assert torch.equal(changed[:, :2], x[:, :2])
    torch.testing.assert_close(changed[:, 2:] @ unit, torch.full((2, 3), 1.5))
    across = x - (x @ unit)[..., None] * unit
    torch.testing.assert_close((changed - (changed @ unit)[..., None] * unit)[:, 2:], across[:, 2:])


def test_hooked_logits_are_those_of_a_pass_whose_stream_was_moved():
    model, tokens, direction = small_models.multi_head(), small_models.random_tokens(3, 7), normal(1, seed=3)
    direction = normal(model.cfg.d_model, seed=3)
    _, cache = model.run_with_cache(tokens)
    new = cache["blocks.1.hook_resid_pre"].clone()
    for position in range(2, 7):
        new[:, position] += 4 * direction / direction.norm()
    expected = model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_resid_pre", lambda x, hook: new)])[:, -1]
    got = hooked_logits(model, tokens, "blocks.1.hook_resid_pre", steering(direction, 4.0, start=2))
    torch.testing.assert_close(got, expected)
    assert (got - model(tokens)[:, -1]).abs().max() > 1e-3


def test_kl_from_truth_is_the_loss_above_the_entropy():
    sample = StoryLanguage(3).sample(2, 10)
    logits = normal(2, 10, len(StoryLanguage().vocabulary))
    p, log_q = sample.true_log_probs.exp(), logits.log_softmax(-1)
    expected = -(p * log_q).sum(-1) - sample.entropy
    torch.testing.assert_close(kl_from_truth(sample.true_log_probs, logits), expected, atol=1e-4, rtol=1e-4)
    assert kl_from_truth(sample.true_log_probs, sample.true_log_probs).abs().max() < 1e-5


@pytest.mark.parametrize("attempt", [
    lambda: difference_of_means(normal(4, 2), torch.ones(4, dtype=torch.bool)),
    lambda: logistic_probe(normal(4, 2), torch.zeros(4, dtype=torch.bool)),
    lambda: logistic_probe(normal(4, 2), torch.tensor([True, False] * 2), ridge=0.0),
    lambda: auc_by_text(normal(3, 4), torch.zeros(3, 4) > 0, torch.ones(3, 4) > 0),
    lambda: auc_by_text(normal(3, 4), torch.arange(3)[:, None].expand(3, 4) == 1, torch.ones(3, 4) > 0),
    lambda: steering(torch.zeros(3), 1.0),
    lambda: setting(torch.tensor([1.0, torch.nan]), 1.0),
])
def test_what_cannot_be_answered_is_refused(attempt):
    with pytest.raises(ValueError):
        attempt()


def test_a_sparse_probe_uses_k():
    latents, labels = normal(200, 9).relu(), normal(200, seed=1) > 0
    latents[:, 4] += labels
    probe = sparse_probe(latents, labels, 2)
    assert (probe != 0).sum() == 2 and probe[4] > 0
