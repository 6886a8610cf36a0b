"""Faithfulness: the metrics by hand and by hypothesis, and the whole report against full passes, token by token."""

import copy
import itertools
import math
import types
import weakref
from dataclasses import fields

import numpy as np
import pytest
import small_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import forbidden_forward, full_pass, hook_count, own_tokens
from small_saes import Plain, some_sae

from course_utils import faithfulness
from course_utils.baselines import noise_floor
from course_utils.faithfulness import (
    COURSE,
    SAEBENCH,
    SAELENS,
    Convention,
    FaithfulnessReport,
    evaluate_sae,
    evaluate_saes,
)
from course_utils.faithfulness_report import IN_NATS
from course_utils.metrics import delta_cross_entropy, js_of_log_probs, kl_divergence, reconstruction_score
from course_utils.passes import Site
from course_utils.report_card import report_card
from course_utils.sae import KINDS, NORMS, SparseAutoencoder
from course_utils.text import sample_text

N, LENGTH = 5, 9             # of own_tokens
PLACES = [("blocks.1.hook_resid_pre", None), ("blocks.0.hook_resid_post", None), ("blocks.1.hook_resid_post", None),
          ("blocks.0.hook_mlp_out", None), ("blocks.1.hook_attn_out", None), ("blocks.1.attn.hook_z", None),
          ("blocks.0.attn.hook_z", 2)]
# Each place once, with each model and with and without holes in the mask; test_sites.py has every place in every model.
CORNERS = [(("tiny", "multi_head", "grouped_query")[number % 3], *place, number % 2 == 0)
           for number, place in enumerate(PLACES)]
RESIDUAL = "blocks.1.hook_resid_pre"
METRICS = [each.name for each in fields(FaithfulnessReport) if each.type == "float"]
SCORES = {"reconstruction_score": "ce_zero", "reconstruction_score_mean": "ce_mean"}
STREAMS = [name for name, _ in PLACES if "resid" in name]
PER_TOKEN = ["ce_clean", "ce_sae", "ce_zero", "ce_mean", "kl", "reverse_kl", "js", "kl_zero", "l0", "l1", "mse",
             "cosine", "l2_ratio", "l2_in", "l2_out"]


@pytest.fixture
def model():
    return small_models.multi_head()


corners = pytest.mark.parametrize("name, hook_name, head, holes", CORNERS)
some_corners = pytest.mark.parametrize("name, hook_name, head, holes", [CORNERS[0], CORNERS[4], CORNERS[5]])
def all_but_first(tokens):
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[:, 0] = False
    return mask


def with_holes(tokens):
    """A mask with holes, with the first position of some sequences, and with nothing of the second sequence."""
    mask = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(3)) < 0.6
    mask[1] = False
    return mask


class Identity:
    encode = decode = staticmethod(lambda x: x)


class Constant:
    """Reconstructs everything as one vector."""

    def __init__(self, vector):
        self.vector = vector

    def encode(self, x):
        return torch.zeros(*x.shape[:-1], 3)

    def decode(self, latents):
        return self.vector.expand(*latents.shape[:-1], -1)


# --- the slow reference: one full pass for each sequence and each patch, then loops over positions -------------------


def token_numbers(logits, x, x_hat, latents, target):
    """What is known at one position."""
    log = {name: each.log_softmax(-1) for name, each in logits.items()}
    x, x_hat, latents = x.double(), x_hat.double(), latents.double()

    def kl(a, b):
        return (a.exp() * (a - b)).sum().item()

    p, q, length_in, length_out = log["clean"], log["sae"], x.norm().item(), x_hat.norm().item()
    middle = ((p.exp() + q.exp()) / 2).log()
    numbers = {
        "kl": kl(p, q), "reverse_kl": kl(q, p), "kl_zero": kl(p, log["zero"]),
        "js": (kl(p, middle) + kl(q, middle)) / 2,
        "l0": sum(value != 0 for value in latents.tolist()), "l1": sum(abs(value) for value in latents.tolist()),
        "mse": sum((a - b)**2 for a, b in zip(x.tolist(), x_hat.tolist())), "dot": (x @ x_hat).item(),
        "cosine": (x @ x_hat).item() / (length_in * length_out), "l2_ratio": length_out / length_in,
        "l2_in": length_in, "l2_out": length_out, "x": x, "on": latents != 0, "l2_in_squared": length_in**2,
    }
    return numbers if target is None else numbers | {f"ce_{name}": -each[target].item() for name, each in log.items()}


def found_by_hand(model, sae, tokens, hook_name, head=None, mask=None, convention=COURSE):
    """For each sequence, {counted position: token_numbers}."""
    mask, end = all_but_first(tokens) if mask is None else mask, tokens.shape[1] - 1
    counts = [[j for j in range(end + 1) if row[j] and (j < end or not convention.drop_last)] for row in mask]
    xs = [full_pass(model, row, hook_name, head)[1] for row in tokens]
    mean = torch.stack([xs[i][j] for i, counted in enumerate(counts) for j in counted]).double().mean(0).float()
    everywhere, found = torch.ones(end + 1, dtype=torch.bool), []
    for row, kept, counted, x in zip(tokens, mask, counts, xs):
        latents = sae.encode(x)
        x_hat = sae(x) if isinstance(sae, SparseAutoencoder) else sae.decode(latents)
        ablated = everywhere if convention.ablate_everywhere else kept
        patches = {"clean": (x, kept), "sae": (x_hat, everywhere if convention.patch_everywhere else kept),
                   "zero": (torch.zeros_like(x), ablated), "mean": (mean.expand_as(x), ablated)}
        logits = {name: full_pass(model, row, hook_name, head, *patch)[0] for name, patch in patches.items()}
        found.append({j: token_numbers({name: each[j] for name, each in logits.items()}, x[j], x_hat[j], latents[j],
                                       row[j + 1] if j < end else None) for j in counted})
    return found


