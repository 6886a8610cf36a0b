"""Baselines: each vector and number against numpy loops and one full pass with an ordinary hook."""

import math

import numpy as np
import pytest
import small_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import forbidden_forward, random_tokens
from small_saes import some_sae

from course_utils import baselines
from course_utils.baselines import KINDS, RANDOM, covariance_root, epsilon_random, noise_floor, theta_random
from course_utils.passes import Site

N, LENGTH, RESIDUAL, Z = 5, 9, "blocks.1.hook_resid_pre", "blocks.1.attn.hook_z"


@pytest.fixture
def model():
    return small_models.multi_head()


def ragged(tokens):
    mask = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(3)) < 0.6
    return mask & (torch.arange(N) != 1)[:, None]                   # holes, and nothing of the second sequence


def log_softmax(logits):
    logits = np.asarray(logits, dtype=np.float64)
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def full_pass(model, row, hook_name, head=None, new=None, where=()):
    """Log-probabilities and activation of one sequence, with `new` at the positions `where`."""
    new = None if new is None else torch.tensor(np.array(new), dtype=torch.float32)
    logits, x = small_models.full_pass(model, row, hook_name, head, new, where)
    return log_softmax(logits), x.double().numpy()


def vector(kind, x, x_hat, noise, mean, covariance):
    """What takes the place of x: one position, numpy."""
    norm = np.linalg.norm
    if kind == "covariance_random":
        u, variances, _ = np.linalg.svd(covariance)
        noise = u @ np.diag(np.sqrt(variances)) @ u.T @ noise
    if kind == "theta_random":                                      # Gram-Schmidt, then by angle and length
        cosine, across = x @ x_hat / norm(x) / norm(x_hat), noise - x * (x @ noise) / (x @ x)
        return norm(x_hat) * (cosine * x / norm(x) + math.sqrt(1 - cosine**2) * across / norm(across))
    if kind in RANDOM:
        return x + norm(x_hat - x) / norm(noise) * noise
    return {"sae": x_hat, "norm_only": x / norm(x) * norm(x_hat), "norm_corrected": x_hat / norm(x_hat) * norm(x),
            "zero": 0 * x, "mean": mean}[kind]


def floor_by_hand(model, sae, tokens, hook_name, mask, draws, head=None, seed=0, at=None):
    """{kind: [KL or ΔCE, draw, sequence, position]}, NaN where not counted."""
    n, length = tokens.shape
    patched = [[j for j in range(length) if mask[i, j] and at in (None, j)] for i in range(n)]
    counted = [[j for j in range(length - 1) if mask[i, j] and (at is None or j >= at)] for i in range(n)]
    clean = [full_pass(model, row, hook_name, head) for row in tokens]
    pool = np.array([clean[i][1][j] for i in range(n) for j in counted[i]])
    mean, covariance = pool.mean(0), np.cov(pool.T, bias=True)
    found = {kind: np.full((2, draws if kind in RANDOM else 1, n, length), np.nan) for kind in ("sae", *KINDS)}
    for kind in found:
        for draw in range(found[kind].shape[1]):
            for i, (log_p, xs) in enumerate(clean):
                noise = baselines._noise(seed, draw, i, torch.zeros(xs.shape)).double().numpy()
                x_hats = sae.decode(sae.encode(torch.tensor(xs).float())).double().numpy()
                new = [vector(kind, *each, mean, covariance) for each in zip(xs, x_hats, noise)]
                log_q = full_pass(model, tokens[i], hook_name, head, new, patched[i])[0]
                for j in counted[i]:
                    kl = (np.exp(log_p[j]) * (log_p[j] - log_q[j])).sum()
                    found[kind][:, draw, i, j] = kl, (log_p - log_q)[j, tokens[i, j + 1]]
    return found


def check(floor, found, seed=0):
    drawn = torch.randint(0, N, (200, N), generator=torch.Generator().manual_seed(seed)).numpy()
    for kind in ("sae", *KINDS):
        kl, delta_ce = np.nanmean(found[kind], axis=(2, 3))         # [draw]
        assert floor.kl[kind] == pytest.approx(kl.mean(), rel=1e-4, abs=1e-6), kind
        assert floor.delta_ce[kind] == pytest.approx(delta_ce.mean(), rel=1e-4, abs=1e-5), kind
        assert floor.ratio[kind] == pytest.approx(floor.kl["sae"] / floor.kl[kind])
        assert kind not in RANDOM or floor.spread[kind] == pytest.approx(kl.std(ddof=1), rel=1e-3, abs=1e-6), kind
        assert math.isnan(floor.spread[kind]) == (kind not in RANDOM)
        columns = [each[~np.isnan(each)] for each in found[kind][0].reshape(-1, LENGTH).T]
        columns = [each.mean() if len(each) else math.nan for each in columns]
        assert floor.kl_by_position[kind].tolist() == pytest.approx(columns, rel=1e-4, abs=1e-6, nan_ok=True), kind
        ours, theirs = (np.nansum(found[each][0], axis=2).mean(0)[drawn].sum(1) for each in ("sae", kind))
        inverse = np.quantile(theirs / ours, [0.975, 0.025]).tolist()             # both from the same sequences; a KL
        # of a few sequences is exact to some 1e-6, and theirs may be a hundredth of ours: 3e-5 was seen
        assert [1 / each for each in floor.ratio_intervals[kind]] == pytest.approx(inverse, rel=2e-3, abs=1e-4), kind


