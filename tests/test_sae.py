"""The four kinds of autoencoder: against a loop over single numbers, their gradients, and what always holds."""

import math

import pytest
import small_saes
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from course_utils.sae import BANDWIDTH, EPSILON, KINDS, NORMS, JumpReLU, SparseAutoencoder, Step, top_k

D_IN, D_SAE, K = 5, 9, 3


def random_sae(kind, normalize="none", d_in=D_IN, d_sae=D_SAE, k=K, seed=0, **more):
    """In float64, so that the comparisons can be strict."""
    return small_saes.random_sae(kind, normalize, d_in=d_in, d_sae=d_sae, k=k, seed=seed, dtype=torch.float64,
                                 **more)


def some(*shape, seed=1, scale=2.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the formulas, one number at a time ------------------------------------------------------------------------------


def slow_norm(sae, x):
    """-> the activation as the weights see it, the scale and the mean that are given back."""
    n = len(x)
    if sae.normalize == "none":
        return x, 1.0, 0.0
    if sae.normalize == "constant_norm_rescale":
        scale = math.sqrt(sum(v * v for v in x)) / math.sqrt(n)
        return [v / scale for v in x], scale, 0.0                   # as in SAELens: nothing is added to the scale
    mean = sum(x) / n
    scale = math.sqrt(sum((v - mean) ** 2 for v in x) / (n - 1))
    return [(v - mean) / (scale + EPSILON) for v in x], scale, mean


def slow_latent(sae, pre, i):
    """One latent from its own pre-activation; topk needs the others, too."""
    if sae.kind == "relu":
        return max(0.0, pre)
    if sae.kind == "jumprelu":
        return pre if pre > sae.threshold[i] else 0.0
    if sae.kind == "gated":
        is_open = pre + sae.b_gate[i] > 0
        return max(0.0, pre * math.exp(sae.r_mag[i]) + sae.b_mag[i].item()) if is_open else 0.0
    return pre


def slow(sae, x):
    """-> latents and reconstruction of one activation, in lists."""
    seen, scale, mean = slow_norm(sae, x)
    pre = []
    for i in range(sae.d_sae):
        total = 0.0 if sae.kind == "gated" else sae.b_enc[i].item()
        for j in range(sae.d_in):
            total += (seen[j] - (sae.b_dec[j].item() if sae.subtract_b_dec else 0.0)) * sae.W_enc[j, i].item()
        pre.append(total)
    latents = [float(slow_latent(sae, each, i)) for i, each in enumerate(pre)]
    if sae.kind == "topk":
        smallest = sorted(pre)[-sae.k]
        latents = [each if each >= smallest and each > 0 else 0.0 for each in pre]
    out = [sum(f * sae.W_dec[i, j].item() for i, f in enumerate(latents)) + sae.b_dec[j].item()
           for j in range(sae.d_in)]
    return latents, [v * scale + mean for v in out]


@pytest.mark.parametrize("subtract_b_dec", [True, False])
@pytest.mark.parametrize("normalize", NORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_and_norm_equals_the_slow_loop(kind, normalize, subtract_b_dec):
    sae, x = random_sae(kind, normalize, subtract_b_dec=subtract_b_dec), some(12, D_IN)
    latents, out = zip(*(slow(sae, each.tolist()) for each in x))
    latents, out = torch.tensor(latents).double(), torch.tensor(out).double()
    assert 0 < (latents > 0).double().mean() < 1                    # some are on, some off: there is something to see
    torch.testing.assert_close(sae.encode(x), latents, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(sae.decode(sae.encode(x), x), out, atol=1e-5, rtol=1e-6)
    assert torch.equal(sae(x), sae.decode(sae.encode(x), x))


def test_a_gated_latent_has_a_gate_and_a_magnitude_of_its_own():
    """Open and positive; open, but its magnitude is negative; positive, but closed; exactly at the gate."""
    sae = SparseAutoencoder(4, 4, "gated").requires_grad_(False)
    sae.W_enc.copy_(torch.eye(4)), sae.r_mag.fill_(math.log(3))
    sae.b_gate.copy_(torch.tensor([-1.0, 1, -3, -2])), sae.b_mag.copy_(torch.tensor([-1.0, -9, 1, 1]))
    assert sae.encode(torch.full((4,), 2.0)).tolist() == pytest.approx([5, 0, 0, 0])


# --- norms -----------------------------------------------------------------------------------------------------------


def test_what_each_norm_makes_of_an_activation():
    x = some(20, D_IN) + 3
    rescaled = random_sae("relu", "constant_norm_rescale").normalized(x)
    torch.testing.assert_close(rescaled.norm(dim=-1), torch.full((20,), D_IN**0.5).double(), rtol=1e-4, atol=0)
    torch.testing.assert_close(torch.cosine_similarity(rescaled, x), torch.ones(20).double())
    standard = random_sae("relu", "layer_norm").normalized(x)
    torch.testing.assert_close(standard.mean(dim=-1), torch.zeros(20).double())
    torch.testing.assert_close(standard.std(dim=-1), torch.ones(20).double(), rtol=1e-4, atol=0)
    assert torch.equal(random_sae("relu").normalized(x), x)


@pytest.mark.parametrize("normalize", NORMS)
@pytest.mark.parametrize("size", [1e-2, 1.0, 1e3])
def test_the_norm_is_undone(normalize, size):
    """Exactly; only layer_norm has EPSILON added to its scale, as in SAELens, and then nothing else is lost."""
    sae, x = random_sae("relu", normalize), some(4, 6, D_IN, scale=size) + size
    back, expected = sae.undo_norm(sae.normalized(x), x), x
    if normalize == "layer_norm":
        mean, scale = x.mean(dim=-1, keepdim=True), x.std(dim=-1, keepdim=True)
        expected = mean + (x - mean) * scale / (scale + EPSILON)
    torch.testing.assert_close(back, expected, rtol=1e-12, atol=1e-12 * size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalize", NORMS)
def test_an_activation_of_zeros_is_no_division_by_zero(kind, normalize):
    sae, x = random_sae(kind, normalize), torch.zeros(3, D_IN).double()
    assert sae.encode(x).isfinite().all() and sae(x).isfinite().all()


# --- top_k -----------------------------------------------------------------------------------------------------------


def test_top_k_by_hand():
    pre = torch.tensor([[3.0, -1, 0.5, 2], [-4, -3, -2, -1], [-5, 1, -5, -5]])
    expected = torch.tensor([[3.0, 0, 0, 2], [0, 0, 0, 0], [0, 1, 0, 0]])
    assert torch.equal(top_k(pre, 2), expected)                     # fewer than k are left where they are not positive
    assert torch.equal(top_k(pre, 4), pre.relu())
    assert torch.equal(pre[0], torch.tensor([3.0, -1, 0.5, 2]))     # what was given is as it was


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10**6))
@settings(deadline=None, max_examples=40)
def test_exactly_k_of_positive_numbers_are_kept_and_no_larger_one_is_left_out(k, n, seed):
    assume(k <= n)
    pre = some(3, n, seed=seed).abs() + 0.01
    kept = top_k(pre, k)
    assert ((kept != 0).sum(dim=-1) == k).all()
    assert torch.equal(kept[kept != 0], pre[kept != 0])
    for row, before in zip(kept, pre):
        assert k == n or before[row == 0].max() <= row[row != 0].min()


def test_gradient_of_top_k_reaches_the_kept_ones_alone():
    pre = torch.tensor([3.0, -1, 0.5, 2], requires_grad=True)
    top_k(pre, 3).sum().backward()
    assert pre.grad.tolist() == [1, 0, 1, 1]
    pre = torch.tensor([3.0, -1, -0.5, 2], requires_grad=True)      # the third largest is negative: relu stops it
    top_k(pre, 3).sum().backward()
    assert pre.grad.tolist() == [1, 0, 0, 1]


# --- gradients through a threshold -----------------------------------------------------------------------------------

THETA = 0.3
AROUND = [(-0.2, False), (-0.026, False), (-0.024, True), (0.024, True), (0.026, False), (1.0, False)]  # and: is near


@pytest.mark.parametrize("offset, near", AROUND)
def test_the_straight_through_estimates_one_number_at_a_time(offset, near):
    x = torch.tensor([[THETA + offset]], requires_grad=True)
    threshold, slope = torch.tensor([THETA], requires_grad=True), 1.7
    on = offset > 0
    out = JumpReLU.apply(x, threshold)
    assert out.item() == (pytest.approx(THETA + offset) if on else 0)
    (slope * out).sum().backward()
    assert x.grad.item() == pytest.approx(slope if on else 0)
    assert threshold.grad.item() == pytest.approx(-slope * THETA / 0.05 if near else 0)
    threshold.grad = None
    x = x.detach().requires_grad_()
    out = Step.apply(x, threshold)
    assert out.item() == on
    (slope * out).sum().backward()
    assert x.grad is None
    assert threshold.grad.item() == pytest.approx(-slope / 0.05 if near else 0)


def test_at_the_threshold_a_latent_is_off():
    at = torch.tensor([[THETA]], requires_grad=True)
    threshold = torch.tensor([THETA])
    out = JumpReLU.apply(at, threshold)
    out.sum().backward()
    assert out.item() == at.grad.item() == Step.apply(at, threshold).item() == 0


def test_a_negative_pre_activation_is_far_from_a_small_threshold():
    """Nothing is cut to 0 first, into the window of thresholds below half a bandwidth (arXiv 2407.14435, eq. 11)."""
    sae = SparseAutoencoder(2, 3, "jumprelu")
    with torch.no_grad():
        sae.threshold.fill_(BANDWIDTH / 5)
    pre = torch.tensor([[-1.0, BANDWIDTH / 4, 1.0]], requires_grad=True)
    out = sae.activate(pre)
    out.sum().backward()
    torch.testing.assert_close(out.detach(), torch.tensor([[0, BANDWIDTH / 4, 1.0]]))
    torch.testing.assert_close(sae.threshold.grad, torch.tensor([0, -1 / 5, 0]))
    torch.testing.assert_close(pre.grad, torch.tensor([[0, 1.0, 1.0]]))


@pytest.mark.parametrize("function", [JumpReLU, Step])
@pytest.mark.parametrize("shape", [(6,), (2, 3), (2, 1, 3)])
def test_every_activation_near_a_threshold_counts(function, shape):
    """The estimate of each latent's threshold is a sum over the batch, whatever its shape."""
    threshold = some(D_SAE, seed=3).abs()
    threshold.requires_grad_()
    x = threshold.detach() + some(*shape, D_SAE, scale=BANDWIDTH / 3)
    slope = some(*shape, D_SAE, seed=4)
    (function.apply(x, threshold) * slope).sum().backward()
    expected = torch.zeros(D_SAE).double()
    for x_row, slope_row in zip(x.reshape(-1, D_SAE), slope.reshape(-1, D_SAE)):
        for i in range(D_SAE):
            if abs(x_row[i] - threshold[i]) < BANDWIDTH / 2:
                expected[i] -= slope_row[i] / BANDWIDTH * (threshold[i].detach() if function is JumpReLU else 1)
    assert expected.abs().min() > 0
    torch.testing.assert_close(threshold.grad, expected)


def test_the_estimate_is_the_true_slope_of_a_mean_over_many_activations():
    """If x is spread evenly, moving the threshold moves the mean of what is let through; the estimate says how much."""
    x = torch.linspace(0, 1, 200_001).double()[:, None]
    for function in (JumpReLU, Step):
        threshold = torch.tensor([THETA]).double().requires_grad_()
        function.apply(x, threshold).mean().backward()
        above, below = (function.apply(x, threshold.detach() + h).mean() for h in (0.01, -0.01))
        assert threshold.grad.item() == pytest.approx((above - below).item() / 0.02, rel=1e-3)


def test_one_activation_without_a_batch_has_a_gradient_too():
    sae = random_sae("jumprelu").requires_grad_()
    x = some(D_IN)
    sae.encode(x).sum().backward()
    alone = sae.threshold.grad.clone()
    sae.zero_grad()
    sae.encode(x[None]).sum().backward()
    torch.testing.assert_close(alone, sae.threshold.grad)
    Step.apply(sae.pre_activations(x), sae.threshold).sum().backward()


@pytest.mark.parametrize("normalize", NORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_differences_where_the_function_is_smooth(kind, normalize):
    """For every weight, and for the input; a threshold has no slope but the estimate above."""
    sae, x = random_sae(kind, normalize, seed=2).requires_grad_(), some(3, D_IN).requires_grad_()
    target = some(3, D_IN, seed=5)

    def loss():
        return (sae(x) - target).pow(2).sum() + sae.encode(x).sum()

    loss().backward()
    step = 1e-6
    for name, weight in [*sae.named_parameters(), ("x", x)]:
        if name in ("threshold", "b_gate"):
            continue
        expected = torch.zeros_like(weight).flatten()
        for i in range(weight.numel()):
            with torch.no_grad():
                weight.view(-1)[i] += step
                above = loss()
                weight.view(-1)[i] -= 2 * step
                expected[i] = (above - loss()) / (2 * step)
                weight.view(-1)[i] += step
        torch.testing.assert_close(weight.grad.flatten(), expected, atol=1e-5, rtol=1e-4)
    if kind == "gated":                                            # the gate is 0 or 1: its true slope is 0
        assert sae.b_gate.grad is None or not sae.b_gate.grad.any()


# --- what holds for every autoencoder --------------------------------------------------------------------------------

saes = st.builds(
    lambda kind, normalize, d_in, d_sae, k, seed, subtract: random_sae(
        kind, normalize, d_in, d_sae, min(k, d_sae), seed, subtract_b_dec=subtract),
    st.sampled_from(KINDS), st.sampled_from(NORMS), st.integers(2, 6), st.integers(1, 12), st.integers(1, 12),
    st.integers(0, 10**6), st.booleans())
shapes = st.lists(st.integers(0, 3), max_size=3)


@given(saes, shapes, st.integers(0, 10**6))
@settings(deadline=None, max_examples=80)
@pytest.mark.filterwarnings("ignore:std")                          # of no numbers at all
def test_shapes_and_signs(sae, shape, seed):
    x = some(*shape, sae.d_in, seed=seed)
    latents = sae.encode(x)
    assert latents.shape == (*shape, sae.d_sae) and sae(x).shape == x.shape
    assert (latents >= 0).all()
    if sae.kind == "topk":
        assert ((latents != 0).sum(dim=-1) <= sae.k).all()
    if sae.kind == "jumprelu":
        assert (latents[latents != 0] > sae.threshold.expand_as(latents)[latents != 0]).all()


def test_a_negative_latent_of_the_decoder_is_decoded_as_it_is():
    """decode takes whatever latents it is given: an edit may make one negative."""
    sae, f = random_sae("relu"), some(4, D_SAE)
    torch.testing.assert_close(sae.decode(f), f @ sae.W_dec + sae.b_dec)


# --- a new autoencoder -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_autoencoder(kind):
    sae = SparseAutoencoder(6, 20, kind, k=4 if kind == "topk" else None, seed=3)
    assert (sae.d_in, sae.d_sae) == (6, 20)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(20))
    assert torch.equal(sae.W_enc, sae.W_dec.T) and sae.W_enc.data_ptr() != sae.W_dec.data_ptr()
    names = {"relu": {"b_enc"}, "topk": {"b_enc"}, "jumprelu": {"b_enc", "threshold"},
             "gated": {"b_gate", "b_mag", "r_mag"}}[kind]
    assert set(dict(sae.named_parameters())) == {"W_enc", "W_dec", "b_dec", *names}
    assert all(not getattr(sae, name).any() for name in ("b_dec", *names) if name != "threshold")
    assert kind != "jumprelu" or (sae.threshold == 0.1).all()
    again, other = (SparseAutoencoder(6, 20, kind, k=sae.k, seed=seed) for seed in (3, 4))
    assert torch.equal(again.W_dec, sae.W_dec) and not torch.equal(other.W_dec, sae.W_dec)


def test_making_one_leaves_the_global_random_numbers_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    SparseAutoencoder(4, 8, seed=5)
    assert torch.equal(torch.get_rng_state(), before)


def test_its_name_says_what_it_is():
    text = repr(SparseAutoencoder(4, 8, "topk", k=2, normalize="layer_norm", hook_name="blocks.1.hook_mlp_out"))
    assert all(part in text for part in ("4 -> 8", "topk, k=2", "layer_norm", "blocks.1.hook_mlp_out"))
    assert "k=" not in repr(SparseAutoencoder(4, 8))


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong, says", [
    ({"kind": "sparse"}, "kind is 'sparse'; it must be one of relu, topk, jumprelu, gated"),
    ({"normalize": "batch"}, "normalize is 'batch'; it must be one of none, constant_norm_rescale, layer_norm"),
    ({"d_in": 0}, "d_in is 0 and d_sae is 8; both must be positive"),
    ({"d_sae": -1}, "d_in is 4 and d_sae is -1; both must be positive"),
    ({"kind": "topk"}, "topk needs k, the number of active latents, from 1 to d_sae = 8; k is None"),
    ({"kind": "topk", "k": 0}, "from 1 to d_sae = 8; k is 0"),
    ({"kind": "topk", "k": 9}, "from 1 to d_sae = 8; k is 9"),
    ({"k": 2}, "k is for topk; relu decides for itself"),
    ({"kind": "gated", "k": 2}, "k is for topk; gated decides for itself"),
])
def test_what_cannot_be_made_is_refused(wrong, says):
    with pytest.raises(ValueError) as error:
        SparseAutoencoder(**{"d_in": 4, "d_sae": 8, **wrong})
    assert says in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_activations_of_another_width_are_refused(kind):
    for call in (random_sae(kind).encode, random_sae(kind)):
        with pytest.raises(ValueError, match=f"activations have width 4; this autoencoder was made for {D_IN}"):
            call(torch.zeros(2, 4).double())


@pytest.mark.parametrize("normalize", NORMS[1:])
def test_decoding_without_the_activation_is_refused_if_it_was_normalized(normalize):
    sae = random_sae("relu", normalize)
    with pytest.raises(ValueError, match=rf"normalizes its input \({normalize}\): decode\(latents, x\) needs x"):
        sae.decode(torch.zeros(2, D_SAE).double())
    random_sae("relu").decode(torch.zeros(2, D_SAE).double())       # without a norm there is nothing to know