def summary(found, sequences=None):
    """Every metric of the report, of these sequences (each as often as it is named)."""
    pool = [numbers for i in (range(len(found)) if sequences is None else sequences) for numbers in found[i].values()]

    def mean(name):
        values = [numbers[name] for numbers in pool if name in numbers]
        return sum(values) / len(values)

    out, center = {name: mean(name) for name in PER_TOKEN}, mean("x")
    variance = sum(((numbers["x"] - center)**2).sum().item() for numbers in pool) / len(pool)
    return out | {
        "delta_ce": out["ce_sae"] - out["ce_clean"],
        "reconstruction_score": (out["ce_zero"] - out["ce_sae"]) / (out["ce_zero"] - out["ce_clean"]),
        "reconstruction_score_mean": (out["ce_mean"] - out["ce_sae"]) / (out["ce_mean"] - out["ce_clean"]),
        "kl_score": 1 - out["kl"] / out["kl_zero"], "fvu": out["mse"] / variance,
        "explained_variance": 1 - out["mse"] / variance,
        "relative_reconstruction_bias": sum(each["l2_out"]**2 for each in pool) / sum(each["dot"] for each in pool),
        "dead_fraction": (sum(each["on"] for each in pool) == 0).double().mean().item(),
    }


def undefined(found, seed=0):
    """The scores that divide by what may be 0: by the 95 % interval of 200 resamples of the sequences."""
    drawn = torch.randint(0, len(found), (200, len(found)), generator=torch.Generator().manual_seed(seed)).numpy()

    def mean(name):
        of = [[np.asarray(each[name]) for each in row.values() if name in each] for row in found]
        zero = 0 * next(each for row in of for each in row)
        sums = np.array([sum(row, zero) for row in of])[drawn].sum(1)
        counts = np.array([len(row) for row in of])[drawn].sum(1)
        return (sums.T / counts).T[counts > 0]

    below = {"reconstruction_score": mean("ce_zero") - mean("ce_clean"), "kl_score": mean("kl_zero"),
             "reconstruction_score_mean": mean("ce_mean") - mean("ce_clean"),
             "relative_reconstruction_bias": mean("dot"),
             "fvu": mean("l2_in_squared") - (mean("x")**2).sum(1)}
    below["explained_variance"] = below["fvu"]
    ends = {name: np.quantile(values, [0.025, 0.975]) for name, values in below.items()}
    return {name for name, (low, high) in ends.items() if low <= 1e-6 and high >= -1e-6}


def about(expected, name, rel, abs_):
    """The value of a metric, give or take; a score's slack is that of the differences that it divides."""
    value = expected[name]
    below = {"reconstruction_score": expected["ce_zero"] - expected["ce_clean"], "kl_score": expected["kl_zero"],
             "reconstruction_score_mean": expected["ce_mean"] - expected["ce_clean"]}.get(name, 1)
    return pytest.approx(value, rel=rel, abs=abs_ * (1 + abs(value)) / abs(below), nan_ok=True)


def check(report, found, rel=1e-4, abs_=1e-5):
    """Every field of a report, against the slow reference."""
    expected, pool = summary(found), [numbers for each in found for numbers in each.values()]
    assert set(expected) == set(METRICS) and set(report.undefined) == undefined(found)
    for name in set(METRICS) - set(report.undefined):
        assert getattr(report, name) == about(expected, name, rel, abs_), name
    assert report.n_sequences == len(found) and report.n_positions == len(pool)
    density = sum(numbers["on"].double() for numbers in pool) / len(pool)
    torch.testing.assert_close(report.density.double(), density, atol=1e-6, rtol=0)
    assert report.active_sequences.dtype == torch.long              # float32 would lose count beyond 16.7 million
    assert set(report.by_position) == {*PER_TOKEN, "delta_ce"}
    for name, values in report.by_position.items():
        for j, value in enumerate(values.tolist()):
            column = [position_value(each[j], name) for each in found if j in each]
            column = [each for each in column if each is not None]
            mean = sum(column) / len(column) if column else math.nan
            assert value == pytest.approx(mean, rel=rel, abs=abs_, nan_ok=True), (name, j)


def position_value(numbers, name):
    if name == "delta_ce":
        return numbers["ce_sae"] - numbers["ce_clean"] if "ce_sae" in numbers else None
    return numbers.get(name)


def same(one, other, rel=1e-6, abs_=1e-6, skip=()):
    """Two reports with the same numbers."""
    expected = {name: getattr(other, name) for name in METRICS}
    for name in set(METRICS) - set(skip):
        assert getattr(one, name) == about(expected, name, rel, abs_), name
    assert (one.n_sequences, one.n_positions) == (other.n_sequences, other.n_positions)
    torch.testing.assert_close(one.density, other.density, atol=1e-6, rtol=0)


# --- the metrics, by hand -------------------------------------------------------------------------------------------


def logs(*probabilities):
    return torch.tensor(probabilities, dtype=torch.float64).log()


def test_divergences_by_hand():
    p, q = logs([0.5, 0.5], [1, 0], [0.5, 0.5], [0, 1]), logs([0.25, 0.75], [0.5, 0.5], [1, 0], [0, 1])
    ln2, half = math.log(2), 0.5 * math.log(4 / 3)
    assert kl_divergence(p, q).tolist() == pytest.approx([half, ln2, math.inf, 0])
    js = js_of_log_probs(p, q)                                      # of (1, 0) and (½, ½): the middle is (¾, ¼)
    assert js[1].item() == pytest.approx((math.log(4 / 3) + 0.5 * math.log(2 / 3) + 0.5 * ln2) / 2, abs=1e-12)
    assert js[2].item() == pytest.approx(js[1].item(), abs=1e-12) and js[3] == 0
    assert js_of_log_probs(logs(1, 0), logs(0, 1)).item() == pytest.approx(ln2, abs=1e-12)
    logits = torch.randn(50, 1000, generator=torch.Generator().manual_seed(0))
    assert (kl_divergence(logits, logits + 1e-5 * logits.flip(0)) >= 0).all()       # rounding alone would be below