@pytest.mark.parametrize("name, hook_name, head", [
    ("grouped_query", RESIDUAL, None), ("multi_head", "blocks.0.hook_mlp_out", None), ("grouped_query", Z, 2)])
def test_every_number_equals_full_passes_and_loops(name, hook_name, head):
    model = small_models.RANDOM[name]()
    tokens, sae = random_tokens(), some_sae(Site(model, hook_name, head).width)
    where = {"hook_name": hook_name, "head": head, "mask": ragged(tokens), "draws": 2, "seed": 4}
    floor = noise_floor(model, sae, tokens, batch_size=2, **where)
    assert list(floor.kl) == ["sae", *KINDS] and min(floor.kl.values()) > 1e-4
    check(floor, floor_by_hand(model, sae, tokens, **where), seed=4)


def test_one_position_alone_is_patched(model, monkeypatch, hook_name=RESIDUAL):
    tokens, sae, seen, harm = random_tokens(), some_sae(), [], baselines.harm
    monkeypatch.setattr(baselines, "harm", lambda *given: seen.append(given) or harm(*given))
    where = {"hook_name": hook_name, "draws": 2, "at": 4}
    floor = noise_floor(model, sae, tokens, **where)
    check(floor, floor_by_hand(model, sae, tokens, mask=torch.ones_like(tokens), **where))
    clean, finals, _ = seen[0]
    for name, final in finals.items():
        torch.testing.assert_close(final[:, :4], clean.residuals[-1][:, :4])
        assert (final - clean.residuals[-1])[:, 4].abs().amax(-1).min() > 1e-4, name
        assert floor.kl_by_position[name[:-2]].isfinite().tolist() == 4 * [False] + 4 * [True] + [False]
    mask = ragged(tokens)
    mask[:, 4] = torch.arange(N) != 2                               # not patched where the mask leaves it out
    check(noise_floor(model, sae, tokens, mask=mask, **where), floor_by_hand(model, sae, tokens, mask=mask, **where))


def test_batches_seeds_draws_and_intervals(model, monkeypatch):
    tokens, sae = random_tokens(12), some_sae()
    one, other = (noise_floor(model, sae, tokens, hook_name=RESIDUAL, batch_size=12, seed=seed) for seed in (0, 1))
    monkeypatch.setattr(baselines, "LOGITS", 7 * model.cfg.d_vocab)
    again = noise_floor(model, sae, tokens, hook_name=RESIDUAL, batch_size=5)
    for kind in one.kl:
        for name in ("kl", "delta_ce", "spread", "ratio", "kl_intervals", "ratio_intervals"):
            expected = pytest.approx(getattr(again, name)[kind], rel=1e-5, abs=1e-6, nan_ok=True)
            assert getattr(one, name)[kind] == expected, (name, kind)
        assert (one.kl[kind] != pytest.approx(other.kl[kind], rel=1e-4)) == (kind in RANDOM)
        assert one.kl_intervals[kind][0] < one.kl[kind] < one.kl_intervals[kind][1]
        assert kind == "sae" or one.ratio_intervals[kind][0] < one.ratio[kind] < one.ratio_intervals[kind][1]
        row = one.to_frame().loc[kind, ["KL", "low", "high", "SAE / this", "ratio low", "ratio high"]].tolist()
        assert row == [one.kl[kind], *one.kl_intervals[kind], one.ratio[kind], *one.ratio_intervals[kind]]


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), d=st.integers(2, 12), scale=st.floats(0.01, 100))
def test_random_vectors_keep_what_they_should(seed, d, scale):
    cosine, x, x_hat, noise = torch.nn.functional.cosine_similarity, *drawn(seed, 3, 2, 4, d)
    x_hat = scale * x_hat
    epsilon, theta = epsilon_random(x, x_hat, noise), theta_random(x, x_hat, noise)
    for new in (epsilon, theta):
        torch.testing.assert_close((new - x).norm(dim=-1), (x_hat - x).norm(dim=-1))
    torch.testing.assert_close(cosine(epsilon - x, noise, dim=-1), torch.ones(2, 4).double())
    torch.testing.assert_close(theta.norm(dim=-1), x_hat.norm(dim=-1))
    torch.testing.assert_close(cosine(theta, x, dim=-1), cosine(x_hat, x, dim=-1))
    for function, new in ((epsilon_random, epsilon), (theta_random, theta)):
        torch.testing.assert_close(function(x, x_hat, noise * scale), new)
        assert d == 2 or not torch.allclose(function(x, x_hat, noise.flip(0)), new)
    torch.testing.assert_close(theta_random(x, x_hat, noise + scale * x), theta, rtol=1e-5, atol=1e-7)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), d=st.integers(2, 12), scale=st.floats(0.01, 100), rank=st.integers(1, 12))