def test_delta_cross_entropy_looks_at_the_token_that_came_next():
    rng = torch.Generator().manual_seed(0)
    p, q = torch.randn(2, 4, 5, generator=rng), torch.randn(2, 4, 5, generator=rng)
    tokens = torch.randint(5, (2, 4), generator=rng)
    delta = delta_cross_entropy(p, q, tokens)
    for i in range(2):
        for j in range(3):
            expected = p[i, j].log_softmax(0)[tokens[i, j + 1]] - q[i, j].log_softmax(0)[tokens[i, j + 1]]
            assert delta[i, j].item() == pytest.approx(expected.item(), abs=1e-6)


def test_reconstruction_score_by_hand():
    assert reconstruction_score(3.0, 3.5, 8.0) == pytest.approx(0.9)
    assert reconstruction_score(3.0, 3.0, 8.0) == 1 and reconstruction_score(3.0, 8.0, 8.0) == 0
    assert reconstruction_score(3.0, 2.5, 8.0) == pytest.approx(1.1)            # better than the model: above 1
    assert reconstruction_score(3.0, 9.0, 8.0) == pytest.approx(-0.2)           # worse than the ablation: below 0
    assert reconstruction_score(3.0, 2.8, 2.0) == pytest.approx(0.8)            # an ablation that helps
    assert isinstance(reconstruction_score(3.0, 3.5, 8.0), float)
    several = reconstruction_score(torch.tensor([3.0, 3.0]), torch.tensor([3.5, 3.0]), 8.0)
    torch.testing.assert_close(several, torch.tensor([0.9, 1.0]), check_dtype=False)


@pytest.mark.parametrize("patched", [3.0, 4.0, 3.0 + 1e-9])
@pytest.mark.parametrize("off", [0.0, 9e-7, -9e-7])
def test_a_score_without_anything_to_recover_is_not_defined(patched, off):
    assert math.isnan(reconstruction_score(3.0, patched, 3.0 + off))
    several = reconstruction_score(torch.tensor([3.0, 1.0]).double(), patched, torch.tensor([3.0 + off, 2.0]).double())
    assert several[0].isnan() and several[1].isfinite()


def test_shapes_that_do_not_fit_are_refused():
    p, tokens = torch.zeros(2, 4, 5), torch.zeros(2, 4, dtype=torch.long)
    with pytest.raises(ValueError, match=r"p_logits are \(2, 4, 5\) and q_logits \(2, 4, 6\); they must agree"):
        kl_divergence(p, torch.zeros(2, 4, 6))
    with pytest.raises(ValueError, match="must agree"):                         # it would broadcast
        kl_divergence(p, torch.zeros(1, 4, 5))
    for args in ((p, torch.zeros(2, 4, 6), tokens), (p, p, tokens[:, 1:]), (p, p, tokens[:1]), (p, p[:1], tokens)):
        with pytest.raises(ValueError, match=r"do not fit: they are \[batch, pos, vocab\] twice and \[batch, pos\]"):
            delta_cross_entropy(*args)


# --- the metrics, for any logits ------------------------------------------------------------------------------------

EXTREME = st.lists(st.sampled_from([0.0, 1.0, -1.0, 1e-30, 1e4, -1e4, 1e30, -1e30]), min_size=4, max_size=4)


@settings(max_examples=40, deadline=None)
@given(EXTREME, EXTREME, st.sampled_from([torch.float32, torch.bfloat16]), st.integers(0, 3))
def test_extreme_logits_give_numbers(p, q, dtype, token):
    p, q = torch.tensor(p, dtype=dtype), torch.tensor(q, dtype=dtype)
    kl, js = kl_divergence(p, q), js_of_log_probs(faithfulness.log_softmax(p), faithfulness.log_softmax(q))
    delta = delta_cross_entropy(p.expand(1, 2, 4), q.expand(1, 2, 4), torch.tensor([[0, token]]))
    assert kl.isfinite() and kl >= 0 and delta.isfinite().all() and 0 <= js <= math.log(2) + 1e-6
    assert kl.dtype == delta.dtype == torch.float32


def test_bfloat16_logits_are_summed_in_float32():
    p, q = (torch.randn(3, 5000, generator=torch.Generator().manual_seed(seed)).bfloat16() for seed in (0, 1))
    torch.testing.assert_close(kl_divergence(p, q), kl_divergence(p.double(), q.double()).float(), atol=1e-5, rtol=1e-5)


def test_a_divergence_over_a_large_vocabulary():
    """50,000 small terms after a few large ones: how they are added up matters."""
    rng = torch.Generator().manual_seed(0)
    p, q = (5 * torch.randn(16, 50_000, generator=rng) for _ in range(2))
    exact = kl_divergence(p.double(), q.double()).mean().item()
    assert kl_divergence(p, q).mean().item() == pytest.approx(exact, rel=1e-5)


# --- the whole report against the slow reference --------------------------------------------------------------------


@pytest.mark.older
@corners
def test_every_number_equals_full_passes_and_loops(name, hook_name, head, holes):
    model = small_models.ALL[name]()
    tokens = own_tokens(model)
    sae, mask = some_sae(Site(model, hook_name, head).width, dead=3), with_holes(tokens) if holes else None
    report = evaluate_sae(model, sae, tokens, hook_name=hook_name, head=head, mask=mask, batch_size=2 + holes)
    found = found_by_hand(model, sae, tokens, hook_name, head, mask)
    assert summary(found)["kl"] > 1e-3 and 0 < summary(found)["dead_fraction"] < 1
    check(report, found)
    assert report.peers == {}