def test_the_root_of_a_covariance(seed, d, scale, rank):
    sample = scale * drawn(seed, min(rank, d), d)                   # of less than full rank, often
    root = covariance_root(sample.T @ sample)
    torch.testing.assert_close(root.T @ root, sample.T @ sample, rtol=1e-6, atol=1e-9 * scale**2)


@pytest.mark.parametrize("hook_name, head, batch_size", [(RESIDUAL, None, 2), (Z, None, 32), (Z, 2, 2)])
def test_statistics_of_the_counted_activations(model, hook_name, head, batch_size):
    tokens, mask = random_tokens(), ragged(random_tokens())
    pool = np.concatenate([full_pass(model, row, hook_name, head)[1][keep] for row, keep in zip(tokens, mask.numpy())])
    mean, covariance = baselines.activation_statistics(model, Site(model, hook_name, head), tokens, mask, batch_size)
    np.testing.assert_allclose(mean, pool.mean(0), atol=1e-5)
    np.testing.assert_allclose(covariance, np.cov(pool.T, bias=True), atol=1e-4)


def test_covariant_noise_is_covariant_and_not_white():
    """Published code drew it, and then overwrote it with white noise."""
    covariance = torch.tensor([[9.0, 3.0, 0], [3.0, 2.0, 0], [0, 0, 0]])
    root = covariance_root(covariance)
    noise = torch.stack([baselines._noise(0, i // 10, i % 10, torch.zeros(100, 3)) for i in range(200)])
    assert (torch.corrcoef(noise.flatten(1)) - torch.eye(200)).abs().max() < 0.35       # no two alike: six sigma
    for values, expected in ((noise.flatten(0, 1), torch.eye(3)), (noise.flatten(0, 1) @ root, covariance)):
        assert (torch.cov(values.T) - expected).abs().max() < 5 * expected.max() * (2 / len(values))**0.5
    given = torch.zeros_like(noise), torch.full_like(noise, 3**-0.5), noise, torch.zeros(3), root     # a distance of 1
    covariant, white, _ = (baselines._vectors(each, *given).flatten(0, 1) for each in sorted(RANDOM))
    torch.testing.assert_close(white.T @ white / len(white), torch.eye(3) / 3, atol=0.02, rtol=0)
    spread = covariant.T @ covariant / len(covariant)               # of directions: no longer the covariance itself
    assert spread[2, 2] < 1e-6 and spread[0, 0] > 2 * spread[1, 1] and spread[0, 1] > 0.1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_activations_that_are_not_finite(value):
    model, spoil = small_models.multi_head(), torch.zeros(N, LENGTH, 1)
    spoil[-1, 4] = value
    with model.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", lambda x, hook: x + spoil)]):
        with pytest.raises(ValueError, match="blocks.1.hook_resid_pre has activations that are not finite"):
            noise_floor(model, some_sae(), random_tokens(), hook_name=RESIDUAL)


@pytest.mark.parametrize("how, says", [
    ({"kinds": ("zero", "noise")}, "there is no kind 'noise'; there are epsilon_random, .*mean"),
    ({"draws": 0}, "draws is 0 and resamples 200; both must be at least 1"), ({"resamples": 0}, "and resamples 0"),
    *(({"at": at}, f"at is {at}; it must be from 1 to 7") for at in (0, 8, -1)),
    ({"sae": some_sae(23)}, "has width 24 here; this autoencoder was made for 23"),
    ({"hook_name": "blocks.1.hook_nothing"}, "there is no place"), ({"hook_name": None}, "give hook_name"),
    ({"sae": some_sae(hook_name="blocks.0.hook_mlp_out")}, "trained at blocks.0.hook_mlp_out, not at .*force=True"),
    ({"mask": torch.zeros(N, LENGTH) > 0}, "no position"), ({"mask": torch.ones(N, LENGTH)}, "must be torch.bool"),
    ({"at": 4, "mask": torch.arange(LENGTH).expand(N, -1) < 4}, "no position"), ({"head": 1}, "only attn.hook_z"),
])
def test_bad_input_is_refused_before_any_pass(how, says):
    model = small_models.multi_head()
    with forbidden_forward(model), pytest.raises(ValueError, match=says):
        noise_floor(model, tokens=random_tokens(), **{"sae": some_sae(), "hook_name": RESIDUAL, **how})