@pytest.mark.parametrize("convention, hook_name, holes", [
    (SAELENS, RESIDUAL, True), (SAEBENCH, "blocks.1.attn.hook_z", False),
    (Convention(drop_last=False), RESIDUAL, False),
    (Convention(ablate_everywhere=True), "blocks.0.hook_mlp_out", True),
    (Convention(patch_everywhere=True), "blocks.0.hook_mlp_out", True)])
def test_every_number_in_other_conventions(model, convention, hook_name, holes):
    tokens, sae = own_tokens(model), some_sae(24)
    mask = with_holes(tokens) if holes else None
    report = evaluate_sae(model, sae, tokens, hook_name=hook_name, mask=mask, batch_size=2, convention=convention)
    check(report, found_by_hand(model, sae, tokens, hook_name, None, mask, convention))


def test_where_heads_count_positions_no_two_stand_for_all(model):
    """An attention sink takes its share of every pattern, so that what zeros give depends on how many there are."""
    tokens, sae, everywhere = own_tokens(model), some_sae(24), Convention(ablate_everywhere=True)

    below = "blocks.0.hook_resid_pre"

    def sink(pattern, hook):
        seen = torch.arange(1, pattern.shape[-2] + 1)[:, None]
        return pattern * seen / (seen + 1)

    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_pattern", sink)]):
        found = found_by_hand(model, sae, tokens, below, convention=everywhere)
        report = evaluate_sae(model, sae, tokens, hook_name=below, batch_size=2, convention=everywhere)
    assert report.ce_zero == pytest.approx(summary(found)["ce_zero"], abs=1e-5)


@pytest.mark.parametrize("starts, hook_name", [
    ("alike", "blocks.0.hook_resid_pre"), ("different", "blocks.1.hook_resid_post"),
    ("first sequence alone", "blocks.0.hook_resid_pre")])
def test_what_stands_before_the_mask_counts_in_the_ablated_passes(model, starts, hook_name):
    """An ablated pass may be shared by all sequences only if what it leaves alone is the same in all."""
    tokens = own_tokens(model)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[slice(0, 1) if starts == "first sequence alone" else slice(None), :3] = False
    if starts != "different":
        tokens[:, :3] = tokens[0, :3]
    sae = some_sae(model.cfg.d_model)
    check(evaluate_sae(model, sae, tokens, hook_name=hook_name, mask=mask, batch_size=2),
          found_by_hand(model, sae, tokens, hook_name, mask=mask))


@pytest.mark.parametrize("first", [1, 3])
def test_sharing_the_ablated_passes_changes_no_number(model, first):
    """A hole at the last position changes nothing, for nothing follows it; but then the passes are not shared."""
    tokens, sae = own_tokens(model, n=12), some_sae(model.cfg.d_model)
    tokens[:, :first], rows = tokens[0, :first], []
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[:, :first] = False
    hole = mask.clone()
    hole[0, -1] = False

    def count(value, hook):
        rows[-1] += len(value)

    def report(mask, **more):
        rows.append(0)
        with model.hooks(fwd_hooks=[(f"blocks.{model.cfg.n_layers - 1}.hook_resid_post", count)]):
            return evaluate_sae(model, sae, tokens, hook_name=RESIDUAL, mask=mask, **more)

    same(report(mask), report(hole), rel=1e-5, abs_=1e-5)
    report(hole, convention=Convention(ablate_everywhere=True))
    assert rows[0] <= 2 * 12 + 4 < 4 * 12 <= rows[1]                # clean, patched, and a few; or all four, all rows
    assert rows[2] == rows[0]                                       # nothing is left alone: shared whatever the mask


@pytest.mark.parametrize("kind, normalize", [*zip(KINDS, itertools.cycle(NORMS))])
def test_our_autoencoders_of_every_kind_and_norm(model, kind, normalize):
    tokens, sae = own_tokens(model), some_sae(24, kind, normalize=normalize, hook_name="blocks.1.hook_mlp_out")
    check(evaluate_sae(model, sae, tokens), found_by_hand(model, sae, tokens, sae.hook_name))


def test_an_autoencoder_of_one_head_knows_its_head(model):
    name, head = "blocks.1.attn.hook_z", 3
    tokens = own_tokens(model)
    sae = some_sae(model.cfg.d_head, hook_name=name, head=head)
    check(evaluate_sae(model, sae, tokens), found_by_hand(model, sae, tokens, name, head))


@pytest.mark.parametrize("hook_name, head", [PLACES[0], PLACES[6]])
def test_an_object_that_only_encodes_and_decodes(hook_name, head):
    """Also: a latent below zero is active."""
    model = small_models.grouped_query()
    tokens, sae = own_tokens(model), Plain(Site(model, hook_name, head).width)
    report = evaluate_sae(model, sae, tokens, hook_name=hook_name, head=head)
    found = found_by_hand(model, sae, tokens, hook_name, head)
    assert any((numbers["on"]).any() for each in found for numbers in each.values())
    check(report, found)


@pytest.mark.parametrize("heads_apart", [False, True])
def test_an_object_that_keeps_its_place_in_a_configuration(heads_apart):
    """As SAELens's do: cfg.d_in, cfg.metadata, and for z perhaps an input with the heads apart."""
    model, name = small_models.multi_head(), "blocks.1.attn.hook_z"
    sae, theirs = Plain(24), Plain(24)
    theirs.cfg = types.SimpleNamespace(d_in=24, metadata=types.SimpleNamespace(hook_name=name, hook_head_index=None))
    theirs.hook_z_reshaping_mode, tokens = heads_apart, own_tokens(model)
    if heads_apart:
        theirs.encode = lambda x: sae.encode(x.flatten(-2))
        theirs.decode = lambda latents: sae.decode(latents).unflatten(-1, (4, 6))
    same(evaluate_sae(model, theirs, tokens), evaluate_sae(model, sae, tokens, hook_name=name))
    theirs.cfg.metadata.hook_head_index = 2
    theirs.cfg.d_in, theirs.hook_z_reshaping_mode = 6, False
    theirs.encode, theirs.decode = Plain(6).encode, Plain(6).decode
    same(evaluate_sae(model, theirs, tokens), evaluate_sae(model, Plain(6), tokens, hook_name=name, head=2))


def test_a_bfloat16_autoencoder():
    model = small_models.multi_head()
    tokens, sae = own_tokens(model), some_sae(24).bfloat16()

    class Rounded:
        encode = staticmethod(lambda x: sae.encode(x.bfloat16()))
        decode = staticmethod(lambda latents: sae.decode(latents).float())

    report = evaluate_sae(model, sae, tokens, hook_name=RESIDUAL)
    check(report, found_by_hand(model, Rounded, tokens, RESIDUAL), rel=2e-2, abs_=1e-3)
    assert report.density.dtype != torch.bfloat16 and all(sae.W_enc.dtype == each.dtype for each in sae.parameters())


def test_a_model_in_half_precision_is_refused_unless_forced(dtype=torch.bfloat16):
    tokens, sae = own_tokens(small_models.multi_head()), some_sae(24, hook_name=RESIDUAL)
    half = copy.deepcopy(small_models.multi_head()).to(dtype)
    for function in (evaluate_sae, noise_floor, lambda model, sae, tokens: report_card(model, sae, seq_len=6)):
        with forbidden_forward(half), pytest.raises(ValueError, match=f"computes in {dtype}.*model.float"):
            function(half, sae, tokens)
    exact = evaluate_sae(small_models.multi_head(), sae, tokens)
    forced = evaluate_sae(half, sae, tokens, force=True)
    assert forced.ce_clean == pytest.approx(exact.ce_clean, rel=0.05) and forced.ce_clean != exact.ce_clean
    assert evaluate_sae(half.float(), sae, tokens).ce_clean == pytest.approx(exact.ce_clean, rel=0.05)


def test_latents_in_bfloat16_are_summed_in_float32():
    class Ones(Constant):
        def encode(self, x):
            return torch.ones(*x.shape[:-1], 257, dtype=torch.bfloat16)

    model = small_models.multi_head()
    report = evaluate_sae(model, Ones(torch.ones(24)), own_tokens(model), hook_name=RESIDUAL)
    assert report.l1 == report.l0 == 257                            # a bfloat16 would say 256


@pytest.mark.parametrize("positions", [1, 5])
def test_nothing_depends_on_how_many_logits_exist_at_once(model, monkeypatch, positions):
    tokens, sae = own_tokens(model), some_sae(model.cfg.d_model)
    for mask in (None, with_holes(tokens)):
        expected = evaluate_sae(model, sae, tokens, hook_name=RESIDUAL, mask=mask)
        with monkeypatch.context() as patch:
            patch.setattr(faithfulness, "LOGITS", positions * model.cfg.d_vocab)
            same(evaluate_sae(model, sae, tokens, hook_name=RESIDUAL, mask=mask), expected)


@pytest.mark.parametrize("everything, number", [(False, 3), (True, 3 + 3 * 3)])        # means need passes of their own
def test_several_autoencoders_share_the_clean_pass(model, monkeypatch, everything, number):
    tokens, passes = own_tokens(model, n=7), []
    how = {"mask": with_holes(tokens), "batch_size": 3, "everything": everything}
    saes = {hook_name: some_sae(model.cfg.d_model, seed=seed, hook_name=hook_name)
            for seed, hook_name in enumerate([RESIDUAL, "blocks.0.hook_mlp_out", "blocks.1.hook_attn_out"])}
    expected = {name: evaluate_sae(model, sae, tokens, **how) for name, sae in saes.items()}
    run = faithfulness.CleanRun
    monkeypatch.setattr(faithfulness, "CleanRun", lambda *given: (passes.append(given), run(*given))[1])
    reports = evaluate_saes(model, {name: saes[name] for name in reversed(saes)}, tokens, **how)
    assert list(reports) == [*reversed(saes)] and len(passes) == number
    for name, report in reports.items():
        same(report, expected[name])
        one, other = ([*each.intervals.values()] for each in (report, expected[name]))
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


# --- autoencoders whose numbers are known ---------------------------------------------------------------------------


@some_corners
def test_zero_recovers_nothing(name, hook_name, head, holes):
    model = small_models.ALL[name]()
    tokens, width = own_tokens(model), Site(model, hook_name, head).width
    report = evaluate_sae(model, Constant(torch.zeros(width)), tokens, hook_name=hook_name, head=head,
                          mask=with_holes(tokens) if holes else None)
    assert "reconstruction_score" in report.undefined and hook_name not in STREAMS or (
        report.reconstruction_score * (report.ce_zero - report.ce_clean) == pytest.approx(0, abs=1e-5))
    assert report.kl_score * report.kl_zero == pytest.approx(0, abs=1e-5)
    assert (report.ce_sae, report.kl) == pytest.approx((report.ce_zero, report.kl_zero), abs=1e-5)
    assert report.cosine == report.l2_ratio == report.l2_out == report.l0 == report.l1 == 0
    assert math.isnan(report.relative_reconstruction_bias) and report.explained_variance < 1e-6
    assert report.dead_fraction == 1


def test_an_ablation_that_changes_nothing_has_no_score():
    """The planted model's MLPs write zeros: there is nothing to ablate and nothing to explain."""
    model, sae = small_models.planted(), some_sae(small_models.planted().cfg.d_model)
    report = evaluate_sae(model, sae, small_models.repeated(model), hook_name="blocks.1.hook_mlp_out")
    for name in ("reconstruction_score", "reconstruction_score_mean", "kl_score", "explained_variance", "fvu",
                 "relative_reconstruction_bias"):
        assert math.isnan(getattr(report, name)) and all(map(math.isnan, report.intervals[name])), name
    assert not any(math.isinf(value) for value in report.to_frame()[["value", "low", "high"]].to_numpy().flatten())
    assert abs(report.delta_ce) > 1e-4 and report.kl > 1e-4         # what is defined is there


@pytest.mark.parametrize("resamples", [0, 200])
def test_a_score_that_divides_by_noise_is_not_defined(resamples):
    """Without head 3.2 `tiny` is worse by some stories and better by others: here the quotient would be 3.19."""
    model, sae = small_models.tiny(), some_sae(64, hook_name="blocks.3.attn.hook_z", head=2)
    report = evaluate_sae(model, sae, sample_text(model, 6, 30, seed=7), resamples=resamples)
    assert (report.ce_zero - report.ce_sae) / (report.ce_zero - report.ce_clean) == pytest.approx(3.19, abs=0.1)
    for name, ablated in SCORES.items():
        why = f"not defined: {ablated} − ce_clean may be 0"
        assert math.isnan(getattr(report, name)) and report.undefined[name] == why == report.to_frame().unit[name]
        assert why in repr(report) and all(map(math.isnan, report.intervals.get(name, [math.nan])))
    assert report.kl_score == pytest.approx(1 - report.kl / report.kl_zero) and set(report.undefined) == set(SCORES)


def test_latents_may_be_sparse():
    """As those of SAELens's TopK may be: its `decode` takes them so, and we count them as others."""
    class Sparse(Plain):
        def encode(self, x):
            return super().encode(x).to_sparse()

        def decode(self, latents):
            assert latents.is_sparse
            return super().decode(latents.to_dense())

    model = small_models.multi_head()
    tokens = own_tokens(model)
    same(*(evaluate_sae(model, kind(24), tokens, hook_name=RESIDUAL) for kind in (Sparse, Plain)), rel=0, abs_=0)


def nearly_constant(offset, spread):
    """A copy of multi_head: its second MLP writes a constant vector, plus what it wrote before times `spread`."""
    model = small_models.multi_head.__wrapped__()
    last = model.blocks[1].original_component.mlp.c_proj.original_component
    last.weight.data *= spread
    last.bias.data = offset * torch.randn(24, generator=torch.Generator().manual_seed(0))
    return model


@pytest.mark.parametrize("spread", [0.03, 1.0])
def test_a_variance_that_is_small_beside_the_mean(spread):
    """The mean's square is some thousand times the variance, or more: a difference of float32 sums would be noise."""
    model, sae = nearly_constant(30.0, spread), some_sae(24)
    tokens = own_tokens(model)
    found = found_by_hand(model, sae, tokens, "blocks.1.hook_mlp_out")
    report = evaluate_sae(model, sae, tokens, hook_name="blocks.1.hook_mlp_out")
    assert report.fvu == pytest.approx(summary(found)["fvu"], rel=1e-3)


@pytest.mark.parametrize("size", [0.01, 30.0])
def test_constant_activations_have_no_variance_to_explain(size):
    model = nearly_constant(size, 0.0)
    report = evaluate_sae(model, some_sae(24), own_tokens(model), hook_name="blocks.1.hook_mlp_out")
    assert math.isnan(report.explained_variance) and math.isnan(report.fvu)
    assert math.isnan(report.reconstruction_score_mean) and math.isnan(report.reconstruction_score) == (size < 1)


# --- conventions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [2, 5])
def test_means_of_the_ratios_of_batches(batch_size):
    model = small_models.multi_head()
    tokens, sae = own_tokens(model), some_sae(24)
    mask = all_but_first(tokens)
    mask[2, 3:6] = False
    report = evaluate_sae(model, sae, tokens, hook_name=RESIDUAL, mask=mask, batch_size=batch_size, convention=SAELENS)
    legacy, bias = [], []
    for rows in torch.arange(N).split(batch_size):
        x = torch.cat([full_pass(model, tokens[i], RESIDUAL)[1][mask[i]] for i in rows])
        x_hat = sae(x)
        for one, reconstructed in zip(x, x_hat):
            legacy.append(1 - ((one - reconstructed)**2).sum() / ((one - x.mean(0))**2).sum())
        bias.append((x_hat**2).sum() / (x * x_hat).sum())
    assert report.peers["explained_variance_legacy"] == pytest.approx(float(sum(legacy) / len(legacy)), rel=1e-4)
    assert report.peers["relative_reconstruction_bias"] == pytest.approx(float(sum(bias) / len(bias)), rel=1e-4)


def test_without_everything():
    model = small_models.multi_head()
    tokens, sae = own_tokens(model), some_sae(24)
    full, less = (evaluate_sae(model, sae, tokens, hook_name=RESIDUAL, everything=each) for each in (True, False))
    left_out = {"reverse_kl", "js", "ce_mean", "reconstruction_score_mean"}
    same(less, full, skip=left_out)
    assert all(math.isnan(getattr(less, name)) for name in left_out)
    assert set(full.by_position) - set(less.by_position) == left_out - {"reconstruction_score_mean"}


# --- intervals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("holes", [False, True])
def test_intervals_equal_a_plain_loop_over_the_same_resamples(holes):
    model = small_models.multi_head()
    tokens, sae = own_tokens(model, n=6), some_sae(24)
    mask = all_but_first(tokens)
    if holes:
        mask[0, 2:], mask[3, 4:6] = False, False                    # sequences of different weight
    report = evaluate_sae(model, sae, tokens, hook_name=RESIDUAL, mask=mask, batch_size=4, resamples=40, seed=7)
    found = found_by_hand(model, sae, tokens, RESIDUAL, mask=mask)
    drawn = torch.randint(0, 6, (40, 6), generator=torch.Generator().manual_seed(7)).tolist()
    resampled = [summary(found, sequences) for sequences in drawn]
    assert set(report.intervals) == set(METRICS) - {"dead_fraction"}
    for name, interval in report.intervals.items():
        expected = np.quantile([each[name] for each in resampled], [0.025, 0.975])
        assert interval == pytest.approx(tuple(expected), rel=1e-4, abs=1e-5), name


def test_resamples_and_their_seed():
    model = small_models.multi_head()
    tokens, sae = own_tokens(model), some_sae(24)
    none, one, again, other = (evaluate_sae(model, sae, tokens, hook_name=RESIDUAL, **how) for how in (
        {"resamples": 0}, {"seed": 1}, {"seed": 1}, {"seed": 2}))
    assert none.intervals == {} and one.intervals == again.intervals != other.intervals
    same(none, other, rel=0, abs_=0)
    assert none.to_frame()[["low", "high"]].isna().all(axis=None)


def test_a_resample_without_any_counted_position_is_left_out():
    model = small_models.multi_head()
    tokens = own_tokens(model, n=3)
    mask = all_but_first(tokens)
    mask[1:] = False
    report = evaluate_sae(model, some_sae(24), tokens, hook_name=RESIDUAL, mask=mask)
    assert report.intervals["kl"] == pytest.approx((report.kl, report.kl))      # one sequence: always the same


# --- the table ------------------------------------------------------------------------------------------------------


def test_the_table_in_nats_and_in_bits():
    model = small_models.multi_head()
    report = evaluate_sae(model, some_sae(24), own_tokens(model), hook_name=RESIDUAL)
    nats, bits = report.to_frame(), report.to_frame("bits")
    assert list(nats.index) == list(bits.index) == METRICS and list(nats.columns) == ["value", "low", "high", "unit"]
    assert set(IN_NATS) == {"ce_clean", "ce_sae", "ce_zero", "ce_mean", "delta_ce", "kl", "reverse_kl", "js", "kl_zero"}
    for name in METRICS:
        low, high = report.intervals.get(name, (math.nan, math.nan))
        values, scale = np.array([getattr(report, name), low, high]), math.log(2) if name in IN_NATS else 1
        np.testing.assert_allclose(nats.loc[name, ["value", "low", "high"]].astype(float), values)
        np.testing.assert_allclose(bits.loc[name, ["value", "low", "high"]].astype(float) * scale, values)
        assert (nats.loc[name, "unit"], bits.loc[name, "unit"]) == (("nats", "bits") if name in IN_NATS else ("", ""))
    with pytest.raises(ValueError, match="unit is 'bytes'; it must be nats or bits"):
        report.to_frame("bytes")


def test_by_position_has_short_names():
    model = small_models.multi_head()
    report = evaluate_sae(model, some_sae(24), own_tokens(model), hook_name=RESIDUAL)
    for name in ("ce_clean", "delta_ce", "kl"):
        values = getattr(report, f"{name}_by_position")
        assert values is report.by_position[name] and values.shape == (LENGTH,)
        assert values[[0, -1]].isnan().all() and values[1:-1].isfinite().all()
        assert values[1:-1].mean().item() == pytest.approx(getattr(report, name), abs=1e-6)


# --- bad input ------------------------------------------------------------------------------------------------------


def refused(says, model=None, sae=None, tokens=None, **more):
    """Refused before any pass of the model."""
    model = model or small_models.multi_head()
    sae, tokens = sae or some_sae(24), own_tokens(model) if tokens is None else tokens
    with forbidden_forward(model), pytest.raises(ValueError, match=says):
        evaluate_sae(model, sae, tokens, **{"hook_name": RESIDUAL, **more})


@pytest.mark.parametrize("hook_name", ["blocks.3.hook_resid_pre", "blocks.1.hook_nothing", "blocks.-1.hook_mlp_out"])
def test_an_unknown_place_is_refused(hook_name):
    refused("no place .* it has blocks.0 to blocks.2, each with hook_resid_pre, .*attn.hook_z", hook_name=hook_name)


def test_an_unknown_head_is_refused():
    refused("head is 4; only attn.hook_z has heads, in this model 0 to 3", hook_name="blocks.1.attn.hook_z", head=4)
    refused("head is -1", hook_name="blocks.1.attn.hook_z", head=-1)
    refused("head is 0; only attn.hook_z has heads", head=0)


def test_a_width_that_does_not_fit():
    refused("blocks.1.hook_resid_pre has width 24 here; this autoencoder was made for 23", sae=some_sae(23))
    refused("has width 6 here; this autoencoder was made for 24", hook_name="blocks.1.attn.hook_z", head=1)
    theirs = Plain(24)
    theirs.cfg = types.SimpleNamespace(d_in=25)
    refused("has width 24 here; this autoencoder was made for 25", sae=theirs)


def test_an_autoencoder_from_elsewhere_is_refused_unless_forced():
    model, elsewhere = small_models.multi_head(), "blocks.0.hook_mlp_out"
    ours, theirs, plain = some_sae(24, hook_name=elsewhere), Plain(24), Plain(24)
    metadata = types.SimpleNamespace(hook_name=elsewhere, hook_head_index=None)
    theirs.cfg = types.SimpleNamespace(d_in=24, metadata=metadata)
    for sae, nameless in ((ours, some_sae(24)), (theirs, plain)):
        refused("trained at blocks.0.hook_mlp_out, not at blocks.1.hook_resid_pre.* force=True", sae=sae)
        tokens = own_tokens(model)
        same(evaluate_sae(model, sae, tokens, hook_name=RESIDUAL, force=True),
             evaluate_sae(model, nameless, tokens, hook_name=RESIDUAL))
        same(evaluate_sae(model, sae, tokens), evaluate_sae(model, sae, tokens, hook_name=elsewhere))
    refused("does not say where it belongs: give hook_name", sae=plain, hook_name=None)


def test_an_autoencoder_of_another_head_is_refused_unless_forced():
    model, name = small_models.multi_head(), "blocks.1.attn.hook_z"
    sae, tokens = some_sae(6, hook_name=name, head=1), own_tokens(model)
    refused("head 1.* force=True", sae=sae, hook_name=name, head=2)
    same(evaluate_sae(model, sae, tokens, head=2, force=True),
         evaluate_sae(model, some_sae(6), tokens, hook_name=name, head=2))


def test_masks_that_do_not_fit():
    tokens = own_tokens(small_models.multi_head())
    good = all_but_first(tokens)
    for mask in (good[:, 1:], good[:4], good[0], good[..., None]):
        refused(r"must be torch.bool \(5, 9\)", mask=mask)
    for mask in (good.long(), good.float()):
        refused(rf"the mask is {mask.dtype} \(5, 9\); it must be torch.bool \(5, 9\)", mask=mask)


def test_masks_that_leave_nothing():
    tokens = own_tokens(small_models.multi_head())
    last = torch.zeros_like(tokens, dtype=torch.bool)
    refused("leaves no position to count", mask=last)
    last[:, -1] = True
    for convention in (COURSE, SAELENS):
        refused("leaves no position to count .the last one never counts", mask=last, convention=convention)
    refused("leaves no position to count", tokens=tokens[:, :2])    # BOS and a token that nothing follows


def test_tokens_of_another_shape_are_refused():
    tokens = own_tokens(small_models.multi_head())
    for wrong in (tokens[0], tokens[:0], tokens[:, :1], tokens[..., None]):
        refused(r"must be \[n, pos\] with at least one row of two tokens", tokens=wrong)


@pytest.mark.parametrize("value, hook_name", [(math.nan, RESIDUAL), (-math.inf, "blocks.1.hook_mlp_out")])
def test_activations_that_are_not_finite(value, hook_name):
    model = small_models.multi_head()
    tokens = own_tokens(model)
    model.run_with_cache(tokens)
    before = hook_count(model)

    def spoil(x, hook):
        x = x.clone()
        x[3, 4, 5] = value
        return x

    spoiled = "blocks.0.hook_mlp_out" if hook_name == RESIDUAL else "blocks.1.hook_mlp_out"
    with model.hooks(fwd_hooks=[(spoiled, lambda x, hook: spoil(x, hook) if len(x) == N else x)]):
        with pytest.raises(ValueError, match=f"{hook_name} has activations that are not finite"):
            evaluate_sae(model, some_sae(24), tokens, hook_name=hook_name)
    assert hook_count(model) == before


# --- what it must not leave behind, or need -------------------------------------------------------------------------


@pytest.mark.parametrize("hook_name, head", [PLACES[0], PLACES[6]])
def test_nothing_is_left_on_the_model_or_changed(hook_name, head):
    model = small_models.multi_head()
    tokens, sae = own_tokens(model), some_sae(Site(model, hook_name, head).width).requires_grad_(True)
    model.run_with_cache(tokens)                                    # the library puts hooks of its own on, once
    mask, before, logits = with_holes(tokens), hook_count(model), model(tokens)
    given = [each.clone() for each in (tokens, mask, *sae.parameters())]
    with torch.enable_grad():
        first = evaluate_sae(model, sae, tokens, hook_name=hook_name, head=head, mask=mask)
    assert hook_count(model) == before and torch.equal(model(tokens), logits)
    assert all(map(torch.equal, given, (tokens, mask, *sae.parameters())))
    assert all(each.grad is None for each in (*model.parameters(), *sae.parameters()))
    assert not any(each.requires_grad for each in (first.density, *first.by_position.values()))
    same(evaluate_sae(model, sae, tokens, hook_name=hook_name, head=head, mask=mask), first, rel=0, abs_=0)


class Failing(Identity):
    def decode(self, latents):
        raise ZeroDivisionError


def test_an_error_leaves_no_hook(hook_name=RESIDUAL, head=None):
    model = small_models.multi_head()
    tokens = own_tokens(model)
    model.run_with_cache(tokens)
    before = hook_count(model)
    with pytest.raises(ZeroDivisionError):
        evaluate_sae(model, Failing(), tokens, hook_name=hook_name, head=head)
    assert hook_count(model) == before


@pytest.mark.parametrize("hook_name, holes", [(RESIDUAL, True), ("blocks.1.hook_mlp_out", False)])
def test_live_logits_do_not_grow_with_the_number_of_tokens(monkeypatch, hook_name, holes):
    """How many log-probabilities exist at once, and how many vectors are unembedded at once."""
    model, largest = small_models.multi_head(), []
    monkeypatch.setattr(faithfulness, "LOGITS", 16 * model.cfg.d_vocab)
    log_softmax, alive = faithfulness.log_softmax, []

    def watched(logits):
        out = log_softmax(logits)
        alive[:] = [each for each in alive if each() is not None] + [weakref.ref(out)]
        largest[-1] = [max(largest[-1][0], sum(each().numel() for each in alive)), max(largest[-1][1], logits.numel())]
        return out

    monkeypatch.setattr(faithfulness, "log_softmax", watched)
    for n in (4, 8, 16):
        tokens = own_tokens(model, n, 40)
        mask = with_holes(tokens) if holes else None
        largest.append([0, 0])
        evaluate_sae(model, some_sae(24), tokens, hook_name=hook_name, mask=mask, batch_size=4)
    assert largest[0] == largest[1] == largest[2]
    assert largest[0][1] <= 16 * 30 and largest[0][0] <= (4 * 16 + 2 * 40) * 30
